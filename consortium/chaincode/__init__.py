"""Running contracts: the API they are written against, what they read and wrote, who runs them.

`api` is all that a contract may import. `simulator` records a transaction's reads and writes as
Fabric's read-write sets, `batches` says how far ahead queries read. `executor` is the boundary
behind which contract code runs, and `routing` picks the executor of a chaincode.

Chaincode as a service: `remote` dials a chaincode server and `requests` answers what it asks for;
`serve` is such a server, for our own contracts.
"""
