"""What is announced in a local network, and by whom it is found."""

import asyncio
import json
import socket
import sys
from pathlib import Path

import pytest
from zeroconf import ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from consortium.cli.main import main
from consortium.node.announce import SERVICE, announce, service
from consortium.node.network import Network, NetworkError, create_network
from gridledger_client import fingerprint

LOOPBACK = "127.0.0.1"
MANIFEST = Path(__file__).parents[3] / "custom_components" / "gridledger" / "manifest.json"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return create_network(tmp_path_factory.mktemp("network") / "data", utilities=("Aurora",))


async def test_a_gateway_is_found_while_it_is_announced(network: Network) -> None:
    told = await service(network, network.utilities[0])
    assert [told.type] == json.loads(MANIFEST.read_text())["zeroconf"], "what homes listen for"
    ended = asyncio.Event()

    async def until() -> None:
        await ended.wait()

    found: asyncio.Queue[tuple[ServiceStateChange, str]] = asyncio.Queue()

    def changed(zeroconf: object, name: str, state_change: ServiceStateChange, **_: object) -> None:
        if name == told.name:
            found.put_nowait((state_change, name))

    home = AsyncZeroconf(interfaces=[LOOPBACK])
    browser = AsyncServiceBrowser(home.zeroconf, SERVICE, handlers=[changed])  # type: ignore[list-item]
    announcing = asyncio.create_task(announce([told], until, interface=LOOPBACK))
    try:
        async with asyncio.timeout(60):
            assert (await found.get())[0] is ServiceStateChange.Added
            info = AsyncServiceInfo(SERVICE, told.name)
            assert await info.async_request(home.zeroconf, 5000)
            assert info.parsed_addresses() == [LOOPBACK]
            assert info.decoded_properties == {
                "channel": network.channel,
                "ca": network.utilities[0].ca_url,
                "gateway": network.utilities[0].gateway_address,
                "fingerprint": fingerprint(network.tls_bundle_pem),
                "utility": "Aurora",
            }
            ended.set()
            await announcing
            assert (await found.get())[0] is ServiceStateChange.Removed
    finally:
        ended.set()
        await announcing
        await browser.async_cancel()
        await home.async_close()


async def test_addresses_may_be_others_than_the_networks_own(network: Network) -> None:
    told = await service(network, network.utilities[0], "[::1]:443", "https://ca.example")
    assert told.port == 443
    assert told.parsed_addresses() == ["::1"]
    assert told.decoded_properties["gateway"] == "[::1]:443"
    assert told.decoded_properties["ca"] == "https://ca.example"


@pytest.mark.parametrize(
    ("gateway", "ca"),
    [("gateway", ""), (":7051", ""), ("", "http://ca.example")],
)
async def test_what_cannot_be_announced_is_said(network: Network, gateway: str, ca: str) -> None:
    with pytest.raises(NetworkError, match="host:port"):
        await service(network, network.utilities[0], gateway, ca)


async def test_a_host_that_nobody_knows(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    with pytest.raises(NetworkError, match=r"nobody knows where gateway\.example is"):
        await service(network, network.utilities[0], "gateway.example:7051")


async def test_no_such_interface(network: Network) -> None:
    told = await service(network, network.utilities[0])
    with pytest.raises(NetworkError, match=r"nothing can be announced on 192\.0\.2\.1"):
        await announce([told], asyncio.Event().wait, interface="192.0.2.1")  # type: ignore[arg-type]


def test_without_zeroconf_the_command_says_what_to_install(
    network: Network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf.asyncio", None)
    status = main(["network", "announce", "--data-dir", str(network.directory)])
    assert status != 0
    assert "pip install 'gridledger[announce]'" in capsys.readouterr().err
