"""Private records with public commitments.

What is derived from readings (settlement lines, bills) stands in the private collection of the
home's utility, in chaincode `metering`; every peer holds the SHA-256 of it, as Fabric keeps it of
any private value. That hash is the record's commitment: `energy` asks `metering` for it and lets
pass only what it was made from.

    in `metering`:  put(context, utility, key, record) -> commitment
                    opened(context, utility, key, Record) -> record or None
    in `energy`:    check(context, utility, key, record)          one record
                    check_all(context, utility, {key: record})    many, by one call
                    commitments(context, utility, keys)           the hashes themselves

A commitment hides its record only if nobody can guess it: a record holds a `Salt` made by `salt`
of what outsiders don't know, such as the salts of the readings that it was computed from, or the
commitment of another record that does. It is derived and not drawn, so that all peers of a utility
come to the same bytes. Keys begin with what the record is: `st/…` settlement, `bill/…` bills.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    Contract,
    ContractError,
    Forbidden,
    InvalidArgument,
    LimitExceeded,
    MspId,
    NotFound,
    Text,
    canonical_json,
    query,
    sha256_hex,
    stored_record,
)

MAX_KEYS = 200
"""Commitments that are asked for at once."""

Salt = Annotated[str, Text(r"[0-9a-f]{64}", "64 lower-case hex digits")]
Commitment = Annotated[str, Text(r"[0-9a-f]{64}", "SHA-256 in lower-case hex")]
RecordKey = Annotated[
    str, Text(r"[a-z]{1,16}(/[A-Za-z0-9.-]{1,64}){1,6}", "a private record's key, such as st/…")
]


def collection(utility: str) -> str:
    """The private collection of a utility, in chaincode `metering`."""
    return f"readings-{utility}"


# In chaincode `metering`


def salt(context: Context, key: str, secrets: Sequence[str]) -> str:
    """The salt of the record under a key: the same on every peer that knows the secrets.

    Args:
        context: The transaction; the channel's name goes in.
        key: The record's.
        secrets: What outsiders can't guess, one of 256 bits at least; order counts.

    Raises:
        InvalidArgument: there is no secret.
    """
    if not secrets:
        raise InvalidArgument(
            f"nothing secret goes into {key}, so its commitment would hide nothing"
        )
    return sha256_hex(
        canonical_json({"channel": context.channel_id, "key": key, "secrets": list(secrets)})
    )


def put(context: Context, utility: str, key: str, record: object) -> str:
    """Write a private record; its commitment."""
    value = canonical_json(record)
    context.put_private(collection(utility), key, value)
    return sha256_hex(value)


def opened[R](context: Context, utility: str, key: str, record: type[R]) -> R | None:
    """A private record, on a peer of its utility."""
    stored = context.get_private(collection(utility), key)
    return None if stored is None else stored_record(record, stored)


def commitment(context: Context, utility: str, key: str) -> str | None:
    """A private record's commitment, on any peer; None if there is no such record."""
    stored = context.get_private_hash(collection(utility), key)
    return None if stored is None else stored.hex()


@dataclass(frozen=True, slots=True)
class Committed:
    """What stands under a key."""

    key: RecordKey
    commitment: Commitment | None


@dataclass(frozen=True, slots=True)
class _Answer:
    utility: MspId
    commitments: Annotated[tuple[Committed, ...], AtMost(MAX_KEYS)]


class Commitments(Contract):
    """Commitments of private records, for other chaincodes and for whoever checks an opened one."""

    name: ClassVar[str] = "commitment"

    @query
    def of(
        self,
        context: Context,
        *,
        utility: MspId,
        keys: Annotated[tuple[RecordKey, ...], AtMost(MAX_KEYS)],
    ) -> dict[str, Any]:
        """Commitments of a utility's private records, null where there is none."""
        return {
            "utility": utility,
            "commitments": [Committed(key, commitment(context, utility, key)) for key in keys],
        }


# In chaincode `energy`


def commitments(context: Context, utility: str, keys: Sequence[str]) -> dict[str, str | None]:
    """What `metering` has for these keys; each read counts for this transaction too.

    Raises:
        Conflict: `metering` gave no answer, with its message.
    """
    found: dict[str, str | None] = {}
    for start in range(0, len(keys), MAX_KEYS):
        part = list(keys[start : start + MAX_KEYS])
        answer = called(context, "metering", "commitment:Of", _Answer, utility=utility, keys=part)
        for item in answer.commitments:
            found[item.key] = item.commitment
    return found


def check_all(context: Context, utility: str, records: Mapping[str, object]) -> None:
    """Let only those records pass that the utility has committed to.

    Raises:
        NotFound: there is no record under a key.
        Conflict: it is another one.
    """
    found = commitments(context, utility, list(records))
    for key, record in records.items():
        committed = found[key]
        if committed is None:
            raise NotFound(f"{utility} has committed to no record {key}; it is computed first")
        shown = sha256_hex(canonical_json(record))
        if shown != committed:
            raise Conflict(
                f"the record {key} has the hash {shown}, but {utility} has committed to {committed}"
            )


def check(context: Context, utility: str, key: str, record: object) -> None:
    """`check_all` for one record."""
    check_all(context, utility, {key: record})


# In both


@dataclass(frozen=True, slots=True)
class _Oversees:
    kind: Annotated[str, Choice("regulator", "auditor")] | None


def is_overseer(context: Context) -> bool:
    """Whether the caller is an agreed regulator or auditor, in chaincode `metering`."""
    return called(context, "energy", "oversight:Me", _Oversees).kind is not None


_REFUSALS: dict[int, type[ContractError]] = {
    refusal.status: refusal
    for refusal in (InvalidArgument, Forbidden, NotFound, Conflict, LimitExceeded)
}


def called[R](context: Context, chaincode: str, function: str, record: type[R], **fields: Any) -> R:
    """What a query of another chaincode answers to `{field: …}`, as a record.

    Raises:
        ContractError: it refused, with its message and of its kind.
        Conflict: it failed.
    """
    answer = context.call(chaincode, [function.encode(), canonical_json(fields)])
    if answer.status >= 400:
        refusal = _REFUSALS.get(answer.status, Conflict)
        raise refusal(f"{chaincode} refused {function}: {answer.message}")
    return stored_record(record, answer.payload)
