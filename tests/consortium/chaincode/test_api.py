"""Arguments and answers: one JSON object in, the same bytes out everywhere."""

import re
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.chaincode.api import (
    MAX_INTEGER,
    MIN_INTEGER,
    AtMost,
    Chaincode,
    Choice,
    Context,
    Contract,
    ContractError,
    Identifier,
    Integer,
    InvalidArgument,
    InvariantError,
    LimitExceeded,
    Text,
    _record_of,
    canonical_json,
    ensure,
    query,
    stored_record,
    transaction,
    under,
    verify_p256,
)


@dataclass(frozen=True)
class Item:
    number: Annotated[int, Integer(0, 10)]
    from_: Identifier
    color: Annotated[str, Choice("red", "blue")] = "red"


class Echo(Contract):
    name: ClassVar[str] = "echo"

    @query
    def say(
        self,
        context: Context,
        *,
        number: Annotated[int, Integer()] = 0,
        item: Item | None = None,
        items: Annotated[tuple[Item, ...], AtMost(2)] = (),
        flag: bool = False,
    ) -> object:
        """Say it back. More about it."""
        return {"number": number, "item": item, "items": items, "flag": flag}

    @transaction
    def needs(self, context: Context, *, number: Annotated[int, Integer(1, 5, "Wh")]) -> int:
        return number


CHAINCODE = Chaincode("demo", (Echo(),))


def call(argument: bytes | None, function: str = "echo:Say") -> bytes:
    args = [function.encode()] if argument is None else [function.encode(), argument]
    return CHAINCODE.invoke(None, args)  # type: ignore[arg-type]


def test_answers_are_canonical() -> None:
    assert call(None) == b'{"flag":false,"item":null,"items":[],"number":"0"}'
    assert call(b'{"item":{"from":"A","number":"3"},"flag":true}') == (
        b'{"flag":true,"item":{"color":"red","from":"A","number":"3"},"items":[],"number":"0"}'
    )
    assert canonical_json({"ü": "é\n", "a": [True, None, -1]}) == (
        '{"a":[true,null,"-1"],"ü":"é\\n"}'.encode()
    )
    for value in (1.5, {1, 2}, b"x", {"a": 0.0}):
        with pytest.raises(TypeError, match="has no place on the ledger"):
            canonical_json(value)


@pytest.mark.parametrize("text", ["7", '"7"', "-9007199254740991", '"9223372036854775807"'])
def test_integers(text: str) -> None:
    answer = call(f'{{"number":{text}}}'.encode())
    assert f'"number":"{text.strip(chr(34))}"'.encode() in answer


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (b'{"number":1.0}', "1.0 is not an integer"),
        (b'{"number":1e3}', "1e3 is not an integer"),
        (b'{"number":NaN}', "NaN is not an integer"),
        (b'{"number":-Infinity}', "-Infinity is not an integer"),
        (b'{"number":9223372036854775808}', "beyond 64 bits"),
        (b'{"number":' + b"9" * 5000 + b"}", "beyond 64 bits"),
        (b'{"number":9007199254740992}', "write integers from 2^53 on as decimal strings"),
        (b'{"number":"9223372036854775808"}', "number is 9223372036854775808, but must be betw"),
        (b'{"number":true}', "number is true, but must be an integer"),
        (b'{"number":null}', "number is null, but must be an integer"),
        *((f'{{"number":"{bad}"}}'.encode(), "must be an integer")
          for bad in ("", "01", "+1", "-0", " 1", "1_0", "0x1", "١", "1.0", "1e3")),
        (b'{"flag":1}', "flag is 1, but must be true or false"),
        (b'{"item":[]}', "item must be a JSON object"),
        (b'{"item":{"number":1}}', "item.from is missing"),
        (b'{"item":{"number":11,"from":"A"}}', "item.number is 11, but must be between 0 and 10"),
        (b'{"item":{"number":1,"from":"a"}}', "item.from is \"a\", but must be 1 to 64 capital"),
        (b'{"item":{"number":1,"from":"A\\n"}}', "item.from is"),
        (b'{"item":{"number":1,"from":"A","color":"green"}}', "must be red or blue"),
        (b'{"items":[{"number":1,"from":"A"},{"number":99,"from":"A"}]}', "items[1].number is 99"),
        (b'{"items":[1,2,3]}', "items has 3 items, but may have 2"),
        (b'{"numbers":1}', "numbers is not a field of the argument; known are number, item, items"),
        (b'{"item":{"number":1,"from":"A","x":1}}', "item.x is not a field of item"),
        (b'{"number":1,"number":2}', "names the same field twice"),
        (b"[]", "the argument must be a JSON object"),
        (b"", "the argument is not JSON"),
        (b"{", "the argument is not JSON"),
        (b"\xff{}", "the argument is not JSON"),
        (b'{"flag":"\\ud800"}', "the argument is not JSON"),
        (b"[" * 100_000, "the argument is not JSON"),
        (b" " * (1024 * 1024 + 1), "the argument has 1048577 bytes, but may have 1048576"),
    ],
)  # fmt: skip
def test_arguments_that_are_refused(argument: bytes, message: str) -> None:
    with pytest.raises((InvalidArgument, LimitExceeded)) as refused:
        call(argument)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 400


