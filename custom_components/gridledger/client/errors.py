"""What can go wrong between a home and its ledger, as a caller has to tell it apart."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_CHAINCODE_RESPONSE = re.compile(r"chaincode response (\d{3}), (.*)", re.DOTALL)


class GridLedgerError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidInput(GridLedgerError):
    """A certificate, key, address or argument given to the client can't be used."""


class ConnectionFailed(GridLedgerError):
    """No gateway could be reached, or the one in use went away. Trying again later is right.

    ``gateway_answered`` is true where the gateway is there and the nodes behind it are not.
    """

    def __init__(self, message: str, *, gateway_answered: bool = False) -> None:
        super().__init__(message)
        self.gateway_answered = gateway_answered


class Timeout(GridLedgerError):
    """No answer within the deadline.

    After a submit the outcome is unknown: ask for it by ``transaction_id``, never submit anew.
    """

    def __init__(self, message: str, transaction_id: str = "") -> None:
        super().__init__(message)
        self.transaction_id = transaction_id


class AuthenticationFailed(GridLedgerError):
    """The ledger or the CA doesn't know the caller's identity or secret, or no longer does."""


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """What one node (``address`` of member ``msp_id``) said of a refused transaction."""

    address: str
    msp_id: str
    message: str


class TransactionRefused(GridLedgerError):
    """A contract or the network refused; nothing was written."""

    def __init__(self, message: str, details: Sequence[ErrorDetail] = ()) -> None:
        self.details = tuple(details)
        self.status: int | None = None
        self.reason = message
        for text in (*(detail.message for detail in self.details), message):
            if found := _CHAINCODE_RESPONSE.search(text):
                self.status, self.reason = int(found[1]), found[2]
                break
        else:
            if self.details:
                self.reason = self.details[0].message
        super().__init__(self.reason)
        self.message = message
        """The gateway's own words; ``reason`` is the contract's sentence where there is one."""


class CommitFailed(GridLedgerError):
    """The transaction was ordered, and every peer found it invalid; nothing was written."""

    def __init__(self, transaction_id: str, code: str, block_number: int) -> None:
        super().__init__(
            f"transaction {transaction_id} was put into block {block_number} "
            f"and found invalid: {code}"
        )
        self.transaction_id = transaction_id
        self.code = code
        self.block_number = block_number
