"""Agents of three utilities over one ledger in memory: one does what is due, the others wait."""

import asyncio
import logging
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


class Answering:
    """Answers questions as given, each after some time; remembers what was submitted."""

    def __init__(self, clock: Clock, answers: dict[str, Any], takes_s: float = 0.0) -> None:
        self._clock, self._answers, self._takes_s = clock, answers, takes_s
        self.asked: list[str] = []
        self.done: list[Any] = []
        self.going_on = asyncio.Event()
        self.slow_begun = asyncio.Event()
        self.closed = asyncio.Event()

    async def evaluate(self, chaincode: str, function: str, argument: Any = None) -> Any:
        self.asked.append(function)
        self._clock.now += self._takes_s
        return self._answers[function]

    async def submit(self, chaincode: str, function: str, argument: Any = None, **_: Any) -> Any:
        if function == "slow:Act":
            self.slow_begun.set()
            await self.going_on.wait()
        if function == "book:Close":
            self.closed.set()
        if function == "bad:Act":
            raise TypeError("no argument at all")
        if function == "refused:Act" and argument["names"] == ["a"]:
            raise TransactionRefused("not this one")
        self.done.append((function, argument))


def answering(
    answers: dict[str, Any], takes_s: float = 0.0, **settings: Any
) -> tuple[Agent, Answering, Clock]:
    clock = Clock()
    gateway = Answering(clock, answers, takes_s)
    asked = {"energy": list(answers)}
    return (
        Agent(gateway, "A", lambda: ["A"], asked, AgentSettings(**settings), clock),
        gateway,
        clock,
    )


def act(function: str, **argument: Any) -> dict[str, Any]:
    return {"function": function, "argument": argument, "utility": "A"}


async def test_what_goes_wrong_with_one_call_keeps_no_others() -> None:
    agent, gateway, _ = answering(
        {
            "duties:Due": [
                act("bad:Act"),
                act("refused:Act", names=["a"]),
                act("refused:Act", names=["b"]),
            ]
        }
    )
    assert await agent.turn() == 1
    assert agent.counts == {
        ("bad:Act", "failed"): 1,
        ("refused:Act", "refused"): 1,
        ("refused:Act", "done"): 1,
    }
    # Another part of the same duty isn't kept waiting by the one that was refused.
    assert await agent.turn() == 1
    assert gateway.done == [("refused:Act", {"names": ["b"]})] * 2


async def test_books_do_not_wait_for_days() -> None:
    agent, gateway, _ = answering(
        {"duties:Due": [act("slow:Act")], "book:Due": [act("book:Close")]}, poll_s=0.1
    )
    running = asyncio.create_task(agent.run())
    async with asyncio.timeout(60):
        await gateway.slow_begun.wait()
        gateway.closed.clear()
        await gateway.closed.wait()
    assert ("slow:Act", {}) not in gateway.done
    running.cancel()
    await asyncio.wait([running])


async def test_what_takes_long_to_ask_and_leads_to_nothing_is_asked_seldom() -> None:
    due: list[Any] = []
    agent, gateway, clock = answering({"duties:Due": due}, takes_s=4.0)
    await agent.turn()
    clock.now += 39
    await agent.turn()
    assert gateway.asked == ["duties:Due"], "a tenth of the time"
    clock.now += 2
    due.append({**act("x:Act"), "utility": "B"})
    await agent.turn()
    clock.now += 39
    await agent.turn()
    assert len(gateway.asked) == 2, "nor where others have to do it"
    clock.now += 2
    due.append(act("x:Act"))
    await agent.turn()
    await agent.turn()
    assert len(gateway.asked) == 4, "but at once where there is something to do"


async def test_whose_turn_it_is_counts_from_when_it_was_seen_first() -> None:
    call = {"function": "x:Act", "argument": {}}
    clock = Clock()
    gateway = Answering(clock, {"agenda:Due": [call]}, takes_s=3.0)
    members = ["A", "B"]
    agents = {
        name: Agent(gateway, name, lambda: members, {"energy": ["agenda:Due"]},
                    AgentSettings(patience_s=5), clock)
        for name in members
    }  # fmt: skip
    done = dict.fromkeys(members, 0)
    for _ in range(40):
        for name, agent in agents.items():
            done[name] += await agent.turn()
        clock.now += 1
    assert all(done.values()), "the second in line, too, though it seldom asks"


async def test_a_question_that_fails_on_and_on_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Answering):
        async def evaluate(self, chaincode: str, function: str, argument: Any = None) -> Any:
            raise TransactionRefused("a range has 100001 results or more")

    clock = Clock()
    caplog.set_level(logging.WARNING)
    agent = Agent(Broken(clock, {}), "A", lambda: ["A"], {"m": ["duties:Due"]}, clock=clock)
    for _ in range(7):
        await agent.turn()
        clock.now += 61
    assert not caplog.records
    await agent.turn()
    (told,) = caplog.records
    assert "m duties:Due can't be asked what is due, so none of it is done: a range" in (
        told.getMessage()
    )
