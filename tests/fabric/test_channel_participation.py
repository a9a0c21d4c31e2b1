"""Channel participation over REST: our orderer and Fabric's answer every request alike.

Each orders alone on a network of its own, with the same names; the same requests go to both, by
HTTP as it is and by `osnadmin`. Status, headers and body have to be equal, byte for byte, but for
what a reader may change without harm: the words of a parser's complaint after Fabric's own.
"""

import asyncio
import dataclasses
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from consortium.ledger.channel_config import ChannelConfig, compute_update
from consortium.ledger.config_changes import PendingUpdate, change_setting, copied
from consortium.node.network import Network, create_network
from consortium.node.nodes import make_node
from consortium.wire import common_pb2
from consortium.wire.envelopes import channel_header, signed_envelope
from tests.ports import first_port

from .fabric import HOST, FabricOrderer, configtxgen, fabric_bin, osnadmin, running

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

CHANNELS = "/participation/v1/channels"
HEADERS = ("Allow", "Cache-Control", "Content-Type", "Location")
DEADLINE_S = 60


@dataclass
class Side:
    """An orderer that is alone, and the block that its channel began with."""

    network: Network
    port: int
    block: bytes
    session: aiohttp.ClientSession

    async def ask(
        self, method: str, path: str = "", **more: Any
    ) -> tuple[int, dict[str, str | None], bytes]:
        """Status, the headers that matter, and the body."""
        url = f"https://{HOST}:{self.port}{CHANNELS}{path}"
        async with self.session.request(method, url, allow_redirects=False, **more) as answer:
            headers = {name: answer.headers.get(name) for name in HEADERS}
            return answer.status, headers, await answer.read()

    async def settled(self, wanted: bytes) -> None:
        """Returns when the channel's description says so."""
        deadline = time.monotonic() + DEADLINE_S
        while wanted not in (said := (await self.ask("GET", "/neighbourhood"))[2]):
            assert time.monotonic() < deadline, said
            await asyncio.sleep(0.1)


@dataclass
class Both:
    """What is asked of both."""

    ours: Side
    theirs: Side

    async def same(
        self, method: str, path: str = "", /, *, words: bytes = b"", **more: Any
    ) -> tuple[int, bytes]:
        """Ask both; what a `more` that can be called makes of a side is sent to that side.

        `words`: the bodies are equal up to these, and go on in each one's own.
        """
        found = []
        for side in (self.ours, self.theirs):
            given = {
                key: _again(value)
                if isinstance(value, aiohttp.FormData)
                else value(side)
                if callable(value)
                else value
                for key, value in more.items()
            }
            found.append(await side.ask(method, path, **given))
        (status, headers, body), (status_2, headers_2, body_2) = found
        if words:
            assert words in body, (method, path, found)
            assert words in body_2, (method, path, found)
            body, body_2 = body.partition(words)[0], body_2.partition(words)[0]
        assert (status, headers, body) == (status_2, headers_2, body_2), (method, path)
        return status, found[0][2]


def form(data: bytes | str, key: str = "config-block", file: str | None = "x") -> aiohttp.FormData:
    """A multipart form with one part, a file unless told otherwise."""
    fields = aiohttp.FormData(default_to_multipart=True)
    fields.add_field(key, data, filename=file)
    return fields


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Both]:
    programs = fabric_bin()
    folder = tmp_path_factory.mktemp("participation")
    sides = []
    async with aiohttp.ClientSession() as one, aiohttp.ClientSession() as other:
        networks = [
            create_network(
                folder / name, utilities=("Aurora", "Boreal"), base_port=first_port(), interval_s=60
            )
            for name in ("ours", "theirs")
        ]
        for network, session in zip(networks, (one, other), strict=True):
            block = await configtxgen(
                programs, folder / f"configtx-{network.directory.name}", network, orderers=1
            )
            (network.directory / "genesis.block").unlink()  # joined over REST instead
            utility = network.utility("Aurora")
            tls = ssl.create_default_context(cadata=network.tls_bundle_pem.decode())
            admin = utility.directory / "admin"
            tls.load_cert_chain(admin / "sign.cert.pem", admin / "sign.key.pem")
            session._connector = aiohttp.TCPConnector(ssl=tls)
            sides.append(Side(network, utility.ports.admin, block.read_bytes(), session))
        node = make_node(networks[0], networks[0].utility("Aurora"), "orderer")
        fabrics = FabricOrderer.create(
            programs, folder / "orderer", networks[1], networks[1].utility("Aurora")
        )
        sides[1] = dataclasses.replace(sides[1], port=fabrics.admin_port)
        async with running(node, fabrics):
            yield Both(*sides)


