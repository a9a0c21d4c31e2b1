"""Chaincode `metering`: meters, readings, and what is computed from them in private.

It moves no money, and its policy is another than that of `energy`: what stands in the private
collection of a utility's homes, that utility alone endorses.
"""

from consortium.chaincode.api import Chaincode

from .assets.origins import Origins
from .balance.feeder import Feeders
from .billing.bill_records import Bills
from .billing.protections import Protections
from .common.commitments import Commitments
from .market.baselines import Baselines
from .meters.duties import Duties
from .meters.metering import Metering
from .meters.privacy import Privacy
from .settlement.daybook import Daybook

CHAINCODE = Chaincode(
    "metering",
    (
        Metering(),
        Commitments(),
        Daybook(),
        Feeders(),
        Bills(),
        Protections(),
        Duties(),
        Privacy(),
        Baselines(),
        Origins(),
    ),
)
