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
_API = "../chaincode/api.py"
_SOURCES = {
    "metering": (
        _API,
        "assets/__init__.py",
        "assets/guarantees.py",
        "assets/origins.py",
        "balance/__init__.py",
        "balance/feeder.py",
        "balance/losses.py",
        "balance/sums.py",
        "billing/__init__.py",
        "billing/bill_basis.py",
        "billing/bill_records.py",
        "billing/calendars.py",
        "billing/protections.py",
        "billing/tariffs.py",
        "common/__init__.py",
        "common/access.py",
        "common/clock.py",
        "common/commitments.py",
        "common/dated.py",
        "common/money.py",
        "common/pages.py",
        "common/remembered.py",
        "common/residence.py",
        "common/settings.py",
        "common/trees.py",
        "market/__init__.py",
        "market/baseline.py",
        "market/baselines.py",
        "metering.py",
        "meters/__init__.py",
        "meters/duties.py",
        "meters/intake.py",
        "meters/metering.py",
        "meters/meters.py",
        "meters/privacy.py",
        "meters/pseudonyms.py",
        "meters/readings.py",
        "meters/signatures.py",
        "meters/silence.py",
        "settlement/__init__.py",
        "settlement/daybook.py",
        "settlement/days.py",
        "settlement/firm.py",
        "settlement/settle.py",
        "settlement/sharing.py",
    ),
    "energy": (
        _API,
        "assets/__init__.py",
        "assets/certificates.py",
        "assets/credits.py",
        "assets/guarantees.py",
        "assets/tokens.py",
        "assets/wallet.py",
        "balance/__init__.py",
        "balance/balance.py",
        "balance/losses.py",
        "balance/reliability.py",
        "balance/sums.py",
        "billing/__init__.py",
        "billing/agenda.py",
        "billing/bill_basis.py",
        "billing/billing.py",
        "billing/calendars.py",
        "billing/permit.py",
        "billing/posting.py",
        "billing/prepayment.py",
        "billing/protections.py",
        "billing/supply.py",
        "billing/supply_terms.py",
        "billing/tariff_book.py",
        "billing/tariffs.py",
        "common/__init__.py",
        "common/access.py",
        "common/agreements.py",
        "common/clock.py",
        "common/commitments.py",
        "common/dated.py",
        "common/money.py",
        "common/pages.py",
        "common/remembered.py",
        "common/residence.py",
        "common/settings.py",
        "common/trees.py",
        "energy.py",
        "market/__init__.py",
        "market/auction.py",
        "market/auctions.py",
        "market/baseline.py",
        "market/bilateral.py",
        "market/caps.py",
        "market/books.py",
        "market/chores.py",
        "market/continuous.py",
        "market/gates.py",
        "market/market.py",
        "market/matching.py",
        "market/orders.py",
        "market/pools.py",
        "market/positions.py",
        "market/products.py",
        "market/response.py",
        "market/sealed.py",
        "market/wishes.py",
        "meters/__init__.py",
        "meters/meters.py",
        "meters/readings.py",
        "meters/signatures.py",
        "oversight/__init__.py",
        "oversight/challenges.py",
        "oversight/explained.py",
        "oversight/exports.py",
        "oversight/opened.py",
        "oversight/oversight.py",
        "oversight/overseers.py",
        "registry/__init__.py",
        "registry/delegations.py",
        "registry/grid.py",
        "registry/homes.py",
        "registry/registry.py",
        "registry/roles.py",
        "settlement/__init__.py",
        "settlement/communities.py",
        "settlement/days.py",
        "settlement/firm.py",
        "settlement/settle.py",
        "settlement/settlement.py",
        "settlement/sharing.py",
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
