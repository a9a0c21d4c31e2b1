"""`gridledger contract`: the life of a contract on a channel, from a package to a definition."""

import argparse
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from consortium.chaincode.packages import (
    PackageError,
    package_id,
    read_package,
    served_package,
)
from consortium.chaincode.remote import Connection
from consortium.contracts import chaincodes
from consortium.contracts.package import label as own_label
from consortium.contracts.package import package as own_package
from consortium.identity.policies import PolicyError, parse_policy
from consortium.ledger.config_changes import describe_policy
from consortium.ledger.lifecycle import (
    DEFAULT_POLICY,
    ChaincodeDefinition,
    policy_reference,
    signature_policy,
)
from consortium.node.contracts import ensure_contracts
from consortium.node.lifecycle import PeerAdmin, PeerRefused
from consortium.node.network import Network, NetworkError, Utility
from consortium.wire import common_pb2, peer_pb2
from gridledger_client import TransactionRefused

from .output import answer, progress, table

FILE_LIMIT_BYTES = 16 * 1024 * 1024
COLLECTION_FIELDS = {
    "name",
    "policy",
    "requiredPeerCount",
    "maxPeerCount",
    "blockToLive",
    "memberOnlyRead",
    "memberOnlyWrite",
    "endorsementPolicy",
}
"""Of a collection, as in Fabric's collection files."""


class DefinitionError(NetworkError):
    """Options that make no definition; the sentence says what is wrong."""


def add_commands(contract: Any, common: argparse.ArgumentParser) -> None:
    """Register the verbs; `contract` are the sub-commands of `gridledger contract`."""
    admins = argparse.ArgumentParser(add_help=False)
    admins.add_argument(
        "--utility",
        action="append",
        default=[],
        help="whose admin acts, at its own peer; may be repeated (default: all in the folder)",
    )
    asked = argparse.ArgumentParser(add_help=False)
    asked.add_argument("--utility", help="whose peer to ask, as its admin (default: the first)")
    defined = argparse.ArgumentParser(add_help=False)
    defined.add_argument("name", help="what the channel calls the contract")
    defined.add_argument("--version", help="a text for people")
    defined.add_argument("--sequence", type=int, help="1, 2, … (default: the next one)")
    defined.add_argument(
        "--policy",
        help="who endorses: as OutOf(2,'AuroraMSP.peer','BorealMSP.peer'), or a path of the "
        "channel's (default: /Channel/Application/Endorsement)",
    )
    defined.add_argument(
        "--collections", type=Path, help="private data: a file in Fabric's format, JSON"
    )
    defined.add_argument(
        "--init-required",
        action=argparse.BooleanOptionalAction,
        help="it must be called once with --init, for each version",
    )

    package = contract.add_parser(
        "package",
        help="make a package to install",
        description="Package one of our own contracts by its name, or with --address a chaincode "
        "that is served somewhere.",
    )
    package.add_argument("name", help="metering or energy, or with --address the label")
    package.add_argument("--address", help="where it is served, host:port")
    package.add_argument("--tls-root", type=Path, help="trusted for the server, PEM")
    package.add_argument("--tls-cert", type=Path, help="what a peer shows to the server, PEM")
    package.add_argument("--tls-key", type=Path, help="its key, PEM")
    package.add_argument("--out", type=Path, required=True, help="the file to write, .tar.gz")
    package.add_argument("--json", action="store_true", help="answer in JSON")
    package.set_defaults(run=_package)

    install = contract.add_parser(
        "install", parents=[common, admins], help="install a package on peers"
    )
    install.add_argument("package", help="a package's file, or one of our own contracts' name")
    install.set_defaults(run=_install)

    approve = contract.add_parser(
        "approve",
        parents=[common, admins, defined],
        help="agree to a definition",
        description="What is not given stays as it is committed.",
    )
    approve.add_argument(
        "--package-id", help="what this utility's peers run (default: its newest by that label)"
    )
    approve.set_defaults(run=_approve)

    readiness = contract.add_parser(
        "readiness", parents=[common, asked, defined], help="who has approved a definition"
    )
    readiness.set_defaults(run=_readiness)

    commit = contract.add_parser(
        "commit",
        parents=[common, asked, defined],
        help="put a definition in force that enough have approved",
        description="What is not given is as this utility approved it.",
    )
    commit.set_defaults(run=_commit)

    listed = contract.add_parser(
        "list", parents=[common, asked], help="contracts of the channel, and what runs here"
    )
    listed.add_argument("--installed", action="store_true", help="the packages on the peer instead")
    listed.set_defaults(run=_list)

    deploy = contract.add_parser(
        "deploy",
        parents=[common],
        help="all of it at once, for our own contracts and all utilities in the folder",
        description="Install, approve and commit this software's contracts, as one new sequence "
        "each if anything changes. For a folder that holds all utilities' admins.",
    )
    deploy.set_defaults(run=_deploy)