def update(side: Side, batch_size: str) -> bytes:
    """A signed configuration update, of the configuration that the channel began with."""
    block = common_pb2.Block.FromString(side.block)
    before = ChannelConfig.from_block(block).config
    wanted = copied(before)
    change_setting(wanted, "batch-size", batch_size)
    computed = compute_update("neighbourhood", before, wanted)
    pending = PendingUpdate("neighbourhood", computed.SerializeToString()).signed_by(
        *(utility.signer("admin") for utility in side.network.utilities)
    )
    admin = side.network.utility("Aurora").signer("admin")
    return pending.envelope(admin).SerializeToString()


def envelope(side: Side, kind: int, channel: str, data: bytes = b"") -> bytes:
    """An envelope that is none of an update."""
    admin = side.network.utility("Aurora").signer("admin")
    return signed_envelope(admin, channel_header(kind, channel), data).SerializeToString()


async def test_before_anything_is_joined(both: Both) -> None:
    assert (await both.same("GET"))[1] == b'{"systemChannel":null,"channels":null}\n'
    assert (await both.same("GET", "/neighbourhood"))[0] == 404
    assert (await both.same("DELETE", "/neighbourhood"))[0] == 404
    assert (await both.same("GET", "/neighbourhood/blocks/newest"))[0] == 404


async def test_what_is_no_block_to_join_with(both: Both) -> None:
    await both.same("POST", data=b"x")
    await both.same("POST", data=b"x", headers={"Content-Type": "application/json"})
    await both.same("POST", data=form(b"x", "block"))
    await both.same("POST", data=form("x", file=None))
    two = form(b"a")
    two.add_field("more", b"b", filename="y")
    await both.same("POST", data=two)
    await both.same("POST", data=form(b"\xff"), words=b"into a block: ")
    await both.same("POST", data=form(b""))
    await both.same("POST", data=form(bytes(2**20 + 1)))

    def broken(side: Side) -> aiohttp.FormData:
        block = common_pb2.Block.FromString(side.block)
        block.header.data_hash = bytes(32)
        return form(block.SerializeToString())

    def without_metadata(side: Side) -> aiohttp.FormData:
        block = common_pb2.Block.FromString(side.block)
        block.ClearField("metadata")
        return form(block.SerializeToString())

    await both.same("POST", data=broken)
    await both.same("POST", data=without_metadata)


def _again(fields: aiohttp.FormData) -> aiohttp.FormData:
    """A form is written once only; the same one for another request."""
    copy = aiohttp.FormData(default_to_multipart=True)
    for options, _, value in fields._fields:
        copy.add_field(options["name"], value, filename=options.get("filename"))
    return copy


async def test_joining_and_showing(both: Both) -> None:
    status, said = await both.same("POST", data=lambda side: form(side.block))
    assert (status, b'"consensusRelation":"consenter"' in said) == (201, True)
    assert (await both.same("POST", data=lambda side: form(side.block)))[0] == 405
    await both.same("GET")
    await both.same("GET", "/neighbourhood")


async def test_strange_requests(both: Both) -> None:
    for path in ("", "/neighbourhood", "/neighbourhood/blocks/newest"):
        for method in ("GET", "DELETE", "POST", "PUT", "PATCH", "HEAD", "OPTIONS"):
            if (method, path.count("/")) in (("GET", 3), ("DELETE", 1), ("POST", 0), ("PUT", 0)):
                continue  # not strange
            await both.same(method, path)
    for name in ("No_Name", "a" * 250, "1st", "a<b>&c", "ü"):
        await both.same("GET", f"/{name}")
        await both.same("DELETE", f"/{name}")
    for accepted in ("text/plain", "application/json", "text/html, */*;q=0.1", "application/xml"):
        for path in ("", "/neighbourhood", "/nowhere", "/neighbourhood/blocks/oldest"):
            if "blocks" in path and "xml" not in accepted and "plain" not in accepted:
                continue  # the blocks of two networks differ
            await both.same("GET", path, headers={"Accept": accepted})
        await both.same("DELETE", "/nowhere", headers={"Accept": accepted})
        await both.same("PATCH", "", headers={"Accept": accepted})
    for wrong in ("/a/b", "/a/blocks", "/a/blocks/1/2", "s"):
        await both.same("GET", wrong)