def test_limits_name_their_unit() -> None:
    with pytest.raises(InvalidArgument, match=r"^number is 6 Wh, but must be between 1 and 5 Wh$"):
        call(b'{"number":6}', "echo:Needs")
    with pytest.raises(InvalidArgument, match=r"^number is missing$"):
        call(b"{}", "echo:Needs")


@pytest.mark.parametrize(
    "args", [[], [b"say"], [b"echo:say"], [b"\xff"], [b"echo:Say", b"{}", b""]]
)
def test_calls_that_name_no_function(args: list[bytes]) -> None:
    with pytest.raises(ContractError, match=r"has no function|takes one JSON object"):
        CHAINCODE.invoke(None, args)  # type: ignore[arg-type]


def test_functions_describe_themselves() -> None:
    function = CHAINCODE.functions["echo:Say"]
    assert function.fields == ("number?", "item?", "items?", "flag?")
    assert function.purpose == "Say it back. More about it."
    assert [f.writes for f in CHAINCODE.functions.values()] == [True, False]


def test_a_field_without_limits_is_a_mistake_of_the_contract() -> None:
    class Careless(Contract):
        name = "careless"

        @query
        def say(self, context: Context, *, text: str) -> str:
            return text

    with pytest.raises(TypeError, match="with limits"):
        Chaincode("demo", (Careless(),))


@given(st.builds(Item, st.integers(0, 10), st.from_regex(r"[A-Z0-9-]{1,64}", fullmatch=True)))
def test_records_survive_storage(item: Item) -> None:
    assert stored_record(Item, canonical_json(item)) == item


def test_the_range_under_a_prefix() -> None:
    start, end = under("a/b/")
    assert all(start <= key < end for key in ("a/b/", "a/b/c", "a/b/~", "a/b/ü"))
    assert not any(start <= key < end for key in ("a/b", "a/b-c/", "a/b0", "a/c/"))
    with pytest.raises(ValueError, match="does not end"):
        under("a")


def test_signatures_that_are_none() -> None:
    key: Any = (
        "-----BEGIN PUBLIC KEY-----\n"
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt\n"
        "6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n"
        "-----END PUBLIC KEY-----\n"
    )
    for signature in ("", "AAAA", "not base64", "MAYCAQECAQE=", "ü"):
        assert not verify_p256(key, signature, b"message")


ID = Text(r"[A-Z0-9-]{1,64}", "an identifier")


@dataclass(frozen=True)
class Row:
    name: Annotated[str, ID]
    low: Annotated[int, Integer(1, 64)]
    high: Annotated[int, Integer(0, 10**9, "Wh")]
    signed: Annotated[int, Integer(-(10**9), 10**6)]
    kind: Annotated[str, Choice("bid", "offer", "b.d")]
    anything: Annotated[str, Text(r".{0,9}", "up to nine characters")]
    listed: Annotated[tuple[Annotated[str, ID], ...], AtMost(2)] = ()
    note: Annotated[str, ID] | None = None


NUMBERS = st.one_of(
    st.integers(-(10**10), 10**10).map(str),
    st.integers(-70, 70).map(str),
    st.sampled_from(["", "-0", "007", "1e3", "+1", " 1", "1\n", "١"]),
    st.integers(-70, 10**17),
)
ROWS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["CP-1", "", "cp", "A\0B", "A" * 65]),
        "low": NUMBERS,
        "high": NUMBERS,
        "signed": NUMBERS,
        "kind": st.sampled_from(["bid", "offer", "b.d", "bxd", ""]),
        "anything": st.text(max_size=10) | st.sampled_from(["\0", "a\0bid", "\n"]),
    },
    optional={
        "listed": st.lists(st.sampled_from(["A", "a"]), max_size=3),
        "note": st.none() | st.sampled_from(["A", "a", ""]),
        "unknown": st.just("A"),
    },
)


@given(ROWS, st.data())
def test_reading_fields_at_once_is_reading_them_one_by_one(
    row: dict[str, Any], data: st.DataObject
) -> None:
    for name in data.draw(st.lists(st.sampled_from(sorted(row)), max_size=1)):
        del row[name]
    schema = _record_of(Row)
    assert schema.quick is not None

    def read(one: Any) -> Any:
        try:
            return one.read(row, "")
        except ContractError as error:
            return type(error), str(error)

    assert read(schema) == read(replace(schema, quick=None))


@given(st.integers(MIN_INTEGER, MAX_INTEGER), st.integers(MIN_INTEGER, MAX_INTEGER), st.data())
def test_texts_of_integers_lie_within_their_limits(
    one: int, other: int, data: st.DataObject
) -> None:
    rule = Integer(min(one, other), max(one, other))
    if rule.texts is not None:
        text = data.draw(st.from_regex(re.compile(rule.texts.pattern, re.ASCII), fullmatch=True))
        assert rule.read(text, "x") == int(text)


def test_what_must_hold_is_checked_without_asserts_too() -> None:
    ensure(True, "this holds")
    with pytest.raises(InvariantError, match="postings must sum to zero"):
        ensure(False, "postings must sum to zero")
    code = "from consortium.chaincode.api import ensure; ensure(False, 'sum')"
    ended = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, check=False)
    assert b"InvariantError: sum" in ended.stderr
