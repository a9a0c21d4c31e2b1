"""A meter's interval readings, signed by the meter's own key over exact bytes.

The signed bytes are canonical JSON: keys sorted, no spaces, every integer a decimal string, with
the channel's name added, so that a reading can't be moved to another network. Salt and signature
are derived, not drawn: the same reading built twice is the same bytes, and changes nothing in the
ledger when it arrives twice.
"""

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import batched
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from .errors import InvalidInput
from .identity import load_private_key, sign_low_s

BATCH_LIMIT = 1000
"""Readings that one transaction may carry."""
TOGETHER = 16
"""Readings under one signature: checking it then costs no more than four hashes, and they add
180 bytes to each reading. More would add bytes and save nothing."""


class Quality(StrEnum):
    """How an interval's value came about."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    SUBSTITUTED = "substituted"


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """Return the bytes that are hashed and signed: sorted keys, no spaces, integers as strings."""
    return json.dumps(
        {key: str(item) if isinstance(item, int) else item for key, item in value.items()},
        sort_keys=True,
        separators=(",", ":"),
    ).encode()


@dataclass(frozen=True, slots=True)
class Reading:
    """Energy through one meter within ``[interval_start, interval_start + interval_s)``.

    Energy is whole Wh; registers are the meter's at the interval's end; ``interval_start`` is
    epoch seconds of the channel's clock.
    """

    meter_id: str
    interval_start: int
    interval_s: int
    import_wh: int
    export_wh: int
    import_register_wh: int
    export_register_wh: int
    quality: Quality = Quality.MEASURED
    version: int = 1

    def __post_init__(self) -> None:
        """Refuse what no meter can have measured."""
        negative = [
            name
            for name in ("import_wh", "export_wh", "import_register_wh", "export_register_wh")
            if getattr(self, name) < 0
        ]
        if negative:
            raise InvalidInput(f"{', '.join(negative)} of a reading can't be negative")
        if self.interval_s <= 0 or self.interval_start % self.interval_s:
            raise InvalidInput(
                f"interval {self.interval_start} is not aligned to {self.interval_s} s"
            )


@dataclass(frozen=True, slots=True)
class SignedReading:
    """A reading as it is submitted: ``fields`` are what the contract takes."""

    reading: Reading
    fields: Mapping[str, str]


class MeterKey:
    """Signs the readings of one home's meters and derives their salts."""

    def __init__(self, key_pem: bytes, salt_secret: bytes) -> None:
        """Take the meter's P-256 key and the home's secret of at least 16 bytes.

        Raises:
            InvalidInput: either can't be used.
        """
        if len(salt_secret) < 16:
            raise InvalidInput("the secret that salts are derived from needs at least 16 bytes")
        self._key = load_private_key(key_pem)
        self._salt_secret = salt_secret

    @property
    def public_key_pem(self) -> str:
        """The public key as the contract registers it (PEM, SubjectPublicKeyInfo)."""
        return (
            self._key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )

    def sign(self, reading: Reading, channel: str) -> SignedReading:
        """Sign a reading for one channel."""
        fields = self._fields(reading)
        signature = self._signature(canonical_json({"channel": channel, **fields}))
        return SignedReading(reading, {**fields, "signature": signature})

    def sign_together(
        self, readings: Sequence[Reading], channel: str, together: int = TOGETHER
    ) -> list[SignedReading]:
        """Sign readings of one meter, so many at once; each still proves itself alone.

        Checking signatures is most of what a reading costs its utility. Here the meter signs the
        root of a Merkle tree (RFC 6962, section 2.1) over what it would have signed one by one, and
        each reading carries the hashes beside its way to the root.

        Raises:
            InvalidInput: they are of several meters, or fewer than 1 or more than 999 at once.
        """
        if len({reading.meter_id for reading in readings}) > 1:
            raise InvalidInput("readings of several meters can't have one signature")
        if not 1 <= together < BATCH_LIMIT:
            raise InvalidInput(f"one signature is for 1 to {BATCH_LIMIT - 1} readings")
        return [
            signed
            for group in batched(readings, together, strict=False)
            for signed in self._sign_group(group, channel)
        ]

    def _sign_group(self, group: Sequence[Reading], channel: str) -> list[SignedReading]:
        rows = [self._fields(reading) for reading in group]
        leaves = [
            hashlib.sha256(b"\0" + canonical_json({"channel": channel, **fields})).digest()
            for fields in rows
        ]
        root, ways = _tree(leaves)
        signature = self._signature(
            canonical_json(
                {
                    "channel": channel,
                    "count": len(leaves),
                    "meter_id": group[0].meter_id,
                    "root": root.hex(),
                }
            )
        )
        return [
            SignedReading(
                reading,
                {
                    **fields,
                    "signature": f"{signature}:{index}:{len(leaves)}:{b64encode(way).decode()}",
                },
            )
            for index, (reading, fields, way) in enumerate(zip(group, rows, ways, strict=True))
        ]

    def _fields(self, reading: Reading) -> dict[str, str]:
        """What the meter signs, besides the channel's name."""
        salt = hmac.new(
            self._salt_secret,
            f"{reading.meter_id}|{reading.interval_start}|{reading.version}".encode(),
            hashlib.sha256,
        ).hexdigest()
        return {
            "meter_id": reading.meter_id,
            "interval_start": str(reading.interval_start),
            "interval_s": str(reading.interval_s),
            "version": str(reading.version),
            "import_wh": str(reading.import_wh),
            "export_wh": str(reading.export_wh),
            "import_register_wh": str(reading.import_register_wh),
            "export_register_wh": str(reading.export_register_wh),
            "quality": reading.quality.value,
            "salt": salt,
        }

    def _signature(self, message: bytes) -> str:
        try:
            signature = sign_low_s(self._key, message, deterministic=True)
        except UnsupportedAlgorithm:  # an OpenSSL older than 3.2
            signature = sign_low_s(self._key, message)
        return b64encode(signature).decode()


def _tree(leaves: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
    """The root over leaves' hashes; for each leaf the hashes beside its way there, joined."""
    if len(leaves) == 1:
        return leaves[0], [b""]
    size = 1 << (len(leaves) - 1).bit_length() - 1
    left, left_ways = _tree(leaves[:size])
    right, right_ways = _tree(leaves[size:])
    ways = [*(way + right for way in left_ways), *(way + left for way in right_ways)]
    return hashlib.sha256(b"\1" + left + right).digest(), ways


def batch_transient(readings: Sequence[SignedReading | Mapping[str, str]]) -> dict[str, bytes]:
    """Return the transient map of ``metering:SubmitReadings``.

    ``readings`` are up to 1,000 signed readings, or their ``fields`` as they were stored.

    Raises:
        InvalidInput: none, or too many.
    """
    if not 1 <= len(readings) <= BATCH_LIMIT:
        raise InvalidInput(f"a batch has 1 to {BATCH_LIMIT} readings, not {len(readings)}")
    rows = [
        dict(reading.fields if isinstance(reading, SignedReading) else reading)
        for reading in readings
    ]
    return {"readings": json.dumps({"readings": rows}, separators=(",", ":")).encode()}
