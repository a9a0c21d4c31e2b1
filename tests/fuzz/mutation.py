"""Bytes of a protobuf message, spoiled: with a knowledge of the wire format, without a schema.

Everything is drawn from a `random.Random`, so that a seed gives the same bytes again.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

VARINT, FIXED64, LENGTH, START_GROUP, END_GROUP, FIXED32 = range(6)
HUGE = 2**63 - 1
_NUMBERS = (0, 1, 2, 7, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**53, HUGE, 2**64 - 1)
_CONTENTS = (
    b"",
    b"\x00",
    b"\xff\xff\xff\xff",
    b"\x0a",
    b"\x80" * 11,
    b"\xc3\x28",  # not UTF-8
    b"\xed\xa0\x80",  # a surrogate
    b"a" * 70_000,
    b"\x00" * 600,
    "\U0010ffff\u202e\u0000".encode(),
)


def varint(number: int) -> bytes:
    """Base 128, least significant group first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


@dataclass(slots=True)
class Field:
    """One field as it stands on the wire; `value` is a number or bytes."""

    number: int
    kind: int
    value: int | bytes

    def encoded(self) -> bytes:
        tag = varint(self.number << 3 | self.kind)
        match self.value:
            case int() as number:
                return tag + varint(number)
            case value if self.kind == LENGTH:
                return tag + varint(len(value)) + value
            case value:
                return tag + value


def _read_varint(data: bytes, at: int) -> tuple[int, int] | None:
    number = 0
    for count in range(10):
        if at + count >= len(data):
            return None
        number |= (data[at + count] & 0x7F) << 7 * count
        if data[at + count] < 0x80:
            return number, at + count + 1
    return None


def fields(data: bytes) -> list[Field] | None:
    """The fields of a message, None if the bytes are none."""
    found, at = [], 0
    while at < len(data):
        tag = _read_varint(data, at)
        if tag is None or not tag[0] >> 3 or tag[0] >> 3 > 2**29:
            return None
        (number, kind), at = divmod(tag[0], 8), tag[1]
        value: int | bytes
        if kind == VARINT:
            read = _read_varint(data, at)
            if read is None:
                return None
            value, at = read
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
            value, at = data[at : at + size], at + size
        elif kind == LENGTH:
            read = _read_varint(data, at)
            if read is None or read[1] + read[0] > len(data):
                return None
            value, at = data[read[1] : read[1] + read[0]], read[1] + read[0]
        else:
            return None
        if at > len(data):
            return None
        found.append(Field(number, kind, value))
    return found


def joined(found: Sequence[Field]) -> bytes:
    """The message with these fields."""
    return b"".join(field.encoded() for field in found)


# -- on bytes ----------------------------------------------------------------------------------


def flip(data: bytes, chance: random.Random) -> bytes:
    """One to eight bits."""
    out = bytearray(data or b"\0")
    for _ in range(chance.choice((1, 1, 1, 8))):
        out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def cut_out(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at + chance.randrange(1, 17) :]


def double(data: bytes, chance: random.Random) -> bytes:
    """Some bytes twice; the whole message twice is a message again, with each field twice."""
    if chance.random() < 0.3:
        return data + data
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at : at + chance.randrange(1, 17)] + data[at:]


def overwrite(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data or b"\0")
    out[chance.randrange(len(out))] = chance.choice((0x00, 0x7F, 0x80, 0xFF))
    return bytes(out)


def append(data: bytes, chance: random.Random) -> bytes:
    """Something behind the message: an unknown field, a group, a length without contents."""
    return data + chance.choice(
        (
            b"\xf8\x7f\x01",
            b"\xfa\xff\xff\xff\x0f\x02hi",
            b"\x0b",
            b"\x0c",
            b"\x0b" * 200,
            b"\x0b\x0c" * 200,
            b"\x0a\xff\xff\xff\xff\x0f",
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x00\x00",
            b"\x08" + b"\xff" * 12,
            chance.randbytes(chance.randrange(1, 30)),
        )
    )


# -- on fields ---------------------------------------------------------------------------------


def _change_value(found: list[Field], chance: random.Random) -> None:
    field = chance.choice(found)
    if field.kind == VARINT:
        # Among these are values that no enumeration has.
        field.value = chance.choice(_NUMBERS)
    elif field.kind == LENGTH:
        field.value = chance.choice(_CONTENTS)
    else:
        assert isinstance(field.value, bytes)
        field.value = chance.choice((b"\0", b"\xff")) * len(field.value)


