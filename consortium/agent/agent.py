"""Asks what is due, and does it when it is this utility's turn.

All utilities see the same calls. A hash of each says whose turn it is; the others wait in line, so
that normally one transaction is made and not three, and a utility that is down costs only patience.
Where two do the same at once, the key that the call writes picks the winner, and the other one's
transaction fails validation: that is no error here.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self

from gridledger_client import CommitFailed, GridLedgerError, TransactionRefused

_LOGGER = logging.getLogger(__name__)

MAX_DUE = 1_000
"""Calls that one contract may name at a time; what is beyond is left for the next time."""
MAX_REMEMBERED = 10_000
"""Failures that an agent remembers."""
LONGEST_PAUSE_S = 60.0
"""After failures in a row."""
BY_THE_SECOND = ("book:Due", "gate:Due")
"""What can't wait: asked and done apart from all else, and even after it had nothing."""
SHARE_OF_TIME = 10
"""A question that leads to nothing is asked again after so many times as long as it took."""
TELL_AFTER = 8
"""So many failures in a row of a question are told: by then a new channel has its contracts."""
CORRECTIONS = "duties:Corrections"
"""Adjustments of what is final: looked for seldom, since it goes through days of arrivals."""
STEPS = "duties:Steps"
"""What takes supply away from homes: asked only where the utility allows its agent to."""


class AgentError(ValueError):
    """An `agent.json` that can't be used; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How often an agent asks, and how long it leaves a call to the utility whose turn it is.

    They stand in `agent.json` of the peer's folder; all may be left out.
    """

    enabled: bool = True
    poll_s: float = 2.0
    days_poll_s: float = 10.0
    """How often about days and bills, where there was nothing the last time."""
    corrections_poll_s: float = 60.0
    """How often corrections of final days are looked for, where there were none the last time."""
    patience_s: float = 5.0
    at_once: int = 8
    """Transactions in flight."""
    suspend: bool = False
    """Whether it limits and suspends homes by itself, when everything allows it. Off: people do."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file, or take the defaults where there is none; raises AgentError."""
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError) as error:
            raise AgentError(f"{path} cannot be read: {error}") from None
        if not isinstance(found, dict):
            raise AgentError(f"{path} must be a JSON object")
        names = [field.name for field in fields(cls)]
        if unknown := sorted(found.keys() - names):
            raise AgentError(f"{path}: {unknown[0]!r} is not known; known are {', '.join(names)}")
        for name in ("enabled", "suspend"):
            if not isinstance(found.get(name, True), bool):
                raise AgentError(f"{path}: {name} must be true or false")
        for name, least, most in (
            ("poll_s", 0.1, 3600),
            ("days_poll_s", 0.1, 3600),
            ("corrections_poll_s", 0.1, 86_400),
            ("patience_s", 0, 3600),
            ("at_once", 1, 100),
        ):
            value = found.get(name, least)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise AgentError(f"{path}: {name} must be a number")
            if not least <= value <= most:
                raise AgentError(f"{path}: {name} is {value}, but must be {least} to {most}")
        if not isinstance(found.get("at_once", 1), int):
            raise AgentError(f"{path}: at_once must be a whole number")
        return cls(**found)


def asked_of(functions: Collection[str], settings: AgentSettings) -> list[str]:
    """Which of a chaincode's functions an agent asks what is due."""
    found = [name for name in functions if name.endswith(":Due") or name == CORRECTIONS]
    return found + [name for name in functions if name == STEPS and settings.suspend]