# ------------------------------------------------------------------ packages


async def _package(options: argparse.Namespace) -> None:
    if options.address is None:
        if options.name not in chaincodes():
            raise PackageError(
                f"there is no contract {options.name!r} of ours, only "
                f"{', '.join(chaincodes())}; for a chaincode served elsewhere give --address"
            )
        data, label = own_package(options.name), own_label(options.name)
    else:
        if bool(options.tls_cert) != bool(options.tls_key):
            raise PackageError("--tls-cert and --tls-key belong together")
        if options.tls_cert and not options.tls_root:
            raise PackageError("--tls-cert needs --tls-root: without it there is no TLS")
        label = options.name
        data = served_package(
            label,
            Connection(
                address=options.address,
                tls_root_pem=options.tls_root.read_bytes() if options.tls_root else None,
                certificate_pem=options.tls_cert.read_bytes() if options.tls_cert else None,
                key_pem=options.tls_key.read_bytes() if options.tls_key else None,
            ),
        )
    options.out.write_bytes(data)
    found = package_id(label, data)
    answer(
        options,
        {"file": str(options.out), "label": label, "package_id": found},
        f"{options.out} is package {found}\nInstall it: gridledger contract install {options.out}",
    )


async def _install(options: argparse.Namespace) -> None:
    path = Path(options.package)
    data = own_package(options.package) if options.package in chaincodes() else _read(path)
    package = read_package(data)
    done: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        for utility, admin in await _admins(options, stack):
            try:
                await admin.install(data)
                state = "installed"
            except PeerRefused as error:
                if "already successfully installed" not in str(error):
                    raise
                state = "was there already"
            progress(f"{utility.name}: {state}")
            done.append({"utility": utility.name, "state": state})
    answer(
        options,
        {"package_id": package.package_id, "label": package.label, "peers": done},
        f"Package {package.package_id} is installed at "
        f"{', '.join(one['utility'] for one in done)}.",
    )


# ------------------------------------------------------------------ definitions


async def _approve(options: argparse.Namespace) -> None:
    done: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        for utility, admin in await _admins(options, stack):
            committed = await admin.committed(options.name)
            definition = _definition(options, committed, None)
            package = options.package_id
            if package is None:
                package = await _newest(admin, options.name)
            committed_in = await admin.approve(definition, package)
            assert committed_in is not None
            progress(f"{utility.name}: in block {committed_in.block_number}")
            done.append(
                {
                    "utility": utility.name,
                    "package_id": package,
                    "transaction_id": committed_in.transaction_id,
                    "block_number": committed_in.block_number,
                }
            )
    answer(
        options,
        {"name": definition.name, "sequence": definition.sequence, "approvals": done},
        f"{', '.join(one['utility'] for one in done)} approved {definition.name} "
        f"{definition.version}, sequence {definition.sequence}.\n"
        f"See who else has: gridledger contract readiness {definition.name}",
    )


async def _newest(admin: PeerAdmin, name: str) -> str:
    """The one installed package that is by its label this contract's."""
    found = [
        one.package_id
        for one in await admin.installed()
        if one.label == name or one.label.startswith(f"{name}_")
    ]
    if len(found) == 1:
        return found[0]
    raise DefinitionError(
        f"{len(found)} packages labelled {name}_… are installed at {admin.utility.name}'s peer; "
        "name one with --package-id (gridledger contract list --installed shows them), or give "
        '"" to approve without running it'
    )


