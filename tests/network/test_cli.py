"""The `gridledger` command as a person or a script uses it.

What starts, stops or writes is a process of its own; what is refused is called in this one, where
the many ways to be refused take a fraction of the time.
"""

import contextlib
import io
import json
import os
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from consortium.cli.main import main
from consortium.node.network import Network
from gridledger_client import fingerprint
from tests.ports import first_port

from .conftest import RunningNetwork, run_cli, start_network

pytestmark = [pytest.mark.network]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`gridledger` in this process."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = main(arguments)
        except SystemExit as usage:
            status = int(usage.code or 0)
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


class Shell:
    """Commands on one network's folder."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.folder = str(network.directory)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_cli(*arguments, "--data-dir", self.folder, check=False)

    def json(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    def refused(self, *arguments: str) -> str:
        """The sentence on standard error; a script gets the same as JSON, with the same status."""
        done = call(*arguments, "--data-dir", self.folder)
        assert (done.returncode, done.stdout) == (1, ""), done.stdout
        sentence = done.stderr.strip().splitlines()[-1]
        assert sentence.startswith("gridledger: ")
        assert "Traceback" not in done.stderr, done.stderr
        return sentence.removeprefix("gridledger: ")


@pytest.fixture
def shell(running: RunningNetwork) -> Shell:
    return Shell(running.network)


def deposit(amount: int = 1000, reference: str | None = None) -> str:
    return json.dumps(
        {
            "account": "SUPPLIER-AURORA",
            "amount_micro": str(amount),
            "bank_reference": reference or f"CLI-{time.time_ns()}",
        }
    )


# -- network -----------------------------------------------------------------------------------


def test_init_makes_a_network_once(tmp_path: Path) -> None:
    """It ends with the fingerprint to give out and the next command; keys are their owner's."""
    folder = tmp_path / "net"
    done = run_cli("network", "init", "--data-dir", str(folder), "--base-port", str(first_port()))
    network = Network.load(folder)
    mark = fingerprint(network.tls_bundle_pem)
    assert done.stdout.splitlines() == [
        f"Network of 3 utilities in {folder}.",
        f"Fingerprint of its CA bundle: {mark}",
        f"Start it: gridledger network up --data-dir {folder}",
    ]
    assert "Aurora: certificate authority, orderer, peer" in done.stderr
    for key in folder.rglob("*.key.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key
    assert len(list(folder.rglob("*.key.pem"))) == 3 * 8
    again = run_cli("network", "init", "--data-dir", str(folder), check=False)
    assert again.returncode == 1
    assert "holds a network already" in again.stderr
    assert fingerprint(Network.load(folder).tls_bundle_pem) == mark


def test_init_of_other_members(tmp_path: Path) -> None:
    done = run_cli(
        *(
            "network",
            "init",
            "--data-dir",
            str(tmp_path),
            "--base-port",
            str(first_port()),
            "--json",
        ),
        *("--utilities", "Delta,Echo", "--channel", "valley", "--interval", "300"),
    )
    answer = json.loads(done.stdout)
    assert (answer["channel"], answer["utilities"]) == ("valley", ["DeltaMSP", "EchoMSP"])
    assert Network.load(tmp_path).interval_s == 300


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--utilities", "aurora"), "must be letters and digits, as Aurora"),
        (("--utilities", "Aurora,Aurora"), "two utilities have the same name"),
        (("--utilities", ""), "must be letters and digits"),
        (("--interval", "7"), "does not divide an hour"),
        (("--channel", "Bad Name"), "'Bad Name' is no channel id"),
        (("--base-port", "65530"), "fewer than 18 free ports"),
        (("--base-port", "-5"), "must be 1024 or higher"),
    ],
)
def test_init_with_what_cannot_be(tmp_path: Path, options: tuple[str, str], said: str) -> None:
    done = call("network", "init", "--data-dir", str(tmp_path / "n"), *options)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(Exception, match="network init"):
        Network.load(tmp_path / "n")


def test_wrong_usage_is_status_2() -> None:
    port = ("network", "up", "--operations", "99999")
    for arguments in ((), ("network",), ("network", "sideways"), ("block", "show"), port):
        done = call(*arguments)
        assert done.returncode == 2
        assert "usage: gridledger" in done.stderr


