"""Names a chaincode by its code: package id = label:SHA-256 of its sources.

Not a contract. The id stands in the lifecycle's approvals, so members see that they run the same
contract; one changed line is another package.
"""

import hashlib
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_SHARED = ("../chaincode/api.py", "access.py", "clock.py", "settings.py")
_SOURCES = {
    "metering": (*_SHARED, "metering.py"),
    "energy": (
        *_SHARED,
        "energy.py",
        "market.py",
        "money.py",
        "pages.py",
        "registry.py",
        "wallet.py",
    ),
}
VERSION = "1.0"
"""Version of the chaincode definitions that go with these sources."""


def label(name: str) -> str:
    """The label of a chaincode's package."""
    return f"{name}_{VERSION}"


def sources(name: str) -> tuple[str, ...]:
    """The files that a chaincode's package covers, relative to this one. Raises KeyError."""
    return _SOURCES[name]


@cache
def package_id(name: str) -> str:
    """`label:hash`; the hash covers names, lengths and contents. Raises KeyError."""
    digest = hashlib.sha256()
    for source in sorted(sources(name)):
        content = (_HERE / source).read_bytes()
        digest.update(f"{source}\0{len(content)}\0".encode() + content)
    return f"{label(name)}:{digest.hexdigest()}"
