"""The ordering node: takes signed envelopes, agrees on their order by Raft, hands out blocks.

`blockcutter` decides which envelopes make a block, `admission` which envelopes may be ordered at
all, `chain` drives one channel's Raft group and writes its blocks, `raft_storage` and `blockstore`
keep both on disk, `cluster` carries messages between orderers, `services` is what clients and
peers call, and `node.Orderer` puts it together. Nothing here knows what a contract is.

What it promises: a Broadcast answered SUCCESS stands in a block that a majority of the orderers
holds on disk, and every orderer hands out the same blocks, apart from its own signature on them.
"""