async def test_blocks(both: Both) -> None:
    for which in ("best", "1.5", "-", "1e3", "0x1", "9" * 19):
        # Fabric says this twice, which is no JSON any more.
        path = f"/neighbourhood/blocks/{which}"
        ours, theirs = await both.ours.ask("GET", path), await both.theirs.ask("GET", path)
        assert (*ours[:2], 2 * ours[2]) == theirs
    await both.same("GET", "/neighbourhood/blocks/")
    for which in ("newest", "oldest", "config", "0", "+0", "-1"):
        for side in (both.ours, both.theirs):
            status, headers, body = await side.ask("GET", f"/neighbourhood/blocks/{which}")
            assert (status, headers["Content-Type"], headers["Cache-Control"]) == (
                200,
                "application/octet-stream",
                "no-store",
            )
            found, first = (
                common_pb2.Block.FromString(body),
                common_pb2.Block.FromString(side.block),
            )
            assert (found.header, found.data) == (first.header, first.data)
    await both.same("GET", "/nowhere/blocks/newest")
    for which in ("1", "999999", "-2", "9" * 18):
        await both.same("GET", f"/neighbourhood/blocks/{which}")


async def test_updates(both: Both) -> None:
    """`PUT`: a configuration update by REST, without `peer` or a stream to Broadcast."""
    key = "config-update-envelope"
    await both.same("PUT", data=b"x")
    await both.same("PUT", data=form(b"x"))
    await both.same("PUT", data=form(b"\xff", key), words=b"into an envelope: ")
    await both.same("PUT", data=form(b"", key))

    def sent(kind: int, channel: str, data: bytes = b"") -> Any:
        return lambda side: form(envelope(side, kind, channel, data), key)

    await both.same("PUT", data=sent(common_pb2.ENDORSER_TRANSACTION, "neighbourhood"))
    await both.same("PUT", data=sent(common_pb2.CONFIG_UPDATE, ""))
    await both.same("PUT", data=form(common_pb2.Envelope(payload=b"\xff").SerializeToString(), key))

    def unsigned(side: Side) -> aiohttp.FormData:
        raw = common_pb2.Envelope.FromString(update(side, "33"))
        raw.signature = b""
        return form(raw.SerializeToString(), key)

    refused = b"cannot update: failed update config of channel neighbourhood: "
    assert (await both.same("PUT", data=unsigned, words=refused))[0] == 400
    status, _ = await both.same(
        "PUT", data=lambda side: form(update(side, "33"), key), words=b"height"
    )
    assert status == 201
    for side in (both.ours, both.theirs):
        await side.settled(b'"height":2')
    await both.same("GET", "/neighbourhood")
    # The same once more was computed for a configuration that is in force no longer.
    again = await both.same("PUT", data=lambda side: form(update(side, "34"), key), words=refused)
    assert again[0] == 400


async def test_osnadmin(both: Both, tmp_path: Path) -> None:
    """All its verbs, at both; what it prints is the same."""
    programs = fabric_bin()

    async def said(side: Side, verb: str, *arguments: str) -> str:
        return await osnadmin(
            programs,
            f"{HOST}:{side.port}",
            side.network.directory / "tls-bundle.pem",
            side.network.utility("Aurora").directory / "admin",
            verb,
            *arguments,
            key="sign",
        )

    found = []
    for number, side in enumerate((both.ours, both.theirs)):
        block, stale, fetched = (tmp_path / f"{name}{number}" for name in ("block", "e", "f"))
        block.write_bytes(side.block)
        stale.write_bytes(update(side, "35"))
        printed = [
            await said(side, "list"),
            await said(side, "list", "--channelID", "neighbourhood"),
            await said(side, "join", "-c", "neighbourhood", "-b", str(block)),
            await said(side, "fetch", "-c", "neighbourhood", "-b", "0", "-f", str(fetched)),
            await said(side, "fetch", "-c", "neighbourhood", "-b", "99", "-f", str(fetched)),
            (await said(side, "update", "-c", "neighbourhood", "-e", str(stale))).partition(
                "neighbourhood: "
            )[0],
            await said(side, "remove", "--channelID", "neighbourhood"),
            await said(side, "remove", "--channelID", "nowhere"),
        ]
        first = common_pb2.Block.FromString(fetched.read_bytes())
        assert first.header == common_pb2.Block.FromString(side.block).header
        found.append(printed)
    assert found[0] == found[1]
    # Fabric's orderer answers nothing any more after this one (it forgets to unlock itself).
    more = form(envelope_for_nowhere(both.ours), "config-update-envelope")
    status, headers, body = await both.ours.ask("PUT", data=more)
    assert (status, headers["Allow"]) == (405, None)
    assert body == b'{"error":"cannot update: channel does not exist"}\n'


def envelope_for_nowhere(side: Side) -> bytes:
    """An update of a channel that nobody has joined."""
    data = common_pb2.ConfigUpdateEnvelope(
        config_update=common_pb2.ConfigUpdate(channel_id="nowhere").SerializeToString()
    )
    return envelope(side, common_pb2.CONFIG_UPDATE, "nowhere", data.SerializeToString())
