"""`gridledger channel`: the configuration shown and changed on a real network of its own."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from consortium.ca.registry import Registry
from consortium.ledger.channel_config import ChannelConfig, config_of_block
from consortium.ledger.config_json import config_from_json
from consortium.ledger.config_update import open_update
from consortium.node.network import create_network
from gridledger_client import GridLedgerError
from tests.ports import first_port

from .conftest import RunningNetwork, run_cli, start_network, stop_network, without_agents
from .tools import Ledgers

pytestmark = pytest.mark.network

UTILITIES = ("Aurora", "Boreal", "Cielo")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    """A network whose configuration only these tests change."""
    folder = tmp_path_factory.mktemp("channel")
    network = create_network(folder / "data", interval_s=60, base_port=first_port())
    without_agents(network)
    started = start_network(network, folder / "log")
    yield started
    stop_network(started)


async def channel(running: RunningNetwork, *arguments: str, status: int = 0) -> Any:
    """`gridledger channel …` in a process of its own, asked for JSON."""
    verb, *rest = arguments
    done = await asyncio.to_thread(
        run_cli,
        "channel",
        verb,
        "--json",
        "--data-dir",
        str(running.network.directory),
        *rest,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


async def deposit(running: RunningNetwork, utility: str = "Aurora") -> int:
    """One transaction; returns the block that it was committed in."""
    async with running.client(utility) as operator:
        return (await operator.submit("energy", "wallet:Deposit", deposited(utility))).block_number


def deposited(utility: str) -> dict[str, str]:
    return {
        "account": f"SUPPLIER-{utility.upper()}",
        "amount_micro": "5",
        "bank_reference": uuid.uuid4().hex.upper(),
    }


async def more(committed: list[int]) -> None:
    """Return when five more transactions are committed."""
    enough = len(committed) + 5
    async with asyncio.timeout(60):
        while True:
            if len(committed) >= enough:
                return
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def flowing(running: RunningNetwork) -> AsyncIterator[None]:
    """Transactions of all utilities, one after another, each of which has to be committed."""
    committed: list[int] = []
    stopped = asyncio.Event()

    async def write(utility: str) -> None:
        async with running.client(utility) as operator:
            while not stopped.is_set():
                done = await operator.submit("energy", "wallet:Deposit", deposited(utility))
                committed.append(done.block_number)

    writers = [asyncio.create_task(write(utility)) for utility in UTILITIES]
    try:
        await more(committed)
        yield
        await more(committed)
    finally:
        stopped.set()
        await asyncio.gather(*writers)


async def test_settings_change_while_transactions_flow(
    running: RunningNetwork, ledgers: Ledgers
) -> None:
    async with flowing(running):
        changed = await channel(
            running,
            "update",
            *("--set", "batch-size", "3"),
            *("--set", "batch-timeout", "250ms"),
            *("--set", "absolute-max-bytes", "8MiB"),
        )
        assert [(one["where"], one["before"], one["after"]) for one in changed["changes"]] == [
            ("/Channel/Orderer/BatchSize absolute_max_bytes", 10 * 2**20, 8 * 2**20),
            ("/Channel/Orderer/BatchSize max_message_count", 500, 3),
            ("/Channel/Orderer/BatchTimeout timeout", "100ms", "250ms"),
        ]
    block = await ledgers.block("BorealMSP", changed["block_number"])
    # Two of three administrators are a majority, and no more have signed than were needed.
    _, envelope = config_of_block(block)
    assert len(open_update(envelope.last_update).signatures) == 2
    config = ChannelConfig.from_block(block)
    assert config.sequence == changed["sequence"]
    assert (config.orderer.max_message_count, config.orderer.batch_timeout_s) == (3, 0.25)
    async with running.client() as operator:
        done = await asyncio.gather(
            *(operator.submit("energy", "wallet:Deposit", deposited("Aurora")) for _ in range(12))
        )
    numbers = [one.block_number for one in done]
    assert max(numbers.count(number) for number in numbers) == 3
    await ledgers.settled()


async def test_one_administrator_of_three_is_not_enough(
    running: RunningNetwork, ledgers: Ledgers
) -> None:
    before = await ledgers.settled()
    refused = await channel(
        running, "update", "--set", "batch-size", "7", "--sign-as", "Aurora", status=1
    )
    assert (
        "/Channel/Orderer/Admins needs 2 of AuroraMSP, BorealMSP, CieloMSP; AuroraMSP signed, "
        "so 1 of BorealMSP, CieloMSP still has to sign" in refused["error"]
    )
    assert "gridledger channel sign" in refused["error"]
    assert await ledgers.settled() == before


async def test_an_update_goes_round_as_a_file(
    running: RunningNetwork, ledgers: Ledgers, tmp_path: Path
) -> None:
    file = str(tmp_path / "update.pb")
    written = await channel(
        running, "update", "--set", "batch-timeout", "150ms", "--sign-as", "Boreal", "--out", file
    )
    assert written["signatures"] == 1
    assert [one["missing"] for one in written["lacking"]] == [["AuroraMSP", "CieloMSP"]]
    assert "needs 2 of" in (await channel(running, "submit", file, status=1))["error"]
    # Who has signed already adds nothing.
    assert (await channel(running, "sign", file, "--sign-as", "Boreal"))["signatures"] == 1
    signed = await channel(running, "sign", file, "--sign-as", "Cielo")
    assert (signed["signatures"], signed["lacking"]) == (2, [])
    assert signed["changes"] == written["changes"]
    done = await channel(running, "submit", file, "--utility", "Aurora")
    assert done["changes"] == written["changes"]
    again = await channel(running, "submit", file, status=1)
    assert "compute it again" in again["error"]
    await ledgers.settled()


async def test_a_whole_configuration_from_a_file(
    running: RunningNetwork, ledgers: Ledgers, tmp_path: Path
) -> None:
    shown = await channel(running, "show", "--utility", "Cielo")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(shown))
    same = await channel(running, "update", "--file", str(file), status=1)
    assert "the same; there is nothing to update" in same["error"]
    values = shown["channel_group"]["groups"]["Application"]["groups"]["BorealMSP"]["values"]
    values["AnchorPeers"]["value"]["anchor_peers"][0]["host"] = "localhost"
    file.write_text(json.dumps(shown))
    done = await channel(running, "update", "--file", str(file), "--sign-as", "Boreal")
    assert [one["where"] for one in done["changes"]] == [
        "/Channel/Application/BorealMSP/AnchorPeers anchor_peers"
    ]
    block = await ledgers.block("AuroraMSP", done["block_number"])
    _, envelope = config_of_block(block)
    now = await channel(running, "show")
    assert config_from_json(now) == envelope.config
    stale = await channel(running, "update", "--file", str(file), status=1)
    assert "make it again from" in stale["error"]
    await ledgers.settled()


async def test_a_revoked_home_is_refused(running: RunningNetwork, ledgers: Ledgers) -> None:
    _, home = await running.enrolled("Aurora", "home-revoked", role="home", connection="C-77")
    async with home:
        await home.evaluate("energy", "market:Rates", {"day": "2026-11-21"})
        aurora = running.network.utility("Aurora")
        await asyncio.to_thread(Registry.open(aurora.directory / "ca").revoke, "home-revoked")
        # Its own administrator alone may publish that.
        done = await channel(running, "update", "--crl", "Aurora")
        assert {one["where"] for one in done["changes"]} == {
            "/Channel/Application/AuroraMSP/MSP revocation_list",
            "/Channel/Orderer/AuroraMSP/MSP revocation_list",
        }
        await ledgers.settled()
        with pytest.raises(GridLedgerError, match="access denied"):
            await home.evaluate("energy", "market:Rates", {"day": "2026-11-21"})
    await deposit(running)
    await ledgers.settled()


async def test_a_utility_joins_and_leaves(
    running: RunningNetwork, ledgers: Ledgers, tmp_path: Path
) -> None:
    create_network(tmp_path, utilities=("Delta",), base_port=first_port())
    joined = await channel(running, "update", "--add-utility", str(tmp_path / "delta"))
    assert [one["where"] for one in joined["changes"]] == ["/Channel/Application/DeltaMSP"]
    await ledgers.settled()
    block = await ledgers.block("CieloMSP", joined["block_number"])
    assert "DeltaMSP" in ChannelConfig.from_block(block).application_orgs
    twice = await channel(running, "update", "--add-utility", str(tmp_path / "delta"), status=1)
    assert "DeltaMSP is a member of the channel already" in twice["error"]
    await channel(running, "update", "--remove-utility", "DeltaMSP")
    orders = await channel(running, "update", "--remove-utility", "Cielo", status=1)
    assert "CieloMSP orders for the channel" in orders["error"]
    await deposit(running, "Cielo")
    await ledgers.settled()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "batch-size", "0"), "batch-size: '0' is not a whole number"),
        (("--set", "batch-size", "many"), "'many' is not a whole number"),
        (("--set", "batch-timeout", "5"), "is not a duration such as 200ms"),
        (("--set", "batch-timeout", "-1s"), "BatchTimeout is -1s; it must be above 0"),
        (("--set", "preferred-max-bytes", "99MiB"), "more than the"),
        (("--set", "colour", "red"), "no setting 'colour'; there are batch-size"),
        (("--remove-utility", "XMSP"), "XMSP is no member of the channel; there are AuroraMSP"),
        (("--crl", "X"), "no utility 'X'"),
        (("--file", "/nowhere.json"), "No such file"),
        (("--file", __file__), "is not JSON"),
        (("--crl", f"Aurora={__file__}"), "revocation"),
        (("--crl", "XMSP=/dev/null"), "XMSP is not a member"),
        (("--sign-as", "X", "--set", "batch-size", "9"), "no utility 'X'"),
        ((), "there is nothing to update"),
    ],
)
async def test_what_cannot_be(
    running: RunningNetwork, arguments: tuple[str, ...], said: str
) -> None:
    assert said in (await channel(running, "update", *arguments, status=1))["error"]


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"\x0a\x02\x0a\x00"])
async def test_a_file_that_is_no_update(
    running: RunningNetwork, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "update.pb"
    file.write_bytes(content)
    for verb in ("sign", "submit"):
        assert (await channel(running, verb, str(file), status=1))["error"]
    assert file.read_bytes() == content


async def test_shown_to_a_person(running: RunningNetwork) -> None:
    done = await asyncio.to_thread(
        run_cli, "channel", "show", "--data-dir", str(running.network.directory)
    )
    for line in (
        "channel              neighbourhood",
        "/Channel/Application/Endorsement            MAJORITY Endorsement",
        "/Channel/Application/AuroraMSP/Writers      OR('AuroraMSP.admin', 'AuroraMSP.client')",
    ):
        assert line in done.stdout
