"""`gridledger`: make and run a network, enrol, call contracts, look at blocks, verify a ledger."""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from consortium.chaincode.packages import PackageError
from consortium.chaincode.serve import ChaincodeServer
from consortium.contracts import chaincodes
from consortium.contracts.package import package_id
from consortium.identity.certificates import CertificateError, write_private
from consortium.identity.signing import SigningError
from consortium.ledger.config_update import ConfigError
from consortium.ledger.state import LedgerError
from consortium.ledger.verify import Report, verify_ledger
from consortium.node.contracts import client as utility_client
from consortium.node.contracts import ensure_contracts
from consortium.node.lifecycle import submit_init
from consortium.node.limits import allow_open_files
from consortium.node.logs import quieten_grpc
from consortium.node.network import (
    DEFAULT_BASE_PORT,
    DEFAULT_CHANNEL,
    DEFAULT_UTILITIES,
    Network,
    NetworkError,
    create_network,
)
from consortium.node.nodes import (
    KINDS,
    EmbeddedNetwork,
    Node,
    make_node,
    run_node,
    until_failure,
)
from consortium.node.operations import Operations
from consortium.node.processes import ProcessNetwork
from consortium.storage.environment import StorageError
from consortium.storage.segments import SegmentError
from consortium.wire import common_pb2
from consortium.wire.envelopes import WireError
from gridledger_client import (
    Credentials,
    GatewayClient,
    GridLedgerError,
    Identity,
    enroll,
    fetch_bundle,
    fingerprint,
)
from gridledger_client.enrolment import same_fingerprint

from . import announce, backup, channel, export, invite, membership, orderer, snapshot
from . import contract as contract_commands
from .blocks import describe_block
from .output import Patience
from .output import answer as _print
from .output import table as _table

DEFAULT_DATA_DIR = Path(".gridledger")
_OPERATIONS = "tell health and metrics over HTTP at this port of this machine (default: nowhere)"


class UsageError(Exception):
    """A command that can't be carried out as it was given."""


