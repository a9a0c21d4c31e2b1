"""GridLedger's contracts. Each runs on every endorsing peer and must come to the same bytes.

They import the contract API and each other, nothing else: no clock but the transaction's time, no
randomness, no floats, no sets in iteration, no files. `package` names them by their sources.
"""

from consortium.chaincode.api import Chaincode

from . import energy, metering


def chaincodes() -> dict[str, Chaincode]:
    """The chaincodes that this node has code for, by name."""
    return {chaincode.name: chaincode for chaincode in (energy.CHAINCODE, metering.CHAINCODE)}
