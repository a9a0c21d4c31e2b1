"""The `gridledger` command. It holds no logic: every verb is a call into another room."""

import os

from consortium.wire.services import GRPC_EXPERIMENTS

# Before anything imports gRPC.
os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
