"""What gRPC logs neither floods a node's log nor stops the node."""

import subprocess
import sys

_TWO_WHO_LOG = """
import asyncio, gc, logging, threading

import grpc

from consortium.node.logs import quieten_grpc

logging.basicConfig(level=logging.DEBUG, stream=open("/dev/null", "w"))
quieten_grpc()


class Costly:
    def __str__(self):
        gc.collect(0)  # may happen wherever memory is asked for
        return "a line"


done = threading.Event()


def work():
    while not done.is_set():
        logging.getLogger("a thread").info(Costly())


async def main():
    for _ in range(2000):
        channel = grpc.aio.insecure_channel("127.0.0.1:1")
        cycle = [channel]
        cycle.append(cycle)
        del cycle, channel
        call = grpc.aio.insecure_channel("127.0.0.1:1").unary_unary("/a/b")(b"", timeout=0.001)
        try:
            await call
        except grpc.aio.AioRpcError:
            pass


gc.disable()
thread = threading.Thread(target=work)
thread.start()
asyncio.run(main())
done.set()
thread.join()
"""


def test_a_thread_that_logs_and_a_channel_that_goes_do_not_wait_for_each_other() -> None:
    """At DEBUG gRPC would log while it holds the lock that ending a channel takes."""
    subprocess.run([sys.executable, "-c", _TWO_WHO_LOG], check=True, timeout=60)
