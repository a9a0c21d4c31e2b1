"""Reading gRPC streams of bytes, the same on the calling and the serving side."""

from typing import Any, Protocol, cast

import grpc


class ByteStream(Protocol):
    """A call or a servicer context whose messages are passed as bytes."""

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF."""

    async def write(self, message: bytes, /) -> None:
        """Send a message."""


async def read(stream: ByteStream) -> bytes | None:
    """The next message, None at the end; raises grpc.RpcError when the stream breaks."""
    message = await stream.read()
    return None if message is grpc.aio.EOF else cast("bytes", message)
