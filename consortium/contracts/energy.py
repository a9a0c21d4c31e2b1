"""Chaincode `energy`: all that moves money, in one chaincode.

A chaincode that is called by another cannot know who called it, so contracts that share accounts
share the chaincode and its policy.
"""

from consortium.chaincode.api import Chaincode

from .agenda import Agenda
from .balance import Balances
from .bilateral import Bilaterals
from .billing import Billing
from .books import Books
from .certificates import Certificates
from .challenges import Challenges
from .communities import Communities
from .credits import Credits
from .delegations import Delegations
from .exports import Exports
from .gates import Gates
from .grid import Grid
from .market import Market
from .oversight import Oversight
from .permit import Permits
from .prepayment import Prepayments
from .registry import Registry
from .response import Responses
from .roles import Roles
from .settlement import Settlement
from .tariff_book import TariffBook
from .tokens import Tokens
from .wallet import Wallet

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
