"""`gridledger orderer`: who orders a channel: shown, added, removed, rotated, handed over."""

import argparse
import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from consortium.ledger.channel_config import Consenter, OrganizationSpec
from consortium.ledger.config_update import ConfigError
from consortium.ledger.consenter_changes import (
    add_consenter,
    remove_consenter,
    replace_consenter,
)
from consortium.node.channel import Current, UpdateRefused, current
from consortium.node.contracts import client
from consortium.node.network import HOST, Network, Utility, organization
from consortium.node.orderers import (
    Asked,
    OrdererError,
    act,
    ask_all,
    change_consenters,
    consenter_of,
    has_admin,
    leader_of,
    next_certificate,
    read_certificate,
    use_next_certificate,
    wait_for_group,
)
from consortium.orderer.membership import certificate_hash
from consortium.wire import common_pb2, gridledger_pb2
from consortium.wire.envelopes import parse

from .output import answer, progress, table

BLOCK_LIMIT_BYTES = 64 * 1024 * 1024


def add_commands(rooms: Any, common: argparse.ArgumentParser) -> None:
    """Register `orderer` and its verbs; `rooms` are the parser's sub-commands."""
    orderer = rooms.add_parser(
        "orderer", help="who orders the channel: show, add, remove, rotate, hand over"
    ).add_subparsers(required=True, metavar="VERB")
    asked = argparse.ArgumentParser(add_help=False)
    asked.add_argument("--utility", help="whose peer to ask, as its admin (default: the first)")

    status = orderer.add_parser(
        "status", parents=[common], help="every orderer's part, term and height, and what it lacks"
    )
    status.set_defaults(run=_status)

    channels = orderer.add_parser(
        "channels", parents=[common], help="the channels that one utility's orderer has joined"
    )
    channels.add_argument("utility")
    channels.set_defaults(run=_channels)

    join = orderer.add_parser(
        "join",
        parents=[common],
        help="have a utility's orderer join a channel",
        description="It fetches the blocks from the channel's consenters and follows; once a "
        "configuration names it as a consenter (`gridledger orderer add`) it orders.",
    )
    join.add_argument("utility")
    join.add_argument(
        "block",
        type=Path,
        nargs="?",
        help="a configuration block of the channel, a file (default: the newest, from a peer)",
    )
    join.set_defaults(run=_join)

    add = orderer.add_parser(
        "add",
        parents=[common, asked],
        help="make a utility's orderer a consenter",
        description="It joins as a learner, and votes once it has caught up. To replace one whose "
        "disk was lost or restored: remove it, then add it.",
    )
    add.add_argument("orderer", help="a utility, or HOST:PORT of the cluster listener")
    add.add_argument(
        "--certificate", type=Path, help="with HOST:PORT: its TLS certificate, a file (PEM)"
    )
    add.set_defaults(run=_add)

    remove = orderer.add_parser(
        "remove", parents=[common, asked], help="take a consenter out of the channel"
    )
    remove.add_argument("orderer", help="a utility, or HOST:PORT of the cluster listener")
    remove.add_argument(
        "--force",
        action="store_true",
        help="even if fewer would be left alive than have to agree to every block",
    )
    remove.set_defaults(run=_remove)

    rotate = orderer.add_parser(
        "rotate",
        parents=[common, asked],
        help="give a utility's orderer another TLS certificate",
        description="Take the one in its folder if it was renewed with the same key, else make one "
        "with a new key. The orderer keeps its place and does not stop.",
    )
    rotate.add_argument("orderer", help="a utility")
    rotate.add_argument("--force", action="store_true", help="as with remove")
    rotate.set_defaults(run=_rotate)

    transfer = orderer.add_parser(
        "transfer", parents=[common], help="hand leadership to another consenter"
    )
    transfer.add_argument("--to", metavar="UTILITY", help="to whom (default: who is best placed)")
    transfer.set_defaults(run=_transfer)


# ------------------------------------------------------------------ showing