def _drop(found: list[Field], chance: random.Random) -> None:
    del found[chance.randrange(len(found))]


def _repeat(found: list[Field], chance: random.Random) -> None:
    field = chance.choice(found)
    count = chance.choice((1, 1, 2, 300))
    if len(field.encoded()) * count > 100_000:
        count = 1
    found[len(found) :] = [field] * count


def _swap(found: list[Field], chance: random.Random) -> None:
    one, other = chance.choice(found), chance.choice(found)
    one.number, other.number = other.number, one.number


def _shuffle(found: list[Field], chance: random.Random) -> None:
    chance.shuffle(found)


def _renumber(found: list[Field], chance: random.Random) -> None:
    chance.choice(found).number = chance.choice((1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 1000, 2**29 - 1))


def _retype(found: list[Field], chance: random.Random) -> None:
    field = chance.choice(found)
    field.kind = chance.choice((VARINT, LENGTH, FIXED32, FIXED64))
    field.value = {
        VARINT: chance.choice(_NUMBERS),
        LENGTH: field.value if isinstance(field.value, bytes) else b"x",
        FIXED32: b"\xff" * 4,
        FIXED64: b"\xff" * 8,
    }[field.kind]


def _nest(found: list[Field], chance: random.Random) -> None:
    """The message inside itself, deeper than any parser goes."""
    field = chance.choice(found)
    value = field.value if isinstance(field.value, bytes) else b""
    for _ in range(chance.choice((1, 2, 99, 150, 1000))):
        value = Field(field.number, LENGTH, value).encoded()
    field.kind, field.value = LENGTH, value


def _retype_any(found: list[Field], chance: random.Random) -> None:
    """Another type in whatever looks like an `Any`, else an `Any` where none is expected."""
    for field in found:
        if field.number == 1 and isinstance(field.value, bytes) and b".com/" in field.value:
            field.value = b"type.googleapis.com/" + chance.choice(
                (b"common.Block", b"no.such.Type", b"google.protobuf.Any", b"", b"\xff")
            )
            return
    found.append(Field(chance.choice((1, 2, 3)), LENGTH, b"\x0a\x15type.googleapis.com/x\x12\x00"))


_ON_FIELDS: tuple[Callable[[list[Field], random.Random], None], ...] = (
    _change_value,
    _change_value,
    _change_value,
    _drop,
    _repeat,
    _swap,
    _shuffle,
    _renumber,
    _retype,
    _nest,
    _retype_any,
)
_ON_BYTES = (flip, truncate, cut_out, double, overwrite, append)


def _lie(data: bytes, chance: random.Random) -> bytes:
    """A length that is not that of what follows."""
    found = fields(data)
    at = [i for i, field in enumerate(found or ()) if field.kind == LENGTH]
    if not found or not at:
        return flip(data, chance)
    place = chance.choice(at)
    field = found[place]
    assert isinstance(field.value, bytes)
    stated = chance.choice(
        (0, len(field.value) + 1, max(0, len(field.value) - 1), 2**31 - 1, 2**32, HUGE, 2**64 - 1)
    )
    # The same length in more bytes than it needs is legal, and another encoding of the message.
    length = varint(stated) if chance.random() < 0.8 else _padded(len(field.value))
    return (
        joined(found[:place])
        + varint(field.number << 3 | LENGTH)
        + length
        + field.value
        + joined(found[place + 1 :])
    )


def _padded(number: int) -> bytes:
    digits = bytearray(varint(number))
    digits[-1] |= 0x80
    return bytes(digits) + b"\x80\x00"


def spoiled(data: bytes, chance: random.Random, depth: int = 0) -> bytes:
    """The message with one thing wrong in it, at any depth; lengths around it are put right."""
    found = fields(data) if data else None
    if found:
        inner = [
            field
            for field in found
            if isinstance(field.value, bytes) and len(field.value) > 3 and fields(field.value)
        ]
        if inner and depth < 12 and chance.random() < 0.7:
            field = chance.choice(inner)
            assert isinstance(field.value, bytes)
            field.value = spoiled(field.value, chance, depth + 1)
            return joined(found)
        if chance.random() < 0.6:
            chance.choice(_ON_FIELDS)(found, chance)
            return joined(found)
        if chance.random() < 0.3:
            return _lie(data, chance)
    return chance.choice(_ON_BYTES)(data, chance)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The message with one to three things wrong in it."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = spoiled(data, chance)
        if len(data) > 2_000_000:
            break
    return data
