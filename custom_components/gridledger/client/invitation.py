"""An invitation: everything that a home needs to join a network, as one text to paste.

The text is ``gridledger1.`` and base64url of a compact JSON object, with its CRC-32 behind, so
that a cut or mistyped one is told apart from a refused one. It holds the one-time secret: whoever
has the text can enrol in the home's name, once.
"""

import binascii
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from .errors import InvalidInput

PREFIX: Final = "gridledger1."
TEXT_LIMIT: Final = 4096
"""No invitation is longer; nor fits a longer one into a QR code."""
_TEXT = re.compile(r"gridledger1\.([A-Za-z0-9_-]+)\.([0-9a-f]{8})")
_NAMES: Final = {
    "g": "gateways",
    "a": "ca_url",
    "c": "channel",
    "f": "fingerprint",
    "i": "enrollment_id",
    "s": "secret",
    "m": "msp_id",
    "h": "connection_id",
}
_NEEDED: Final = ("ca_url", "channel", "fingerprint", "enrollment_id", "secret")


@dataclass(frozen=True, slots=True)
class Invitation:
    """Where the network is, what to trust, and who may enrol."""

    gateways: tuple[str, ...]
    ca_url: str
    channel: str
    fingerprint: str
    """Of the CA bundle, 64 hexadecimal digits; see :func:`.enrolment.fingerprint`."""
    enrollment_id: str
    secret: str = field(repr=False)
    msp_id: str = ""
    connection_id: str = ""
    """The home's connection point, to be shown before enrolment; the certificate decides."""

    def encode(self) -> str:
        """Return the invitation as text."""
        stated: dict[str, Any] = {
            short: list(value) if name == "gateways" else value
            for short, name in _NAMES.items()
            if (value := getattr(self, name))
        }
        stated["f"] = self.fingerprint.replace(":", "").lower()
        raw = json.dumps(stated, separators=(",", ":"), sort_keys=True).encode()
        text = urlsafe_b64encode(raw).decode().rstrip("=")
        return f"{PREFIX}{text}.{binascii.crc32(raw):08x}"

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read an invitation from a text that holds it, such as a link that ends in one.

        Blanks and line breaks, which mail programs put in, don't matter.

        Raises:
            InvalidInput: there is none, or it isn't whole.
        """
        packed = "".join(text.split())
        found = _TEXT.search(packed)
        if found is None or len(packed) > TEXT_LIMIT:
            raise InvalidInput(f"an invitation begins with {PREFIX} and is copied as a whole")
        try:
            raw = urlsafe_b64decode(found[1] + "=" * (-len(found[1]) % 4))
            if binascii.crc32(raw) != int(found[2], 16):
                raise InvalidInput("the invitation isn't whole: copy it once more")
            return cls._read(json.loads(raw))
        except (AttributeError, ValueError, TypeError) as error:
            raise InvalidInput(f"the invitation can't be read: {error}") from error

    @classmethod
    def _read(cls, stated: Mapping[str, Any]) -> Self:
        given = {name: stated.get(short, "") for short, name in _NAMES.items()}
        gateways = given.pop("gateways")
        if not isinstance(gateways, list) or not all(isinstance(one, str) for one in gateways):
            raise ValueError("its gateways are no list of addresses")
        for name, value in given.items():
            if not isinstance(value, str) or (name in _NEEDED and not value):
                raise ValueError(f"it has no {name}")
        return cls(tuple(gateways), **given)
