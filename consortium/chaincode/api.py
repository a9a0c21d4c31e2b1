"""The contract API: all that a contract may import.

A chaincode is one or more contracts; a client calls `contract:Function` with one JSON object and
gets JSON back. A contract is a class whose methods are marked `@transaction` or `@query`:

    class Registry(Contract):
        name = "registry"

        @query
        def connection(self, context: Context, *, connection_id: Identifier) -> Connection: ...

answers `registry:Connection {"connection_id": "CP-0001"}`. The annotations are the argument's
schema: each field says its kind and its limits, unknown fields are refused, and no method sees a
value that breaks a limit. A trailing underscore in a Python name is not part of the field's name.

Every answer is the same to the byte on every peer: canonical JSON (sorted names, no spaces, UTF-8),
every integer a decimal string (JavaScript stops at 2^53), never a float. Integers are accepted as
decimal strings, or as JSON numbers below 2^53.
"""

import base64
import binascii
import dataclasses
import functools
import hashlib
import inspect
import json
import operator
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from consortium.identity.signing import verify_signature

MAX_ARGUMENT_BYTES = 1024 * 1024
"""Size of a call's JSON argument."""
MAX_TRANSIENT_BYTES = 4 * 1024 * 1024
"""Size of one entry of a call's transient data, where it is read as JSON."""
MAX_INTEGER = 2**63 - 1
MIN_INTEGER = -(2**63)
_MAX_JSON_NUMBER = 2**53 - 1
_SHOWN_CHARACTERS = 80

type Json = bool | int | str | list[Json] | dict[str, Json] | None


class ContractError(Exception):
    """A contract's refusal: a status from 400 to 499 and a sentence for the caller."""

    status: ClassVar[int] = 400


class InvalidArgument(ContractError):
    """The argument breaks a rule whatever the state of the ledger is."""


class Forbidden(ContractError):
    """The caller may not do this."""

    status = 403


class NotFound(ContractError):
    """What the call names is not on the ledger."""

    status = 404


class Conflict(ContractError):
    """The ledger's state does not allow this, or no longer."""

    status = 409


class LimitExceeded(ContractError):
    """Too much of something at once."""

    status = 413


class Unavailable(Exception):
    """A private value that was committed is not on this peer, so here the call can't be answered.

    No refusal, but for queries that go through many things, of which one may lack.
    """


class InvariantError(Exception):
    """What always holds does not: the contract is wrong, not its caller; nothing comes of the call.

    Its sentence stays in the peer's log, like that of any other fault of a contract.
    """


def ensure(holds: bool, what: str) -> None:
    """Raise InvariantError unless something holds; an `assert` that Python's -O leaves in."""
    if not holds:
        raise InvariantError(what)


