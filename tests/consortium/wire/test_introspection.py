"""Health and reflection on a real server, read by someone who has none of our modules."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from consortium.wire import discovery_pb2, gateway_pb2, introspection
from consortium.wire.health_pb2 import HealthCheckRequest, HealthCheckResponse
from consortium.wire.introspection import (
    HEALTH,
    REFLECTION,
    REFLECTION_ALPHA,
    introspection_handlers,
)
from consortium.wire.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

SERVICES = ("gateway.Gateway", "discovery.Discovery")


class Switch:
    """Whether the server works."""

    on = True


@pytest.fixture
def switch() -> Switch:
    return Switch()


@pytest.fixture
async def connection(switch: Switch) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(introspection_handlers(SERVICES, lambda: switch.on))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as connection:
        yield connection
    await server.stop(0)


async def _reflect(
    connection: grpc.aio.Channel,
    requests: Iterable[ServerReflectionRequest],
    service: str = REFLECTION,
) -> list[ServerReflectionResponse]:
    call: grpc.aio.StreamStreamMultiCallable[ServerReflectionRequest, ServerReflectionResponse] = (
        connection.stream_stream(
            f"/{service}/ServerReflectionInfo",
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )
    )
    return [answer async for answer in call(iter(list(requests)), timeout=60)]


async def _check(connection: grpc.aio.Channel, raw: bytes) -> HealthCheckResponse:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.unary_unary(
        f"/{HEALTH}/Check"
    )
    return HealthCheckResponse.FromString(await call(raw, timeout=60))


@pytest.mark.parametrize("service", [REFLECTION, REFLECTION_ALPHA])
async def test_services_are_listed(connection: grpc.aio.Channel, service: str) -> None:
    (answer,) = await _reflect(connection, [ServerReflectionRequest(list_services="*")], service)
    listed = [one.name for one in answer.list_services_response.service]
    assert listed == sorted([*SERVICES, HEALTH, REFLECTION])


async def test_a_stranger_can_build_every_message(connection: grpc.aio.Channel) -> None:
    """Files are asked for by symbol, then by name, until nothing is missing."""
    pool, have = DescriptorPool(), dict[str, FileDescriptorProto]()
    todo = [ServerReflectionRequest(file_containing_symbol=name) for name in SERVICES]
    while todo:
        for answer in await _reflect(connection, todo):
            (raw,) = answer.file_descriptor_response.file_descriptor_proto
            file = FileDescriptorProto.FromString(raw)
            have[file.name] = file
        missing = {name for file in have.values() for name in file.dependency} - have.keys()
        todo = [ServerReflectionRequest(file_by_filename=name) for name in missing]
    while have:
        for name, file in list(have.items()):
            if not have.keys() & set(file.dependency):
                pool.Add(have.pop(name))
    method = pool.FindServiceByName("discovery.Discovery").FindMethodByName("Discover")
    stranger = GetMessageClass(method.input_type)(payload=b"asked", signature=b"signed")
    ours = discovery_pb2.SignedRequest.FromString(stranger.SerializeToString())
    assert (ours.payload, ours.signature) == (b"asked", b"signed")
    names = {one.name for one in pool.FindServiceByName("gateway.Gateway").methods}
    assert names == {one.name for one in gateway_pb2.DESCRIPTOR.services_by_name["Gateway"].methods}


async def test_what_reflection_does_not_know(connection: grpc.aio.Channel) -> None:
    unknown = (
        ServerReflectionRequest(file_containing_symbol="nothing.Here"),
        ServerReflectionRequest(file_by_filename="nothing.proto"),
        ServerReflectionRequest(all_extension_numbers_of_type="gateway.SubmitRequest"),
    )
    *answers, last = await _reflect(connection, [*unknown, ServerReflectionRequest(host="h")])
    assert [answer.error_response.error_code for answer in answers] == [5, 5, 5]  # NOT_FOUND
    assert [answer.original_request for answer in answers] == list(unknown)
    assert (last.error_response.error_code, last.valid_host) == (3, "h")  # INVALID_ARGUMENT


async def test_health(connection: grpc.aio.Channel, switch: Switch) -> None:
    """Of the server and each of its services; of others it is not known."""
    for name in ("", *SERVICES, HEALTH):
        for switch.on, status in (
            (False, HealthCheckResponse.NOT_SERVING),
            (True, HealthCheckResponse.SERVING),
        ):
            raw = HealthCheckRequest(service=name).SerializeToString()
            assert (await _check(connection, raw)).status == status
    call = connection.unary_unary(f"/{HEALTH}/Check")(b"")
    told = parsedate_to_datetime(dict(await call.initial_metadata())["date"])
    assert abs((datetime.now(UTC) - told).total_seconds()) < 60
    for raw, code in (
        (HealthCheckRequest(service="nothing").SerializeToString(), grpc.StatusCode.NOT_FOUND),
        (b"\xff", grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await _check(connection, raw)
        assert error.value.code() is code


async def test_health_is_watched(
    connection: grpc.aio.Channel, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change is told once; so is that there is no such service."""
    monkeypatch.setattr(introspection, "WATCH_S", 0.02)
    monkeypatch.setattr(introspection, "MAX_STREAMS", 2)
    watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = connection.unary_stream(
        f"/{HEALTH}/Watch"
    )

    async def status(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> int:
        raw = await asyncio.wait_for(call.read(), 60)
        assert isinstance(raw, bytes)
        return HealthCheckResponse.FromString(raw).status

    known = watch(HealthCheckRequest(service=SERVICES[0]).SerializeToString())
    unknown = watch(HealthCheckRequest(service="nothing").SerializeToString())
    assert await status(known) == HealthCheckResponse.SERVING
    assert await status(unknown) == HealthCheckResponse.SERVICE_UNKNOWN
    await asyncio.sleep(0.1)
    switch.on = False
    assert await status(known) == HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await status(watch(b""))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "limit" in str(error.value.details())
    known.cancel()
    unknown.cancel()
