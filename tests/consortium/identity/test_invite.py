"""Invitations: text, QR code, page, and the command that makes them."""

import json
import re
import stat
from pathlib import Path

import pytest

from consortium.ca.registry import Registry
from consortium.cli import qr
from consortium.cli.main import main
from consortium.node.network import Network, create_network
from gridledger_client import InvalidInput, Invitation
from tests.ports import first_port


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("network") / "data"
    create_network(directory, base_port=first_port())
    return directory


def invite(
    folder: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[int, dict[str, str]]:
    code = main(["identity", "invite", *more, "--data-dir", str(folder), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_an_invitation_names_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = invite(folder, capsys, "home-1", "--connection", "CP-1", "--utility", "Boreal")
    assert code == 0
    network = Network.load(folder)
    invitation = Invitation.decode(answer["invitation"])
    boreal = network.utility("Boreal")
    assert invitation.gateways[0] == boreal.gateway_address
    assert len(invitation.gateways) == 3
    assert (invitation.ca_url, invitation.msp_id) == (boreal.ca_url, "BorealMSP")
    assert (invitation.channel, invitation.connection_id) == (network.channel, "CP-1")
    assert invitation.secret not in repr(invitation)
    registry = Registry.open(boreal.directory / "ca")
    entry = registry.authenticate("home-1", invitation.secret, 0)
    assert entry.attributes == {"gridledger.role": "home", "gridledger.connection": "CP-1"}


def test_a_lost_key_is_invited_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("home-2", "--connection", "CP-2")
    _, first = invite(folder, capsys, *arguments)
    code, answer = invite(folder, capsys, *arguments)
    assert code == 1
    assert "--again" in answer["error"]
    code, again = invite(folder, capsys, *arguments, "--again")
    assert code == 0
    assert again["invitation"] != first["invitation"]
    code, answer = invite(folder, capsys, "home-2", "--connection", "CP-3", "--again")
    assert (code, "not registered for CP-3" in answer["error"]) == (1, True)
    code, answer = invite(folder, capsys, "no id", "--connection", "CP-3")
    assert (code, "enrolment id" in answer["error"]) == (1, True)


def test_the_page_shows_and_the_code_leads(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "invitation.html"
    more = ("--page", str(page), "--page-url", "https://aurora.example/join")
    _, answer = invite(folder, capsys, "home-3", "--connection", "CP-3", *more)
    assert answer["link"] == f"https://aurora.example/join#{answer['invitation']}"
    assert Invitation.decode(answer["link"]).enrollment_id == "home-3"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    text = page.read_text()
    assert answer["invitation"] in text
    assert "config_flow_start/?domain=gridledger" in text
    assert "default-src 'none'" in text
    assert not re.search(r"<(script|img|link)[^>]+(src|href)=", text)
    empty = tmp_path / "join.html"
    assert main(["identity", "invitation-page", str(empty)]) == 0
    assert "<svg" not in empty.read_text()
    assert (
        main(["identity", "invite", "h-4", "--connection", "C", "--data-dir", str(folder), "--qr"])
        == 0
    )
    assert "█▀" in capsys.readouterr().out


def test_a_spoilt_invitation_is_told_apart() -> None:
    invitation = Invitation(("a:1",), "https://ca", "ch", "AB:" * 31 + "AB", "h", "secret")
    text = invitation.encode()
    assert Invitation.decode(f"See {text}!").secret == "secret"
    head, body, check = text.split(".")
    for spoilt in ("", text[:-1], f"{head}.{body[:-4]}.{check}", f"{head}.{body}.00000000"):
        with pytest.raises(InvalidInput):
            Invitation.decode(spoilt)


@pytest.mark.parametrize(("size", "version"), [(10, 1), (100, 6), (492, 17), (1200, 29)])
def test_codes_equal_another_program(size: int, version: int) -> None:
    builder = pytest.importorskip("pyqrcode.builder")
    data = (b"gridledger1." + b"aZ09_-" * size)[:size]
    theirs = builder.QRCodeBuilder(data=data, version=version, mode="binary", error="M")
    for mask in range(8):
        ours = qr.matrix(data, mask)
        assert ours == [[module == 1 for module in row] for row in theirs.masks[mask]]
    assert qr.svg(data).count("h1v1h-1z") == sum(map(sum, qr.matrix(data)))


def test_too_much_for_a_code() -> None:
    assert len(qr.matrix(b"x" * 2331)) == 177
    with pytest.raises(ValueError, match="2,331 do"):
        qr.matrix(b"x" * 2332)
