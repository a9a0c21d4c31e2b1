"""Every function of every contract over a channel with trades, days and bills: bad input.

Each field of each argument, nested ones too, is given what it must not be: ids with separators,
numbers beyond its limits and beyond 64 bits, numbers and texts that are none. Each function is
called by strangers, with unknown ids, with instants that are misaligned, long past or far ahead,
and again with what it was given before. Whatever it says is an error of a class of its own with a
sentence, and nothing has changed. `test_arguments.py` has the bytes that aren't JSON of ours.
"""

import random
import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from consortium.chaincode.api import (
    ContractError,
    Creator,
    Forbidden,
    Function,
    InvalidArgument,
    LimitExceeded,
)
from consortium.contracts import chaincodes
from tests.consortium.contracts.town import DAY, START, Town
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    OPERATOR,
    SUPPLIER,
    home,
    writes,
)

FUNCTIONS: dict[str, Function] = {
    name: function
    for chaincode in chaincodes().values()
    for name, function in chaincode.functions.items()
}
STRANGERS = (
    Creator("NobodyMSP", b"", "eve", "client", {}),
    Creator("NobodyMSP", b"", "eve", "client", {"gridledger.role": "home",
                                                "gridledger.connection": "CP-1"}),
    Creator("AuroraMSP", b"", "eve", "client", {"gridledger.role": "home"}),
    home("CP-9"),
)  # fmt: skip
FOR_ALL = {"challenge:Raise", "challenge:RaiseBill"}
"""Whoever was shown a record may prove it wrong."""
KNOWN: dict[str, tuple[Any, ...]] = {
    "connection_id": ("CP-1", "CP-2"),
    "account": ("CP-1", "SUPPLIER-AURORA"),
    "payee": ("CP-2",),
    "seller": ("CP-1",),
    "buyer": ("CP-2", "SUPPLIER-AURORA"),
    "utility": ("AuroraMSP",),
    "supplier": ("AuroraMSP", "BorealMSP"),
    "msp_id": ("AuroraMSP",),
    "holder": ("AuroraMSP",),
    "product": ("ANY",),
    "zone": ("NORTH", "SOUTH"),
    "day": (DAY,),
    "from_day": (DAY,),
    "to_day": ("2026-11-23",),
    "until_day": ("2026-12-23",),
    "run": ("provisional", 1),
    "meter_id": ("M-CP-1",),
    "interval_start": (START + 50 * 900, START + 7 * 86_400),
    "window_start": (START + 7 * 86_400,),
    "window_end": (START + 7 * 86_400 + 900,),
    "effective_from": (START + 30 * 86_400,),
    "from": (START,),
    "to": (START + 86_400,),
    "at": (START + 40 * 86_400, START),
    "order_id": ("o-1",),
    "energy_wh": (100,),
}


def value_of(name: str, rule: Any, chance: random.Random) -> Any:
    """Something that a rule takes, likely something that stands on the ledger."""
    if hasattr(rule, "fields"):
        return {
            one.json_name: value_of(one.json_name, one.rule, chance)
            for one in rule.fields
            if one.required or chance.random() < 0.5
        }
    if hasattr(rule, "item"):
        return [value_of(name, rule.item, chance) for _ in range(chance.randint(1, 2))]
    if hasattr(rule, "rule"):
        return value_of(name, rule.rule, chance)
    if hasattr(rule, "options"):
        return chance.choice(rule.options)
    for known in chance.sample(KNOWN.get(name, ()), len(KNOWN.get(name, ()))):
        try:
            rule.read(known, name)
        except ContractError:
            continue
        return known
    if hasattr(rule, "minimum"):
        return str(min(max(chance.randint(0, 5), rule.minimum), rule.maximum))
    if hasattr(rule, "pattern"):
        for text in (
            "X-1",
            "a" * 64,
            "2026-11-22",
            "EUR",
            "x1",
            "Ann",
            "12-01",
            "2026-11",
            "final",
            "st/x",
        ):
            try:
                rule.read(text, name)
            except ContractError:
                continue
            return text
        return "X"
    return bool(chance.getrandbits(1))