class Gateway(Protocol):
    """What an agent needs of `gridledger_client.GatewayClient`."""

    async def evaluate(self, chaincode: str, function: str, argument: Any = None) -> Any:
        """Ask."""

    async def submit(
        self,
        chaincode: str,
        function: str,
        argument: Any = None,
        *,
        endorsing_organizations: Collection[str] = (),
    ) -> Any:
        """Do, and wait until it is committed."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that a contract says is due."""

    chaincode: str
    function: str
    argument: Mapping[str, Any]
    utility: str | None
    """The MSP id of the only utility that can make it; None: any."""
    endorsing: tuple[str, ...] = ()
    """Whose endorsement is asked for; none named: what the policies ask for."""

    asked: str = ""
    """What named it."""

    @property
    def name(self) -> str:
        """Itself, with all that it names: another part of the same duty may well succeed."""
        raw = json.dumps([self.chaincode, self.function, self.argument], sort_keys=True)
        return hashlib.sha256(raw.encode()).hexdigest()

    @property
    def duty(self) -> str:
        """What it is about, whatever lists it names at the moment."""
        named = {
            name: value for name, value in self.argument.items() if not isinstance(value, list)
        }
        return json.dumps([self.chaincode, self.function, named], sort_keys=True)

    def __str__(self) -> str:
        about = (
            f"{name}={value}"
            for name, value in sorted(self.argument.items())
            if not isinstance(value, list | dict)
        )
        return " ".join((self.function, *about))


def _call(asked: str, question: str, one: Mapping[str, Any]) -> Call:
    """A call as a contract names it.

    It is of the chaincode that was asked, and endorsed by the utility that alone can make it,
    unless it says otherwise. Raises AttributeError, KeyError, TypeError or ValueError for what is
    no call.
    """
    utility = one.get("utility")
    endorsing = one.get("endorsing", () if utility is None else (utility,))
    chaincode = one.get("chaincode", asked)
    function, argument = str(one["function"]), dict(one["argument"])
    return Call(
        str(chaincode), function, argument, utility, tuple(map(str, endorsing)), asked=question
    )


