"""`gridledger network …`: utilities that come and go, and the renewal of their certificates."""

import argparse
import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from consortium.ledger.channel_config import application_organization_group
from consortium.ledger.config_changes import (
    add_organization,
    add_root,
    remove_organization,
    remove_root,
)
from consortium.node.agreements import ensure_agreements
from consortium.node.channel import Current, change_channel, current, trusted_root
from consortium.node.contracts import client
from consortium.node.network import (
    DEFAULT_BASE_PORT,
    Network,
    NetworkError,
    Utility,
    add_utility,
    adopt_channel,
    forget_previous_authority,
    forget_utility,
    organization,
    renew_certificates,
    roots_to_finish,
    rotate_authority,
    use_next_authority,
)
from consortium.wire import common_pb2
from consortium.wire.envelopes import parse
from gridledger_client import GridLedgerError

from .output import answer, progress

BLOCK_LIMIT_BYTES = 64 * 1024 * 1024


def add_commands(network: Any, common: argparse.ArgumentParser) -> None:
    """Register the verbs; `network` are the sub-commands of `gridledger network`."""
    adopt = network.add_parser(
        "adopt",
        parents=[common],
        help="begin with a channel's first block from elsewhere",
        description="Let the nodes of this folder begin with a first block that Fabric's "
        "configtxgen made, or with that of a consortium which this utility joins.",
    )
    adopt.add_argument("block", type=Path, help="the channel's first block, a file")
    adopt.set_defaults(run=_adopt)

    add = network.add_parser(
        "add-utility",
        parents=[common],
        help="make one more utility, and a member of the running channel",
        description="Make its authority, nodes and people in this folder, and have the other "
        "utilities' admins in it take it in. The network has to run.",
    )
    add.add_argument("name")
    add.add_argument("--base-port", type=int, default=DEFAULT_BASE_PORT)
    add.add_argument("--peers", type=int, default=1, help="how many peers (default: 1)")
    add.set_defaults(run=_add)

    agree = network.add_parser(
        "agree",
        parents=[common],
        help="have the utilities agree on a first market",
        description="Have all utilities of this folder propose and approve what a market needs, as "
        "far as they haven't: a calendar, a zone, a product for call auctions, tariffs, terms of "
        "settlement, permit rules. The network has to run.",
    )
    agree.set_defaults(run=_agree)

    remove = network.add_parser(
        "remove-utility",
        parents=[common],
        help="have a utility leave the channel and this folder's description",
    )
    remove.add_argument("name")
    remove.set_defaults(run=_remove)

    renew = network.add_parser(
        "renew", parents=[common], help="certify a utility's nodes and people anew"
    )
    renew.add_argument("utility")
    renew.add_argument(
        "--new-keys", action="store_true", help="with new keys, except the orderer's"
    )
    renew.set_defaults(run=_renew)

    rotate = network.add_parser(
        "rotate-ca",
        parents=[common],
        help="change a utility's root certificate for a new one",
        description="First without --finish: the channel trusts the new root beside the old one, "
        "and nodes and people are certified by it. Start its nodes again, one after another, and "
        "let homes enrol anew. Then with --finish: the old root is trusted no longer. What was "
        "interrupted goes on when the same command is run again.",
    )
    rotate.add_argument("utility")
    rotate.add_argument("--finish", action="store_true")
    rotate.set_defaults(run=_rotate)


async def _agree(options: argparse.Namespace) -> None:
    agreed = await ensure_agreements(Network.load(options.data_dir), progress)
    answer(
        options,
        {"agreed": list(agreed)},
        "Agreed on " + ", ".join(agreed) + "." if agreed else "All of it is agreed on already.",
    )


async def _adopt(options: argparse.Namespace) -> None:
    block = parse(common_pb2.Block, _read(options.block), str(options.block))
    network = adopt_channel(Network.load(options.data_dir), block)
    answer(
        options,
        {"channel": network.channel, "utilities": [one.msp_id for one in network.utilities]},
        f"The nodes in {options.data_dir} begin with {network.channel}.",
    )


