"""`gridledger network announce`: lets Home Assistants in the local network find a gateway."""

import argparse
from collections.abc import Awaitable, Callable
from typing import Any

from consortium.node.announce import announce, service
from consortium.node.network import Network


def add_commands(
    network: Any, common: argparse.ArgumentParser, until_stopped: Callable[[], Awaitable[None]]
) -> None:
    """Register the verb of `network`."""
    verb = network.add_parser(
        "announce",
        parents=[common],
        help="let Home Assistants in this local network find a gateway, until Ctrl-C",
        description="Announces where a gateway and its authority are, by mDNS. Only that: a home "
        "still needs an enrolment id with its secret. Nothing is announced unless this runs.",
    )
    verb.add_argument("--utility", help="whose gateway (default: the first)")
    verb.add_argument(
        "--gateway", default="", metavar="HOST:PORT", help="where homes reach the gateway"
    )
    verb.add_argument("--ca", default="", help="where homes reach the authority, https://host:port")
    verb.add_argument("--interface", default="", help="only on the interface with this address")

    async def run(options: argparse.Namespace) -> None:
        known = Network.load(options.data_dir)
        utility = known.utility(options.utility) if options.utility else known.utilities[0]
        told = await service(known, utility, options.gateway, options.ca)
        print(f"{told.name} is announced. Ctrl-C ends it.", flush=True)
        await announce([told], until_stopped, interface=options.interface)

    verb.set_defaults(run=run)
