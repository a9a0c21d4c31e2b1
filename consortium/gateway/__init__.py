"""The gateway: what clients talk to. It plans endorsements, submits, waits and streams events.

It speaks `gateway.Gateway` as Hyperledger Fabric's client libraries expect it, status codes and
error details included. It reads no storage: all it knows comes from the channel's configuration,
the contracts' definitions and the peers' answers.
"""