async def _add(options: argparse.Namespace) -> None:
    before = Network.load(options.data_dir)
    network = await asyncio.to_thread(
        partial(add_utility, before, options.name, base_port=options.base_port, peers=options.peers)
    )
    utility = network.utility(options.name)
    progress(f"{utility.name}: certificate authority, orderer, peer")
    group = application_organization_group(organization(utility))
    try:
        now = await _change(before, lambda config: add_organization(config, group))
    except (GridLedgerError, NetworkError) as error:
        raise NetworkError(
            f"{utility.name} is in {utility.directory}, but not on the channel yet: {error}. "
            f"Once the network runs: gridledger channel update --add-utility {utility.directory}"
        ) from None
    commands = [
        f"gridledger node run --data-dir {options.data_dir} {utility.name} {kind}"
        for kind in ("ca", *utility.peers)
    ]
    answer(
        options,
        {
            "utility": utility.name,
            "msp_id": utility.msp_id,
            "directory": str(utility.directory),
            "block_number": now.block_number,
            "sequence": now.config.sequence,
            "next": [*commands, f"gridledger contract deploy --data-dir {options.data_dir}"],
        },
        f"{utility.name} is a member of {network.channel} from block {now.block_number} on. "
        "Start its nodes:\n"
        + "\n".join(f"  {command}" for command in commands)
        + "\nand when its peer has caught up, let it run the contracts:\n"
        f"  gridledger contract deploy --data-dir {options.data_dir}\n"
        "To have it order as well:\n"
        f"  gridledger node run --data-dir {options.data_dir} {utility.name} orderer\n"
        f"  gridledger orderer add --data-dir {options.data_dir} {utility.name}",
    )


async def _remove(options: argparse.Namespace) -> None:
    network = Network.load(options.data_dir)
    utility = network.utility(options.name)
    others = [one for one in network.utilities if one.name != utility.name]
    if not others:
        raise NetworkError(f"{utility.name} is the only utility in {options.data_dir}")
    now = await _change(
        network, lambda config: remove_organization(config, utility.msp_id), others[0]
    )
    forget_utility(network, utility)
    answer(
        options,
        {"utility": utility.name, "block_number": now.block_number},
        f"{utility.name} is no member of {network.channel} from block {now.block_number} on. "
        f"Stop its nodes; its folder is still there: {utility.directory}",
    )


async def _renew(options: argparse.Namespace) -> None:
    network = Network.load(options.data_dir)
    utility = network.utility(options.utility)
    await asyncio.to_thread(
        partial(renew_certificates, network, utility, new_keys=options.new_keys)
    )
    answer(
        options,
        {"utility": utility.name, "new_keys": options.new_keys},
        f"{utility.name}'s nodes and people are certified anew. TLS certificates are shown from "
        "the next connection on; start its nodes again, one after another, to sign with the new "
        "identities.",
    )


async def _rotate(options: argparse.Namespace) -> None:
    network = Network.load(options.data_dir)
    utility = network.utility(options.utility)
    if options.finish:
        now = await _finish_rotation(network, utility)
        text = f"{utility.name}'s old root is trusted no longer, from block {now.block_number} on."
    else:
        now = await _begin_rotation(network, utility)
        text = (
            f"{utility.name}'s new root is trusted from block {now.block_number} on, and certifies "
            "its nodes and people. Start its nodes again, one after another, and then: gridledger "
            f"network rotate-ca {utility.name} --finish"
        )
    answer(
        options,
        {"utility": utility.name, "finished": options.finish, "block_number": now.block_number},
        text,
    )


async def _begin_rotation(network: Network, utility: Utility) -> Current:
    """Have the channel trust the next root, and use it; goes on where it was interrupted."""
    root = await asyncio.to_thread(rotate_authority, network, utility)
    asked = network.utilities[0]
    async with client(network, asked, "admin") as gateway:
        now = await current(gateway, asked.msp_id)
        if trusted_root(now.config, utility.msp_id, root) is None:
            now = await change_channel(
                network, gateway, asked, lambda config: add_root(config, utility.msp_id, root)
            )
    await asyncio.to_thread(use_next_authority, utility)
    return now


async def _finish_rotation(network: Network, utility: Utility) -> Current:
    """End the trust in the root before, unless that would shut the utility out (NetworkError)."""
    present, previous = await asyncio.to_thread(roots_to_finish, utility)
    asked = network.utilities[0]
    async with client(network, asked, "admin") as gateway:
        now = await current(gateway, asked.msp_id)
        if trusted_root(now.config, utility.msp_id, present) is None:
            raise NetworkError(
                f"{network.channel} does not trust {utility.name}'s present root, in "
                f"{utility.directory / 'ca'}: without the one before, the utility would be shut out"
            )
        # None where an earlier --finish was interrupted after the channel had changed.
        old = trusted_root(now.config, utility.msp_id, previous)
        if old is not None:
            now = await change_channel(
                network, gateway, asked, lambda config: remove_root(config, utility.msp_id, old)
            )
    await asyncio.to_thread(forget_previous_authority, utility)
    return now


async def _change(
    network: Network, change: Callable[[common_pb2.Config], object], asked: Utility | None = None
) -> Current:
    utility = asked or network.utilities[0]
    async with client(network, utility, "admin") as gateway:
        return await change_channel(network, gateway, utility, change)


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > BLOCK_LIMIT_BYTES:
        raise NetworkError(f"{path} has {size} bytes; {BLOCK_LIMIT_BYTES} are allowed")
    return path.read_bytes()
