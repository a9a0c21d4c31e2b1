"""Chaincode `energy`: all that moves money, in one chaincode.

A chaincode that is called by another cannot know who called it, so contracts that share accounts
share the chaincode and its policy.
"""

from consortium.chaincode.api import Chaincode

from .assets.certificates import Certificates
from .assets.credits import Credits
from .assets.tokens import Tokens
from .assets.wallet import Wallet
from .balance.balance import Balances
from .billing.agenda import Agenda
from .billing.billing import Billing
from .billing.permit import Permits
from .billing.prepayment import Prepayments
from .billing.tariff_book import TariffBook
from .market.bilateral import Bilaterals
from .market.books import Books
from .market.gates import Gates
from .market.market import Market
from .market.pools import Pools
from .market.response import Responses
from .oversight.challenges import Challenges
from .oversight.exports import Exports
from .oversight.oversight import Oversight
from .registry.delegations import Delegations
from .registry.grid import Grid
from .registry.registry import Registry
from .registry.roles import Roles
from .settlement.communities import Communities
from .settlement.settlement import Settlement

CHAINCODE = Chaincode(
    "energy",
    (
        Registry(),
        Roles(),
        Grid(),
        Wallet(),
        Market(),
        Books(),
        Bilaterals(),
        TariffBook(),
        Certificates(),
        Delegations(),
        Responses(),
        Pools(),
        Balances(),
        Oversight(),
        Exports(),
        Settlement(),
        Challenges(),
        Tokens(),
        Credits(),
        Communities(),
        Billing(),
        Prepayments(),
        Permits(),
        Agenda(),
        Gates(),
    ),
)
