"""`gridledger channel`: a channel's configuration, shown and changed by its utilities' admins."""

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from consortium.identity.certificates import CertificateError, load_certificate
from consortium.ledger.channel_config import ChannelConfig
from consortium.ledger.config_changes import (
    SETTINGS,
    Change,
    Lacking,
    PendingUpdate,
    add_organization,
    change_setting,
    changes,
    copied,
    describe_policy,
    organization_from_json,
    remove_organization,
)
from consortium.ledger.config_json import config_from_json, config_to_json
from consortium.ledger.config_update import ConfigError, compute_update
from consortium.node.channel import (
    Current,
    UpdateRefused,
    current,
    organization_of,
    revocation_lists,
    revocation_lists_of,
    signed_by_enough,
    submit_update,
)
from consortium.node.contracts import client
from consortium.node.lifecycle import PeerAdmin
from consortium.node.network import Network, Utility, first_block_of
from consortium.wire import common_pb2
from consortium.wire.envelopes import parse

from .output import answer, table

FILE_LIMIT_BYTES = 32 * 1024 * 1024


def add_commands(rooms: Any, common: argparse.ArgumentParser) -> None:
    """Register `channel` and its verbs; `rooms` are the parser's sub-commands."""
    channel = rooms.add_parser(
        "channel", help="the channel's configuration: show and change it"
    ).add_subparsers(required=True, metavar="VERB")
    asked = argparse.ArgumentParser(add_help=False)
    asked.add_argument("--utility", help="whose peer to ask, as its admin (default: the first)")
    asked.add_argument("--channel", help="which channel (default: the network's own)")
    signing = argparse.ArgumentParser(add_help=False)
    signing.add_argument(
        "--sign-as",
        action="append",
        default=[],
        metavar="UTILITY",
        help="whose admin signs; may be repeated",
    )

    create = channel.add_parser(
        "create",
        parents=[common],
        help="write the first block of a new channel",
        description="Orderers begin it with `gridledger orderer join UTILITY FILE`, or with "
        "osnadmin, and peers with `gridledger channel join FILE`. What else its configuration is "
        "to say is changed then: `gridledger channel update --channel NAME --set`.",
    )
    create.add_argument("name", help="lower case letters, digits, dots and hyphens")
    create.add_argument(
        "--member",
        action="append",
        default=[],
        metavar="UTILITY",
        help="who endorses, commits and orders; may be repeated (default: all in the data folder)",
    )
    create.add_argument("--out", type=Path, required=True, help="the file")
    create.set_defaults(run=_create)

    show = channel.add_parser(
        "show",
        parents=[common, asked],
        help="the configuration in force; --json as Fabric's configtxlator writes it",
    )
    show.set_defaults(run=_show)

    update = channel.add_parser(
        "update",
        parents=[common, asked, signing],
        help="change it",
        description="Change the configuration. Without --sign-as the admins in the data folder "
        "sign, as many as are needed.",
    )
    update.add_argument(
        "--set",
        action="append",
        default=[],
        nargs=2,
        metavar=("NAME", "VALUE"),
        help=f"one setting: {', '.join(SETTINGS)}",
    )
    update.add_argument(
        "--file", type=Path, help="the whole configuration wanted, as `show --json` gave it"
    )
    update.add_argument(
        "--add-utility",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER|JSON",
        help="a new member that endorses and commits: its folder in another network's, or its "
        "group as `configtxgen -printOrg` writes it",
    )
    update.add_argument(
        "--remove-utility", action="append", default=[], metavar="UTILITY", help="a member to leave"
    )
    update.add_argument(
        "--crl",
        action="append",
        default=[],
        metavar="UTILITY[=FILE]",
        help="publish the certificates that its authority has revoked, or a file's lists (PEM)",
    )
    update.add_argument(
        "--out", type=Path, help="write the update for others to sign, instead of submitting it"
    )
    update.set_defaults(run=_update)

    sign = channel.add_parser(
        "sign", parents=[common, asked, signing], help="add signatures to an update's file"
    )
    sign.add_argument("file", type=Path)
    sign.set_defaults(run=_sign)

    submit = channel.add_parser(
        "submit", parents=[common, asked], help="submit an update that others have signed"
    )
    submit.add_argument("file", type=Path)
    submit.set_defaults(run=_submit)

    fetch = channel.add_parser(
        "fetch", parents=[common, asked], help="write one of its blocks into a file"
    )
    fetch.add_argument("block", help="a number, newest, or config (the last that changed it)")
    fetch.add_argument("--out", type=Path, required=True, help="the file")
    fetch.set_defaults(run=_fetch)

    join = channel.add_parser(
        "join",
        parents=[common, asked],
        help="have a running peer join a channel",
        description="The peer follows the channel's orderers from its first block on, and does so "
        "again whenever it starts.",
    )
    join.add_argument("block", type=Path, help="the channel's first block, a file")
    join.set_defaults(run=_join)

    listed = channel.add_parser(
        "list", parents=[common, asked], help="the channels that a peer has joined"
    )
    listed.set_defaults(run=_list)