async def _status(options: argparse.Namespace) -> None:
    network = Network.load(options.data_dir)
    asked = await ask_all(network)
    leader = leader_of(asked)
    rows, values = [], []
    addresses = {f"{HOST}:{one.ports.cluster}": one.name for one in network.utilities}
    for one in asked:
        found = one.channel
        part = _part(one, leader)
        values.append(
            {
                "utility": one.utility.name,
                "address": f"{HOST}:{one.utility.ports.cluster}",
                "raft_id": found.raft_id if found else 0,
                "part": part,
                "term": found.term if found else 0,
                "height": found.height if found else 0,
                "status": found.status if found else "unreachable",
                "consensus_relation": found.consensus_relation if found else "",
                "problem": found.problem if found else one.problem,
            }
        )
        rows.append(
            (
                one.utility.name,
                f"{HOST}:{one.utility.ports.cluster}",
                (found.raft_id or "-") if found else "-",
                part,
                found.term if found else "-",
                found.height if found else "-",
            )
        )
    members = list(leader.channel.members) if leader and leader.channel else []
    group = [
        (
            one.raft_id,
            addresses.get(one.address, one.address),
            one.part,
            "yes" if one.active else "no",
            f"{max(0, one.last - one.matched)}",
        )
        for one in members
    ]
    voters = sum(one.part == "voter" for one in members)
    alive = sum(one.part == "voter" and one.active for one in members)
    spare = max(0, alive - voters // 2 - 1)
    problems = [f"{one['utility']}: {one['problem']}" for one in values if one["problem"]]
    text = [table(rows, ("UTILITY", "CLUSTER ADDRESS", "RAFT ID", "PART", "TERM", "HEIGHT"))]
    if members:
        text.append(table(group, ("RAFT ID", "CONSENTER", "PART", "ALIVE", "ENTRIES BEHIND")))
        text.append(
            f"{alive} of {voters} voters are alive; {spare} more may fail before ordering stops."
        )
    else:
        text.append("No orderer leads at the moment: nothing is ordered.")
    text += problems
    answer(
        options,
        {
            "channel": network.channel,
            "leader": leader.utility.name if leader else None,
            "orderers": values,
            "members": [
                {
                    "raft_id": one.raft_id,
                    "address": one.address,
                    "part": one.part,
                    "active": one.active,
                    "entries_behind": max(0, one.last - one.matched),
                    "certificate_sha256": one.certificate_hash.hex(),
                }
                for one in members
            ],
            "may_fail": spare,
        },
        "\n\n".join(text),
    )


def _part(one: Asked, leader: Asked | None) -> str:
    if one.channel is None:
        return "unreachable"
    if leader is not None and one.utility is leader.utility:
        return "leader"
    if one.channel.status != "active":
        return one.channel.status
    if one.channel.raft_id and leader is not None and leader.channel is not None:
        for member in leader.channel.members:
            if member.raft_id == one.channel.raft_id and member.part != "voter":
                return str(member.part)
    return one.channel.consensus_relation


async def _channels(options: argparse.Namespace) -> None:
    network = Network.load(options.data_dir)
    utility = network.utility(options.utility)
    query = gridledger_pb2.OrdererAct(status=gridledger_pb2.OrdererStatusQuery())
    found = (await act(network, utility, query)).channels
    answer(
        options,
        {
            "utility": utility.name,
            "channels": [
                {
                    "name": one.name,
                    "height": one.height,
                    "status": one.status,
                    "consensus_relation": one.consensus_relation,
                    "problem": one.problem,
                }
                for one in found
            ],
        },
        table(
            [(one.name, one.height, one.status, one.consensus_relation) for one in found],
            ("CHANNEL", "HEIGHT", "STATUS", "RELATION"),
        )
        + "".join(f"\n\n{one.name}: {one.problem}" for one in found if one.problem),
    )


async def _join(options: argparse.Namespace) -> None:
    network = Network.load(options.data_dir)
    utility = network.utility(options.utility)
    if options.block is not None:
        size = options.block.stat().st_size
        if size > BLOCK_LIMIT_BYTES:
            raise ConfigError(f"{options.block} has {size} bytes; {BLOCK_LIMIT_BYTES} are allowed")
        raw = options.block.read_bytes()
    else:
        raw = await _newest_config_block(network)
    number = parse(common_pb2.Block, raw, "the block").header.number
    found = (await act(network, utility, gridledger_pb2.OrdererAct(join=raw))).channels[0]
    answer(
        options,
        {
            "utility": utility.name,
            "name": found.name,
            "height": found.height,
            "status": found.status,
            "consensus_relation": found.consensus_relation,
        },
        f"{utility.name}'s orderer has joined {found.name} with block {number}: {found.status},"
        f" {found.consensus_relation}, height {found.height}.",
    )


async def _newest_config_block(network: Network) -> bytes:
    asker = next((one for one in network.utilities if has_admin(one)), network.utilities[0])
    async with client(network, asker, "admin") as gateway:
        number = (await current(gateway, asker.msp_id)).block_number
        raw = await gateway.evaluate(
            "qscc",
            "GetBlockByNumber",
            [network.channel.encode(), str(number).encode()],
            endorsing_organizations=[asker.msp_id],
        )
    assert isinstance(raw, bytes)
    return raw


# ------------------------------------------------------------------ changing


async def _add(options: argparse.Namespace) -> None:
    network, asker = _asked(options)
    consenter, org = _named(network, options.orderer, options.certificate)
    now = await _changed(
        network, asker, lambda config: add_consenter(config, consenter, org), force=False
    )
    wanted = certificate_hash(consenter.server_tls_certificate_pem)

    def missing(channel: gridledger_pb2.OrdererChannel) -> str:
        for one in channel.members:
            if one.certificate_hash != wanted:
                continue
            if one.part == "voter":
                return ""
            if not one.active:
                return f"consenter {one.raft_id} is not heard of; is its orderer running?"
            return f"consenter {one.raft_id} catches up; {one.last - one.matched} entries to go"
        return "the leader has not seen the configuration yet"

    channel = await wait_for_group(network, missing, progress)
    raft_id = next(one.raft_id for one in channel.members if one.certificate_hash == wanted)
    _done(
        options,
        now,
        {"raft_id": raft_id, "voters": _voters(channel)},
        f"{options.orderer} is consenter {raft_id} now and votes; {_count(channel)}.",
    )


async def _remove(options: argparse.Namespace) -> None:
    network, asker = _asked(options)
    host, port = _address(network, options.orderer)
    if options.force:
        progress(
            "forced: if fewer consenters are left alive than have to agree to every block, nothing "
            "is ordered until enough of them are back"
        )
    now = await _changed(
        network, asker, lambda config: remove_consenter(config, host, port), force=options.force
    )
    address = f"{host}:{port}"

    def missing(channel: gridledger_pb2.OrdererChannel) -> str:
        for one in channel.members:
            if one.address == address:
                return f"consenter {one.raft_id} is still in the group"
        return ""

    try:
        channel = await wait_for_group(network, missing, progress)
    except OrdererError:
        if not options.force:
            raise
        answer(
            options,
            {"channel": network.channel, "block_number": now.block_number, "settled": False},
            f"{options.orderer} is out of the configuration, in block {now.block_number}; the group"
            " follows when enough consenters are alive.",
        )
        return
    _done(
        options,
        now,
        {"voters": _voters(channel), "settled": True},
        f"{options.orderer} orders no more; {_count(channel)}.",
    )


async def _rotate(options: argparse.Namespace) -> None:
    network, asker = _asked(options)
    utility = network.utility(options.orderer)
    async with client(network, asker, "admin") as gateway:
        before = await current(gateway, asker.msp_id)
    host, port = HOST, utility.ports.cluster
    pinned = next(
        (
            one.server_tls_certificate_pem
            for one in before.config.orderer.consenters
            if (one.host, one.port) == (host, port)
        ),
        None,
    )
    if pinned is None:
        raise ConfigError(f"{utility.name}'s orderer, {host}:{port}, is no consenter; add it first")
    certificate, new_key = await asyncio.to_thread(next_certificate, utility, pinned)
    now = await _changed(
        network,
        asker,
        lambda config: replace_consenter(config, consenter_of(utility, certificate)),
        force=options.force,
    )
    if new_key:
        await asyncio.to_thread(use_next_certificate, utility)
    wanted = certificate_hash(certificate)

    def missing(channel: gridledger_pb2.OrdererChannel) -> str:
        for one in channel.members:
            if one.certificate_hash == wanted:
                return "" if one.active else f"consenter {one.raft_id} is not heard of yet"
        return "the leader has not seen the configuration yet"

    channel = await wait_for_group(network, missing, progress)
    raft_id = next(one.raft_id for one in channel.members if one.certificate_hash == wanted)
    _done(
        options,
        now,
        {"raft_id": raft_id, "new_key": new_key, "certificate_sha256": wanted.hex()},
        f"{utility.name}'s orderer, consenter {raft_id}, shows another certificate"
        f"{' with a new key' if new_key else ''}; {_count(channel)}.",
    )


async def _transfer(options: argparse.Namespace) -> None:
    network = Network.load(options.data_dir)
    asked = await ask_all(network)
    leader = leader_of(asked)
    if leader is None or leader.channel is None:
        raise OrdererError(
            "no orderer whose admin is in this folder leads; look with `gridledger orderer status`"
        )
    to = 0
    if options.to:
        host, port = _address(network, options.to)
        to = next(
            (one.raft_id for one in leader.channel.members if one.address == f"{host}:{port}"), 0
        )
        if not to:
            raise ConfigError(f"{options.to} is no consenter of {network.channel}")
    before = leader.channel.raft_id
    if to == before:
        answer(
            options,
            {"leader": leader.utility.name, "raft_id": before},
            f"{leader.utility.name} leads already.",
        )
        return
    transfer = gridledger_pb2.TransferLeadership(channel=network.channel, to=to)
    await act(network, leader.utility, gridledger_pb2.OrdererAct(transfer=transfer))

    def missing(channel: gridledger_pb2.OrdererChannel) -> str:
        if channel.raft_id == before or (to and channel.raft_id != to):
            return f"consenter {channel.raft_id} leads"
        return ""

    channel = await wait_for_group(network, missing, progress)
    now = leader_of(await ask_all(network))
    name = now.utility.name if now else str(channel.raft_id)
    answer(
        options,
        {"leader": name, "raft_id": channel.raft_id, "term": channel.term, "before": before},
        f"{name}, consenter {channel.raft_id}, leads in term {channel.term}.",
    )


# ------------------------------------------------------------------ what they share


def _asked(options: argparse.Namespace) -> tuple[Network, Utility]:
    network = Network.load(options.data_dir)
    return network, network.utility(options.utility) if options.utility else network.utilities[0]


def _address(network: Network, named: str) -> tuple[str, int]:
    host, _, port = named.rpartition(":")
    if host and port.isdecimal():
        return host, int(port)
    return HOST, network.utility(named).ports.cluster


def _named(
    network: Network, named: str, certificate: Path | None
) -> tuple[Consenter, OrganizationSpec | None]:
    if ":" in named:
        if certificate is None:
            raise ConfigError(f"{named} needs its TLS certificate: --certificate FILE")
        host, port = _address(network, named)
        pem = read_certificate(certificate)
        return Consenter(host, port, pem, pem), None
    utility = network.utility(named)
    return consenter_of(utility), organization(utility)


async def _changed(
    network: Network,
    asker: Utility,
    change: Callable[[common_pb2.Config], None],
    *,
    force: bool,
) -> Current:
    async with client(network, asker, "admin") as gateway:
        submit = partial(change_consenters, network, gateway, asker, change)
        try:
            now = await submit(force=force)
        except UpdateRefused as error:
            if "quorum loss" in str(error):
                raise UpdateRefused(
                    f"{error}. With --force it is done all the same; until enough consenters are"
                    " alive, nothing is ordered then"
                ) from None
            raise
    progress(f"configuration {now.config.sequence} is in force, in block {now.block_number}")
    return now


def _voters(channel: gridledger_pb2.OrdererChannel) -> list[int]:
    return [one.raft_id for one in channel.members if one.part == "voter"]


def _count(channel: gridledger_pb2.OrdererChannel) -> str:
    voters = [one for one in channel.members if one.part == "voter"]
    alive = sum(one.active for one in voters)
    return f"{alive} of {len(voters)} voters are alive"


def _done(options: argparse.Namespace, now: Current, value: dict[str, object], text: str) -> None:
    answer(
        options,
        {"channel": now.config.channel_id, "block_number": now.block_number, **value},
        text,
    )