class Agent:
    """One utility's agent.

    Args:
        gateway: A client with the identity of an operator of the utility.
        msp_id: The utility.
        members: MSP ids of all utilities that may run agents; asked anew at each turn.
        asked: The functions to ask, by chaincode.
        settings: How often, and how patiently.
    """

    def __init__(
        self,
        gateway: Gateway,
        msp_id: str,
        members: Callable[[], Sequence[str]],
        asked: Mapping[str, Sequence[str]],
        settings: AgentSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateway = gateway
        self._msp_id = msp_id
        self._members = members
        self._asked = asked
        self._settings = settings or AgentSettings()
        self._clock = clock
        urgent = {name: [one for one in asked[name] if one in BY_THE_SECOND] for name in asked}
        rest = {name: [one for one in asked[name] if one not in BY_THE_SECOND] for name in asked}
        self._lanes = (urgent, rest)
        """What is asked and done apart, by chaincode: hours of settling keep no book open."""
        self._seen: dict[str, dict[str, float]] = {}
        """Since when a call is known to be due, by the question that it answers."""
        self._not_before: dict[str, tuple[float, int]] = {}
        """After failures: when to try again, and how many there were."""
        self._ask_again: dict[str, float] = {}
        """When to ask a function again that led to nothing."""
        self.counts: dict[tuple[str, str], int] = {}
        """How many calls, by function and outcome: done, late, refused or failed."""

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as lanes:
            for lane in range(len(self._lanes)):
                lanes.create_task(self._run(lane))

    async def _run(self, lane: int) -> None:
        while True:
            try:
                busy = await self._turn(lane) > 0
            except Exception:
                # An agent that stopped would be missed only when a book isn't cleared.
                _LOGGER.exception("the agent's turn failed")
                busy = False
            await asyncio.sleep(0 if busy else self._settings.poll_s)

    async def turn(self) -> int:
        """Ask what is due and do what is this utility's turn; return how many calls were done."""
        return sum([await self._turn(lane) for lane in range(len(self._lanes))])

    async def _turn(self, lane: int) -> int:
        due: list[Call] = []
        took: dict[str, float] = {}
        for chaincode, functions in sorted(self._lanes[lane].items()):
            for function in functions:
                began = self._clock()
                calls = await self._due(chaincode, function)
                due += calls
                if calls:
                    took[calls[0].asked] = self._clock() - began
        now = self._clock()
        members = sorted(self._members())
        ours = [
            call
            for call in due
            if self._is_ours(call, members, now) and self._may_try(call.name, now)
        ]
        limit = asyncio.Semaphore(self._settings.at_once)

        async def one(call: Call) -> bool:
            async with limit:
                return await self._do(call)

        done = await asyncio.gather(*(one(call) for call in ours))
        led_to = {call.asked for call, was_done in zip(ours, done, strict=True) if was_done}
        for asked, seconds in took.items():
            if asked not in led_to:
                self._ask_again[asked] = self._clock() + SHARE_OF_TIME * seconds
        return sum(done)

    async def _due(self, chaincode: str, function: str) -> list[Call]:
        asked = f"{chaincode} {function}"
        now = self._clock()
        if not self._may_try(asked, now) or now < self._ask_again.get(asked, now):
            return []
        try:
            found = await self._gateway.evaluate(chaincode, function)
        except GridLedgerError as error:
            # A channel without this contract yet, or an older package that has no such function.
            failures = self._failed(asked)
            _LOGGER.log(
                logging.DEBUG if failures % TELL_AFTER else logging.WARNING,
                "%s can't be asked what is due, so none of it is done: %s",
                asked,
                error,
            )
            return []
        try:
            calls = [_call(chaincode, asked, one) for one in found[:MAX_DUE]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # Asking is not endorsed by anybody else: a peer may answer whatever it likes.
            self._failed(asked)
            _LOGGER.warning(
                "%s was answered by something that is no list of calls: %r", asked, error
            )
            return []
        self._not_before.pop(asked, None)
        before = self._seen.get(asked, {})
        self._seen[asked] = {call.duty: before.get(call.duty, now) for call in calls}
        if not found:
            pause = self._settings.days_poll_s
            if function in BY_THE_SECOND:
                pause = 0.0
            elif function == CORRECTIONS:
                pause = self._settings.corrections_poll_s
            took = self._clock() - now
            self._ask_again[asked] = self._clock() + max(pause, SHARE_OF_TIME * took)
        return calls

    def _is_ours(self, call: Call, members: Sequence[str], now: float) -> bool:
        if call.utility is not None:
            return call.utility == self._msp_id
        if self._msp_id not in members:
            return False
        first = int.from_bytes(hashlib.sha256(call.duty.encode()).digest()[:8])
        line = (members.index(self._msp_id) - first) % len(members)
        return now - self._seen[call.asked][call.duty] >= line * self._settings.patience_s

    def _may_try(self, name: str, now: float) -> bool:
        return now >= self._not_before.get(name, (0.0, 0))[0]

    def _failed(self, name: str) -> int:
        """Leave it alone for a while; how many times in a row it has failed."""
        failures = self._not_before.get(name, (0.0, 0))[1] + 1
        pause = min(LONGEST_PAUSE_S, self._settings.poll_s * 2 ** min(failures, 10))
        if len(self._not_before) >= MAX_REMEMBERED:
            self._not_before.clear()
        self._not_before[name] = self._clock() + pause, failures
        return failures

    async def _do(self, call: Call) -> bool:
        started = self._clock()
        try:
            await self._gateway.submit(
                call.chaincode,
                call.function,
                call.argument,
                endorsing_organizations=call.endorsing,
            )
        except CommitFailed as error:
            # Another utility was faster, or somebody's act came in between: asked anew at once.
            self._count(call, "late")
            _LOGGER.debug("%s: %s", call, error)
            return False
        except TransactionRefused as error:
            self._failed(call.name)
            self._count(call, "refused")
            _LOGGER.info("%s was refused: %s", call, error)
            return False
        except GridLedgerError as error:
            self._failed(call.name)
            self._count(call, "failed")
            _LOGGER.warning("%s: %s", call, error)
            return False
        except Exception:
            # What was named may be no argument at all; the other calls go on.
            self._failed(call.name)
            self._count(call, "failed")
            _LOGGER.exception("%s failed", call)
            return False
        self._not_before.pop(call.name, None)
        self._count(call, "done")
        _LOGGER.info("%s: done in %.2f s", call, self._clock() - started)
        return True

    def _count(self, call: Call, outcome: str) -> None:
        place = call.function, outcome
        self.counts[place] = self.counts.get(place, 0) + 1