# ------------------------------------------------------------------ create


async def _create(options: argparse.Namespace) -> None:
    network = Network.load(options.data_dir)
    names = dict.fromkeys(options.member)
    members = [network.utility(name) for name in names] or network.utilities
    block = first_block_of(options.name, members)
    await asyncio.to_thread(options.out.write_bytes, block.SerializeToString())
    answer(
        options,
        {
            "channel": options.name,
            "members": [utility.msp_id for utility in members],
            "file": str(options.out),
        },
        f"The first block of {options.name} is in {options.out}; its members are "
        f"{', '.join(utility.name for utility in members)}. For each of them: gridledger orderer "
        f"join UTILITY {options.out}, then gridledger channel join {options.out} "
        "--utility UTILITY",
    )


# ------------------------------------------------------------------ show


async def _show(options: argparse.Namespace) -> None:
    network, utility = _asked(options)
    async with client(network, utility, "admin") as gateway:
        now = await current(gateway, utility.msp_id)
    if options.json:
        print(json.dumps(config_to_json(now.config.config), indent=2, sort_keys=True))
    else:
        print(_described(now))


def _described(now: Current) -> str:
    config, orderer = now.config, now.config.orderer
    members = sorted({*config.application_orgs, *orderer.organizations})
    facts = [
        ("channel", config.channel_id),
        ("configuration", f"{config.sequence}, in block {now.block_number}"),
        ("consensus", orderer.consensus_type + " (maintenance)" * orderer.in_maintenance),
        ("batch-size", f"{orderer.max_message_count} transactions"),
        ("batch-timeout", f"{orderer.batch_timeout_s:g} s"),
        ("preferred-max-bytes", orderer.preferred_max_bytes),
        ("absolute-max-bytes", orderer.absolute_max_bytes),
        ("capabilities", _capabilities(config)),
    ]
    return "\n\n".join(
        [
            "\n".join(f"{name:20} {value}" for name, value in facts),
            table(
                [
                    (
                        msp_id,
                        "yes" if msp_id in config.application_orgs else "no",
                        ", ".join(f"{host}:{port}" for host, port in anchors) or "-",
                        ", ".join(orderer.endpoints.get(msp_id, ())) or "-",
                    )
                    for msp_id in members
                    for anchors in [config.anchor_peers.get(msp_id, ())]
                ],
                ("MEMBER", "ENDORSES", "ANCHOR PEERS", "ORDERERS"),
            ),
            table(
                [
                    (f"{one.host}:{one.port}", _expiry(one.server_tls_certificate_pem))
                    for one in orderer.consenters
                ],
                ("CONSENTER", "TLS CERTIFICATE UNTIL"),
            ),
            table(_policies(config.config.channel_group, "/Channel"), ("POLICY", "RULE")),
        ]
    )


def _capabilities(config: ChannelConfig) -> str:
    levels = (
        ("channel", config.capabilities),
        ("orderer", config.orderer.capabilities),
        ("application", config.application_capabilities),
    )
    return ", ".join(f"{name} {' '.join(sorted(found))}" for name, found in levels)