def test_status(running: RunningNetwork, shell: Shell) -> None:
    """One line for each utility; the same as JSON."""
    done = shell("network", "status")
    head, *rows = done.stdout.splitlines()
    assert done.returncode == 0
    assert head.split() == [
        "UTILITY",
        "GATEWAY",
        "PEER",
        "HEIGHT",
        "LAST",
        "BLOCK",
        "ORDERER",
        "CA",
    ]
    assert [row.split()[0] for row in rows] == ["Aurora", "Boreal", "Cielo"]
    answer = shell.json("network", "status")
    assert answer["channel"] == "neighbourhood"
    assert {row["state"] for row in answer["utilities"]} == {"up"}
    assert {row["orderer"] for row in answer["utilities"]} == {"up"}
    assert {row["ca"] for row in answer["utilities"]} == {"up"}
    assert len({row["block_hash"] for row in answer["utilities"]}) == 1


def test_a_second_start_is_refused_and_harms_nothing(running: RunningNetwork, shell: Shell) -> None:
    """Two processes on one ledger would cut off each other's blocks."""
    before = shell.json("network", "status")
    assert "ca.aurora.example cannot start" in shell.refused("network", "up")
    assert "already" in shell.refused("network", "up", "--processes")
    operations = ("--processes", "--operations", "9443")
    assert "node run UTILITY NODE --operations" in shell.refused("network", "up", *operations)
    for kind in ("peer", "orderer"):
        sentence = shell.refused("node", "run", "Aurora", kind)
        assert f"{kind}0.aurora.example runs already" in sentence
        assert "stop that one first" in sentence
    assert "there is no utility 'Delta'" in shell.refused("node", "run", "Delta", "peer")
    assert shell.json("network", "status") == before
    shell.json("contract", "invoke", "energy", "wallet:Deposit", deposit())


def test_no_network() -> None:
    done = call("network", "status", "--data-dir", "/nonexistent", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"].endswith(
        "make one with `gridledger network init --data-dir /nonexistent`"
    )


