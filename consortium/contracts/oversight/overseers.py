"""Who oversees the channel: regulators and auditors, as several utilities have agreed.

An overseer reads amounts of homes that aren't its own, so no utility admits one alone. Its terms
name the member whose authority certifies it, the enrolment id that is its certificate's common
name, and, where that is wanted, the one certificate that counts. A later version with the kind
`none` ends it. What a certificate says of itself (`gridledger.role`) counts for nothing here.
"""

from dataclasses import dataclass
from typing import Annotated

from consortium.chaincode.api import (
    Choice,
    Context,
    MspId,
    NotFound,
    Text,
    sha256_hex,
)

from ..common import agreements, settings
from ..registry.registry import energy_settings

OVERSEER = "overseer"
"""The kind of agreement."""
KINDS = ("regulator", "auditor")

Kind = Annotated[str, Choice(*KINDS, "none")]
EnrolmentId = Annotated[
    str, Text(r"[A-Za-z0-9-]{1,64}", "an enrolment id: 1 to 64 letters, digits and hyphens")
]
Fingerprint = Annotated[str, Text(r"[0-9a-f]{64}", "SHA-256 of a certificate's DER: 64 hex digits")]


@dataclass(frozen=True, slots=True)
class Overseer:
    """Who may look at what others may not."""

    msp_id: MspId
    """The member that certifies it."""
    enrolment_id: EnrolmentId
    """The common name of its certificate."""
    kind: Kind
    """none: it oversees nothing from then on."""
    certificate: Fingerprint | None = None
    """The only certificate that counts; None: whichever the member has made for that id."""


def name_of(msp_id: str, enrolment_id: str) -> str:
    """Under which name the agreement stands; an enrolment id has no dot."""
    return f"{msp_id}.{enrolment_id}"


def kind_of(context: Context) -> str | None:
    """What the caller oversees the channel as, in chaincode `energy`; None: it does not."""
    creator = context.creator
    name = name_of(creator.msp_id, creator.common_name)
    if "/" in name or context.get_state(f"terms/{OVERSEER}/{name}/versions") is None:
        return None
    now = settings.now(context, energy_settings(context))
    try:
        terms = agreements.in_force(context, OVERSEER, name, now, Overseer)
    except NotFound:
        return None
    same = (terms.msp_id, terms.enrolment_id) == (creator.msp_id, creator.common_name)
    certified = terms.certificate in (None, sha256_hex(creator.certificate))
    return terms.kind if same and certified and terms.kind in KINDS else None


def is_overseer(context: Context) -> bool:
    """Whether the caller is an agreed regulator or auditor, in chaincode `energy`."""
    return kind_of(context) is not None
