"""Tells Home Assistants in the same local network where a gateway is (mDNS, DNS-SD).

What is announced is public: addresses, the channel's name and the fingerprint of the CA bundle,
which the owner still compares with what the utility gave him. No home joins by it alone: enrolling
takes an id and its secret.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from gridledger_client import fingerprint

from .network import Network, NetworkError, Utility

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncServiceInfo

SERVICE: Final = "_gridledger._tcp.local."


async def service(
    network: Network, utility: Utility, gateway: str = "", ca_url: str = ""
) -> AsyncServiceInfo:
    """Return what is announced of a utility's gateway.

    Args:
        network: The network that homes may join.
        utility: Whose gateway and authority.
        gateway: Where homes reach it, ``host:port``; by default as configured.
        ca_url: Where homes reach the authority; by default as configured.

    Raises:
        NetworkError: zeroconf isn't installed, or an address can't be used.
    """
    try:
        from zeroconf.asyncio import AsyncServiceInfo
    except ImportError as error:
        raise NetworkError("announcing needs zeroconf: pip install 'gridledger[announce]'") from (
            error
        )
    address, ca_url = gateway or utility.gateway_address, ca_url or utility.ca_url
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not ca_url.startswith("https://"):
        raise NetworkError(
            f"write the gateway as host:port and the authority as https://host:port, "
            f"not {address} and {ca_url}"
        )
    host = host.strip("[]")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise NetworkError(f"nobody knows where {host} is: {error}") from error
    return AsyncServiceInfo(
        SERVICE,
        f"{utility.name} {network.channel}.{SERVICE}",
        port=int(port),
        parsed_addresses=sorted({str(one[4][0]) for one in found}),
        properties={
            "channel": network.channel,
            "ca": ca_url,
            "gateway": address,
            "fingerprint": fingerprint(network.tls_bundle_pem),
            "utility": utility.name,
        },
    )


async def announce(
    services: Sequence[AsyncServiceInfo],
    until: Callable[[], Awaitable[None]],
    *,
    interface: str = "",
) -> None:
    """Announce gateways until ``until`` returns, on one interface's address or on all of them.

    Raises:
        NetworkError: nothing can be sent there.
    """
    from zeroconf import Error, InterfaceChoice
    from zeroconf.asyncio import AsyncZeroconf

    try:
        zeroconf = AsyncZeroconf(interfaces=[interface] if interface else InterfaceChoice.Default)
    except (OSError, Error) as error:
        raise NetworkError(f"nothing can be announced on {interface or 'any'}: {error}") from error
    try:
        for one in services:
            # Told at once, and again when somebody asks.
            await (await zeroconf.async_register_service(one, allow_name_change=True))
        await until()
    finally:
        await zeroconf.async_unregister_all_services()
        await zeroconf.async_close()
