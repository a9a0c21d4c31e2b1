"""A small asyncio client for a GridLedger (or Hyperledger Fabric) network.

It makes an identity (:mod:`.enrolment`), signs and submits transactions through any member's
gateway (:mod:`.gateway`), follows a contract's events, and builds a meter's signed readings
(:mod:`.readings`). It never sends a private key, never retries a different transaction in place
of one whose outcome is unknown, and signs only a transaction that is the one it proposed.

The same folder is the package ``gridledger_client`` for command line, demonstrations and tests;
it imports nothing of Home Assistant.
"""

from .enrolment import (
    AuthorityInfo,
    Credentials,
    enroll,
    fetch_bundle,
    fetch_info,
    fingerprint,
    reenroll,
)
from .errors import (
    AuthenticationFailed,
    CommitFailed,
    ConnectionFailed,
    ErrorDetail,
    GridLedgerError,
    InvalidInput,
    Timeout,
    TransactionRefused,
)
from .gateway import (
    ClockBounds,
    CommitStatus,
    Committed,
    Deadlines,
    Event,
    GatewayClient,
    PreparedTransaction,
    SignedTransaction,
)
from .identity import Identity, generate_key_pem
from .invitation import Invitation
from .readings import MeterKey, Quality, Reading, SignedReading

__all__ = [
    "AuthenticationFailed",
    "AuthorityInfo",
    "ClockBounds",
    "CommitFailed",
    "CommitStatus",
    "Committed",
    "ConnectionFailed",
    "Credentials",
    "Deadlines",
    "ErrorDetail",
    "Event",
    "GatewayClient",
    "GridLedgerError",
    "Identity",
    "InvalidInput",
    "Invitation",
    "MeterKey",
    "PreparedTransaction",
    "Quality",
    "Reading",
    "SignedReading",
    "SignedTransaction",
    "Timeout",
    "TransactionRefused",
    "enroll",
    "fetch_bundle",
    "fetch_info",
    "fingerprint",
    "generate_key_pem",
    "reenroll",
]
