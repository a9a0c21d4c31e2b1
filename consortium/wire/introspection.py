"""What a server tells of itself: gRPC's health checking and reflection.

Both are for tools that know nothing of the consortium (load balancers, `grpcurl`). gRPC's own
packages for them read protobuf's default descriptor pool, where our messages are not.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from email.utils import formatdate

import grpc

from ._pool import POOL
from .envelopes import WireError, parse
from .health_pb2 import HealthCheckRequest, HealthCheckResponse
from .reflection_pb2 import (
    ErrorResponse,
    FileDescriptorResponse,
    ListServiceResponse,
    ServerReflectionRequest,
    ServerReflectionResponse,
)

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1.ServerReflection"
REFLECTION_ALPHA = "grpc.reflection.v1alpha.ServerReflection"
MAX_STREAMS = 100
"""Streams at once of each kind, watchers of health and readers of descriptions."""
WATCH_S = 1.0
"""How often a watched status is looked at."""

type Context = grpc.aio.ServicerContext[bytes, bytes]


def introspection_handlers(
    services: Sequence[str], serving: Callable[[], bool]
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Health and reflection for a server that has these services, named in full.

    `serving` says whether it does its work at this moment.
    """
    names = (*services, HEALTH, REFLECTION)
    health, reflection = _Health(names, serving), _Reflection(names)
    info: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(
        reflection.serve
    )
    return (
        grpc.method_handlers_generic_handler(
            HEALTH,
            {
                "Check": grpc.unary_unary_rpc_method_handler(health.check),
                "Watch": grpc.unary_stream_rpc_method_handler(health.watch),
            },
        ),
        grpc.method_handlers_generic_handler(REFLECTION, {"ServerReflectionInfo": info}),
        grpc.method_handlers_generic_handler(REFLECTION_ALPHA, {"ServerReflectionInfo": info}),
    )


class _Streams:
    """Counts open streams; over the limit a call is refused with a sentence."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._open = 0

    async def enter(self, context: Context) -> None:
        if self._open >= MAX_STREAMS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_STREAMS} streams of {self._what} are open here, which is this server's "
                "limit; close one",
            )
        self._open += 1

    def leave(self) -> None:
        self._open -= 1


class _Health:
    def __init__(self, names: Sequence[str], serving: Callable[[], bool]) -> None:
        self._names = frozenset(("", *names))
        self._serving = serving
        self._streams = _Streams("health")

    def _status(self, name: str) -> HealthCheckResponse:
        if name not in self._names:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        return HealthCheckResponse(
            status=HealthCheckResponse.SERVING
            if self._serving()
            else HealthCheckResponse.NOT_SERVING
        )

    async def check(self, raw: bytes, context: Context) -> bytes:
        """The status of a service."""
        name = await _service_of(raw, context)
        # HTTP's own header for an answer's time (RFC 9110, 6.6.1): homes check their clocks by it.
        await context.send_initial_metadata((("date", formatdate(usegmt=True)),))
        status = self._status(name)
        if status.status == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"this server has no service {name[:200]!r}"
            )
        return status.SerializeToString()

    async def watch(self, raw: bytes, context: Context) -> AsyncIterator[bytes]:
        """The status of a service, now and whenever it changes."""
        name = await _service_of(raw, context)
        await self._streams.enter(context)
        try:
            last = None
            while True:
                status = self._status(name)
                if status != last:
                    yield status.SerializeToString()
                    last = status
                await asyncio.sleep(WATCH_S)
        finally:
            self._streams.leave()


async def _service_of(raw: bytes, context: Context) -> str:
    try:
        return parse(HealthCheckRequest, raw, "the request").service
    except WireError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))


class _Reflection:
    def __init__(self, names: Sequence[str]) -> None:
        self._names = sorted(names)
        self._streams = _Streams("descriptions")

    async def serve(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """An answer to each question."""
        await self._streams.enter(context)
        try:
            async for raw in requests:
                try:
                    request = parse(ServerReflectionRequest, raw, "the request")
                except WireError as error:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
                yield self.answer(request).SerializeToString()
        finally:
            self._streams.leave()

    def answer(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        """The services, or the file that defines something, or an error."""
        response = ServerReflectionResponse(valid_host=request.host, original_request=request)
        kind = request.WhichOneof("message_request")
        try:
            match kind:
                case "list_services":
                    listed = ListServiceResponse()
                    for name in self._names:
                        listed.service.add(name=name)
                    response.list_services_response.CopyFrom(listed)
                    return response
                case "file_by_filename":
                    found = POOL.FindFileByName(request.file_by_filename)
                case "file_containing_symbol":
                    found = POOL.FindFileContainingSymbol(request.file_containing_symbol)
                case None:
                    return _refused(response, grpc.StatusCode.INVALID_ARGUMENT, "nothing is asked")
                case _:
                    # The messages are proto3: there are no extensions to find.
                    raise KeyError(kind)
        except KeyError:
            return _refused(
                response, grpc.StatusCode.NOT_FOUND, "this server does not know what is asked for"
            )
        response.file_descriptor_response.CopyFrom(
            FileDescriptorResponse(file_descriptor_proto=[found.serialized_pb])
        )
        return response


def _refused(
    response: ServerReflectionResponse, code: grpc.StatusCode, message: str
) -> ServerReflectionResponse:
    response.error_response.CopyFrom(ErrorResponse(error_code=code.value[0], error_message=message))
    return response
