"""Identities: who signs, whose certificate that is, and what a set of signers may decide.

`signing` makes and checks signatures, `certificates` issues X.509 certificates, `msp` decides
which certificates are members of the channel and in which role (Fabric's membership service
provider), `policies` decides whether a set of members is enough. All of it is a function of the
channel's configuration alone: no clock, no file and no network is read while verifying, so that
every peer comes to the same answer, today and when the chain is replayed in ten years. Whether a
certificate has expired is asked at the edges with `msp.check_not_expired`.
"""
