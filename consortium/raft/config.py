"""How a node is set up, and what it can tell about itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from consortium.raft.storage import Storage

NONE = 0
"""No node: the leader while there is none, the vote while there is none."""
LOCAL_APPEND_THREAD = (1 << 64) - 1
"""Addressee of MsgStorageAppend (see `Config.async_storage_writes`)."""
LOCAL_APPLY_THREAD = (1 << 64) - 2
"""Addressee of MsgStorageApply (see `Config.async_storage_writes`)."""

EVENTS: Mapping[str, str] = {
    "became_follower": "follows in term {term}",
    "became_candidate": "is a candidate in term {term}",
    "became_pre_candidate": "asks in term {term} whether a candidacy would succeed",
    "became_leader": "leads term {term}",
    "campaign": "stands for election after term {term}",
    "campaign_leads": "already leads; no election",
    "campaign_unpromotable": "cannot be elected: no voter here, or a snapshot is being installed",
    "campaign_unapplied_change": "must apply a membership change before an election in {term}",
    "vote_asked": "asked {to:x} for {kind} in term {term}; log ends at {last_term}/{last_index}",
    "vote_received": "got {kind} from {sender:x} in term {term}",
    "vote_refused": "was refused {kind} by {sender:x} in term {term}",
    "vote_tally": "has {granted} {kind} for it and {refused} against",
    "vote_in_lease": (
        "ignored {kind} of {sender:x}: the leader was heard of, {remaining} ticks are left"
    ),
    "vote_cast": "granted {kind} to {sender:x} in term {term}",
    "vote_rejected": "refused {kind} to {sender:x} in term {term}",
    "commit_learned": "learned from {sender:x}'s refusal that entry {index} is committed",
    "higher_term": "saw {kind} of term {message_term} from {sender:x}, its own being {term}",
    "lower_term": "ignored {kind} of past term {message_term} from {sender:x}",
    "stale_append_done": "ignored a finished write of past term {message_term}",
    "quorum_lost": "stepped down: no quorum was heard of for an election timeout",
    "proposal_in_transfer": "refused a proposal: leadership is going to {transferee:x}",
    "proposal_no_leader": "refused a proposal: no leader in term {term}",
    "proposal_not_forwarded": "refused a proposal: leader is {leader:x} and forwarding is off",
    "proposal_too_large": "refused a proposal: too much is uncommitted already",
    "change_ignored": "ignored membership change ({change}) in {configuration}: {reason}",
    "leave_refused": "could not leave {configuration} yet: {error}",
    "leave_begins": "leaves {configuration}",
    "configuration": "now has configuration {configuration}",
    "started": "started with voters {voters} at term {term}, commit {commit}, applied {applied}",
    "no_progress": "ignored a message of {sender:x}, who is no member",
    "append_rejected": "rejected entries after {message_log_term}/{index} from {sender:x}",
    "append_was_rejected": "saw {sender:x} refuse entries after {index}, having {term}/{hint}",
    "progress_decreased": "goes back for {peer:x}: {progress}",
    "snapshot_not_sent": "sends no snapshot to {peer:x}, who has been silent",
    "snapshot_not_ready": "has no snapshot ready for {peer:x}",
    "snapshot_sent": "sent snapshot {index} to {peer:x}",
    "snapshot_pauses": "waits for the snapshot of {peer:x}: {progress}",
    "snapshot_recovered": "no longer needs to wait for the snapshot of {peer:x}: {progress}",
    "snapshot_succeeded": "learned that {peer:x} got its snapshot: {progress}",
    "snapshot_failed": "learned that {peer:x} did not get its snapshot: {progress}",
    "snapshot_begins": "replaces its log by snapshot {index} of term {term}",
    "snapshot_restored": "restored snapshot {index} of term {term}",
    "snapshot_handled": "took snapshot {index} of term {term}",
    "snapshot_ignored": "needs nothing of snapshot {index} of term {term}",
    "snapshot_fast_forward": "had the log of snapshot {index} of term {term}; committed to it",
    "snapshot_deferred": "takes no snapshot while it applies entries up to {applying}",
    "snapshot_not_follower": "was sent a snapshot but does not follow",
    "snapshot_not_member": "was sent a snapshot without itself among the members",
    "unreachable": "could not reach {peer:x}: {progress}",
    "transfer_to_learner": "cannot hand leadership to a learner",
    "transfer_in_progress": "is already handing leadership to {peer:x}",
    "transfer_replaced": "no longer hands leadership to {peer:x}",
    "transfer_to_self": "already leads",
    "transfer_begins": "hands leadership to {peer:x}",
    "transfer_now": "told {peer:x} to stand for election at once",
    "transfer_caught_up": "told {peer:x}, which has caught up, to stand for election",
    "transfer_no_leader": "knows no leader to ask for the transfer",
    "timeout_now": "was told by {sender:x} to stand for election in term {term}",
    "timeout_now_ignored": "ignored being told by {sender:x} to stand for election",
    "forget_leader": "forgets leader {leader:x} of term {term}",
    "forget_leader_lease": "keeps its leader: reads rely on the lease",
    "read_no_leader": "dropped a read: no leader in term {term}",
    "read_malformed": "dropped an answer to a read with {entries} contexts instead of one",
    "read_limit": "dropped a read: {limit} are waiting",
    "conflict": "replaces entry {index} of term {ours} by one of term {theirs}",
    "stable_is_missing": "storage reports entry {index}, which is not waited for",
    "stable_is_snapshot": "storage reports entry {index}, which a snapshot replaced",
    "stable_is_replaced": "storage reports entry {index} of term {term}, since replaced",
    "unstable_replaced": "replaces its unstable entries from {index} on",
    "unstable_truncated": "cuts its unstable entries before {index}",
}
"""What `Config.trace` may report, and how to say it: `EVENTS[name].format(**fields)`."""

type Trace = Callable[[str, Mapping[str, object]], None]


@dataclass(slots=True)
class Config:
    """How one node behaves. Sizes are bytes, times are ticks.

    Attributes:
        id: this node; never 0, and never used again once the node has lost what it persisted.
        election_tick: silence of the leader after which a follower stands for election (between
            once and twice this, at random). Ten times heartbeat_tick is a good choice.
        heartbeat_tick: how often a leader is heard.
        storage: where the persisted log is read.
        random: draws the election timeouts; seeded by the caller.
        applied: the last index that the application has applied, on a restart.
        max_size_per_message: the entries of one append; a larger single entry travels alone.
        max_committed_size_per_ready: the entries handed out for applying at once; 0 for
            max_size_per_message.
        max_uncommitted_size: data of entries a leader takes before it refuses proposals; a single
            proposal is always taken when nothing is uncommitted. 0 for no limit.
        max_inflight_messages: appends under way to one peer.
        max_inflight_bytes: data under way to one peer; 0 for no limit.
        max_pending_reads: read requests waiting for their quorum; more are dropped.
        check_quorum: a leader that hears no quorum for an election timeout steps down, and
            followers do not vote while they hear a leader (thesis 6.2 and 4.2.3).
        pre_vote: ask before raising the term, so that a returning node disturbs nobody
            (thesis 9.6).
        disable_proposal_forwarding: a follower refuses proposals instead of passing them on.
        disable_conf_change_validation: take membership changes as they come; only for callers
            that order and check them themselves.
        step_down_on_removal: a leader that is no longer a voter becomes a follower at once.
        read_only_lease_based: answer reads from the leader's lease, without asking the quorum;
            wrong when clocks drift. Needs check_quorum.
        async_storage_writes: hand out storage work as messages to LOCAL_APPEND_THREAD and
            LOCAL_APPLY_THREAD, whose responses are stepped back, instead of by Ready and advance.
        trace: told of everything worth logging, as a name of `EVENTS` with its fields.
    """

    id: int
    election_tick: int
    heartbeat_tick: int
    storage: Storage
    random: Random
    applied: int = 0
    max_size_per_message: int = 1 << 20
    max_committed_size_per_ready: int = 0
    max_uncommitted_size: int = 64 << 20
    max_inflight_messages: int = 256
    max_inflight_bytes: int = 0
    max_pending_reads: int = 4096
    check_quorum: bool = True
    pre_vote: bool = True
    disable_proposal_forwarding: bool = False
    disable_conf_change_validation: bool = False
    step_down_on_removal: bool = True
    read_only_lease_based: bool = False
    async_storage_writes: bool = False
    trace: Trace | None = None

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            ValueError: naming the setting.
        """
        if not 0 < self.id < LOCAL_APPLY_THREAD:
            raise ValueError(f"id {self.id} is reserved; use one between 1 and 2^64 - 3")
        if self.heartbeat_tick <= 0:
            raise ValueError(f"heartbeat_tick is {self.heartbeat_tick}; it must be positive")
        if self.election_tick <= self.heartbeat_tick:
            raise ValueError(
                f"election_tick {self.election_tick} must exceed heartbeat_tick"
                f" {self.heartbeat_tick}"
            )
        if self.max_inflight_messages <= 0:
            raise ValueError("max_inflight_messages must be positive")
        if self.max_inflight_bytes and self.max_inflight_bytes < self.max_size_per_message:
            raise ValueError("max_inflight_bytes must not be below max_size_per_message")
        if self.read_only_lease_based and not self.check_quorum:
            raise ValueError("read_only_lease_based needs check_quorum")
