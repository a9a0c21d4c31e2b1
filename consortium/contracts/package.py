"""Makes a chaincode's package out of its sources.

Not a contract. A package's id is label:SHA-256 of the package, and the package is made of the
sources alone, so members see that they run the same contract; one changed line is another package.
A peer keeps the packages that were installed on it. So a node whose own sources are newer still
runs the ones that the channel has agreed on, until a new sequence is committed.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from consortium.chaincode.packages import SOURCES_TYPE, Package, PackageError, make_package
from consortium.chaincode.packages import package_id as package_id_of

_HERE = Path(__file__).parent
_ROOT = _HERE.parent.parent
CONTENTS_FILE = "contract.json"
"""In the code of a package: `{"chaincode": name}`."""
MODULES_FOLDER = "consortium/contracts"
"""In the code of a package: the chaincode's modules, one of them by its name."""
_SHARED = ("../chaincode/api.py", "access.py", "clock.py", "settings.py")
_SOURCES = {
    "metering": (
        *_SHARED,
        "bill_basis.py",
        "bill_records.py",
        "calendars.py",
        "commitments.py",
        "dated.py",
        "daybook.py",
        "days.py",
        "duties.py",
        "feeder.py",
        "firm.py",
        "intake.py",
        "losses.py",
        "metering.py",
        "meters.py",
        "money.py",
        "pages.py",
        "privacy.py",
        "protections.py",
        "pseudonyms.py",
        "readings.py",
        "settle.py",
        "sharing.py",
        "silence.py",
        "sums.py",
        "tariffs.py",
        "trees.py",
    ),
    "energy": (
        *_SHARED,
        "agenda.py",
        "agreements.py",
        "auction.py",
        "auctions.py",
        "balance.py",
        "baseline.py",
        "bilateral.py",
        "bill_basis.py",
        "billing.py",
        "books.py",
        "calendars.py",
        "certificates.py",
        "challenges.py",
        "chores.py",
        "commitments.py",
        "communities.py",
        "continuous.py",
        "credits.py",
        "dated.py",
        "days.py",
        "delegations.py",
        "energy.py",
        "explained.py",
        "exports.py",
        "firm.py",
        "gates.py",
        "grid.py",
        "losses.py",
        "market.py",
        "matching.py",
        "meters.py",
        "money.py",
        "orders.py",
        "oversight.py",
        "pages.py",
        "permit.py",
        "positions.py",
        "posting.py",
        "prepayment.py",
        "products.py",
        "protections.py",
        "readings.py",
        "registry.py",
        "reliability.py",
        "response.py",
        "roles.py",
        "sealed.py",
        "settle.py",
        "settlement.py",
        "sharing.py",
        "sums.py",
        "supply.py",
        "supply_terms.py",
        "tariff_book.py",
        "tariffs.py",
        "tokens.py",
        "trees.py",
        "wallet.py",
        "wishes.py",
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
def package(name: str) -> bytes:
    """The package of a chaincode as this node has it. Raises KeyError."""
    files = {CONTENTS_FILE: json.dumps({"chaincode": name}).encode()}
    for source in sources(name):
        path = (_HERE / source).resolve()
        files[path.relative_to(_ROOT.resolve()).as_posix()] = path.read_bytes()
    return make_package(label(name), SOURCES_TYPE, files)


@cache
def package_id(name: str) -> str:
    """`label:hash` of a chaincode's package. Raises KeyError."""
    return package_id_of(label(name), package(name))


def chaincode_name(package: Package) -> str:
    """The chaincode that a package of sources holds; raises PackageError."""
    try:
        named = json.loads(package.files()[CONTENTS_FILE])["chaincode"]
    except (KeyError, ValueError, TypeError) as error:
        raise PackageError(f"package {package.package_id} names no chaincode: {error}") from None
    if not isinstance(named, str) or not named.isidentifier():
        raise PackageError(f"package {package.package_id} names no chaincode that can be run")
    return named


def current_packages() -> Mapping[str, str]:
    """Package ids of the chaincodes that this node's own sources make, with their names."""
    return {package_id(name): name for name in _SOURCES}
