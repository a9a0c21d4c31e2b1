"""gRPC service paths and the options that every channel and server of a network is opened with.

Handlers are registered by hand, with raw bytes where a message is passed on as received, so that
nothing depends on the version of gRPC's code generator.
"""

from collections.abc import Sequence

BROADCAST = "/orderer.AtomicBroadcast/Broadcast"
BROADCAST_BATCHES = "/gridledger.AtomicBroadcast/BroadcastBatches"
ORDERER_DELIVER = "/orderer.AtomicBroadcast/Deliver"
CLUSTER_STEP = "/orderer.Cluster/Step"
CONSENTERS_RECALL = "/gridledger.Consenters/Recall"
ORDERER_ACT = "/gridledger.OrdererAdministration/Act"
PROCESS_PROPOSAL = "/protos.Endorser/ProcessProposal"
DELIVER = "/protos.Deliver/Deliver"
DELIVER_FILTERED = "/protos.Deliver/DeliverFiltered"
DELIVER_WITH_PRIVATE_DATA = "/protos.Deliver/DeliverWithPrivateData"
DISCOVER = "/discovery.Discovery/Discover"
EVALUATE = "/gateway.Gateway/Evaluate"
ENDORSE = "/gateway.Gateway/Endorse"
SUBMIT = "/gateway.Gateway/Submit"
COMMIT_STATUS = "/gateway.Gateway/CommitStatus"
CHAINCODE_EVENTS = "/gateway.Gateway/ChaincodeEvents"
PRIVATE_PUSH = "/gridledger.PrivateData/Push"
PRIVATE_PULL = "/gridledger.PrivateData/Pull"
SNAPSHOT_GENERATE = "/protos.Snapshot/Generate"
SNAPSHOT_CANCEL = "/protos.Snapshot/Cancel"
SNAPSHOT_QUERY_PENDINGS = "/protos.Snapshot/QueryPendings"
SNAPSHOT_TIMEOUT_S = 30.0
CHAINCODE_CONNECT = "/protos.Chaincode/Connect"

MESSAGE_LIMIT_BYTES = 100 * 1024 * 1024
"""Largest gRPC message between nodes, Fabric's own default (blocks may be of many megabytes)."""

CLIENT_MESSAGE_LIMIT_BYTES = 12 * 1024 * 1024
"""Largest message a client's listener takes: an envelope of the largest block, and its frame."""

BATCHES_TAKEN = ("gridledger-batches", "taken")
"""What an orderer's answer to BroadcastBatches begins with, as metadata."""

BROADCAST_BATCH = 500
"""Envelopes in one message of BroadcastBatches, at most."""

GRPC_EXPERIMENTS = "-event_engine_listener,-event_engine_client"
"""Value of the environment variable of that name for a node's process.

gRPC's newer event engine hands each message through a pool of threads of its own. Without it the
same thread that tells the event loop of a message reads the socket, which saves two changes of
thread for each message: 100 of 480 µs CPU for each envelope at an orderer (grpcio 1.83). gRPC reads
the variable when it is imported, and ignores names that it does not know.
"""

ChannelOptions = Sequence[tuple[str, int | str]]

NODE_CHANNEL_OPTIONS: ChannelOptions = (
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    # A machine that vanished is noticed in little more than a minute under an idle stream, and in
    # ten seconds where something is sent. Fabric hangs up on who pings more often than each minute.
    ("grpc.keepalive_time_ms", 65_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name this is how long one attempt may take, TLS included: enough for a slow line
    # or a busy machine, and calls don't wait long for a node whose machine is gone.
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
)

NODE_SERVER_OPTIONS: ChannelOptions = (
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A caller who vanished leaves a stream, with its task and its place among the limits.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.so_reuseport", 0),
)

CLIENT_SERVER_OPTIONS: ChannelOptions = (
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_receive_message_length", CLIENT_MESSAGE_LIMIT_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A caller who vanished leaves a stream, with its task and its place among the limits.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_concurrent_streams", 2_000),
    ("grpc.so_reuseport", 0),
)
