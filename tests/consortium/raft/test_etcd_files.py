"""etcd-io/raft's own scenario files, run as they are when their folder is given.

They are not ours to copy. To run them: clone https://github.com/etcd-io/raft and set RAFT_TESTDATA
to the clone (or to any folder with its testdata/, quorum/testdata/ and confchange/testdata/).
"""

import os
from pathlib import Path

import pytest

from consortium.raft import ConfChangeRefused, Configuration, Progress, quorum
from consortium.raft.confchange import Changer
from consortium.raft.tracker import Inflights
from consortium.wire import raftpb_pb2 as raftpb
from tests.consortium.raft import datadriven
from tests.consortium.raft.interaction import CHANGE_LETTERS, Interaction

ROOT = os.environ.get("RAFT_TESTDATA", "")


def files(folder: str) -> list[object]:
    found = sorted((Path(ROOT) / folder).glob("*.txt")) if ROOT else []
    if not found:
        reason = "RAFT_TESTDATA does not name a clone of etcd-io/raft"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(path, id=path.stem) for path in found]


@pytest.mark.parametrize("path", files("testdata"))
def test_interaction(path: Path) -> None:
    datadriven.run(path, Interaction(etcd_words=True).handle)


@pytest.mark.parametrize("path", files("confchange/testdata"))
def test_confchange(path: Path) -> None:
    letters = {letter: kind for kind, letter in CHANGE_LETTERS.items()}
    state: tuple[Configuration, dict[int, Progress]] = (Configuration(), {})
    last_index = 0

    def handle(command: datadriven.Command) -> str:
        nonlocal state, last_index
        changes = [
            raftpb.ConfChangeSingle(type=letters[word[0]], node_id=int(word[1:]))
            for word in command.input.split()
        ]
        try:
            changer = Changer(*state, last_index, lambda: Inflights(10, 0))
            if command.name == "simple":
                state = changer.simple(changes)
            elif command.name == "enter-joint":
                state = changer.enter_joint(changes, auto_leave=command.flag("autoleave") or False)
            else:
                state = changer.leave_joint()
        except ConfChangeRefused as error:
            return f"{error}\n"
        finally:
            last_index += 1
        lines = [f"{node}: {progress}\n" for node, progress in sorted(state[1].items())]
        return f"{state[0]}\n" + "".join(lines)

    datadriven.run(path, handle)


def describe_indexes(voters: set[int], acknowledged: dict[int, int]) -> str:
    """Draw who has acknowledged how much: the more x, the more others are behind."""
    if not voters:
        return "<empty majority quorum>"
    width = len(voters)
    ranked = sorted(voters, key=lambda voter: (acknowledged.get(voter, 0), voter))
    bars: dict[int, int] = {}
    for place, voter in enumerate(ranked):
        before = ranked[place - 1]
        same = place and acknowledged.get(before, 0) == acknowledged.get(voter, 0)
        bars[voter] = bars[before] if same else place
    text = " " * width + "    idx\n"
    for voter in sorted(voters):
        bar = "?" + " " * width
        if voter in acknowledged:
            bar = "x" * bars[voter] + ">" + " " * (width - bars[voter])
        text += f"{bar} {acknowledged.get(voter, 0):5d}    (id={voter:x})\n"
    return text


@pytest.mark.parametrize("path", files("quorum/testdata"))
def test_quorum(path: Path) -> None:
    def handle(command: datadriven.Command) -> str:
        one = [int(node) for node in command.option("cfg") if node]
        joint = bool(command.option("cfgj"))
        other = [int(node) for node in command.option("cfgj") if node not in ("", "zero")]
        voters = list(dict.fromkeys(one + other))
        if command.name == "committed":
            given = [value for value in command.option("idx") if value]
            words = [0 if value == "_" else int(value) for value in given]
        else:
            given = [value for value in command.option("votes") if value]
            words = [{"y": 2, "n": 1, "_": 0}[value] for value in given]
        if len(voters) != len(words):
            members = " ".join(f"{node}:{{}}" for node in sorted(voters))
            numbers = " ".join(map(str, words))
            return f"error: mismatched input (explicit or _) for voters map[{members}]: [{numbers}]"
        known = {voter: word for voter, word in zip(voters, words, strict=True) if word}
        if command.name == "vote":
            votes = {voter: word == 2 for voter, word in known.items()}
            result = quorum.joint_vote(one, other, votes)
            assert result is quorum.joint_vote(other, one, votes)
            return f"{result.value}\n"
        index = quorum.joint_committed_index(one, other, known)
        assert index == quorum.joint_committed_index(other, one, known)
        if not joint:
            assert index == quorum.joint_committed_index(one, one, known)
        shown = "∞" if index == quorum.INFINITE_INDEX else str(index)
        return describe_indexes(set(voters), known) + f"{shown}\n"

    datadriven.run(path, handle)