class _Member(Protocol):
    """What is needed of an identity that an MSP has validated."""

    @property
    def msp_id(self) -> str: ...
    @property
    def der(self) -> bytes: ...
    @property
    def common_name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def attributes(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class Creator:
    """Who signed the proposal."""

    msp_id: str
    certificate: bytes
    """DER."""
    common_name: str
    role: str
    """The certificate's kind: client, peer, orderer or admin; empty where it has none."""
    attributes: Mapping[str, str]
    """fabric-ca's attributes in the certificate."""

    @classmethod
    def from_identity(cls, identity: _Member) -> Creator:
        """The creator behind a validated identity."""
        return cls(
            identity.msp_id,
            identity.der,
            identity.common_name,
            identity.role,
            identity.attributes,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What another chaincode answered to a call."""

    status: int
    """From 200: success; from 400: it refused; from 500: it failed."""
    message: str
    payload: bytes


class Context(Protocol):
    """A transaction as its contract sees it.

    Reads see the committed state, never the transaction's own writes. Contracts get nothing else
    from outside: no clock but `timestamp`, no randomness, no file, no network.
    """

    @property
    def channel_id(self) -> str: ...

    @property
    def transaction_id(self) -> str: ...

    @property
    def timestamp(self) -> int:
        """Epoch seconds, written by the client; endorsers refuse what is 15 minutes off."""

    @property
    def creator(self) -> Creator: ...

    @property
    def transient(self) -> Mapping[str, bytes]:
        """Data of the proposal that does not go into the transaction."""

    def get_state(self, key: str) -> bytes | None:
        """A public value."""

    def put_state(self, key: str, value: bytes) -> None:
        """Write a public value."""

    def del_state(self, key: str) -> None:
        """Delete a public value."""

    def range(self, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        """Public keys with start <= key < end in order. Not for what others may append to."""

    def get_private(self, collection: str, key: str) -> bytes | None:
        """A private value; only peers of the collection's members have it."""

    def get_privates(self, collection: str, keys: Sequence[str]) -> list[bytes | None]:
        """Private values in the order of their keys, as if each were read by itself.

        One question to the peer where a contract runs in another process.
        """

    def get_private_hash(self, collection: str, key: str) -> bytes | None:
        """SHA-256 of a private value; every peer has it."""

    def put_private(self, collection: str, key: str, value: bytes) -> None:
        """Write a private value."""

    def del_private(self, collection: str, key: str) -> None:
        """Delete a private value; members keep what it was, besides the state."""

    def purge_private(self, collection: str, key: str) -> None:
        """Delete a private value and all that it ever was, from every member's peer."""

    def range_private(self, collection: str, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        """Private keys in order; only in transactions that write nothing."""

    def set_event(self, name: str, payload: bytes) -> None:
        """The transaction's event; there can be one."""

    def call(self, chaincode: str, args: Sequence[bytes], channel: str = "") -> Answer:
        """Call another chaincode in this transaction, by the same caller.

        On this channel, what it writes joins this transaction, whatever it answers; on another one,
        which this peer must have joined, it only reads, and nothing of that is validated at commit.
        Its event is dropped.
        """


def under(prefix: str) -> tuple[str, str]:
    """The range of all keys that begin with `prefix`, which ends in "/"."""
    if not prefix.endswith("/"):
        raise ValueError(f"{prefix!r} does not end in '/'")
    return prefix, prefix[:-1] + "0"  # "0" follows "/" in ASCII


# Schema of arguments and records


def _shown(value: object) -> str:
    """A value as it may stand in an error message."""
    try:
        text = json.dumps(value)
    except TypeError, ValueError:
        text = type(value).__name__
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


class Rule(Protocol):
    """Reads one JSON value; raises InvalidArgument naming the field and its limit.

    A rule for strings and integers may also have `texts`, see Texts.
    """

    def read(self, value: Json, where: str) -> Any:
        """The value as the contract gets it."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Strings that a rule takes, so that a record's fields are read by one regular expression."""

    pattern: str
    """Of whole strings: it matches none that the rule refuses, though not all that it takes."""
    integer: bool = False
    """Whether the rule makes an integer of them."""


_DECIMAL = re.compile(r"0|-?[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer within limits."""

    minimum: int = MIN_INTEGER
    maximum: int = MAX_INTEGER
    unit: str = ""

    @property
    def texts(self) -> Texts | None:
        """Integers of so many digits that all of them lie within the limits."""
        fewest = len(str(max(self.minimum - 1, 0))) + (self.minimum > 1)
        most = len(str(self.maximum + 1)) - 1
        if self.minimum < 0:
            most = min(most, len(str(1 - self.minimum)) - 1)
        if self.maximum < 1 or fewest > most:
            return None
        sign, zero = "-?" if self.minimum < 0 else "", "0|" if self.minimum <= 0 else ""
        return Texts(f"{zero}{sign}[1-9][0-9]{{{fewest - 1},{most - 1}}}", integer=True)

    def read(self, value: Json, where: str) -> int:
        """See Rule."""
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
            if abs(number) > _MAX_JSON_NUMBER:
                raise InvalidArgument(
                    f"{where} is {_shown(value)}, which as a JSON number is not exact everywhere; "
                    "write integers from 2^53 on as decimal strings"
                )
        elif isinstance(value, str) and _DECIMAL.fullmatch(value):
            number = int(value)
        else:
            raise InvalidArgument(
                f"{where} is {_shown(value)}, but must be an integer, written as a number or as a "
                "decimal string"
            )
        if not self.minimum <= number <= self.maximum:
            unit = f" {self.unit}" if self.unit else ""
            raise InvalidArgument(
                f"{where} is {number}{unit}, but must be between {self.minimum} and "
                f"{self.maximum}{unit}"
            )
        return number


@dataclass(frozen=True, slots=True)
class Text:
    """A string that matches a pattern from end to end."""

    pattern: str
    what: str

    @property
    def texts(self) -> Texts | None:
        """All strings that match, if nothing in the pattern looks beyond them."""
        return None if re.search(r"\(\?[^:]|\\[^.\-/]|[\^$]", self.pattern) else Texts(self.pattern)

    def read(self, value: Json, where: str) -> str:
        """See Rule."""
        if not isinstance(value, str) or not _compiled(self.pattern).fullmatch(value):
            raise InvalidArgument(f"{where} is {_shown(value)}, but must be {self.what}")
        return value


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


class Choice:
    """One of a few words."""

    __slots__ = ("options",)

    def __init__(self, *options: str) -> None:
        self.options = options

    @property
    def texts(self) -> Texts:
        """The words."""
        return Texts("|".join(map(re.escape, self.options)))

    def read(self, value: Json, where: str) -> str:
        """See Rule."""
        if not isinstance(value, str) or value not in self.options:
            raise InvalidArgument(
                f"{where} is {_shown(value)}, but must be {' or '.join(self.options)}"
            )
        return value


@dataclass(frozen=True, slots=True)
class AtMost:
    """The limit of a list: `Annotated[tuple[Item, ...], AtMost(96)]`."""

    items: int


@dataclass(frozen=True, slots=True)
class _List:
    item: Rule
    limit: int

    def read(self, value: Json, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise InvalidArgument(f"{where} is {_shown(value)}, but must be a list")
        if len(value) > self.limit:
            raise LimitExceeded(f"{where} has {len(value)} items, but may have {self.limit}")
        return tuple(self.item.read(item, f"{where}[{index}]") for index, item in enumerate(value))


@dataclass(frozen=True, slots=True)
class _Optional:
    rule: Rule

    def read(self, value: Json, where: str) -> Any:
        return None if value is None else self.rule.read(value, where)


class _Boolean:
    def read(self, value: Json, where: str) -> bool:
        if not isinstance(value, bool):
            raise InvalidArgument(f"{where} is {_shown(value)}, but must be true or false")
        return value


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    json_name: str
    rule: Rule
    required: bool


class _Quick:
    """Reads those fields of a record that are all strings, and as a rule in order, at once.

    A match says that each field's rule takes it; without one the rules say what is wrong.
    """

    def __init__(self, fields: Sequence[tuple[_Field, Texts]]) -> None:
        names = [field.json_name for field, _ in fields]
        self.names = tuple(field.name for field, _ in fields)
        self._values_of = operator.itemgetter(*names)
        self._integers = tuple(at for at, (_, texts) in enumerate(fields) if texts.integer)
        self._separators = len(names) - 1
        self._pattern = "\0".join(f"(?:{texts.pattern})" for _, texts in fields)

    def read(self, value: dict[str, Json]) -> dict[str, Any] | None:
        """The fields by their Python names; None if a rule may refuse one."""
        try:
            texts: list[Any] = list(self._values_of(value))
            text = "\0".join(texts)
        except KeyError, TypeError:
            return None
        # No text may hold a separator, so what matches between two of them is one text.
        if text.count("\0") != self._separators or not _compiled(self._pattern).fullmatch(text):
            return None
        for at in self._integers:
            texts[at] = int(texts[at])
        return dict(zip(self.names, texts, strict=True))


def _quick(fields: Sequence[_Field]) -> _Quick | None:
    """For the fields that must be there and are strings on their way, if that is worth it."""
    found = []
    for field in fields:
        texts = getattr(field.rule, "texts", None) if field.required else None
        if texts is not None:
            found.append((field, texts))
    return _Quick(found) if len(found) > 1 else None


@dataclass(frozen=True, slots=True)
class _Record:
    """An object with known fields."""

    what: str
    make: Callable[..., Any]
    fields: tuple[_Field, ...]
    quick: _Quick | None = None
    others: tuple[_Field, ...] = ()
    """Fields that are not read at once."""
    others_optional: bool = False

    @classmethod
    def of(cls, what: str, make: Callable[..., Any], fields: tuple[_Field, ...]) -> _Record:
        """With what can be read at once."""
        quick = _quick(fields)
        names = quick.names if quick else ()
        others = tuple(field for field in fields if field.name not in names)
        optional = not any(field.required for field in others)
        return cls(what, make, fields, quick, others, optional)

    def read(self, value: Json, where: str) -> Any:
        return self.make(**self.values(value, where))

    def values(self, value: Json, where: str) -> dict[str, Any]:
        """The fields by their Python names."""
        if not isinstance(value, dict):
            raise InvalidArgument(f"{where or self.what} must be a JSON object")
        values = self.quick.read(value) if self.quick else None
        if values is not None and len(values) == len(value) and self.others_optional:
            return values
        prefix = f"{where}." if where else ""
        known, fields = 0, self.fields
        if values is None:
            values = {}
        else:
            known, fields = len(values), self.others
        for field in fields:
            if field.json_name in value:
                known += 1
                values[field.name] = field.rule.read(
                    value[field.json_name], prefix + field.json_name
                )
            elif field.required:
                raise InvalidArgument(f"{prefix}{field.json_name} is missing")
        if known != len(value):
            names = [field.json_name for field in self.fields]
            unknown = sorted(name for name in value if name not in names)
            raise InvalidArgument(
                f"{prefix}{_shown(unknown[0])[1:-1]} is not a field of "
                f"{where or self.what}; known are {', '.join(names) or 'none'}"
            )
        return values


def _rule_of(annotation: Any) -> Rule:
    """The rule that an annotation stands for; raises TypeError if it has no limits."""
    if typing.get_origin(annotation) is Annotated:
        base, *notes = typing.get_args(annotation)
        for note in notes:
            if isinstance(note, AtMost):
                return _List(_rule_of(typing.get_args(base)[0]), note.items)
            if hasattr(note, "read"):
                return typing.cast("Rule", note)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (other,) = [a for a in typing.get_args(annotation) if a is not types.NoneType]
        return _Optional(_rule_of(other))
    if annotation is bool:
        return _Boolean()
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return _record_of(annotation)
    raise TypeError(f"{annotation} is not a kind of field with limits")


_RECORDS: dict[type, _Record] = {}


def _record_of(record: type) -> _Record:
    """The schema of a dataclass, worked out once."""
    if record not in _RECORDS:
        hints = typing.get_type_hints(record, include_extras=True)
        assert dataclasses.is_dataclass(record)
        _RECORDS[record] = _Record.of(
            f"the {record.__name__.lower()}",
            record,
            tuple(
                _Field(
                    field.name,
                    field.name.rstrip("_"),
                    _rule_of(hints[field.name]),
                    field.default is dataclasses.MISSING,
                )
                for field in dataclasses.fields(record)
            ),
        )
    return _RECORDS[record]


Identifier = Annotated[
    str, Text(r"[A-Z0-9-]{1,64}", "1 to 64 capital letters A-Z, digits and hyphens")
]
MspId = Annotated[str, Text(r"[A-Za-z0-9.-]{1,64}", "an MSP id: 1 to 64 of A-Z a-z 0-9 . -")]
RequestId = Annotated[str, Text(r"[A-Za-z0-9-]{1,64}", "1 to 64 letters A-Z a-z, digits, hyphens")]
TransactionId = Annotated[str, Text(r"[0-9a-f]{64}", "a transaction id: 64 hex digits")]
Instant = Annotated[int, Integer(0, 10**11, "(epoch seconds)")]
"""Epoch seconds of the channel's time, up to the year 5138."""


# JSON


def plain(value: object) -> Json:
    """Records, tuples and integers as they travel: every integer becomes a decimal string."""
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return typing.cast("Json", value)
    if kind is int:
        return str(value)
    if kind is dict:
        named = typing.cast("dict[object, object]", value)
        return {str(name): plain(item) for name, item in named.items()}
    if kind is tuple or kind is list:
        return [plain(item) for item in typing.cast("Sequence[object]", value)]
    names = _NAMES.get(kind)
    if names is None:
        names = _NAMES[kind] = _names_of(kind)
    if names:
        return {name: plain(getattr(value, field)) for name, field in names}
    return _plain_kind(value)


def _plain_kind(value: object) -> Json:
    """The same for kinds that come of those that `plain` knows."""
    for kind, made in _KINDS:
        if isinstance(value, kind):
            return plain(made(value))
    raise TypeError(f"{type(value).__name__} has no place on the ledger")


_KINDS: tuple[tuple[type, Callable[[Any], object]], ...] = (
    (str, str.__str__),
    (int, int),
    (dict, dict),
    (list, list),
    (tuple, tuple),
)


_NAMES: dict[type, tuple[tuple[str, str], ...]] = {}


def _names_of(kind: type) -> tuple[tuple[str, str], ...]:
    """The names of a record's fields in JSON and in Python; none for what is no record."""
    if not dataclasses.is_dataclass(kind):
        return ()
    return tuple((field.name.rstrip("_"), field.name) for field in dataclasses.fields(kind))


_CANONICAL = json.JSONEncoder(
    sort_keys=True,
    separators=(",", ":"),
    ensure_ascii=False,
    allow_nan=False,
    check_circular=False,  # `plain` has made a tree of it
)


def canonical_json(value: object) -> bytes:
    """The one JSON text of a value: names sorted, no spaces, UTF-8, integers as strings."""
    return _CANONICAL.encode(plain(value)).encode()


def _no_float(text: str) -> typing.NoReturn:
    raise InvalidArgument(
        f"{text[:_SHOWN_CHARACTERS]} is not an integer; amounts are integers of Wh and micro-units"
    )


def _bounded_integer(text: str) -> int:
    if len(text) > 20 or not MIN_INTEGER <= int(text) <= MAX_INTEGER:
        raise InvalidArgument(f"{text[:_SHOWN_CHARACTERS]} is beyond 64 bits")
    return int(text)


def _unique_names(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise InvalidArgument("a JSON object names the same field twice")
    return result


def _load(data: bytes, what: str, limit: int) -> Json:
    if len(data) > limit:
        raise LimitExceeded(f"{what} has {len(data)} bytes, but may have {limit}")
    try:
        value: Json = json.loads(
            data.decode(),
            parse_float=_no_float,
            parse_constant=_no_float,
            parse_int=_bounded_integer,
            object_pairs_hook=_unique_names,
        )
        # An escaped half of a surrogate pair is no character and could not be written back.
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is not JSON: {str(error)[:_SHOWN_CHARACTERS]}") from None
    return value


def read_record[R](record: type[R], data: bytes, what: str) -> R:
    """A record from JSON that a caller sent; raises InvalidArgument."""
    return typing.cast("R", _record_of(record).read(_load(data, what, MAX_TRANSIENT_BYTES), ""))


def read_list(data: bytes, what: str, name: str, limit: int) -> list[Json]:
    """The items of `{name: [...]}`, each still to be read with `read_item`.

    For batches in which one bad item must not lose the good ones. Raises InvalidArgument,
    LimitExceeded.
    """
    value = _load(data, what, MAX_TRANSIENT_BYTES)
    if not isinstance(value, dict) or list(value) != [name] or not isinstance(value[name], list):
        raise InvalidArgument(f'{what} must be a JSON object {{"{name}": [...]}}')
    items = typing.cast("list[Json]", value[name])
    if not items:
        raise InvalidArgument(f"{what} holds no {name}")
    if len(items) > limit:
        raise LimitExceeded(f"{what} holds {len(items)} {name}, but a call may have {limit}")
    return items


def read_item[R](record: type[R], item: Json) -> R:
    """A record from an item of `read_list`; raises InvalidArgument."""
    return typing.cast("R", _record_of(record).read(item, ""))


def stored_record[R](record: type[R], data: bytes) -> R:
    """A record that a contract stored with `canonical_json`."""
    return typing.cast("R", _record_of(record).read(stored_json(data), record.__name__))


def stored_json(data: bytes) -> Json:
    """What a contract stored with `canonical_json`, of whatever kind it is."""
    # Canonical JSON begins with its value and ends with it: no looking for spaces or encodings.
    text = data.decode()
    value, end = _DECODER.raw_decode(text)
    if end != len(text):
        raise ValueError("what is stored goes on after its JSON")
    return typing.cast("Json", value)


_DECODER = json.JSONDecoder()


# Cryptography: pure functions of their arguments


def sha256(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()


def base64_bytes(text: str) -> bytes:
    """What standard base64 stands for; raises InvalidArgument."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error, ValueError:
        raise InvalidArgument(f"{_shown(text)} is not base64") from None


def sha256_hex(data: bytes) -> str:
    """SHA-256 in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=4096)
def _public_key(pem: str) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except ValueError, UnsupportedAlgorithm:
        raise InvalidArgument(
            "public_key is not a public key in PEM (-----BEGIN PUBLIC KEY-----)"
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidArgument("public_key must be an ECDSA key on P-256, like every meter's")
    return key


def canonical_public_key(pem: str) -> str:
    """The one PEM text of a P-256 public key; raises InvalidArgument for anything else."""
    return (
        _public_key(pem)
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def verify_p256(public_key_pem: str, signature_base64: str, message: bytes) -> bool:
    """Whether the key signed the message: ECDSA over SHA-256, DER in base64, low S."""
    try:
        signature = base64_bytes(signature_base64)
    except InvalidArgument:
        return False
    return verify_signature(_public_key(public_key_pem), signature, message)


# Contracts


@dataclass(frozen=True, slots=True)
class Function:
    """A function that clients can call."""

    name: str
    method: str
    writes: bool
    argument: _Record
    purpose: str

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the argument's fields; optional ones end in "?"."""
        return tuple(f.json_name + ("" if f.required else "?") for f in self.argument.fields)


def transaction[M: Callable[..., object]](method: M) -> M:
    """Mark a method as a function that may write."""
    method.__dict__["contract_function"] = True
    return method


def query[M: Callable[..., object]](method: M) -> M:
    """Mark a method as a function that only reads; clients evaluate it."""
    method.__dict__["contract_function"] = False
    return method


class Contract:
    """Base of all contracts; an instance holds no state between transactions."""

    name: ClassVar[str]

    @classmethod
    def functions(cls) -> dict[str, Function]:
        """The contract's functions by name."""
        found = {}
        for method_name, method in inspect.getmembers(cls, inspect.isfunction):
            writes = method.__dict__.get("contract_function")
            if writes is None:
                continue
            hints = typing.get_type_hints(method, include_extras=True)
            fields = [
                _Field(
                    parameter.name,
                    parameter.name.rstrip("_"),
                    _rule_of(hints[parameter.name]),
                    parameter.default is parameter.empty,
                )
                for parameter in inspect.signature(method).parameters.values()
                if parameter.kind is parameter.KEYWORD_ONLY
            ]
            name = "".join(word.capitalize() for word in method_name.split("_"))
            purpose = (inspect.getdoc(method) or "").partition("\n")[0]
            found[name] = Function(
                name, method_name, writes, _Record.of("the argument", dict, tuple(fields)), purpose
            )
        return found


class Chaincode:
    """Contracts under one name, with the state that they share."""

    def __init__(self, name: str, contracts: Sequence[Contract]) -> None:
        self.name = name
        self._functions: dict[str, tuple[Contract, Function]] = {
            f"{contract.name}:{function.name}": (contract, function)
            for contract in contracts
            for function in contract.functions().values()
        }

    @property
    def functions(self) -> Mapping[str, Function]:
        """All functions by the name that clients call."""
        return {name: function for name, (_, function) in self._functions.items()}

    def invoke(self, context: Context, args: Sequence[bytes]) -> bytes:
        """Call `args[0]` with the JSON object `args[1]` (none: `{}`); the answer is JSON.

        Raises ContractError.
        """
        called = args[0].decode(errors="replace") if args else ""
        if called not in self._functions:
            prefix = f"{called.partition(':')[0]}:"
            near = [name for name in self._functions if name.startswith(prefix)]
            raise NotFound(
                f"{self.name} has no function {_shown(called)}; it has "
                f"{', '.join(sorted(near or self._functions))}"
            )
        if len(args) > 2:
            raise InvalidArgument(
                f"{called} got {len(args) - 1} arguments, but takes one JSON object"
            )
        contract, function = self._functions[called]
        argument = _load(args[1] if len(args) == 2 else b"{}", "the argument", MAX_ARGUMENT_BYTES)
        values = function.argument.values(argument, "")
        return canonical_json(getattr(contract, function.method)(context, **values))
