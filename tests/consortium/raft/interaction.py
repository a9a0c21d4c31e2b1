"""A cluster driven by scenario files, printing everything that it does.

The commands and the shape of what they print are those of etcd-io/raft's `rafttest`, so that its
files can be run as they are; there, what the core reports is put in etcd's words (`ETCD_LINES`).
In our own scenarios it is put in the core's (`consortium.raft.EVENTS`).
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import Any

from consortium.raft import (
    EVENTS,
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    NO_LIMIT,
    Config,
    LocalMessageRefused,
    MemoryStorage,
    MessageRefused,
    ProposalDropped,
    RawNode,
    Ready,
    UnknownSenderRefused,
    confchange,
)
from consortium.raft.messages import new_message, sender_of
from consortium.wire import raftpb_pb2 as raftpb
from tests.consortium.raft.datadriven import Command

LEVELS = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL", "NONE")

_LOG_ID = "[logterm: {last_term}, index: {last_index}"
_ASKED = "{sender:x} [logterm: {message_log_term}, index: {index}] at term {term}"

# How etcd-io/raft logs the same events: its files compare these lines too.
ETCD_LINES: Mapping[str, tuple[str, str]] = {
    "became_follower": ("INFO", "{id:x} became follower at term {term}"),
    "became_candidate": ("INFO", "{id:x} became candidate at term {term}"),
    "became_pre_candidate": ("INFO", "{id:x} became pre-candidate at term {term}"),
    "became_leader": ("INFO", "{id:x} became leader at term {term}"),
    "campaign": ("INFO", "{id:x} is starting a new election at term {term}"),
    "campaign_leads": ("DEBUG", "{id:x} ignoring MsgHup because already leader"),
    "campaign_unpromotable": ("WARN", "{id:x} is unpromotable and can not campaign"),
    "campaign_unapplied_change": (
        "WARN",
        (
            "{id:x} cannot campaign at term {term} since there are still pending configuration"
            " changes to apply"
        ),
    ),
    "vote_asked": (
        "INFO",
        "{id:x} " + _LOG_ID + "] sent {kind} request to {to:x} at term {term}",
    ),
    "vote_received": ("INFO", "{id:x} received {kind} from {sender:x} at term {term}"),
    "vote_refused": ("INFO", "{id:x} received {kind} rejection from {sender:x} at term {term}"),
    "vote_tally": (
        "INFO",
        "{id:x} has received {granted} {kind} votes and {refused} vote rejections",
    ),
    "vote_in_lease": (
        "INFO",
        "{id:x} "
        + _LOG_ID
        + ", vote: {vote:x}] ignored {kind} from "
        + _ASKED
        + ": lease is not expired (remaining ticks: {remaining})",
    ),
    "vote_cast": ("INFO", "{id:x} " + _LOG_ID + ", vote: {vote:x}] cast {kind} for " + _ASKED),
    "vote_rejected": (
        "INFO",
        "{id:x} " + _LOG_ID + ", vote: {vote:x}] rejected {kind} from " + _ASKED,
    ),
    "higher_term": (
        "INFO",
        (
            "{id:x} [term: {term}] received a {kind} message with higher term from {sender:x}"
            " [term: {message_term}]"
        ),
    ),
    "lower_term": (
        "INFO",
        (
            "{id:x} [term: {term}] ignored a {kind} message with lower term from {sender:x}"
            " [term: {message_term}]"
        ),
    ),
    "stale_append_done": (
        "INFO",
        (
            "{id:x} [term: {term}] ignored entry appends from a MsgStorageAppendResp message with"
            " lower term [term: {message_term}]"
        ),
    ),
    "quorum_lost": ("WARN", "{id:x} stepped down to follower since quorum is not active"),
    "proposal_in_transfer": (
        "DEBUG",
        (
            "{id:x} [term {term}] transfer leadership to {transferee:x} is in progress; dropping"
            " proposal"
        ),
    ),
    "proposal_no_leader": ("INFO", "{id:x} no leader at term {term}; dropping proposal"),
    "proposal_not_forwarded": (
        "INFO",
        "{id:x} not forwarding to leader {leader:x} at term {term}; dropping proposal",
    ),
    "proposal_too_large": (
        "WARN",
        (
            "{id:x} appending new entries to log would exceed uncommitted entry size limit;"
            " dropping proposal"
        ),
    ),
    "change_ignored": (
        "INFO",
        "{id:x} ignoring conf change {change} at config {configuration}: {reason}",
    ),
    "leave_refused": (
        "DEBUG",
        "not initiating automatic transition out of joint configuration {configuration}: {error}",
    ),
    "leave_begins": (
        "INFO",
        "initiating automatic transition out of joint configuration {configuration}",
    ),
    "configuration": ("INFO", "{id:x} switched to configuration {configuration}"),
    "started": (
        "INFO",
        (
            "newRaft {id:x} [peers: [{voters}], term: {term}, commit: {commit}, applied: {applied},"
            " lastindex: {last_index}, lastterm: {last_term}]"
        ),
    ),
    "no_progress": ("DEBUG", "{id:x} no progress available for {sender:x}"),
    "append_rejected": (
        "DEBUG",
        (
            "{id:x} [logterm: {term}, index: {index}] rejected MsgApp [logterm: {message_log_term},"
            " index: {index}] from {sender:x}"
        ),
    ),
    "append_was_rejected": (
        "DEBUG",
        (
            "{id:x} received MsgAppResp(rejected, hint: (index {hint}, term {term})) from "
            "{sender:x} for index {index}"
        ),
    ),
    "progress_decreased": ("DEBUG", "{id:x} decreased progress of {peer:x} to [{progress}]"),
    "snapshot_not_sent": (
        "DEBUG",
        "ignore sending snapshot to {peer:x} since it is not recently active",
    ),
    "snapshot_sent": (
        "DEBUG",
        (
            "{id:x} [firstindex: {first_index}, commit: {commit}] sent snapshot[index: {index},"
            " term: {term}] to {peer:x} [{progress}]"
        ),
    ),
    "snapshot_pauses": (
        "DEBUG",
        "{id:x} paused sending replication messages to {peer:x} [{progress}]",
    ),
    "snapshot_recovered": (
        "DEBUG",
        (
            "{id:x} recovered from needing snapshot, resumed sending replication messages to"
            " {peer:x} [{progress}]"
        ),
    ),
    "snapshot_succeeded": (
        "DEBUG",
        "{id:x} snapshot succeeded, resumed sending replication messages to {peer:x} [{progress}]",
    ),
    "snapshot_failed": (
        "DEBUG",
        "{id:x} snapshot failed, resumed sending replication messages to {peer:x} [{progress}]",
    ),
    "snapshot_begins": (
        "INFO",
        "log [{log}] starts to restore snapshot [index: {index}, term: {term}]",
    ),
    "snapshot_restored": (
        "INFO",
        (
            "{id:x} [commit: {commit}, lastindex: {last_index}, lastterm: {last_term}] restored"
            " snapshot [index: {index}, term: {term}]"
        ),
    ),
    "snapshot_handled": (
        "INFO",
        "{id:x} [commit: {commit}] restored snapshot [index: {index}, term: {term}]",
    ),
    "snapshot_ignored": (
        "INFO",
        "{id:x} [commit: {commit}] ignored snapshot [index: {index}, term: {term}]",
    ),
    "snapshot_fast_forward": (
        "INFO",
        (
            "{id:x} [commit: {commit}, lastindex: {last_index}, lastterm: {last_term}]"
            " fast-forwarded commit to snapshot [index: {index}, term: {term}]"
        ),
    ),
    "unreachable": (
        "DEBUG",
        "{id:x} failed to send message to {peer:x} because it is unreachable [{progress}]",
    ),
    "transfer_to_learner": ("DEBUG", "{id:x} is learner. Ignored transferring leadership"),
    "transfer_in_progress": (
        "INFO",
        (
            "{id:x} [term {term}] transfer leadership to {peer:x} is in progress, ignores request"
            " to same node {peer:x}"
        ),
    ),
    "transfer_replaced": (
        "INFO",
        "{id:x} [term {term}] abort previous transferring leadership to {peer:x}",
    ),
    "transfer_to_self": (
        "DEBUG",
        "{id:x} is already leader. Ignored transferring leadership to self",
    ),
    "transfer_begins": ("INFO", "{id:x} [term {term}] starts to transfer leadership to {peer:x}"),
    "transfer_now": (
        "INFO",
        "{id:x} sends MsgTimeoutNow to {peer:x} immediately as {peer:x} already has up-to-date log",
    ),
    "transfer_caught_up": (
        "INFO",
        "{id:x} sent MsgTimeoutNow to {peer:x} after received MsgAppResp",
    ),
    "transfer_no_leader": (
        "INFO",
        "{id:x} no leader at term {term}; dropping leader transfer msg",
    ),
    "timeout_now": (
        "INFO",
        (
            "{id:x} [term {term}] received MsgTimeoutNow from {sender:x} and starts an election to"
            " get leadership."
        ),
    ),
    "timeout_now_ignored": (
        "DEBUG",
        "{id:x} [term {term} state {role}] ignored MsgTimeoutNow from {sender:x}",
    ),
    "forget_leader": ("INFO", "{id:x} forgetting leader {leader:x} at term {term}"),
    "forget_leader_lease": ("ERROR", "ignoring MsgForgetLeader due to ReadOnlyLeaseBased"),
    "read_no_leader": ("INFO", "{id:x} no leader at term {term}; dropping index reading msg"),
    "conflict": (
        "INFO",
        "found conflict at index {index} [existing term: {ours}, conflicting term: {theirs}]",
    ),
    "stable_is_missing": ("INFO", "entry at index {index} missing from unstable log; ignoring"),
    "stable_is_snapshot": ("INFO", "entry at index {index} matched unstable snapshot; ignoring"),
    "stable_is_replaced": (
        "INFO",
        (
            "entry at (index,term)=({index},{term}) mismatched with entry at ({index},{now}) in"
            " unstable log; ignoring"
        ),
    ),
    "unstable_replaced": ("INFO", "replace the unstable entries from index {index}"),
    "unstable_truncated": ("INFO", "truncate the unstable entries before index {index}"),
}
ETCD_ERRORS: Mapping[type[Exception], str] = {
    ProposalDropped: "raft proposal dropped",
    UnknownSenderRefused: "raft: cannot step as peer not found",
    LocalMessageRefused: "raft: cannot step raft local message",
}

CHANGE_LETTERS = {
    raftpb.ConfChangeAddNode: "v",
    raftpb.ConfChangeAddLearnerNode: "l",
    raftpb.ConfChangeRemoveNode: "r",
    raftpb.ConfChangeUpdateNode: "u",
}


# Text


def describe_target(node: int) -> str:
    names = {0: "None", LOCAL_APPEND_THREAD: "AppendThread", LOCAL_APPLY_THREAD: "ApplyThread"}
    return names.get(node, f"{node:x}")


def describe_changes(change: raftpb.ConfChangeV2) -> str:
    return " ".join(f"{CHANGE_LETTERS[one.type]}{one.node_id}" for one in change.changes)


def describe_entry(entry: raftpb.Entry) -> str:
    change = confchange.from_entry(entry)
    if change is None:
        text = json.dumps(entry.Data.decode())
    else:
        text = describe_changes(confchange.as_v2(change))
    words = [f"{entry.Term}/{entry.Index}", raftpb.EntryType.Name(entry.Type), text]
    return " ".join(word for word in words if word)


def describe_conf_state(state: raftpb.ConfState) -> str:
    def ids(nodes: Any) -> str:
        return "[" + " ".join(map(str, nodes)) + "]"

    return (
        f"Voters:{ids(state.voters)} VotersOutgoing:{ids(state.voters_outgoing)}"
        f" Learners:{ids(state.learners)} LearnersNext:{ids(state.learners_next)}"
        f" AutoLeave:{str(state.auto_leave).lower()}"
    )


def describe_snapshot(snapshot: raftpb.Snapshot) -> str:
    metadata = snapshot.metadata
    return (
        f"Index:{metadata.index} Term:{metadata.term}"
        f" ConfState:{describe_conf_state(metadata.conf_state)}"
    )


def describe_message(message: raftpb.Message, indent: str = "") -> str:
    text = (
        f"{indent}{describe_target(sender_of(message))}->{describe_target(message.to)}"
        f" {raftpb.MessageType.Name(message.type)} Term:{message.term}"
        f" Log:{message.logTerm}/{message.index}"
    )
    if message.reject:
        text += f" Rejected (Hint: {message.rejectHint})"
    if message.commit:
        text += f" Commit:{message.commit}"
    if message.vote:
        text += f" Vote:{message.vote}"
    if len(message.entries) == 1:
        text += f" Entries:[{describe_entry(message.entries[0])}]"
    elif message.entries:
        lines = "".join(f"\n{indent}  {describe_entry(entry)}" for entry in message.entries)
        text += f" Entries:[{lines}\n{indent}]"
    if message.snapshot.metadata.index:
        text += f"\n{indent}  Snapshot: {describe_snapshot(message.snapshot)}"
    if message.responses:
        lines = "".join(f"\n{describe_message(one, indent + '  ')}" for one in message.responses)
        text += f" Responses:[{lines}\n{indent}]"
    return text


def describe_ready(ready: Ready) -> str:
    lines = []
    if ready.soft_state is not None:
        lines.append(f"Lead:{ready.soft_state.leader} State:{ready.soft_state.role.value}")
    if ready.hard_state is not None:
        state = ready.hard_state
        vote = f" Vote:{state.vote}" if state.vote else ""
        lines.append(f"HardState Term:{state.term}{vote} Commit:{state.commit}")
    if ready.read_states:
        reads = " ".join(
            f"{{{one.index} [{' '.join(map(str, one.context))}]}}" for one in ready.read_states
        )
        lines.append(f"ReadStates [{reads}]")
    if ready.entries:
        lines += ["Entries:", *map(describe_entry, ready.entries)]
    if ready.snapshot is not None:
        lines.append(f"Snapshot {describe_snapshot(ready.snapshot)}")
    if ready.committed_entries:
        lines += ["CommittedEntries:", *map(describe_entry, ready.committed_entries)]
    if ready.messages:
        lines += ["Messages:", *map(describe_message, ready.messages)]
    if not lines:
        return "<empty Ready>"
    return "".join(
        f"{line}\n" for line in [f"Ready MustSync={str(ready.must_sync).lower()}:", *lines]
    )


# The cluster


class HistoryStorage(MemoryStorage):
    """Storage whose latest snapshot is always the state as applied."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[raftpb.Snapshot] = []

    def initial_state(self) -> tuple[raftpb.HardState, raftpb.ConfState]:
        return super().initial_state()[0], self.history[-1].metadata.conf_state

    def snapshot(self) -> raftpb.Snapshot:
        return self.history[-1]