REFUSALS = (
    UsageError,
    NetworkError,
    GridLedgerError,
    ConfigError,
    LedgerError,
    SegmentError,
    StorageError,
    WireError,
    PackageError,
    CertificateError,
    SigningError,
    OSError,
)
"""What ends a command with a sentence; anything else is a defect and shows where it happened."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit status (0 done, 1 failed, 2 usage)."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    quieten_grpc()
    allow_open_files()
    try:
        result: int | None = _run(options.run(options))
    except REFUSALS as error:
        if getattr(options, "json", False):
            print(json.dumps({"error": str(error)}))
        else:
            print(f"gridledger: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt, asyncio.CancelledError:
        return 130
    return result or 0


def _run(work: Awaitable[int | None]) -> int | None:
    async def body() -> int | None:
        # SIGTERM ends a command as Ctrl-C does: nodes that it started would live on otherwise.
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        import uvloop
    except ImportError:
        return asyncio.run(body())
    return uvloop.run(body())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gridledger", description="A utility consortium's energy ledger."
    )
    parser.add_argument(
        "--log-level",
        default=os.environ.get("GRIDLEDGER_LOG", "warning"),
        choices=("debug", "info", "warning", "error"),
        help="what the nodes tell on standard error",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir",
        type=Path,
        default=DEFAULT_DATA_DIR,
        help="the network's folder (default: .gridledger)",
    )
    common.add_argument("--json", action="store_true", help="answer in JSON")
    acting = argparse.ArgumentParser(add_help=False)
    acting.add_argument("--utility", help="whose gateway to ask (default: the first)")
    acting.add_argument(
        "--as",
        dest="who",
        default="operator",
        help="operator, admin, or a folder that `identity enroll` wrote (default: operator)",
    )
    rooms = parser.add_subparsers(required=True, metavar="COMMAND")

    network = rooms.add_parser("network", help="make, run and look at a network").add_subparsers(
        required=True, metavar="VERB"
    )
    init = network.add_parser("init", parents=[common], help="make a network's folder")
    init.add_argument("--channel", default=DEFAULT_CHANNEL)
    init.add_argument("--utilities", default=",".join(DEFAULT_UTILITIES), help="names, by comma")
    init.add_argument("--interval", type=int, default=900, help="metering interval in seconds")
    init.add_argument("--base-port", type=int, default=DEFAULT_BASE_PORT)
    init.add_argument(
        "--peers", default="", help="utilities with several peers, by comma, as Aurora=2"
    )
    init.add_argument(
        "--no-channel",
        action="store_true",
        help="without a first block: for a channel that `network adopt` brings",
    )
    init.set_defaults(run=_network_init)
    up = network.add_parser("up", parents=[common], help="run it until Ctrl-C")
    up.add_argument("--processes", action="store_true", help="each node in its own process")
    up.add_argument("--operations", type=_port, metavar="PORT", help=_OPERATIONS)
    up.set_defaults(run=_network_up)
    membership.add_commands(network, common)
    announce.add_commands(network, common, _until_stopped)
    status = network.add_parser("status", parents=[common], help="height and state of every node")
    status.set_defaults(run=_network_status)

    node = rooms.add_parser("node", help="run one node").add_subparsers(
        required=True, metavar="VERB"
    )
    run = node.add_parser("run", parents=[common], help="run one node until Ctrl-C")
    run.add_argument("utility")
    run.add_argument("kind", help=f"{', '.join(KINDS)}, or peer1 and so on of one with several")
    run.add_argument("--operations", type=_port, metavar="PORT", help=_OPERATIONS)
    run.set_defaults(run=_node_run)

    identity = rooms.add_parser("identity", help="enrol").add_subparsers(
        required=True, metavar="VERB"
    )
    enrol = identity.add_parser(
        "enroll", parents=[common], help="make a key here and have it certified"
    )
    enrol.add_argument("--ca", required=True, help="the authority's address, https://host:port")
    enrol.add_argument("--id", required=True, help="enrolment id")
    enrol.add_argument(
        "--secret", help="enrolment secret (default: GRIDLEDGER_SECRET, or asked for)"
    )
    enrol.add_argument("--msp-id", help="the utility's MSP id, where its authority does not tell")
    trust = enrol.add_mutually_exclusive_group(required=True)
    trust.add_argument("--fingerprint", help="the CA bundle's fingerprint, as the utility gave it")
    trust.add_argument("--ca-file", type=Path, help="the CA bundle, PEM")
    enrol.add_argument("--out", type=Path, required=True, help="folder for key and certificate")
    enrol.set_defaults(run=_identity_enroll)
    invite.add_command(identity, common)

    contract = rooms.add_parser(
        "contract", help="agree on contracts, and call them"
    ).add_subparsers(required=True, metavar="VERB")
    for verb, text in (("query", "ask one peer"), ("invoke", "submit a transaction")):
        call = contract.add_parser(verb, parents=[common, acting], help=text)
        call.add_argument("chaincode", help="metering or energy")
        call.add_argument("function", help="such as market:Rates")
        call.add_argument("argument", nargs="?", default="{}", help="one JSON object")
        call.add_argument(
            "--endorse", action="append", default=[], metavar="MSP_ID", help="who has to endorse"
        )
        if verb == "invoke":
            call.add_argument(
                "--init", action="store_true", help="have the contract initialize itself"
            )
        call.set_defaults(run=_contract, submit=verb == "invoke")
    contract_commands.add_commands(contract, common)
    serve = contract.add_parser(
        "serve", help="run a contract as a service, for peers of ours or of Fabric, until Ctrl-C"
    )
    serve.add_argument("chaincode", help="metering or energy")
    serve.add_argument("--address", required=True, help="where to listen, host:port")
    serve.add_argument("--package-id", help="what peers know it by (default: from its sources)")
    serve.add_argument("--tls-cert", type=Path, help="the server's certificate, PEM")
    serve.add_argument("--tls-key", type=Path, help="its key, PEM")
    serve.add_argument(
        "--tls-client-roots", type=Path, help="ask peers for certificates of these, PEM"
    )
    serve.set_defaults(run=_contract_serve)

    block = rooms.add_parser("block", help="look at blocks").add_subparsers(
        required=True, metavar="VERB"
    )
    show = block.add_parser("show", parents=[common, acting], help="one block, taken apart")
    show.add_argument("number", help="a number, or newest")
    show.set_defaults(run=_block_show)

    export.add_command(rooms, [common, acting], _client)
    channel.add_commands(rooms, common)
    orderer.add_commands(rooms, common)
    snapshot.add_commands(rooms, common)
    backup.add_commands(rooms, common)

    verify = rooms.add_parser(
        "verify",
        parents=[common],
        help="walk the chain: hashes, signatures, and state rebuilt from blocks",
    )
    verify.add_argument("--utility", help="whose ledger (default: every one in the folder)")
    verify.add_argument(
        "--snapshot",
        type=Path,
        help="a snapshot that you trust, to begin from instead of block 0; a ledger that began "
        "with a snapshot needs one",
    )
    verify.set_defaults(run=_verify)
    return parser


def _progress(message: str) -> None:
    print(f"  {message}", file=sys.stderr, flush=True)


async def _until_stopped() -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


async def _network_init(options: argparse.Namespace) -> None:
    network = create_network(
        options.data_dir,
        channel=options.channel,
        utilities=tuple(options.utilities.split(",")),
        interval_s=options.interval,
        base_port=options.base_port,
        peers=_peer_counts(options.peers),
        first_block=not options.no_channel,
        progress=_progress,
    )
    mark = fingerprint(network.tls_bundle_pem)
    _print(
        options,
        {
            "channel": network.channel,
            "utilities": [utility.msp_id for utility in network.utilities],
            "fingerprint": mark,
        },
        f"Network of {len(network.utilities)} utilities in {options.data_dir}.\n"
        f"Fingerprint of its CA bundle: {mark}\n"
        f"Start it: gridledger network up --data-dir {options.data_dir}",
    )


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 65_536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port, 0 to 65535")


def _peer_counts(text: str) -> dict[str, int]:
    counts = {}
    for part in filter(None, text.split(",")):
        name, _, count = part.partition("=")
        if not count.isdecimal():
            raise UsageError(f"--peers has {part!r}; write a utility and a number, as Aurora=2")
        counts[name] = int(count)
    return counts


async def _network_up(options: argparse.Namespace) -> None:
    if options.processes and options.operations is not None:
        raise UsageError(
            "--operations is one port, but with --processes each node is a process of its own: "
            "start them by `gridledger node run UTILITY NODE --operations PORT`"
        )
    network = Network.load(options.data_dir)
    running: EmbeddedNetwork | ProcessNetwork = (
        ProcessNetwork(network) if options.processes else EmbeddedNetwork(network)
    )
    await running.start(_progress)
    try:
        await ensure_contracts(network, _progress)
        print(
            f"{network.channel} is up. Gateways: "
            + ", ".join(utility.gateway_address for utility in network.utilities)
            + ". Ctrl-C stops it.",
            flush=True,
        )
        nodes = list(running.nodes.values()) if isinstance(running, EmbeddedNetwork) else []
        await until_failure(nodes, partial(_watched_until_stopped, nodes, options.operations))
    finally:
        await running.stop()


async def _node_run(options: argparse.Namespace) -> None:
    network = Network.load(options.data_dir)
    node = make_node(network, network.utility(options.utility), options.kind)
    await run_node(node, partial(_watched_until_stopped, [node], options.operations))


async def _watched_until_stopped(nodes: Sequence[Node], port: int | None) -> None:
    if port is None:
        return await _until_stopped()
    operations = Operations(nodes, port)
    await operations.start()
    try:
        await _until_stopped()
    finally:
        await operations.stop()


async def _network_status(options: argparse.Namespace) -> int:
    network = Network.load(options.data_dir)
    rows: list[dict[str, Any]] = []
    for utility, kind in [(one, kind) for one in network.utilities for kind in one.peers]:
        row: dict[str, Any] = {"utility": utility.name, "gateway": utility.address_of(kind)}
        async with utility_client(network, utility, "operator", kind) as gateway:
            try:
                info = common_pb2.BlockchainInfo.FromString(
                    await gateway.evaluate("qscc", "GetChainInfo", [network.channel.encode()])
                )
            except GridLedgerError as error:
                row |= {"state": "down", "why": str(error)}
            else:
                row |= {
                    "state": "up",
                    "height": info.height,
                    "block_hash": info.currentBlockHash.hex(),
                }
        row["orderer"] = await _listening(utility.ports.orderer)
        row["ca"] = await _listening(utility.ports.ca)
        rows.append(row)
    _print(
        options,
        {"channel": network.channel, "utilities": rows},
        _table(
            [
                (
                    row["utility"],
                    row["gateway"],
                    row["state"],
                    row.get("height", "-"),
                    row["block_hash"][:32] if row["state"] == "up" else "-",
                    row["orderer"],
                    row["ca"],
                )
                for row in rows
            ],
            ("UTILITY", "GATEWAY", "PEER", "HEIGHT", "LAST BLOCK", "ORDERER", "CA"),
        )
        + "".join(f"\n{row['utility']}: {row['why']}" for row in rows if row["state"] != "up"),
    )
    return 0 if all(row["state"] == "up" for row in rows) else 1


async def _listening(port: int) -> str:
    try:
        async with asyncio.timeout(2):
            _reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError, TimeoutError:
        return "down"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return "up"


async def _identity_enroll(options: argparse.Namespace) -> None:
    from getpass import getpass

    if options.ca_file is not None:
        bundle = options.ca_file.read_bytes()
    else:
        bundle = await fetch_bundle(options.ca)
        found = fingerprint(bundle)
        if not same_fingerprint(found, options.fingerprint):
            raise UsageError(
                f"the authority at {options.ca} shows the fingerprint {found}, not the one given; "
                "ask the utility before you go on"
            )
    secret = options.secret or os.environ.get("GRIDLEDGER_SECRET") or getpass("Enrolment secret: ")
    credentials = await enroll(options.ca, options.id, secret, bundle)
    msp_id = options.msp_id or credentials.msp_id
    # The secret is used up by now, so what it bought is kept in any case.
    _write_identity(options.out, msp_id, credentials, bundle)
    if not msp_id:
        raise UsageError(
            f"enrolled, and key and certificate are in {options.out}, but the authority does not "
            f"tell its MSP id: write it into {options.out / 'msp-id'}"
        )
    _print(
        options,
        {"msp_id": msp_id, "folder": str(options.out)},
        f"Enrolled {options.id} at {msp_id}; key and certificate are in {options.out}.",
    )


def _write_identity(folder: Path, msp_id: str, credentials: Credentials, bundle: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_private(folder / "sign.key.pem", credentials.key_pem)
    (folder / "sign.cert.pem").write_bytes(credentials.certificate_pem)
    (folder / "msp-id").write_text(msp_id + "\n", encoding="utf-8")
    (folder / "tls-bundle.pem").write_bytes(bundle)


def _client(options: argparse.Namespace) -> GatewayClient:
    network = Network.load(options.data_dir)
    utility = network.utility(options.utility) if options.utility else network.utilities[0]
    if options.who in ("operator", "admin"):
        return utility_client(network, utility, options.who)
    folder = Path(options.who)
    try:
        identity = Identity(
            (folder / "msp-id").read_text(encoding="utf-8").strip(),
            (folder / "sign.cert.pem").read_bytes(),
            (folder / "sign.key.pem").read_bytes(),
        )
    except OSError as error:
        raise UsageError(
            f"{folder} is neither operator nor admin nor a folder of an identity: {error}"
        ) from None
    return GatewayClient(
        [utility.gateway_address], network.channel, identity, network.tls_bundle_pem
    )


async def _contract_serve(options: argparse.Namespace) -> None:
    known = chaincodes()
    if options.chaincode not in known:
        raise UsageError(
            f"there is no contract {options.chaincode!r}; there are {', '.join(known)}"
        )
    credentials = None
    if options.tls_cert or options.tls_key or options.tls_client_roots:
        if not (options.tls_cert and options.tls_key):
            raise UsageError("TLS needs both --tls-cert and --tls-key")
        roots = options.tls_client_roots.read_bytes() if options.tls_client_roots else None
        credentials = grpc.ssl_server_credentials(
            [(options.tls_key.read_bytes(), options.tls_cert.read_bytes())],
            root_certificates=roots,
            require_client_auth=roots is not None,
        )
    package = options.package_id or package_id(options.chaincode)
    server = ChaincodeServer(
        known[options.chaincode], package, options.address, credentials=credentials
    )
    try:
        await server.start()
    except RuntimeError as error:
        raise UsageError(f"cannot listen at {options.address}: {error}") from None
    try:
        print(f"{options.chaincode} is served at {options.address} as {package}", flush=True)
        await _until_stopped()
    finally:
        await server.stop()


async def _contract(options: argparse.Namespace) -> None:
    try:
        argument = json.loads(options.argument)
    except ValueError as error:
        raise UsageError(f"the argument is not JSON: {error}") from None
    if not isinstance(argument, dict):
        raise UsageError('the argument must be one JSON object, such as \'{"day": "2026-11-21"}\'')
    async with _client(options) as gateway:
        if not options.submit:
            answer = await gateway.evaluate(
                options.chaincode,
                options.function,
                argument,
                endorsing_organizations=options.endorse,
            )
            print(json.dumps(answer, indent=2))
            return
        submit = submit_init if options.init else GatewayClient.submit
        committed = await submit(
            gateway,
            options.chaincode,
            options.function,
            argument,
            endorsing_organizations=options.endorse,
        )
    _print(
        options,
        {
            "transaction_id": committed.transaction_id,
            "block_number": committed.block_number,
            "result": committed.result,
        },
        f"{json.dumps(committed.result, indent=2)}\n"
        f"committed in block {committed.block_number} as {committed.transaction_id}",
    )


async def _block_show(options: argparse.Namespace) -> None:
    async with _client(options) as gateway:
        channel = gateway.channel.encode()
        number: str = options.number
        if number == "newest":
            info = common_pb2.BlockchainInfo.FromString(
                await gateway.evaluate("qscc", "GetChainInfo", [channel])
            )
            number = str(info.height - 1)
        block = common_pb2.Block.FromString(
            await gateway.evaluate("qscc", "GetBlockByNumber", [channel, number.encode()])
        )
    description = describe_block(block)
    head = "\n".join(
        f"{name:14} {description[name]}"
        for name in ("number", "hash", "previous_hash", "data_hash", "commit_hash", "signed_by")
    )
    _print(
        options,
        description,
        head
        + "\n\n"
        + _table(
            [
                (
                    index,
                    transaction["code"],
                    transaction["type"],
                    transaction["chaincode"],
                    transaction["function"],
                    transaction["creator"],
                    ",".join(transaction["endorsers"]),
                    transaction["transaction_id"][:16],
                )
                for index, transaction in enumerate(description["transactions"])
            ],
            ("#", "CODE", "TYPE", "CONTRACT", "FUNCTION", "CREATOR", "ENDORSED BY", "TRANSACTION"),
        ),
    )


async def _verify(options: argparse.Namespace) -> int:
    network = Network.load(options.data_dir)
    utilities = [network.utility(options.utility)] if options.utility else network.utilities
    reports = []
    for utility in utilities:
        for kind in utility.peers:
            path = utility.directory / kind / "ledger" / network.channel
            if not (path / "index" / "data.mdb").is_file():
                raise LedgerError(f"there is no ledger in {path}: {utility.name} never ran here")
            name = utility.name if len(utility.peers) == 1 else f"{utility.name} {kind}"
            report = await asyncio.to_thread(
                verify_ledger, path, _verify_progress(name), snapshot=options.snapshot
            )
            reports.append((utility.name, kind, name, report))
    _print(
        options,
        [
            {"utility": utility, "peer": kind, **asdict(report)}
            for utility, kind, _, report in reports
        ],
        "\n".join(f"{name}: {_verdict(report)}" for _, _, name, report in reports),
    )
    return 0 if all(report.problem is None for *_, report in reports) else 1


def _verdict(report: Report) -> str:
    if report.problem is not None:
        return f"NOT CLEAN: {report.problem}"
    return (
        f"clean: {report.blocks} blocks, {report.transactions} transactions, "
        f"{report.entries} entries of state, {report.private_values} private values"
    )


def _verify_progress(name: str) -> Callable[[int, int], None]:
    patience = Patience(name)
    return lambda done, total: patience(f"of {total} blocks verified", done)


if __name__ == "__main__":
    sys.exit(main())
