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
"""Calls whose turn or failure an agent remembers."""
LONGEST_PAUSE_S = 60.0
"""After failures in a row."""
BY_THE_SECOND = ("book:Due",)
"""What is asked at each turn, even after it had nothing."""
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


def _call(asked: str, one: Mapping[str, Any]) -> Call:
    """A call as a contract names it.

    It is of the chaincode that was asked, and endorsed by the utility that alone can make it,
    unless it says otherwise. Raises AttributeError, KeyError, TypeError or ValueError for what is
    no call.
    """
    utility = one.get("utility")
    endorsing = one.get("endorsing", () if utility is None else (utility,))
    chaincode = one.get("chaincode", asked)
    function, argument = str(one["function"]), dict(one["argument"])
    return Call(str(chaincode), function, argument, utility, tuple(map(str, endorsing)))


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
        self._seen: dict[str, float] = {}
        """Since when a call is known to be due."""
        self._not_before: dict[str, tuple[float, int]] = {}
        """After failures: when to try again, and how many there were."""
        self._ask_again: dict[str, float] = {}
        """When to ask a function again that had nothing."""
        self.counts: dict[tuple[str, str], int] = {}
        """How many calls, by function and outcome: done, late, refused or failed."""

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                busy = await self.turn() > 0
            except Exception:
                # An agent that stopped would be missed only when a book isn't cleared.
                _LOGGER.exception("the agent's turn failed")
                busy = False
            await asyncio.sleep(0 if busy else self._settings.poll_s)

    async def turn(self) -> int:
        """Ask what is due and do what is this utility's turn; return how many calls were done."""
        due: list[Call] = []
        for chaincode, functions in sorted(self._asked.items()):
            for function in functions:
                due += await self._due(chaincode, function)
        now = self._clock()
        known = [call.duty for call in due]
        self._seen = {duty: self._seen.get(duty, now) for duty in known[:MAX_REMEMBERED]}
        members = sorted(self._members())
        ours = [
            call
            for call in due
            if self._is_ours(call, members, now) and self._may_try(call.duty, now)
        ]
        limit = asyncio.Semaphore(self._settings.at_once)

        async def one(call: Call) -> bool:
            async with limit:
                return await self._do(call)

        return sum(await asyncio.gather(*(one(call) for call in ours)))

    async def _due(self, chaincode: str, function: str) -> list[Call]:
        asked = f"{chaincode} {function}"
        now = self._clock()
        if not self._may_try(asked, now) or now < self._ask_again.get(asked, now):
            return []
        try:
            found = await self._gateway.evaluate(chaincode, function)
        except GridLedgerError as error:
            # A channel without this contract yet, or an older package that has no such function.
            self._failed(asked)
            _LOGGER.debug("%s can't be asked what is due: %s", asked, error)
            return []
        try:
            calls = [_call(chaincode, one) for one in found[:MAX_DUE]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # Asking is not endorsed by anybody else: a peer may answer whatever it likes.
            self._failed(asked)
            _LOGGER.warning(
                "%s was answered by something that is no list of calls: %r", asked, error
            )
            return []
        self._not_before.pop(asked, None)
        if not found and function not in BY_THE_SECOND:
            seldom = function == CORRECTIONS
            pause = self._settings.corrections_poll_s if seldom else self._settings.days_poll_s
            self._ask_again[asked] = self._clock() + pause
        return calls

    def _is_ours(self, call: Call, members: Sequence[str], now: float) -> bool:
        if call.utility is not None:
            return call.utility == self._msp_id
        if self._msp_id not in members:
            return False
        first = int.from_bytes(hashlib.sha256(call.duty.encode()).digest()[:8])
        line = (members.index(self._msp_id) - first) % len(members)
        return now - self._seen.get(call.duty, now) >= line * self._settings.patience_s

    def _may_try(self, name: str, now: float) -> bool:
        return now >= self._not_before.get(name, (0.0, 0))[0]

    def _failed(self, name: str) -> None:
        failures = self._not_before.get(name, (0.0, 0))[1] + 1
        pause = min(LONGEST_PAUSE_S, self._settings.poll_s * 2 ** min(failures, 10))
        if len(self._not_before) >= MAX_REMEMBERED:
            self._not_before.clear()
        self._not_before[name] = self._clock() + pause, failures

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
            self._failed(call.duty)
            self._count(call, "refused")
            _LOGGER.info("%s was refused: %s", call, error)
            return False
        except GridLedgerError as error:
            self._failed(call.duty)
            self._count(call, "failed")
            _LOGGER.warning("%s: %s", call, error)
            return False
        self._not_before.pop(call.duty, None)
        self._count(call, "done")
        _LOGGER.info("%s: done in %.2f s", call, self._clock() - started)
        return True

    def _count(self, call: Call, outcome: str) -> None:
        place = call.function, outcome
        self.counts[place] = self.counts.get(place, 0) + 1