class Member:
    """One node with its disk and its work in progress."""

    def __init__(self, config: Config, storage: HistoryStorage) -> None:
        self.config = config
        self.storage = storage
        self.node = RawNode(config)
        self.append_work: list[raftpb.Message] = []
        self.apply_work: list[raftpb.Message] = []


class Interaction:
    """Runs the commands of one scenario file."""

    def __init__(self, *, etcd_words: bool = False) -> None:
        self._etcd_words = etcd_words
        self._members: list[Member] = []
        self._messages: list[raftpb.Message] = []
        self._output: list[str] = []
        self._level = 0

    def handle(self, command: Command) -> str:
        """Run one command and return what it prints."""
        self._output = []
        handler: Callable[[Command], None] = getattr(self, "_do_" + command.name.replace("-", "_"))
        error = ""
        try:
            handler(command)
        except (ProposalDropped, MessageRefused) as problem:
            error = self._error(problem)
        text = "".join(self._output)
        return (text + error) or "ok"

    def _error(self, error: Exception) -> str:
        return ETCD_ERRORS[type(error)] if self._etcd_words else str(error)

    def _print(self, text: str) -> None:
        if LEVELS[self._level] != "NONE":
            self._output.append(text)

    def _trace(self, event: str, fields: Mapping[str, object]) -> None:
        level, text = ETCD_LINES.get(event, ("INFO", ""))
        if LEVELS.index(level) < self._level:
            return
        if self._etcd_words:
            shown = dict(fields)
            if event == "change_ignored":
                shown["change"] = _etcd_change(fields["change"])
            if event == "started":
                shown["voters"] = ",".join(f"{node:x}" for node in fields["voters"])  # type: ignore[attr-defined]
            if event == "leave_refused":
                shown["error"] = ETCD_ERRORS[ProposalDropped]
            self._print(f"{level} {text.format(**shown)}\n")
        else:
            shown = dict(fields)
            if event == "change_ignored":
                shown["change"] = describe_changes(fields["change"])  # type: ignore[arg-type]
            self._print(f"{fields['id']:x} {EVENTS[event].format(**shown)}\n")

    def _indented(self, what: Callable[[], object]) -> None:
        outer, self._output = self._output, []
        try:
            what()
        finally:
            lines = "".join(self._output).splitlines()
            outer += [f"  {line}\n" for line in lines]
            self._output = outer

    def _member(self, command: Command) -> Member:
        return self._members[int(command.plain()[0]) - 1]

    # Building

    def _do_add_nodes(self, command: Command) -> None:
        def number(name: str, default: int) -> int:
            return int((command.option(name) or [str(default)])[0])

        snapshot = raftpb.Snapshot(metadata=raftpb.SnapshotMetadata(term=1))
        metadata = snapshot.metadata
        metadata.conf_state.voters.extend(map(int, command.option("voters")))
        metadata.conf_state.learners.extend(map(int, command.option("learners")))
        for index in command.option("index"):
            metadata.index = int(index)
        for content in command.option("content"):
            snapshot.data = content.encode()
        bootstrap = bool(metadata.index)
        if not bootstrap:
            snapshot = raftpb.Snapshot()

        for _ in range(int(command.plain()[0])):
            storage = HistoryStorage()
            if bootstrap:
                storage.apply_snapshot(snapshot)
            storage.history.append(snapshot)
            log = [int(term) for term in command.option("log")]
            if log:
                # Of an earlier life: entries after the snapshot, of these terms.
                storage.append(
                    [
                        raftpb.Entry(Term=term, Index=metadata.index + place, Data=b"%d" % term)
                        for place, term in enumerate(log, 1)
                    ]
                )
                storage.set_hard_state(
                    raftpb.HardState(term=number("term", log[-1]), commit=metadata.index)
                )
            config = Config(
                id=len(self._members) + 1,
                election_tick=3,
                heartbeat_tick=1,
                storage=storage,
                random=Random(len(self._members)),
                applied=metadata.index if bootstrap else 0,
                max_size_per_message=number("max-size", NO_LIMIT),
                max_committed_size_per_ready=number("max-committed-size-per-ready", NO_LIMIT),
                max_uncommitted_size=number("max-uncommitted-size", 0),
                max_inflight_messages=number("inflight", 1 << 31),
                max_inflight_bytes=number("inflight-bytes", 0),
                check_quorum=command.flag("checkquorum") or False,
                pre_vote=command.flag("prevote") or False,
                disable_proposal_forwarding=command.flag("disable-proposal-forwarding") or False,
                disable_conf_change_validation=command.flag("disable-conf-change-validation")
                or False,
                step_down_on_removal=command.flag("step-down-on-removal") or False,
                read_only_lease_based=command.option("read-only") == ["lease-based"],
                async_storage_writes=command.flag("async-storage-writes") or False,
                trace=self._trace,
            )
            self._members.append(Member(config, storage))

    def _do_restart(self, command: Command) -> None:
        """Crash a node; it comes back with what it had persisted and applied."""
        at = int(command.plain()[0]) - 1
        member = self._members[at]
        member.config.applied = member.storage.history[-1].metadata.index
        self._members[at] = Member(member.config, member.storage)
        self._messages = [one for one in self._messages if sender_of(one) != one.to]

    # Input

    def _do_campaign(self, command: Command) -> None:
        self._member(command).node.campaign()

    def _do_propose(self, command: Command) -> None:
        data = command.plain()[1].encode()
        for size in command.option("size"):
            data = data.ljust(int(size), b".")
        self._member(command).node.propose(data)

    def _do_propose_conf_change(self, command: Command) -> None:
        letters = {letter: kind for kind, letter in CHANGE_LETTERS.items()}
        changes = [
            raftpb.ConfChangeSingle(type=letters[word[0]], node_id=int(word[1:]))
            for word in command.input.split()
        ]
        change: confchange.ConfChange
        if command.flag("v1"):
            change = raftpb.ConfChange(type=changes[0].type, node_id=changes[0].node_id)
        else:
            transition = {
                "auto": raftpb.ConfChangeTransitionAuto,
                "implicit": raftpb.ConfChangeTransitionJointImplicit,
                "explicit": raftpb.ConfChangeTransitionJointExplicit,
            }[(command.option("transition") or ["auto"])[0]]
            change = raftpb.ConfChangeV2(transition=transition, changes=changes)
        self._member(command).node.propose_conf_change(change)

    def _do_tick_election(self, command: Command) -> None:
        member = self._member(command)
        for _ in range(member.config.election_tick):
            member.node.tick()

    def _do_tick_heartbeat(self, command: Command) -> None:
        member = self._member(command)
        for _ in range(member.config.heartbeat_tick):
            member.node.tick()

    def _do_set_randomized_election_timeout(self, command: Command) -> None:
        raft = self._member(command).node._raft
        raft.randomized_election_timeout = int(command.option("timeout")[0])

    def _do_transfer_leadership(self, command: Command) -> None:
        source, target = int(command.option("from")[0]), int(command.option("to")[0])
        self._members[source - 1].node.transfer_leader(target)

    def _do_forget_leader(self, command: Command) -> None:
        self._member(command).node.forget_leader()

    def _do_read_index(self, command: Command) -> None:
        self._member(command).node.read_index(command.plain()[1].encode())

    def _do_report_unreachable(self, command: Command) -> None:
        self._member(command).node.report_unreachable(int(command.plain()[1]))

    def _do_report_snapshot(self, command: Command) -> None:
        ok = command.flag("ok") is not False
        self._member(command).node.report_snapshot(int(command.plain()[1]), ok)

    def _do_send_snapshot(self, command: Command) -> None:
        source, target = map(int, command.plain())
        member = self._members[source - 1]
        message = new_message(
            raftpb.MsgSnap,
            source,
            to=target,
            term=member.node.status().term,
            snapshot=member.storage.snapshot(),
        )
        self._messages.append(message)
        self._print(describe_message(message))

    # Looking

    def _do_log_level(self, command: Command) -> None:
        self._set_level(command.plain()[0])

    def _set_level(self, name: str) -> None:
        self._level = LEVELS.index(name.upper())

    def _do_raft_log(self, command: Command) -> None:
        storage = self._member(command).storage
        first, last = storage.first_index(), storage.last_index()
        if last < first:
            self._print(f"log is empty: first index={first}, last index={last}")
            return
        for entry in storage.entries(first, last + 1, NO_LIMIT):
            self._print(describe_entry(entry) + "\n")

    def _do_raft_state(self, _command: Command) -> None:
        for member in self._members:
            status = member.node.status()
            votes = status.id in status.configuration.all_voters
            self._print(
                f"{status.id}: {status.role.value} {'(Voter)' if votes else '(Non-Voter)'}"
                f" Term:{status.term} Lead:{status.leader}\n"
            )

    def _do_status(self, command: Command) -> None:
        for node, progress in self._member(command).node.status().progress.items():
            self._print(f"{node}: {progress}\n")

    def _do_compact(self, command: Command) -> None:
        self._member(command).storage.compact(int(command.plain()[1]))
        self._do_raft_log(command)

    # Working

    def _do_process_ready(self, command: Command) -> None:
        self._each(command, "handling Ready", self._process_ready)

    def _do_process_append_thread(self, command: Command) -> None:
        self._each(command, "processing append thread", self._process_append)

    def _do_process_apply_thread(self, command: Command) -> None:
        self._each(command, "processing apply thread", self._process_apply)

    def _each(self, command: Command, doing: str, what: Callable[[Member], None]) -> None:
        ids = list(map(int, command.plain()))
        for node in ids:
            member = self._members[node - 1]
            if len(ids) > 1:
                self._print(f"> {node} {doing}\n")
                self._indented(partial(what, member))
            else:
                what(member)

    def _process_ready(self, member: Member) -> None:
        ready = member.node.ready()
        self._print(describe_ready(ready))
        if not member.config.async_storage_writes:
            self._persist(member, ready.hard_state, ready.entries, ready.snapshot)
            self._apply(member, ready.committed_entries)
        for message in ready.messages:
            if message.to == LOCAL_APPEND_THREAD:
                member.append_work.append(message)
            elif message.to == LOCAL_APPLY_THREAD:
                member.apply_work.append(message)
            else:
                self._messages.append(message)
        if not member.config.async_storage_writes:
            member.node.advance()

    def _process_append(self, member: Member) -> None:
        if not member.append_work:
            self._print("no append work to perform")
            return
        message = self._begin(member.append_work)
        state = raftpb.HardState(term=message.term, vote=message.vote, commit=message.commit)
        snapshot = message.snapshot if message.snapshot.metadata.index else None
        changed = state.term or state.vote or state.commit
        self._persist(member, state if changed else None, message.entries, snapshot)
        self._respond(message)

    def _process_apply(self, member: Member) -> None:
        if not member.apply_work:
            self._print("no apply work to perform")
            return
        message = self._begin(member.apply_work)
        self._apply(member, message.entries)
        self._respond(message)

    def _begin(self, work: list[raftpb.Message]) -> raftpb.Message:
        message = work.pop(0)
        shown = raftpb.Message()
        shown.CopyFrom(message)
        del shown.responses[:]
        self._print(f"Processing:\n{describe_message(shown)}\n")
        return message

    def _respond(self, message: raftpb.Message) -> None:
        self._print("Responses:\n")
        for response in message.responses:
            self._print(describe_message(response) + "\n")
            self._messages.append(response)

    def _persist(
        self,
        member: Member,
        state: raftpb.HardState | None,
        entries: Any,
        snapshot: raftpb.Snapshot | None,
    ) -> None:
        if state is not None:
            member.storage.set_hard_state(state)
        if snapshot is not None:
            member.storage.apply_snapshot(snapshot)
        member.storage.append(list(entries))

    def _apply(self, member: Member, entries: Any) -> None:
        """Apply to a state machine that is the concatenation of all data."""
        history = member.storage.history
        for entry in entries:
            change = confchange.from_entry(entry)
            last = history[-1]
            state = last.metadata.conf_state
            if change is not None:
                state = member.node.apply_conf_change(change)
            data = entry.Data if change is None else change.context
            history.append(
                raftpb.Snapshot(
                    data=last.data + data,
                    metadata=raftpb.SnapshotMetadata(
                        index=entry.Index, term=entry.Term, conf_state=state
                    ),
                )
            )

    def _do_deliver_msgs(self, command: Command) -> None:
        drop = list(map(int, command.option("drop")))
        kinds = [raftpb.MessageType.Value(name) for name in command.option("type")]
        kind = kinds[0] if kinds else None
        handled = 0
        for node in map(int, command.plain()):
            handled += self._deliver(node, kind)
        for node in drop:
            handled += self._deliver(node, kind, drop=True)
        if not handled:
            self._print("no messages\n")

    def _take(self, to: int, kind: int | None, *, drop: bool) -> list[raftpb.Message]:
        def chosen(message: raftpb.Message) -> bool:
            sender = sender_of(message)
            local = sender == message.to or sender >= LOCAL_APPLY_THREAD
            return (
                message.to == to and not (drop and local) and (kind is None or message.type == kind)
            )

        taken = [message for message in self._messages if chosen(message)]
        self._messages = [message for message in self._messages if not chosen(message)]
        return taken

    def _deliver(self, to: int, kind: int | None = None, *, drop: bool = False) -> int:
        taken = self._take(to, kind, drop=drop)
        for message in taken:
            self._print(("dropped: " if drop else "") + describe_message(message) + "\n")
            if drop:
                continue
            try:
                self._members[to - 1].node.step(message)
            except (ProposalDropped, MessageRefused) as error:
                self._print(self._error(error) + "\n")
        return len(taken)

    def _do_stabilize(self, command: Command) -> None:
        level = self._level
        for name in command.option("log-level"):
            self._set_level(name)
        try:
            ids = list(map(int, command.plain())) or list(range(1, len(self._members) + 1))
            while self._round(ids):
                pass
        finally:
            self._level = level

    def _round(self, ids: list[int]) -> bool:
        """Let every node do what it can once; False when nobody could do anything."""
        busy = False
        members = [(node, self._members[node - 1]) for node in ids]

        def work(node: int, doing: str, what: Callable[[], object]) -> None:
            nonlocal busy
            busy = True
            self._print(f"> {node} {doing}\n")
            self._indented(what)

        for node, member in members:
            if member.node.has_ready():
                work(node, "handling Ready", partial(self._process_ready, member))
        for node, _ in members:
            if any(message.to == node for message in self._messages):
                work(node, "receiving messages", partial(self._deliver, node))
        for node, member in members:
            if member.append_work:
                work(node, "processing append thread", partial(self._all_append, member))
        for node, member in members:
            if member.apply_work:
                work(node, "processing apply thread", partial(self._all_apply, member))
        return busy

    def _all_append(self, member: Member) -> None:
        while member.append_work:
            self._process_append(member)

    def _all_apply(self, member: Member) -> None:
        while member.apply_work:
            self._process_apply(member)


def _etcd_change(change: object) -> str:
    assert isinstance(change, raftpb.ConfChangeV2)
    text = f"transition:{raftpb.ConfChangeTransition.Name(change.transition)}"
    for one in change.changes:
        text += f" changes:{{type:{raftpb.ConfChangeType.Name(one.type)} node_id:{one.node_id}}}"
    if change.context:
        text += f" context:{json.dumps(change.context.decode())}"
    return text
