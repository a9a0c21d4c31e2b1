"""The ledger: blocks, world state, private data and the rules by which a block becomes state.

A block arrives ordered and signed. `validator` decides for every transaction whether its signers
may write what it writes, `mvcc` whether what it read is still so, and `ledger` stores the block
with its effects in one transaction. The same blocks give the same codes, the same state and the
same commit hash on every peer, and on a Hyperledger Fabric peer: nothing here reads a clock, the
network or a file but its own.
"""
