"""What a node's log leaves out."""

import logging

_GRPC_SERVER = "grpc._cython.cygrpc"


def leave_out_hang_ups() -> None:
    """Keep gRPC from reporting every caller who hung up as an error with a traceback.

    Anyone may do so at any moment, also between an answer and its status. What a handler of ours
    raises is reported still.
    """
    logging.getLogger(_GRPC_SERVER).addFilter(_not_a_hang_up)


def _not_a_hang_up(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "ExecuteBatchError"
