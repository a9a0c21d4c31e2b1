"""Hyperledger Fabric's own Node client, unmodified, against our gateway over TLS."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from consortium.node.network import Network

from .conftest import RunningNetwork

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
    script: Path, network: Network, *steps: dict[str, Any], who: str = "operator"
) -> list[Any]:
    """Run steps in the Node client; returns what each one gave."""
    utility = network.utilities[0]
    folder = utility.directory / who
    options = {
        "address": utility.gateway_address,
        "tlsRoots": str(network.directory / "tls-bundle.pem"),
        "mspId": utility.msp_id,
        "certificate": str(folder / "sign.cert.pem"),
        "key": str(folder / "sign.key.pem"),
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
    output, errors = await asyncio.wait_for(
        process.communicate(json.dumps(options).encode()), timeout=90
    )
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


async def test_submit_evaluate_and_events(fabric_client: Path, running: RunningNetwork) -> None:
    """A transaction submitted, its event received, its result read back."""
    rate = {
        "supplier": "AuroraMSP",
        "day": "2031-05-01",
        "kind": "buy",
        "price_micro_per_kwh": "81000",
    }
    deposit = {"account": "SUPPLIER-AURORA", "amount_micro": "5000000", "bank_reference": "NODE-1"}
    answers = await run_steps(
        fabric_client,
        running.network,
        {"do": "listen", "name": "events"},
        {"do": "submit", "function": "market:PublishRate", "args": [rate]},
        {"do": "evaluate", "function": "market:Rates", "args": [{"day": "2031-05-01"}]},
        {"do": "submitAsync", "function": "wallet:Deposit", "args": [deposit]},
        {"do": "evaluate", "function": "wallet:Balance", "args": [{"account": "SUPPLIER-AURORA"}]},
        {"do": "next", "name": "events"},
    )
    _, published, rates, deposited, balance, event = answers
    assert json.loads(published)["version"] == 1
    assert [found["price_micro_per_kwh"] for found in _rates(json.loads(rates))] == ["81000"]
    assert deposited["successful"] is True
    assert deposited["code"] == 0
    assert json.loads(balance)["balance_micro"] == "5000000"
    assert event["chaincodeName"] == "energy"
    assert int(event["blockNumber"]) <= int(deposited["blockNumber"])


def _rates(answer: Any) -> list[dict[str, Any]]:
    return answer["rates"] if isinstance(answer, dict) else answer


async def test_a_refusal_reaches_the_client_with_its_details(
    fabric_client: Path, running: RunningNetwork
) -> None:
    """The client's typed errors carry code, message and each endorser's own sentence."""
    bad = {"account": "SUPPLIER-AURORA", "amount_micro": "-5", "bank_reference": "NODE-2"}
    submitted, evaluated, unknown, nothing = await run_steps(
        fabric_client,
        running.network,
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