def _expiry(pem: bytes) -> str:
    try:
        return load_certificate(pem).not_valid_after_utc.date().isoformat()
    except CertificateError:
        return "unreadable"


def _policies(group: common_pb2.ConfigGroup, path: str) -> list[tuple[str, str]]:
    rows = [
        (f"{path}/{name}", describe_policy(element.policy))
        for name, element in sorted(group.policies.items())
    ]
    for name, inner in sorted(group.groups.items()):
        rows += _policies(inner, f"{path}/{name}")
    return rows


# ------------------------------------------------------------------ joining


async def _fetch(options: argparse.Namespace) -> None:
    network, utility = _asked(options)
    async with client(network, utility, "admin") as gateway:
        wanted = options.block
        if wanted == "newest":
            wanted = str(2**64 - 1)
        elif wanted == "config":
            wanted = str((await current(gateway, utility.msp_id)).block_number)
        elif not wanted.isdecimal():
            raise ConfigError(f"{wanted!r} is no block; give a number, newest or config")
        raw = await gateway.evaluate(
            "qscc",
            "GetBlockByNumber",
            [network.channel.encode(), wanted.encode()],
            endorsing_organizations=[utility.msp_id],
        )
    number = parse(common_pb2.Block, raw, "the block").header.number
    await asyncio.to_thread(options.out.write_bytes, raw)
    answer(
        options,
        {"channel": network.channel, "number": number, "file": str(options.out)},
        f"Block {number} of {network.channel} is in {options.out}.",
    )


async def _join(options: argparse.Namespace) -> None:
    network, utility = _asked(options)
    block = parse(common_pb2.Block, _read(options.block), str(options.block))
    async with PeerAdmin(network, utility) as admin:
        joined = await admin.join(block)
    answer(
        options,
        {"utility": utility.name, "channel": joined},
        f"{utility.name}'s peer has joined {joined} and catches up now.",
    )


async def _list(options: argparse.Namespace) -> None:
    network, utility = _asked(options)
    async with PeerAdmin(network, utility) as admin:
        found = await admin.channels()
    answer(
        options,
        {"utility": utility.name, "channels": found},
        table([(channel_id,) for channel_id in found], ("CHANNEL",)),
    )


# ------------------------------------------------------------------ change


async def _update(options: argparse.Namespace) -> None:
    network, utility = _asked(options)
    async with client(network, utility, "admin") as gateway:
        now = await current(gateway, utility.msp_id)
        wanted = await asyncio.to_thread(_wanted, options, network, now.config)
        update = compute_update(network.channel, now.config.config, wanted)
        pending = PendingUpdate(network.channel, update.SerializeToString(deterministic=True))
        found = changes(now.config.config, pending.result(now.config))
        pending = _signed(options, network, pending, now.config)
        lacking = pending.lacking(now.config)
        if options.out is not None:
            _write(options, options.out, pending, found, lacking)
            return
        _require(lacking)
        after = await submit_update(gateway, utility.msp_id, pending, now, utility.signer("admin"))
    _done(options, after, found)


async def _sign(options: argparse.Namespace) -> None:
    network, utility = _asked(options)
    pending = PendingUpdate.from_bytes(_read(options.file))
    async with client(network, utility, "admin") as gateway:
        now = await current(gateway, utility.msp_id)
    found = changes(now.config.config, pending.result(now.config))
    pending = _signed(options, network, pending, now.config)
    _write(options, options.file, pending, found, pending.lacking(now.config))


async def _submit(options: argparse.Namespace) -> None:
    network, utility = _asked(options)
    pending = PendingUpdate.from_bytes(_read(options.file))
    async with client(network, utility, "admin") as gateway:
        now = await current(gateway, utility.msp_id)
        found = changes(now.config.config, pending.result(now.config))
        _require(pending.lacking(now.config))
        after = await submit_update(gateway, utility.msp_id, pending, now, utility.signer("admin"))
    _done(options, after, found)