async def _readiness(options: argparse.Namespace) -> int:
    async with AsyncExitStack() as stack:
        admin = await _admin(options, stack)
        definition = await _proposed(options, admin)
        found = await admin.readiness(definition)
    rows = [
        (
            msp_id,
            "yes" if approved else "no",
            ", ".join(found.mismatches.get(msp_id, ())) or "-",
        )
        for msp_id, approved in found.approvals.items()
    ]
    answer(
        options,
        {
            "name": definition.name,
            "sequence": definition.sequence,
            "approvals": found.approvals,
            "mismatches": {msp_id: list(items) for msp_id, items in found.mismatches.items()},
        },
        f"{definition.name} {definition.version}, sequence {definition.sequence}\n\n"
        + table(rows, ("MEMBER", "APPROVED", "DIFFERS IN")),
    )
    return 0


async def _commit(options: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        admin = await _admin(options, stack)
        definition = await _proposed(options, admin)
        done = await admin.commit(definition)
    answer(
        options,
        {
            "name": definition.name,
            "sequence": definition.sequence,
            "transaction_id": done.transaction_id,
            "block_number": done.block_number,
        },
        f"{definition.name} {definition.version} is in force as sequence {definition.sequence}, "
        f"from block {done.block_number} on.",
    )


async def _proposed(options: argparse.Namespace, admin: PeerAdmin) -> ChaincodeDefinition:
    """The definition meant: as this utility has approved it, with what the options say."""
    committed = await admin.committed(options.name)
    following = (committed.sequence if committed else 0) + 1
    try:
        approved, _ = await admin.approved(options.name, options.sequence or following)
    except TransactionRefused:
        approved = None
    return _definition(options, committed, approved)


def _definition(
    options: argparse.Namespace,
    committed: ChaincodeDefinition | None,
    approved: ChaincodeDefinition | None,
) -> ChaincodeDefinition:
    before = approved or committed
    if before is None:
        if options.version is None:
            raise DefinitionError(f"{options.name} is new on the channel: give it a --version")
        before = ChaincodeDefinition(
            options.name, 0, options.version, policy_reference(DEFAULT_POLICY)
        )
    found = replace(
        before,
        sequence=options.sequence or (committed.sequence if committed else 0) + 1,
        version=options.version or before.version,
    )
    if options.init_required is not None:
        found = replace(found, init_required=options.init_required)
    if options.policy is not None:
        found = replace(found, endorsement_policy=_policy(options.policy))
    if options.collections is not None:
        found = replace(found, collections=_collections(options.collections))
    return found


def _policy(text: str) -> bytes:
    if text.startswith("/"):
        return policy_reference(text)
    try:
        return signature_policy(parse_policy(text))
    except PolicyError as error:
        raise DefinitionError(f"the policy {text!r} cannot be used: {error}") from None


def _collections(path: Path) -> peer_pb2.CollectionConfigPackage:
    try:
        entries = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise DefinitionError(f"{path} is not JSON: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DefinitionError(f"{path} must be a JSON list of collections")
    package = peer_pb2.CollectionConfigPackage()
    for entry in entries:
        name = entry.get("name")
        where = f"{path}: collection {name!r}"
        if unknown := sorted(entry.keys() - COLLECTION_FIELDS):
            raise DefinitionError(
                f"{where}: {unknown[0]!r} is not known; known are "
                f"{', '.join(sorted(COLLECTION_FIELDS))}"
            )
        try:
            collection = peer_pb2.StaticCollectionConfig(
                name=name,
                member_orgs_policy=peer_pb2.CollectionPolicyConfig(
                    signature_policy=parse_policy(entry.get("policy", ""))
                ),
                required_peer_count=entry.get("requiredPeerCount", 0),
                maximum_peer_count=entry.get("maxPeerCount", 0),
                block_to_live=entry.get("blockToLive", 0),
                member_only_read=entry.get("memberOnlyRead", False),
                member_only_write=entry.get("memberOnlyWrite", False),
            )
            endorsement = entry.get("endorsementPolicy") or {}
            if "signaturePolicy" in endorsement:
                collection.endorsement_policy.signature_policy.CopyFrom(
                    parse_policy(endorsement["signaturePolicy"])
                )
            elif "channelConfigPolicy" in endorsement:
                collection.endorsement_policy.channel_config_policy_reference = endorsement[
                    "channelConfigPolicy"
                ]
        except (PolicyError, TypeError, ValueError) as error:
            raise DefinitionError(f"{where}: {error}") from None
        package.config.add(static_collection_config=collection)
    return package


# ------------------------------------------------------------------ looking


async def _list(options: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        admin = await _admin(options, stack)
        installed = await admin.installed()
        if options.installed:
            answer(
                options,
                [
                    {
                        "package_id": one.package_id,
                        "label": one.label,
                        "runs": [
                            {"channel": channel_id, "name": name, "version": version}
                            for channel_id, name, version in one.runs
                        ],
                    }
                    for one in installed
                ],
                table(
                    [
                        (
                            one.package_id,
                            ", ".join(f"{name} {version} on {on}" for on, name, version in one.runs)
                            or "-",
                        )
                        for one in installed
                    ],
                    ("PACKAGE", "RUNS"),
                ),
            )
            return
        definitions = await admin.definitions()
        network = admin.gateway.channel
    runs = {name: one.package_id for one in installed for on, name, _ in one.runs if on == network}
    answer(
        options,
        [
            {
                "name": one.name,
                "version": one.version,
                "sequence": one.sequence,
                "policy": _shown(one.endorsement_policy),
                "collections": _names(one),
                "init_required": one.init_required,
                "package_id": runs.get(one.name),
            }
            for one in definitions
        ],
        table(
            [
                (
                    one.name,
                    one.version,
                    one.sequence,
                    _shown(one.endorsement_policy),
                    ", ".join(_names(one)) or "-",
                    runs.get(one.name, "not run here"),
                )
                for one in definitions
            ],
            ("CONTRACT", "VERSION", "SEQUENCE", "POLICY", "COLLECTIONS", "PACKAGE"),
        ),
    )


def _names(definition: ChaincodeDefinition) -> list[str]:
    return [config.static_collection_config.name for config in definition.collections.config]


def _shown(policy: bytes) -> str:
    found = peer_pb2.ApplicationPolicy.FromString(policy)
    if found.HasField("signature_policy"):
        return describe_policy(
            common_pb2.Policy(
                type=common_pb2.Policy.SIGNATURE,
                value=found.signature_policy.SerializeToString(),
            )
        )
    return found.channel_config_policy_reference


async def _deploy(options: argparse.Namespace) -> None:
    network = Network.load(options.data_dir)
    said: list[str] = []

    def tell(message: str) -> None:
        said.append(message)
        progress(message)

    await ensure_contracts(network, tell, upgrade=True)
    answer(
        options,
        {"changes": said},
        "Done." if said else "Nothing to do: the channel runs this software's contracts.",
    )


# ------------------------------------------------------------------ who acts


async def _admin(options: argparse.Namespace, stack: AsyncExitStack) -> PeerAdmin:
    network = Network.load(options.data_dir)
    utility = network.utility(options.utility) if options.utility else network.utilities[0]
    return await stack.enter_async_context(PeerAdmin(network, utility))


async def _admins(
    options: argparse.Namespace, stack: AsyncExitStack
) -> Sequence[tuple[Utility, PeerAdmin]]:
    network = Network.load(options.data_dir)
    utilities = (
        [network.utility(name) for name in options.utility]
        if options.utility
        else [one for one in network.utilities if (one.directory / "admin").is_dir()]
    )
    return [
        (utility, await stack.enter_async_context(PeerAdmin(network, utility)))
        for utility in utilities
    ]


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > FILE_LIMIT_BYTES:
        raise DefinitionError(f"{path} has {size} bytes; {FILE_LIMIT_BYTES} are allowed")
    return path.read_bytes()