def leaves(name: str, rule: Any, value: Any, where: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """(path, name, rule) of all texts and integers within a value."""
    if hasattr(rule, "fields"):
        for one in rule.fields:
            if one.json_name in value:
                yield from leaves(
                    one.json_name, one.rule, value[one.json_name], (*where, one.json_name)
                )
    elif hasattr(rule, "item"):
        for index, item in enumerate(value):
            yield from leaves(name, rule.item, item, (*where, index))
    elif hasattr(rule, "rule"):
        if value is not None:
            yield from leaves(name, rule.rule, value, where)
    elif hasattr(rule, "minimum") or hasattr(rule, "pattern") or hasattr(rule, "options"):
        yield where, name, rule


def changed(argument: Any, path: tuple[Any, ...], value: Any) -> Any:
    made = deepcopy(argument)
    place = made
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return made


def wrong_values(rule: Any) -> Iterator[Any]:
    if hasattr(rule, "minimum"):
        yield from (str(rule.minimum - 1), str(rule.maximum + 1), str(2**63), 2**53, "1.5")
    else:
        yield from ("A/B", "A\0B", "", 7, "€" * 400)


@pytest.fixture(scope="module")
def lively() -> Town:
    """Two homes that have traded in an auction, whose day is settled, with an order to come."""
    town = Town.of("CP-1", "CP-2", product=True)
    town.order("CP-1", "offer", 1000, 90_000, 50)
    town.order("CP-2", "bid", 601, 110_000, 50)
    town.clear(50)
    town.read_day({"CP-1": {50: (0, 900)}, "CP-2": {50: (700, 0)}})
    town.settle()
    town.world.submit(OPERATOR, "gate:Begin", at=town.world.now)
    return town


def outcome(
    town: Town, caller: Creator, function: str, argument: Any
) -> tuple[ContractError | None, list[str]]:
    """How it is refused, and what it would write; any other error is a mistake of the contract."""
    try:
        answer = town.world.simulate(caller, function, argument)
    except ContractError as error:
        return error, []
    return None, writes(answer.results)


def refusal(town: Town, caller: Creator, function: str, argument: Any) -> ContractError | None:
    error, written = outcome(town, caller, function, argument)
    if error is None:
        assert FUNCTIONS[function].writes or not written
        return None
    sentence = str(error)
    assert error.status in (400, 403, 404, 409, 413), sentence
    assert len(sentence) > 10, sentence
    assert "\n" not in sentence
    return error


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
def test_each_field_is_refused_by_its_name(lively: Town, function: str) -> None:
    chance = random.Random(function)
    argument = value_of("", FUNCTIONS[function].argument, chance)
    state = lively.world.state.values()
    for path, name, rule in leaves("", FUNCTIONS[function].argument, argument, ()):
        for wrong in wrong_values(rule):
            try:
                rule.read(wrong, name)
            except InvalidArgument, LimitExceeded:
                pass
            else:
                assert hasattr(rule, "pattern"), (function, name, wrong)
                assert name in (
                    "reason", "answer", "name", "bookmark", "public_key", "certificate",
                    "note", "claimed_for", "support", "place", "description", "id", "text", "rule",
                ), (function, name, wrong)  # fmt: skip
                continue
            error = refusal(lively, OPERATOR, function, changed(argument, path, wrong))
            assert isinstance(error, InvalidArgument | LimitExceeded), (function, path, wrong)
            assert re.search(rf"\b{re.escape(name)}\b", str(error)), (function, path, str(error))
    assert lively.world.state.values() == state


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
def test_no_plausible_argument_is_more_than_refused(lively: Town, function: str) -> None:
    """Unknown ids, instants out of place, functions called before their time, twice, by anybody."""
    state = lively.world.state.values()
    for number in range(2):
        chance = random.Random(f"{function} {number}")
        argument = value_of("", FUNCTIONS[function].argument, chance)
        for caller in (BOREAL_OPERATOR, ADMIN, SUPPLIER):
            refusal(lively, caller, function, argument)
        spots = list(leaves("", FUNCTIONS[function].argument, argument, ()))
        for path, _, rule in spots:
            if hasattr(rule, "minimum"):
                odd: tuple[Any, ...] = (str(rule.maximum), str(START + 1))
            elif hasattr(rule, "options"):
                odd = rule.options
            else:
                odd = ("NO-SUCH-ID", "0" * 64, "9999-12-31", "2026-02-30")
            for one in odd:
                try:
                    rule.read(one, "x")
                except ContractError:
                    continue
                made = changed(argument, path, one)
                refusal(lively, chance.choice((OPERATOR, lively.homes["CP-1"])), function, made)
    assert lively.world.state.values() == state, "nothing was committed"


@pytest.mark.parametrize(
    "function",
    sorted(name for name, one in FUNCTIONS.items() if one.writes and name not in FOR_ALL),
)
def test_strangers_change_nothing(lively: Town, function: str) -> None:
    for number in range(4):
        argument = value_of("", FUNCTIONS[function].argument, random.Random(f"{function} {number}"))
        for stranger in STRANGERS:
            _, written = outcome(lively, stranger, function, argument)
            assert not written, (function, stranger.attributes, argument)


def test_strangers_are_told_who_may(lively: Town) -> None:
    """Most functions that write say so before anything else: who may, in a sentence."""
    told = 0
    names = [name for name, one in FUNCTIONS.items() if one.writes]
    for name in names:
        for number in range(2):
            argument = value_of("", FUNCTIONS[name].argument, random.Random(f"{name} {number}"))
            error = refusal(lively, STRANGERS[0], name, argument)
            if isinstance(error, Forbidden):
                assert "may" in str(error), error
                told += 1
                break
    assert told > 0.5 * len(names), (told, len(names))
