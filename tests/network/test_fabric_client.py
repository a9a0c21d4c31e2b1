"""Hyperledger Fabric's own Node client, unmodified, against our gateway over TLS."""

import asyncio
import json
import shutil
import subprocess
import time
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from consortium.wire import kvrwset_pb2
from gridledger_client import (
    GatewayClient,
    MeterKey,
    Reading,
    generate_key_pem,
)
from gridledger_client.readings import batch_transient
from tests.windows import coming_window

from .conftest import RunningNetwork

type Step = dict[str, Any]

FOLDER = Path(__file__).parent / "fabric_client"

pytestmark = [pytest.mark.network]


@pytest.fixture(scope="session")
def fabric_client() -> Path:
    """The client library, installed as its lock file says."""
    if not (FOLDER / "node_modules" / ".package-lock.json").exists():
        npm = shutil.which("npm")
        assert npm, "Node.js with npm is needed; script/setup installs it"
        subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=FOLDER, check=True
        )
    return FOLDER / "client.mjs"


async def run_steps(
    script: Path,
    running: RunningNetwork,
    identity: Path,
    *steps: Step,
    deadlines: dict[str, int] | None = None,
) -> Any:
    """Run steps in the Node client, as the identity in a folder; returns what each one gave.

    `deadlines` are in milliseconds, by the name of the client's option.
    """
    network = running.network
    owners = [one for one in network.utilities if identity.is_relative_to(one.directory)]
    options = {
        "address": network.utilities[0].gateway_address,
        "tlsRoots": str(network.directory / "tls-bundle.pem"),
        "mspId": (owners or network.utilities)[0].msp_id,
        "certificate": str(identity / "sign.cert.pem"),
        "key": str(identity / "sign.key.pem"),
        "channel": network.channel,
        "deadlines": deadlines,
        "steps": steps,
    }
    node = shutil.which("node")
    assert node
    process = await asyncio.create_subprocess_exec(
        node,
        str(script),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(
            process.communicate(json.dumps(options).encode()), timeout=60
        )
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


@pytest.fixture
async def home(running: RunningNetwork, operator: GatewayClient, tmp_path: Path) -> Path:
    """An enrolled home's folder: a connection that may export, and a supplier who buys today."""
    credentials, client = await running.enrolled(
        "Aurora", "home-node", role="home", connection="CP-NODE"
    )
    await client.close()
    (tmp_path / "sign.cert.pem").write_bytes(credentials.certificate_pem)
    (tmp_path / "sign.key.pem").write_bytes(credentials.key_pem)
    await operator.submit(
        "energy",
        "registry:RegisterConnection",
        {
            "connection_id": "CP-NODE",
            "utility": "AuroraMSP",
            "zone": "Z1",
            "max_export_w": "6000",
            "max_import_w": "17000",
        },
    )
    now = time.time()
    for day in {time.strftime("%Y-%m-%d", time.gmtime(now + offset)) for offset in (0, 900)}:
        await operator.submit(
            "energy",
            "market:PublishRate",
            {
                "supplier": "AuroraMSP",
                "day": day,
                "kind": "buy",
                "price_micro_per_kwh": "81000",
            },
        )
    return tmp_path


async def test_a_home_sells_through_fabrics_own_client(
    fabric_client: Path, running: RunningNetwork, home: Path
) -> None:
    """Evaluate a quote, submit its authorisation, receive the event, read the balance."""
    start, end = coming_window(120, 300)
    window = {"window_start": str(start), "window_end": str(end)}
    asked = {"connection_id": "CP-NODE", "energy_wh": "400", **window}
    (quoted,) = await run_steps(
        fabric_client,
        running,
        home,
        {"do": "evaluate", "function": "market:Quote", "args": [asked]},
    )
    quote = json.loads(quoted)["quote"]
    assert quote["gross_micro"] == "32400"  # 400 Wh at 81,000 micro per kWh
    authorised = {"request_id": "node-1", "quote": quote}
    trades = {"connection_id": "CP-NODE"}
    _, committed, event, balance, listed, again = await run_steps(
        fabric_client,
        running,
        home,
        {"do": "listen", "name": "events"},
        {"do": "submitAsync", "function": "market:Authorise", "args": [authorised]},
        {"do": "next", "name": "events"},
        {"do": "evaluate", "function": "wallet:Balance", "args": [{"account": "CP-NODE"}]},
        {"do": "evaluate", "function": "market:Trades", "args": [trades]},
        {"do": "submit", "function": "market:Authorise", "args": [authorised]},
    )
    assert committed["successful"] is True
    assert committed["code"] == 0
    trade = json.loads(committed["result"])
    assert event["eventName"] == "trade"
    assert event["chaincodeName"] == "energy"
    assert event["transactionId"] == committed["transactionId"]
    assert event["blockNumber"] == committed["blockNumber"]
    assert json.loads(event["payload"]) == trade
    assert json.loads(balance)["balance_micro"] == quote["net_micro"]
    assert [found["trade_id"] for found in json.loads(listed)["trades"]] == [trade["trade_id"]]
    assert json.loads(again)["trade_id"] == trade["trade_id"]


async def test_a_refusal_reaches_the_client_with_its_details(
    fabric_client: Path, running: RunningNetwork
) -> None:
    """The client's typed errors carry code, message and each endorser's own sentence."""
    bad = {"account": "SUPPLIER-AURORA", "amount_micro": "-5", "bank_reference": "NODE-2"}
    submitted, evaluated, unknown, nothing = await run_steps(
        fabric_client,
        running,
        running.network.utilities[0].directory / "operator",
        {"do": "submit", "function": "wallet:Deposit", "args": [bad]},
        {"do": "evaluate", "function": "wallet:Balance", "args": [{"account": "no such"}]},
        {"do": "submit", "chaincode": "nowhere", "function": "any:Thing"},
        {"do": "evaluate", "function": "wallet:Nothing"},
    )
    error = submitted["error"]
    assert error["name"] == "EndorseError"
    assert error["code"] == 10  # ABORTED
    assert error["message"].endswith("see attached details for more info")
    assert error["details"][0]["mspId"] == "AuroraMSP"
    assert error["details"][0]["address"] == running.network.utilities[0].gateway_address
    assert error["details"][0]["message"].startswith("chaincode response 400, ")
    assert "amount_micro" in error["details"][0]["message"]
    assert evaluated["error"]["code"] == 2  # UNKNOWN
    assert "evaluate call to endorser returned error" in evaluated["error"]["message"]
    assert unknown["error"]["code"] == 9  # FAILED_PRECONDITION
    assert "wallet:Nothing" in nothing["error"]["message"]


# ------------------------------------------------------------- offline signing, errors, deadlines


def _rate(days_ahead: int, price: int) -> dict[str, str]:
    return {
        "supplier": "AuroraMSP",
        "day": time.strftime("%Y-%m-%d", time.gmtime(time.time() + days_ahead * 86_400)),
        "kind": "sell",
        "price_micro_per_kwh": str(price),
    }


def _deposit(reference: str) -> dict[str, str]:
    return {
        "account": "SUPPLIER-AURORA",
        "amount_micro": "1000000",
        "bank_reference": f"{reference}-{time.time_ns()}",
    }


def _operator(running: RunningNetwork) -> Path:
    return running.network.utilities[0].directory / "operator"


async def test_the_short_forms(fabric_client: Path, running: RunningNetwork) -> None:
    """`submitTransaction` and `evaluateTransaction`, with nothing but a name and arguments."""
    deposited, balance = await run_steps(
        fabric_client,
        running,
        _operator(running),
        {"do": "submitTransaction", "function": "wallet:Deposit", "args": [_deposit("SHORT")]},
        {
            "do": "evaluateTransaction",
            "function": "wallet:Balance",
            "args": [{"account": "SUPPLIER-AURORA"}],
        },
    )
    assert json.loads(deposited)["amount_micro"] == "1000000"
    assert json.loads(balance)["account"] == "SUPPLIER-AURORA"


async def test_system_contracts(fabric_client: Path, running: RunningNetwork) -> None:
    """Explorers ask `qscc` and `cscc` as they ask any contract."""
    channel = running.network.channel
    channels, config, height, block, unknown = await run_steps(
        fabric_client,
        running,
        _operator(running),
        {"do": "evaluate", "chaincode": "cscc", "function": "GetChannels"},
        {
            "do": "evaluate",
            "chaincode": "cscc",
            "function": "GetChannelConfig",
            "args": [channel],
        },
        {"do": "evaluate", "chaincode": "qscc", "function": "GetChainInfo", "args": [channel]},
        {
            "do": "evaluate",
            "chaincode": "qscc",
            "function": "GetBlockByNumber",
            "args": [channel, "0"],
        },
        {"do": "evaluate", "chaincode": "qscc", "function": "GetChainInfo", "args": ["another"]},
    )
    assert channel in channels
    assert "BorealMSP" in config
    assert height
    assert "AuroraMSP" in block
    assert "Invalid chain ID, another" in unknown["error"]["message"]


async def test_everything_may_be_signed_elsewhere(
    fabric_client: Path, running: RunningNetwork
) -> None:
    """Proposal, transaction and commit travel as bytes to the key and back."""
    deposit = {"do": "offline", "function": "wallet:Deposit"}
    committed, balance, *forged = await run_steps(
        fabric_client,
        running,
        _operator(running),
        {**deposit, "args": [_deposit("OFFLINE")]},
        {
            "do": "offline",
            "evaluate": True,
            "function": "wallet:Balance",
            "args": [{"account": "SUPPLIER-AURORA"}],
        },
        {**deposit, "args": [_deposit("FORGED-1")], "forged": "proposal"},
        {**deposit, "args": [_deposit("FORGED-2")], "forged": "transaction"},
        {**deposit, "args": [_deposit("FORGED-3")], "forged": "commit"},
        {**deposit, "args": [_deposit("FORGED-4")], "evaluate": True, "forged": "proposal"},
    )
    assert committed["successful"] is True
    assert json.loads(committed["result"])["amount_micro"] == "1000000"
    assert json.loads(balance)["account"] == "SUPPLIER-AURORA"
    errors = [answer["error"] for answer in forged]
    assert [(error["name"], error["code"]) for error in errors] == [
        ("EndorseError", 10),  # ABORTED
        ("SubmitError", 10),
        ("CommitStatusError", 7),  # PERMISSION_DENIED
        ("GatewayError", 9),  # FAILED_PRECONDITION
    ]
    assert "creator org [AuroraMSP]" in errors[0]["details"][0]["message"]
    assert errors[0]["details"][0]["mspId"] == "AuroraMSP"
    assert "received unsuccessful response from orderer: status=FORBIDDEN" in errors[1]["message"]
    assert "failed access check for channel" in errors[2]["message"]
    for error in errors[:3]:
        assert len(error["transactionId"]) == 64


async def test_a_transaction_that_commits_invalid(
    fabric_client: Path, running: RunningNetwork
) -> None:
    """A `CommitError`, or the status of a submitted transaction, has Fabric's validation code."""
    rate = {"do": "submit", "function": "market:PublishRate"}
    one_only = {**rate, "args": [_rate(1, 70_000)], "organizations": ["AuroraMSP"]}
    two = {**one_only, "organizations": ["AuroraMSP", "CieloMSP"]}
    conflicting = {"do": "endorse", "function": "market:PublishRate"}
    refused, stored, _, _, first, second = await run_steps(
        fabric_client,
        running,
        _operator(running),
        one_only,
        two,
        {**conflicting, "name": "first", "args": [_rate(2, 71_000)]},
        {**conflicting, "name": "second", "args": [_rate(2, 72_000)]},
        {"do": "submitEndorsed", "name": "first"},
        {"do": "submitEndorsed", "name": "second"},
    )
    error = refused["error"]
    assert (error["name"], error["code"]) == ("CommitError", 10)  # ENDORSEMENT_POLICY_FAILURE
    assert "ENDORSEMENT_POLICY_FAILURE" in error["message"]
    assert len(error["transactionId"]) == 64
    assert json.loads(stored)["price_micro_per_kwh"] == "70000"
    assert (first["successful"], first["code"]) == (True, 0)
    assert (second["successful"], second["code"]) == (False, 11)  # MVCC_READ_CONFLICT


async def test_whom_to_ask_is_the_clients_choice(
    fabric_client: Path, running: RunningNetwork
) -> None:
    """An organisation that isn't there is named; one that fails is named with its reason."""
    odd = {**_rate(3, 70_000), "kind": "swap"}
    rate = {"do": "submit", "function": "market:PublishRate", "args": [odd]}
    nobody, failing, evaluated, nowhere = await run_steps(
        fabric_client,
        running,
        _operator(running),
        {**rate, "organizations": ["NobodyMSP"]},
        {**rate, "organizations": ["BorealMSP", "CieloMSP"]},
        {
            "do": "evaluate",
            "function": "wallet:Balance",
            "args": [{"account": "SUPPLIER-AURORA"}],
            "organizations": ["BorealMSP"],
        },
        {"do": "evaluate", "function": "wallet:Balance", "organizations": ["NobodyMSP"]},
    )
    assert (nobody["error"]["name"], nobody["error"]["code"]) == ("EndorseError", 14)  # UNAVAILABLE
    assert "NobodyMSP" in nobody["error"]["message"]
    assert (failing["error"]["name"], failing["error"]["code"]) == ("EndorseError", 10)
    details = failing["error"]["details"]
    assert {detail["mspId"] for detail in details} == {"BorealMSP", "CieloMSP"}
    assert all(detail["address"].startswith("127.0.0.1:") for detail in details)
    assert all("kind" in detail["message"] for detail in details)
    # The operator may read its account wherever it asks.
    assert json.loads(evaluated)["account"] == "SUPPLIER-AURORA"
    assert nowhere["error"]["code"] == 9  # FAILED_PRECONDITION


async def test_deadlines(fabric_client: Path, running: RunningNetwork) -> None:
    """Each call's own deadline ends it with DEADLINE_EXCEEDED, as the error of its kind."""
    balance = {"function": "wallet:Balance", "args": [{"account": "SUPPLIER-AURORA"}]}
    deposit = {"do": "submit", "function": "wallet:Deposit", "args": [_deposit("LATE")]}
    for option, step, name in (
        ("evaluateOptions", {"do": "evaluate", **balance}, "GatewayError"),
        ("endorseOptions", deposit, "EndorseError"),
        ("submitOptions", deposit, "SubmitError"),
        ("commitStatusOptions", deposit, "CommitStatusError"),
    ):
        (answer,) = await run_steps(
            fabric_client, running, _operator(running), step, deadlines={option: 0}
        )
        assert (answer["error"]["name"], answer["error"]["code"]) == (name, 4), option
    # The peer waits as long as the client does: for a commit, and for events.
    unknown, _, silent, _, no_block = await run_steps(
        fabric_client,
        running,
        _operator(running),
        {"do": "statusOf", "transactionId": "f" * 64},
        {"do": "listen", "name": "events", "chaincode": "nothing", "deadline": 400},
        {"do": "next", "name": "events"},
        {"do": "listen", "kind": "block", "name": "blocks", "startBlock": 10_000, "deadline": 400},
        {"do": "next", "name": "blocks"},
        deadlines={"commitStatusOptions": 400},
    )
    assert (unknown["error"]["name"], unknown["error"]["code"]) == ("CommitStatusError", 4)
    assert unknown["error"]["transactionId"] == "f" * 64
    assert silent["error"]["code"] == 4
    assert no_block["error"]["code"] == 4


# ------------------------------------------------------------------------------------- events


@pytest.fixture
async def metered(
    running: RunningNetwork, tmp_path: Path
) -> tuple[Path, list[dict[str, str]], RunningNetwork]:
    """A home's folder with three batches of readings that it has not submitted yet."""
    name = f"CP-{time.time_ns()}"
    credentials, client = await running.enrolled(
        "Aurora", name.lower(), role="home", connection=name
    )
    folder = tmp_path / "metered"
    folder.mkdir()
    (folder / "sign.cert.pem").write_bytes(credentials.certificate_pem)
    (folder / "sign.key.pem").write_bytes(credentials.key_pem)
    key = MeterKey(generate_key_pem(), b"a secret of the home")
    batches = []
    async with client:
        # A meter each, since two transactions about one meter conflict in a block.
        for meter in (f"{name}-A", f"{name}-B", f"{name}-C"):
            await client.submit(
                "metering",
                "metering:RegisterMeter",
                {
                    "meter_id": meter,
                    "connection_id": name,
                    "utility": "AuroraMSP",
                    "source_class": "declared",
                    "public_key": key.public_key_pem,
                },
            )
            reading = Reading(meter, int(time.time()) // 60 * 60 - 600, 60, 1, 0, 1, 0)
            signed = batch_transient([key.sign(reading, running.network.channel)])
            batches.append({name: value.decode() for name, value in signed.items()})
    return folder, batches, running


type Metered = tuple[Path, list[dict[str, str]], RunningNetwork]


def _submits(batches: list[dict[str, str]]) -> list[Step]:
    """Readings go as transient data to the one utility that may see them."""
    return [
        {
            "do": "submitAsync",
            "chaincode": "metering",
            "function": "metering:SubmitReadings",
            "args": [{"utility": "AuroraMSP"}],
            "transient": transient,
            "organizations": ["AuroraMSP"],
        }
        for transient in batches
    ]


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("in_file", [False, True])
async def test_chaincode_events_go_on_where_a_checkpoint_stands(
    fabric_client: Path, metered: Metered, tmp_path: Path, offline: bool, in_file: bool
) -> None:
    """Not one event twice, not one left out, also where a block has several of them."""
    folder, batches, running = metered
    where = (
        {"checkpointFile": str(tmp_path / "checkpoint.json")} if in_file else {"checkpoint": "one"}
    )
    (submitted,) = await run_steps(
        fabric_client, running, folder, {"do": "together", "steps": _submits(batches)}
    )
    assert [answer["code"] for answer in submitted] == [0, 0, 0]
    listen = {
        "do": "listen",
        "name": "events",
        "chaincode": "metering",
        "startBlock": min(int(answer["blockNumber"]) for answer in submitted),
        "offline": offline,
        **where,
    }
    again: list[Step] = [
        listen,
        {"do": "next", "name": "events", **where},
        {"do": "close", "name": "events"},
    ]
    answers = await run_steps(fabric_client, running, folder, *again * 3)
    seen = [answer for answer in answers if answer]
    assert sorted(event["transactionId"] for event in seen) == sorted(
        answer["transactionId"] for answer in submitted
    )
    assert all(event["eventName"] == "readings" for event in seen)
    if in_file:
        stored = json.loads((tmp_path / "checkpoint.json").read_text())
        assert stored["transactionId"] == seen[-1]["transactionId"]
        # The file serves another process as well: there is nothing left to see.
        *_, nothing = await run_steps(
            fabric_client,
            running,
            folder,
            {**listen, "deadline": 500},
            {"do": "next", "name": "events", **where},
        )
        assert nothing["error"]["code"] == 4


async def test_events_signed_by_someone_else_are_refused(
    fabric_client: Path, running: RunningNetwork
) -> None:
    """All four kinds of events want the signature of the identity that they name."""
    steps: list[Step] = []
    for kind in ("chaincode", "block", "filtered", "private"):
        name = {"name": kind}
        steps += [
            {"do": "listen", "kind": kind, "startBlock": 0, "offline": True, "forged": True} | name,
            {"do": "next"} | name,
        ]
    answers = await run_steps(fabric_client, running, _operator(running), *steps)
    chaincode, *blocks = [answer["error"] for answer in answers if answer]
    assert chaincode["code"] == 7  # PERMISSION_DENIED
    # Deliver ends its stream with a status, for which the library has an error of its own.
    assert all("403" in error["message"] for error in blocks), blocks


@pytest.mark.parametrize("offline", [False, True])
async def test_block_events(
    fabric_client: Path, metered: Metered, tmp_path: Path, offline: bool
) -> None:
    """Whole and filtered blocks from a start block on, and again from where a checkpoint stands."""
    folder, batches, running = metered
    first, second, third = await run_steps(fabric_client, running, folder, *_submits(batches))
    numbers = [int(answer["blockNumber"]) for answer in (first, second, third)]
    start, end = numbers[0], numbers[-1]
    file = {"checkpointFile": str(tmp_path / "blocks.json")}
    steps: list[Step] = []
    for kind in ("block", "filtered"):
        where = {"checkpoint": kind} if kind == "block" else file
        begin = {"do": "listen", "kind": kind, "startBlock": start, "offline": offline, **where}
        steps += [
            {**begin, "name": kind},
            {"do": "next", "name": kind, **where},
            {"do": "close", "name": kind},
            {**begin, "name": kind, "startBlock": 0},
            {"do": "until", "name": kind, "number": end, **where},
        ]
    answers = await run_steps(fabric_client, running, folder, *steps)
    _, block, _, _, blocks, _, filtered, _, _, filtered_blocks = answers
    assert block["number"] == filtered["number"] == start
    # A checkpoint counts for more than a start block does.
    expected_numbers = list(range(start + 1, end + 1))
    assert [one["number"] for one in blocks] == expected_numbers
    assert [one["number"] for one in filtered_blocks] == expected_numbers
    assert all(one["transactions"] >= 1 and one["previousHash"] for one in blocks)
    assert filtered["channel"] == running.network.channel
    shown = {
        transaction["id"]: transaction
        for one in (filtered, *filtered_blocks)
        for transaction in one["transactions"]
    }
    for answer in (first, second, third):
        transaction = shown[answer["transactionId"]]
        assert (transaction["type"], transaction["code"]) == (3, 0)
        assert transaction["events"] == [{"name": "readings", "payload": ""}]


async def test_blocks_with_private_data(
    fabric_client: Path, metered: Metered, tmp_path: Path
) -> None:
    """The utility's operator is given the readings; a home and another utility's are not."""
    folder, batches, running = metered
    (committed,) = await run_steps(fabric_client, running, folder, *_submits(batches[:1]))
    number = int(committed["blockNumber"])
    network = running.network
    shown = {}
    for name, identity in (
        ("operator", _operator(running)),
        ("admin", network.utilities[0].directory / "admin"),
        ("home", folder),
        ("other", network.utilities[1].directory / "operator"),
    ):
        for offline in (False, True):
            checkpoint = {"checkpointFile": str(tmp_path / f"{name}-{offline}.json")}
            _, block, _, after = await run_steps(
                fabric_client,
                running,
                identity,
                {
                    "do": "listen",
                    "kind": "private",
                    "name": "one",
                    "startBlock": number,
                    "offline": offline,
                },
                {"do": "next", "name": "one", **checkpoint},
                {"do": "listen", "kind": "private", "name": "two", "deadline": 300, **checkpoint},
                {"do": "next", "name": "two"},
            )
            assert block.get("number") == number, block
            assert after.get("number") == number + 1 or after["error"]["code"] == 4
            shown[name, offline] = block["private"]
    assert shown["home", False] == shown["home", True] == []
    assert shown["other", False] == shown["other", True] == []
    assert shown["operator", False] == shown["operator", True] == shown["admin", False]
    found = [one for one in shown["operator", False] if one["collection"] == "readings-AuroraMSP"]
    written = [
        write
        for one in found
        for write in kvrwset_pb2.KVRWSet.FromString(b64decode(one["set"])).writes
    ]
    submitted = json.loads(batches[0]["readings"])["readings"][0]
    stored = [json.loads(write.value) for write in written]
    assert submitted in stored
