"""Chaincode `energy`: all that moves money, in one chaincode.

A chaincode that is called by another cannot know who called it, so contracts that share accounts
share the chaincode and its policy.
"""

from consortium.chaincode.api import Chaincode

from .books import Books
from .certificates import Certificates
from .delegations import Delegations
from .market import Market
from .registry import Registry
from .response import Responses
from .tariff_book import TariffBook
from .wallet import Wallet

CHAINCODE = Chaincode(
    "energy",
    (
        Registry(),
        Wallet(),
        Market(),
        Books(),
        TariffBook(),
        Certificates(),
        Delegations(),
        Responses(),
    ),
)
