"""What a member remembers of another one's promises, and when a disk contradicts it."""

from consortium.raft.witness import Witness
from consortium.wire import raftpb_pb2 as raftpb


def acknowledgement(term: int, index: int) -> raftpb.Message:
    return raftpb.Message(type=raftpb.MsgAppResp, term=term, index=index)


def contradiction(witness: Witness, term: int, log: list[int], vote: int = 0) -> str | None:
    """Of a disk in a term with a log of entries of these terms."""
    return witness.contradiction(
        7, raftpb.HardState(term=term, vote=vote), len(log), lambda index: log[index - 1]
    )


def test_what_was_acknowledged_must_be_there() -> None:
    witness = Witness()
    assert witness.hear(acknowledgement(2, 3), log_term=2)
    assert contradiction(witness, 2, [1, 1, 2]) is None
    assert contradiction(witness, 3, [1, 1]) is None  # a later term has been through all of it
    assert "no term after 1" in str(contradiction(witness, 1, [1, 1, 1]))
    assert "ends at 2" in str(contradiction(witness, 2, [1, 1]))


def test_a_log_that_is_long_enough_may_hold_another_entry_there() -> None:
    """In term 2 already, but the leader's entry had not yet replaced the one of term 1."""
    witness = Witness()
    witness.hear(acknowledgement(2, 3), log_term=2)
    assert "holds one of term 1 there" in str(contradiction(witness, 2, [1, 1, 1]))
    assert contradiction(witness, 2, [1, 1, 0]) is None  # compacted, so committed
    unknown = Witness()
    unknown.hear(acknowledgement(2, 3))
    assert contradiction(unknown, 2, [1, 1, 1]) is None


def test_only_news_is_news() -> None:
    witness = Witness()
    assert witness.hear(acknowledgement(2, 3), log_term=2)
    assert not witness.hear(acknowledgement(2, 2), log_term=2)
    assert not witness.hear(acknowledgement(1, 9), log_term=1)
    assert (witness.acknowledged_index, witness.acknowledged_log_term) == (3, 2)
    assert not witness.hear(raftpb.Message(type=raftpb.MsgPreVoteResp, term=9))


def test_a_vote_must_be_there() -> None:
    witness = Witness()
    witness.hear(raftpb.Message(type=raftpb.MsgVoteResp, term=4))
    assert contradiction(witness, 4, [1], vote=7) is None
    assert "nothing of that vote" in str(contradiction(witness, 4, [1], vote=2))
