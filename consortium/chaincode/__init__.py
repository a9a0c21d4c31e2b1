"""Running contracts: the API they are written against, what they read and wrote, who runs them.

`api` is all that a contract may import. `simulator` records a transaction's reads and writes as
Fabric's read-write sets. `executor` is the boundary behind which contract code runs.
"""
