"""A consenter dies before or after each of its writes; started again, it goes on with the rest."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from consortium.ledger.channel_config import RaftOptions
from consortium.orderer.chain import Chain
from consortium.orderer.raft_storage import ChannelLog
from consortium.wire import common_pb2
from tests.consortium.orderer.conftest import NetworkFactory
from tests.consortium.orderer.consenters import PATIENCE_S, chain_of
from tests.consortium.orderer.network import CHANNEL, Network, broadcast, until
from tests.consortium.orderer.test_ordering import assert_same_chain, ordered

WRITES: list[tuple[type, str, bool]] = [
    (ChannelLog, "persist", False),  # entries and votes
    (Chain, "_apply", False),  # committed entries become blocks
    (Chain, "_checkpoint", False),  # blocks become durable
    (ChannelLog, "compact", False),  # the log is cut
    (Chain, "_catch_up", True),  # a snapshot is installed
    (Chain, "take_pulled", True),  # a block that was fetched for it
]
"""What is done, and whether it is done by who was away for long."""


class Killed(Exception):
    """The process ends here."""


class Victim:
    """Dies at one of its writes."""

    def __init__(self, network: Network, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.network = network
        self.number = number
        self.armed: tuple[str, str, int] | None = None
        self.dead = False
        for owner, name, _ in WRITES:
            monkeypatch.setattr(owner, name, self._dying(name, getattr(owner, name)))

    def _dying(self, name: str, write: Callable[..., Awaitable[Any]]) -> Any:
        victim = self

        async def dying(one: object, *arguments: Any, **more: Any) -> Any:
            if not victim._is_its(one) or victim.armed is None or victim.armed[0] != name:
                return await write(one, *arguments, **more)
            _, when, left = victim.armed
            victim.armed = (name, when, left - 1)
            if left:
                return await write(one, *arguments, **more)
            if when == "after":
                await write(one, *arguments, **more)
            victim.dead = True
            raise Killed

        return dying

    def _is_its(self, one: object) -> bool:
        raft_id = getattr(one, "raft_id", None) or getattr(
            getattr(one, "record", None), "raft_id", 0
        )
        return raft_id == self.number + 1

    def arm(self, name: str, when: str, skipped: int = 0) -> None:
        """Let it die at its next such write but `skipped`."""
        self.armed, self.dead = (name, when, skipped), False

    async def dies(self) -> None:
        """Wait until it has, and end its process."""
        await until(lambda: self.dead, PATIENCE_S)
        self.armed = None
        await self.network.crash(self.number)


async def load(network: Network, number: int, count: int = 1) -> list[bytes]:
    """Envelopes that one of the others has acknowledged."""
    sent = []
    for _ in range(count):
        envelopes = [network.envelope(1000) for _ in range(50)]
        while True:
            async with network.channel(number) as channel:
                answers = await broadcast(channel, envelopes)
            done, envelopes = envelopes[: len(answers.statuses)], envelopes[len(answers.statuses) :]
            sent += [
                one
                for one, status in zip(done, answers.statuses, strict=True)
                if status == common_pb2.SUCCESS
            ]
            if not envelopes:
                break
    return sent


@pytest.mark.timeout(300)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_at_each_write(
    make_network: NetworkFactory, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    network = await make_network(
        raft=RaftOptions(tick_interval_s=0.05, snapshot_interval_bytes=20_000),
        max_message_count=10,
    )
    number = await network.follower()
    other = next(one for one in range(3) if one != number)
    victim = Victim(network, number, monkeypatch)
    sent: Counter[bytes] = Counter()
    for _, name, was_away in WRITES:
        if was_away:
            await network.stop(number)
            before = chain_of(network.orderers[other]).status()["raft_first"]
            while chain_of(network.orderers[other]).status()["raft_first"] == before:
                sent.update(await load(network, other, 3))
            victim.arm(name, when)
            await network.start(number)
        else:
            victim.arm(name, when, 1)
            while not victim.dead:
                sent.update(await load(network, other))
        await victim.dies()
        await network.start(number)
        await network.same_height()
        assert_same_chain(network)
    assert len(sent) > 300
    for one in range(3):
        transactions = ordered(network, one)
        assert all(transactions[each] for each in sent)
    assert CHANNEL in network.running()[number].channels
