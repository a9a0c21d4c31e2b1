"""Hyperledger Fabric's own Node client, unmodified, against our gateway over TLS."""

import asyncio
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from gridledger_client import GatewayClient

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


async def run_steps(script: Path, running: RunningNetwork, identity: Path, *steps: Step) -> Any:
    """Run steps in the Node client, as the identity in a folder; returns what each one gave."""
    network = running.network
    options = {
        "address": network.utilities[0].gateway_address,
        "tlsRoots": str(network.directory / "tls-bundle.pem"),
        "mspId": network.utilities[0].msp_id,
        "certificate": str(identity / "sign.cert.pem"),
        "key": str(identity / "sign.key.pem"),
        "channel": network.channel,
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
    start = int(time.time()) // 60 * 60 + 120
    window = {"window_start": str(start), "window_end": str(start + 300)}
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