def _wanted(
    options: argparse.Namespace, network: Network, config: ChannelConfig
) -> common_pb2.Config:
    """The configuration that the options ask for."""
    wanted = copied(config.config)
    if options.file is not None:
        wanted = config_from_json(_json(options.file), config.config)
        if wanted.sequence != config.sequence:
            raise ConfigError(
                f"{options.file} was made from configuration {wanted.sequence}, and now it is "
                f"{config.sequence}; make it again from `gridledger channel show --json`"
            )
    for name, value in options.set:
        change_setting(wanted, name, value)
    for path in options.add_utility:
        group = organization_of(path) if path.is_dir() else organization_from_json(_json(path))
        add_organization(wanted, group)
    for name in options.remove_utility:
        remove_organization(wanted, _msp_id(network, config, name))
    for named in options.crl:
        name, _, file = named.partition("=")
        if file:
            msp_id, lists = _msp_id(network, config, name), revocation_lists_of(_read(Path(file)))
        else:
            utility = network.utility(name)
            msp_id, lists = utility.msp_id, revocation_lists(utility)
        wanted = ChannelConfig(config.channel_id, wanted).with_revocation_lists(msp_id, lists)
    return wanted


def _msp_id(network: Network, config: ChannelConfig, name: str) -> str:
    """A member by its MSP id or its utility's name; a name that nobody has stays as it is."""
    known = {msp_id.lower(): msp_id for msp_id in config.msps.msps}
    known |= {utility.name.lower(): utility.msp_id for utility in network.utilities}
    return known.get(name.lower(), name)


def _signed(
    options: argparse.Namespace, network: Network, pending: PendingUpdate, config: ChannelConfig
) -> PendingUpdate:
    """With the signatures of those named, or else of as many as are needed."""
    if options.sign_as:
        return pending.signed_by(
            *(network.utility(name).signer("admin") for name in options.sign_as)
        )
    return signed_by_enough(network, pending, config)


def _require(lacking: Sequence[Lacking]) -> None:
    if lacking:
        raise UpdateRefused(
            "the update is not agreed to yet: "
            + "; ".join(str(one) for one in lacking)
            + ". Sign as more utilities (--sign-as), or write it with --out and let them sign "
            "the file: gridledger channel sign FILE"
        )


# ------------------------------------------------------------------ files and answers


def _asked(options: argparse.Namespace) -> tuple[Network, Utility]:
    network = Network.load(options.data_dir)
    if options.channel:
        network = replace(network, channel=options.channel)
    return network, network.utility(options.utility) if options.utility else network.utilities[0]


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > FILE_LIMIT_BYTES:
        raise ConfigError(f"{path} has {size} bytes; {FILE_LIMIT_BYTES} are allowed")
    return path.read_bytes()


def _json(path: Path) -> object:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None


def _write(
    options: argparse.Namespace,
    path: Path,
    pending: PendingUpdate,
    found: Sequence[Change],
    lacking: Sequence[Lacking],
) -> None:
    path.write_bytes(pending.to_bytes())
    still = "\n".join(f"  {one}" for one in lacking)
    answer(
        options,
        {
            "file": str(path),
            "signatures": len(pending.signatures),
            "changes": _as_json(found),
            "lacking": [
                {
                    "policy": one.policy,
                    "needed": one.needed,
                    "signed": one.signed,
                    "missing": one.missing,
                }
                for one in lacking
            ],
        },
        f"{_listed(found)}\n{path} has {len(pending.signatures)} signatures. "
        + (
            f"It lacks:\n{still}\nThere: gridledger channel sign {path}"
            if lacking
            else f"That is enough: gridledger channel submit {path}"
        ),
    )


def _done(options: argparse.Namespace, after: Current, found: Sequence[Change]) -> None:
    answer(
        options,
        {
            "channel": after.config.channel_id,
            "sequence": after.config.sequence,
            "block_number": after.block_number,
            "changes": _as_json(found),
        },
        f"{_listed(found)}\nIn force: configuration {after.config.sequence}, "
        f"in block {after.block_number}.",
    )


def _as_json(found: Sequence[Change]) -> list[dict[str, Any]]:
    return [{"where": one.where, "before": one.before, "after": one.after} for one in found]


def _listed(found: Sequence[Change]) -> str:
    return "\n".join(str(one) for one in found)
