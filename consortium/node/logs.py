"""What a node's log leaves out of what gRPC has to say."""

import logging

_GRPC = "grpc._cython.cygrpc"


def quieten_grpc() -> None:
    """Keep gRPC from reporting every caller who hung up as an error with a traceback.

    Anyone may do so at any moment, also between an answer and its status. What a handler of ours
    raises is reported still.

    Nor does it log at DEBUG, which may stop the node: it does that while it holds a lock of its
    own, which a thread that writes to the log waits for when it happens to collect a channel.
    """
    logger = logging.getLogger(_GRPC)
    logger.addFilter(_not_a_hang_up)
    logger.setLevel(logging.INFO)


def _not_a_hang_up(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "ExecuteBatchError"