@pytest.mark.parametrize("options", [(), ("--processes",)], ids=["one-process", "processes"])
def test_up_until_ctrl_c_and_again(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Ctrl-C ends with status 0, no process left, ports free; a next start goes on from disk."""
    port = str(first_port())
    run_cli("network", "init", "--data-dir", str(tmp_path), "--base-port", port, "--interval", "60")
    for name in ("aurora", "boreal", "cielo"):  # heights are compared
        (tmp_path / name / "peer" / "agent.json").write_text('{"enabled": false}')
    network = Network.load(tmp_path)
    shell = Shell(network)
    assert {
        row["state"] for row in json.loads(shell("network", "status", "--json").stdout)["utilities"]
    } == {"down"}
    assert "can't be reached" in shell.refused("contract", "query", "energy", "market:Rates")
    assert "there is no ledger" in shell.refused("verify")
    height = 0
    for _ in range(1 if options else 2):
        running = start_network(network, tmp_path / "log", *options)
        status = shell.json("network", "status")
        assert status["utilities"][0]["height"] >= height
        shell.json("contract", "invoke", "energy", "wallet:Deposit", deposit())
        height = shell.json("network", "status")["utilities"][0]["height"]
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(60) == 0, running.log.read_text()
        assert "Traceback" not in running.log.read_text()
        with pytest.raises(ProcessLookupError):
            os.killpg(running.process.pid, 0)
        for utility in network.utilities:
            for taken in (utility.ports.ca, utility.ports.peer, utility.ports.orderer):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", taken))
    reports = shell.json("verify")
    assert [report["problem"] for report in reports] == [None] * 3
    assert {report["blocks"] for report in reports} == {height}


# -- identity ----------------------------------------------------------------------------------


def test_enroll_by_fingerprint_and_act(
    running: RunningNetwork, shell: Shell, tmp_path: Path
) -> None:
    """The key is made here; the folder is then an identity for `--as`."""
    aurora = running.network.utilities[0]
    secret = running.register("Aurora", "home-cli", role="home", connection="CP-CLI")
    # As people copy it: lower case, no colons.
    mark = fingerprint(running.network.tls_bundle_pem).replace(":", "").lower()
    out = tmp_path / "identity"
    done = run_cli(
        *("identity", "enroll", "--ca", aurora.ca_url, "--id", "home-cli", "--secret", secret),
        *("--fingerprint", mark, "--out", str(out)),
    )
    assert done.stdout == f"Enrolled home-cli at AuroraMSP; key and certificate are in {out}.\n"
    assert stat.S_IMODE((out / "sign.key.pem").stat().st_mode) == 0o600
    assert (out / "msp-id").read_text() == "AuroraMSP\n"
    # A day for which no other test, on this network that they share, publishes anything.
    nothing_yet = '{"day": "2040-01-01"}'
    answer = shell("contract", "query", "energy", "market:Rates", nothing_yet, "--as", str(out))
    assert answer.returncode == 0
    assert json.loads(answer.stdout) == []
    sentence = shell.refused(
        "contract", "invoke", "energy", "wallet:Deposit", deposit(), "--as", str(out)
    )
    assert "home-cli (home of AuroraMSP, connection CP-CLI) may not enter deposits" in sentence


def test_enroll_refused(running: RunningNetwork, tmp_path: Path) -> None:
    """Wrong fingerprint, secret, file, address: a sentence, and no file is written."""
    aurora = running.network.utilities[0]
    secret = running.register("Aurora", "home-refused", role="home", connection="CP-CLI-2")
    bundle = running.network.directory / "tls-bundle.pem"
    out = tmp_path / "identity"

    def refused(ca: str, given: str, *trust: str) -> str:
        done = call(
            *("identity", "enroll", "--ca", ca, "--id", "home-refused", "--secret", given),
            *(*trust, "--out", str(out)),
        )
        assert done.returncode == 1
        assert not out.exists()
        return done.stderr

    wrong = ":".join(["AA"] * 32)
    said = refused(aurora.ca_url, secret, "--fingerprint", wrong)
    assert "not the one given; ask the utility before you go on" in said
    assert "Authentication failure" in refused(aurora.ca_url, "guess", "--ca-file", str(bundle))
    assert "/nonexistent" in refused(aurora.ca_url, secret, "--ca-file", "/nonexistent")
    assert "can't be reached" in refused("https://127.0.0.1:1", secret, "--ca-file", str(bundle))
    assert "https://" in refused("nonsense", secret, "--ca-file", str(bundle))
    stranger = tmp_path / "stranger.pem"
    call("network", "init", "--data-dir", str(tmp_path / "o"), "--base-port", str(first_port()))
    stranger.write_bytes((tmp_path / "o" / "tls-bundle.pem").read_bytes())
    assert "doesn't vouch for" in refused(aurora.ca_url, secret, "--ca-file", str(stranger))
    # None of this has used the secret up.
    done = run_cli(
        *("identity", "enroll", "--ca", aurora.ca_url, "--id", "home-refused"),
        *("--secret", secret, "--ca-file", str(bundle), "--out", str(out), "--json"),
    )
    assert json.loads(done.stdout) == {"msp_id": "AuroraMSP", "folder": str(out)}


# -- contracts and blocks ----------------------------------------------------------------------


def test_invoke_then_look_at_the_block(running: RunningNetwork, shell: Shell) -> None:
    answer = shell.json("contract", "invoke", "energy", "wallet:Deposit", deposit())
    assert answer["result"]["status"] == "committed"
    block = shell.json("block", "show", str(answer["block_number"]))
    assert block["number"] == answer["block_number"]
    (transaction,) = [
        each for each in block["transactions"] if each["transaction_id"] == answer["transaction_id"]
    ]
    assert transaction["code"] == "VALID"
    assert transaction["function"] == "wallet:Deposit"
    assert transaction["creator"] == "AuroraMSP"
    assert len(transaction["endorsers"]) == 2
    shown = shell("block", "show", "newest", "--utility", "Cielo").stdout
    assert "data_hash" in shown
    assert "ENDORSED BY" in shown
    first = shell.json("block", "show", "0")
    assert (first["transactions"][0]["type"], first["signed_by"]) == (
        "CONFIG",
        "nobody (a first block)",
    )
    text = shell("contract", "invoke", "energy", "wallet:Deposit", deposit()).stdout
    assert "committed in block " in text


def test_query_through_each_gateway(shell: Shell) -> None:
    answers = {
        shell("contract", "query", "energy", "registry:Settings", "--utility", name).stdout
        for name in ("Aurora", "BorealMSP", "cielo")
    }
    assert len(answers) == 1
    assert json.loads(answers.pop())["interval_s"] == "60"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("block", "show", "x"), "is not a number"),
        (("block", "show", "--", "-1"), "is not a number"),
        (("block", "show", "99999999"), "there is no block 99999999: the ledger is at height"),
        (("block", "show", "9" * 20), "number"),
        (("contract", "query", "energy", "market:Rates", "{"), "the argument is not JSON"),
        (("contract", "query", "energy", "market:Rates", "[]"), "must be one JSON object"),
        (("contract", "query", "energy", "market:Nothing"), "market:Authorise, "),
        (("contract", "query", "nowhere", "a:B"), "no peers available to evaluate chaincode"),
        (("contract", "invoke", "nowhere", "a:B"), "no combination of peers can be derived"),
        (("contract", "query", "energy", "market:Rates", "--utility", "X"), "no utility 'X'"),
        (("contract", "query", "energy", "market:Rates", "--as", "/x"), "neither operator nor"),
        (("contract", "invoke", "energy", "wallet:Deposit", deposit(-5)), "amount_micro"),
        (
            ("contract", "invoke", "energy", "wallet:Deposit", deposit(), "--endorse", "XMSP"),
            "XMSP",
        ),
    ],
)
def test_a_command_that_cannot_be_carried_out(
    shell: Shell, arguments: tuple[str, ...], said: str
) -> None:
    verb, options = arguments[:2], arguments[2:]
    done = call(*verb, "--data-dir", shell.folder, *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    in_json = call(*verb, "--data-dir", shell.folder, "--json", *options)
    assert in_json.returncode == 1
    assert said in json.loads(in_json.stdout)["error"]


# -- verify ------------------------------------------------------------------------------------


def test_export_of_a_home(running: RunningNetwork, shell: Shell, tmp_path: Path) -> None:
    """All that two chaincodes have of it, in a file that is its owner's alone."""
    connection = {
        "connection_id": "CP-EXPORT",
        "utility": "AuroraMSP",
        "zone": "NORTH",
        "max_export_w": 10_000,
        "max_import_w": 20_000,
    }
    shell.json(
        "contract", "invoke", "energy", "registry:RegisterConnection", json.dumps(connection)
    )
    out = tmp_path / "home.json"
    done = shell.json("export", "CP-EXPORT", "--out", str(out))
    assert done == {"file": str(out), "private": 0, "public": 1}
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    file = json.loads(out.read_text())
    assert (file["format"], file["utility"]) == ("gridledger-export/1", "AuroraMSP")
    assert file["channel"] == running.network.channel
    assert file["private"] == []
    assert [record["key"] for record in file["public"]] == ["connection/CP-EXPORT"]
    assert file["public"][0]["value"]["zone"] == "NORTH"
    refused = shell.refused("export", "CP-EXPORT", "--out", str(out))
    assert refused == f"{out} exists already; name another file with --out"
    other = str(tmp_path / "other.json")
    assert "CP-NONE is not registered" in shell.refused("export", "CP-NONE", "--out", other)
    foreign = shell.refused("export", "CP-EXPORT", "--out", other, "--utility", "Boreal")
    assert "may not export what is kept of CP-EXPORT" in foreign
    assert not Path(other).exists()


def test_verify_while_the_network_runs(running: RunningNetwork, shell: Shell) -> None:
    """It only reads: the peers go on writing meanwhile, and verify clean themselves."""
    done = shell("verify")
    assert done.returncode == 0
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "Aurora",
        "Boreal",
        "Cielo",
    ]
    assert all("clean: " in line for line in done.stdout.splitlines())
    (report,) = shell.json("verify", "--utility", "Boreal")
    assert (report["utility"], report["problem"]) == ("Boreal", None)
    assert report["blocks"] == report["height"]
    shell.json("contract", "invoke", "energy", "wallet:Deposit", deposit())


def test_verify_finds_a_changed_byte(tmp_path: Path) -> None:
    """One bit in a block file: named, with status 1, and the other ledgers are still clean."""
    run_cli("network", "init", "--data-dir", str(tmp_path), "--base-port", str(first_port()))
    network = Network.load(tmp_path)
    running = start_network(network, tmp_path / "log")
    running.process.send_signal(signal.SIGINT)
    running.process.wait(60)
    folder = tmp_path / "boreal" / "peer" / "ledger" / network.channel / "blocks"
    (segment,) = folder.iterdir()
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    done = Shell(network)("verify")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert lines["Boreal"].startswith("NOT CLEAN: ")
    assert lines["Aurora"].startswith("clean: ")
    assert lines["Cielo"].startswith("clean: ")
