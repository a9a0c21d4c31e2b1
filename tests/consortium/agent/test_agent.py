"""Agents of three utilities over one ledger in memory: one does what is due, the others wait."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from consortium.agent import Agent, AgentError, AgentSettings
from consortium.chaincode.api import ContractError, Creator
from gridledger_client import CommitFailed, TransactionRefused
from tests.consortium.contracts.test_books import INTERVAL, Exchange

MEMBERS = ("AuroraMSP", "BorealMSP", "CieloMSP")
ASKED = {"energy": ["book:Due"], "metering": ["metering:Due"]}


class Ledger:
    """What one utility's operator asks of the world; refusals as a gateway tells them."""

    def __init__(self, exchange: Exchange, msp_id: str) -> None:
        self._world = exchange.world
        self._caller = Creator(msp_id, b"", "op", "client", {"gridledger.role": "operator"})
        self.stale: Any = None

    async def evaluate(self, chaincode: str, function: str, argument: Any = None) -> Any:
        try:
            return self._world.evaluate(self._caller, function, **(argument or {}))
        except ContractError as error:
            raise TransactionRefused(str(error)) from None

    async def submit(self, chaincode: str, function: str, argument: Any = None, **_: Any) -> Any:
        try:
            simulated = self._world.simulate(self._caller, function, dict(argument))
        except ContractError as error:
            raise TransactionRefused(str(error)) from None
        await asyncio.sleep(0)  # others endorse meanwhile
        if self._world.state.commit(simulated.results) != [0]:
            raise CommitFailed(simulated.transaction_id, "MVCC_READ_CONFLICT", 1)
        return simulated.value


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def agents(exchange: Exchange, clock: Clock, **settings: Any) -> list[Agent]:
    return [
        Agent(
            Ledger(exchange, msp_id),
            msp_id,
            lambda: MEMBERS,
            ASKED,
            AgentSettings(**settings),
            clock,
        )
        for msp_id in MEMBERS
    ]


@pytest.fixture
def exchange() -> Exchange:
    exchange = Exchange()
    for name in ("S-1", "B-1"):
        exchange.add(name)
    exchange.place("S-1", "offer", 60_000, 1000)
    exchange.place("B-1", "bid", 100_000, 1000)
    return exchange


@pytest.mark.parametrize(
    "answer",
    [
        {"a": 1},
        None,
        7,
        ["book:Clear"],
        [{"function": "x"}],
        [{"function": "x", "argument": 7}],
        [{"function": "x", "argument": "y"}],
        [{"function": 7, "argument": {}, "chaincode": [], "endorsing": [{}]}],
        [None],
    ],
)
async def test_a_peer_that_answers_anything(exchange: Exchange, answer: Any) -> None:
    class Liar(Ledger):
        async def evaluate(self, chaincode: str, function: str, argument: Any = None) -> Any:
            return answer

    liar = Liar(exchange, "AuroraMSP")
    agent = Agent(liar, "AuroraMSP", lambda: MEMBERS, ASKED, AgentSettings(), Clock())
    assert await agent.turn() == 0


async def test_a_book_is_cleared_once_and_by_one(exchange: Exchange) -> None:
    clock = Clock()
    three = agents(exchange, clock)
    assert [await agent.turn() for agent in three] == [0, 0, 0]
    exchange.world.now = INTERVAL - 3600
    for _ in range(10):
        for agent in three:
            await agent.turn()
    assert exchange.order("B-1")["local_wh"] == "1000"
    done: dict[str, int] = {}
    for agent in three:
        for (function, outcome), count in agent.counts.items():
            assert outcome == "done"
            done[function] = done.get(function, 0) + count
    assert done == {"book:Close": 1, "book:Aggregate": 2, "book:Clear": 1, "book:Apply": 2}


async def test_at_the_same_time_the_key_picks_the_winner(exchange: Exchange) -> None:
    clock = Clock()
    three = agents(exchange, clock, patience_s=0)
    exchange.world.now = INTERVAL - 3600
    for _ in range(10):
        await asyncio.gather(*(agent.turn() for agent in three))
    assert exchange.order("B-1")["local_wh"] == "1000"
    outcomes = {outcome for agent in three for _, outcome in agent.counts}
    assert outcomes == {"done", "late"}


async def test_a_utility_that_is_down_costs_patience_only(exchange: Exchange) -> None:
    clock = Clock()
    exchange.world.now = INTERVAL - 3600
    alone = agents(exchange, clock)[2]
    for _ in range(40):
        await alone.turn()
        clock.now += 2.0
    assert exchange.order("B-1")["local_wh"] == "1000"


async def test_what_is_refused_is_tried_again_after_a_pause(exchange: Exchange) -> None:
    clock = Clock()
    exchange.world.now = INTERVAL - 3600
    agent = Agent(
        Refusing(exchange, "AuroraMSP"), "AuroraMSP", lambda: ["AuroraMSP"], ASKED, clock=clock
    )
    for _ in range(5):
        await agent.turn()
    assert agent.counts == {("book:Close", "refused"): 1}
    clock.now += 5
    await agent.turn()
    assert agent.counts == {("book:Close", "refused"): 2}


class Refusing(Ledger):
    async def submit(self, *_: Any, **__: Any) -> Any:
        raise TransactionRefused("not today")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "must be a JSON object"),
        ("{", "cannot be read"),
        ('{"poll": 1}', "'poll' is not known; known are enabled, poll_s"),
        ('{"poll_s": 0}', "poll_s is 0, but must be 0.1 to 3600"),
        ('{"poll_s": "1"}', "poll_s must be a number"),
        ('{"at_once": 1.5}', "at_once must be a whole number"),
        ('{"enabled": 1}', "enabled must be true or false"),
        ('{"suspend": "yes"}', "suspend must be true or false"),
        ('{"corrections_poll_s": 0}', "corrections_poll_s is 0, but must be 0.1 to 86400"),
    ],
)
def test_settings(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "agent.json"
    assert AgentSettings.load(path) == AgentSettings()
    path.write_text('{"enabled": false, "poll_s": 5}')
    assert AgentSettings.load(path) == AgentSettings(enabled=False, poll_s=5)
    path.write_text(text)
    with pytest.raises(AgentError, match=said):
        AgentSettings.load(path)
