"""A utility's root changed for another: interrupted anywhere and gone on with, and revocation."""

import argparse
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from consortium.ca.registry import Registry
from consortium.cli import membership
from consortium.cli.channel import _wanted
from consortium.cli.main import _parser
from consortium.identity import certificates
from consortium.identity.certificates import (
    CertificateAuthority,
    CertificateError,
    generate_key,
    load_certificate,
)
from consortium.identity.msp import IdentityError
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig
from consortium.ledger.config_changes import add_root, copied, remove_root
from consortium.node import network as network_module
from consortium.node.channel import Current, revocation_lists, revocation_lists_of, trusted_root
from consortium.node.network import Network, NetworkError, Utility, create_network
from consortium.wire import common_pb2, msp_pb2
from tests.ports import first_port

CERTIFICATE, KEY = CertificateAuthority.CERTIFICATE_FILE, CertificateAuthority.KEY_FILE


class Killed(BaseException):
    """The process ends here."""


class Channel:
    """A channel's configuration, in the place of a running network's."""

    def __init__(self, network: Network) -> None:
        block = network.genesis_block
        assert block is not None
        self.config = ChannelConfig.from_block(block)
        self.block_number = 0
        self.dies_after_change = False

    @contextlib.asynccontextmanager
    async def client(self, *_asked: object) -> AsyncIterator[None]:
        yield None

    async def current(self, *_asked: object) -> Current:
        return Current(self.block_number, self.config, common_pb2.Envelope())

    async def change(
        self,
        _network: Network,
        _gateway: object,
        _utility: Utility,
        change: Callable[[common_pb2.Config], object],
    ) -> Current:
        wanted = copied(self.config.config)
        change(wanted)
        assert wanted != self.config.config, "there is nothing to update"
        self.set(wanted)
        self.block_number += 1
        if self.dies_after_change:
            self.dies_after_change = False
            raise Killed
        return await self.current()

    def set(self, config: common_pb2.Config) -> None:
        self.config = ChannelConfig.from_config(self.config.channel_id, config)

    def trusts(self, root: bytes) -> bool:
        return trusted_root(self.config, "AuroraMSP", root) is not None

    def accepts(self, signer: Signer) -> bool:
        """Whether it knows a member by this certificate, and calls it valid."""
        try:
            self.config.msps.identity(signer.serialized)
        except IdentityError:
            return False
        return True


class World:
    """A network's folder with its channel, and commands run on them."""

    def __init__(self, folder: Path) -> None:
        self.network = create_network(folder, utilities=("Aurora",), base_port=first_port())
        self.aurora = self.network.utility("Aurora")
        self.ca = self.aurora.directory / "ca"
        self.channel = Channel(self.network)

    def options(self, *arguments: str) -> argparse.Namespace:
        return _parser().parse_args([*arguments, "--data-dir", str(self.network.directory)])

    async def rotate(self, *more: str) -> None:
        options = self.options("network", "rotate-ca", "Aurora", *more)
        await options.run(options)

    def root(self, folder: str = "") -> bytes:
        return (self.ca / folder / CERTIFICATE).read_bytes()

    def publish(self, named: str = "Aurora") -> None:
        """`gridledger channel update --crl`."""
        options = self.options("channel", "update", "--crl", named)
        self.channel.set(_wanted(options, self.network, self.channel.config))

    def enrolled(self, enrollment_id: str) -> Signer:
        """A home certified by the present root, with its certificate in the registry."""
        registry, key = Registry.open(self.ca), generate_key()
        registry.register(enrollment_id)
        certificate = CertificateAuthority.load(self.ca).issue(
            enrollment_id, "client", key.public_key()
        )
        return Signer("AuroraMSP", certificates.certificate_pem(certificate), key)

    def revoke(self, home: Signer) -> None:
        certificate = load_certificate(home.certificate_pem)
        Registry.open(self.ca).revoke_serial_number(certificate.serial_number)

    def check_rotated(self, before: bytes) -> None:
        """The new root is in use everywhere, the one before kept, and both trusted."""
        after = self.root()
        assert after != before
        assert self.root("previous") == before
        assert not (self.ca / "next").exists()
        assert self.channel.trusts(before)
        assert self.channel.trusts(after)
        assert CertificateAuthority.load(self.ca / "previous").certificate_pem == before
        issuer = CertificateAuthority.load(self.ca).certificate
        issued = sorted(self.aurora.directory.glob("*/*.cert.pem"))
        assert len(issued) == 8
        for path in issued:
            if path.name != CERTIFICATE:
                load_certificate(path.read_bytes()).verify_directly_issued_by(issuer)
        for who in ("admin", "operator", "peer", "orderer"):
            assert self.channel.accepts(self.aurora.signer(who))
        assert after in self.network.tls_bundle_pem


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path / "data")
    monkeypatch.setattr(membership, "client", world.channel.client)
    monkeypatch.setattr(membership, "current", world.channel.current)
    monkeypatch.setattr(membership, "change_channel", world.channel.change)
    return world


# ------------------------------------------------------------------------------- interruptions


def killed_at_write(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Die in the place of the file that is written as the so manieth, by either module."""
    count = 0
    write = certificates.write_private

    def counted(path: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise Killed
        write(path, data)

    monkeypatch.setattr(certificates, "write_private", counted)
    monkeypatch.setattr(network_module, "write_private", counted)


WRITES = 2 + 2 + 2 + 2 * 7
"""Key and certificate of next, of previous, of the present root, and of all that it certifies."""


@pytest.mark.parametrize("number", range(1, WRITES + 1))
async def test_killed_at_a_file_and_gone_on_with(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = world.root()
    with monkeypatch.context() as patch:
        killed_at_write(patch, number)
        with pytest.raises(Killed):
            await world.rotate()
    made = world.root("next") if number > 2 else None
    with pytest.raises(NetworkError, match=r"interrupted|begin without --finish"):
        await world.rotate("--finish")
    assert world.channel.trusts(before)
    await world.rotate()
    world.check_rotated(before)
    assert made in (None, world.root())
    await world.rotate("--finish")
    assert not world.channel.trusts(before)


async def test_that_is_each_file_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world.root()
    killed_at_write(monkeypatch, WRITES + 1)
    await world.rotate()
    world.check_rotated(before)


async def test_killed_once_the_channel_has_the_root(world: World) -> None:
    before = world.root()
    world.channel.dies_after_change = True
    with pytest.raises(Killed):
        await world.rotate()
    made = world.root("next")
    await world.rotate()
    world.check_rotated(before)
    assert world.root() == made
    assert world.channel.block_number == 1


@pytest.mark.parametrize("left", [(KEY, CERTIFICATE), (CERTIFICATE,)])
async def test_killed_while_next_is_removed(
    world: World, monkeypatch: pytest.MonkeyPatch, left: tuple[str, ...]
) -> None:
    before = world.root()

    def unfinished(folder: Path) -> None:
        for name in {KEY, CERTIFICATE}.difference(left):
            (folder / "next" / name).unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(network_module, "_remove_next", unfinished)
        with pytest.raises(Killed):
            await world.rotate()
    with pytest.raises(NetworkError, match="`gridledger network rotate-ca Aurora` again"):
        await world.rotate("--finish")
    await world.rotate()
    world.check_rotated(before)


async def test_between_key_and_certificate_it_says_what_to_do(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_at_write(patch, 6)
        with pytest.raises(Killed):
            await world.rotate()
    with pytest.raises(CertificateError, match=r"does not belong .*rotate-ca.* run it again"):
        CertificateAuthority.load(world.ca)
    with pytest.raises(CertificateError, match="run it again"):
        revocation_lists(world.aurora)


async def test_a_certificate_left_empty_by_a_full_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions wrote it, next or present."""
    (world.ca / "next").mkdir()
    (world.ca / "next" / CERTIFICATE).touch()
    before = world.root()
    with monkeypatch.context() as patch:
        killed_at_write(patch, 6)
        with pytest.raises(Killed):
            await world.rotate()
    (world.ca / CERTIFICATE).write_bytes(b"")
    await world.rotate()
    world.check_rotated(before)


async def test_a_next_root_whose_key_is_gone(world: World) -> None:
    """The channel doesn't learn of a root that nobody can certify by."""
    CertificateAuthority.create("Aurora", "aurora.example").save(world.ca / "next")
    CertificateAuthority.create("Aurora", "aurora.example").save(world.ca / "other")
    (world.ca / "other" / KEY).replace(world.ca / "next" / KEY)
    with pytest.raises(CertificateError, match="does not belong"):
        await world.rotate()
    assert world.channel.block_number == 0


# ------------------------------------------------------------------------------- one at a time


async def test_a_second_rotation_waits_for_the_end_of_the_first(world: World) -> None:
    first = world.root()
    await world.rotate()
    second = world.root()
    with pytest.raises(NetworkError, match="`gridledger network rotate-ca Aurora --finish`"):
        await world.rotate()
    world.check_rotated(first)
    assert world.root() == second
    await world.rotate("--finish")
    await world.rotate()
    world.check_rotated(second)
    assert not world.channel.trusts(first)


async def test_a_next_root_of_a_rotation_that_was_finished(world: World) -> None:
    """Earlier versions finished although the first part had been interrupted at its end."""
    CertificateAuthority.load(world.ca).save(world.ca / "next")
    before = world.root()
    await world.rotate()
    world.check_rotated(before)


async def test_a_next_root_beside_a_previous_one(world: World) -> None:
    """Earlier versions began a second rotation before the end of the first."""
    await world.rotate()
    CertificateAuthority.create("Aurora", "aurora.example").save(world.ca / "next")
    previous = world.root("previous")
    with pytest.raises(NetworkError, match=r"move .*next away, run .*--finish"):
        await world.rotate()
    assert world.root("previous") == previous


async def test_finish_is_refused_where_it_would_shut_the_utility_out(world: World) -> None:
    with pytest.raises(NetworkError, match="begin without --finish"):
        await world.rotate("--finish")
    before = world.root()
    await world.rotate()
    # Somebody took the new root out of the channel again.
    trusted, wanted = world.channel.config.config, copied(world.channel.config.config)
    remove_root(wanted, "AuroraMSP", world.root())
    world.channel.set(wanted)
    with pytest.raises(NetworkError, match="does not trust Aurora's present root"):
        await world.rotate("--finish")
    assert world.channel.trusts(before)
    # An earlier version, run again, kept the new root as the previous one.
    world.channel.set(trusted)
    CertificateAuthority.load(world.ca).save(world.ca / "previous")
    with pytest.raises(NetworkError, match="present root in it, whose trust can't end"):
        await world.rotate("--finish")
    assert world.channel.trusts(world.root())
    present = world.root()
    await world.rotate()
    world.check_rotated(present)


async def test_finish_is_interrupted_and_gone_on_with(world: World) -> None:
    before = world.root()
    await world.rotate()
    world.channel.dies_after_change = True
    with pytest.raises(Killed):
        await world.rotate("--finish")
    await world.rotate("--finish")
    assert not world.channel.trusts(before)
    assert not (world.ca / "previous" / CERTIFICATE).exists()
    assert world.channel.block_number == 2


async def test_a_root_that_the_channel_spells_otherwise(world: World) -> None:
    """Fabric's tools take a PEM file as it is, with text before the block for one."""
    root = world.root()
    wanted = copied(world.channel.config.config)
    add_root(wanted, "AuroraMSP", b"# Aurora\n" + root)
    remove_root(wanted, "AuroraMSP", root)
    world.channel.set(wanted)
    await world.rotate()
    await world.rotate("--finish")
    assert not world.channel.trusts(root)


# ---------------------------------------------------------------------------------- revocation


def lists(config: ChannelConfig) -> list[bytes]:
    group = config.config.channel_group.groups["Application"].groups["AuroraMSP"]
    wrapped = msp_pb2.MSPConfig.FromString(group.values["MSP"].value)
    return list(msp_pb2.FabricMSPConfig.FromString(wrapped.config).revocation_list)


@pytest.mark.parametrize("way", ["folder", "file"])
async def test_what_the_old_root_certified_is_and_stays_revoked(
    world: World, tmp_path: Path, way: str
) -> None:
    def publish() -> None:
        if way == "folder":
            world.publish()
        else:
            # As the authority's REST answer has them: one after another.
            file = tmp_path / "lists.pem"
            file.write_bytes(b"".join(revocation_lists(world.aurora)))
            world.publish(f"Aurora={file}")

    early, late, other = (world.enrolled(name) for name in ("home-1", "home-2", "home-3"))
    world.revoke(early)
    publish()
    assert len(lists(world.channel.config)) == 1
    assert [world.channel.accepts(home) for home in (early, late, other)] == [False, True, True]
    await world.rotate()
    new, kept = world.enrolled("home-4"), world.enrolled("home-5")
    homes = early, late, new, other, kept
    assert [world.channel.accepts(home) for home in homes] == [False, True, True, True, True]
    world.revoke(late)
    world.revoke(new)
    publish()
    assert len(lists(world.channel.config)) == 2
    assert [world.channel.accepts(home) for home in homes] == [False, False, False, True, True]
    await world.rotate("--finish")
    publish()
    assert len(lists(world.channel.config)) == 1
    assert [world.channel.accepts(home) for home in homes] == [False, False, False, False, True]


def test_the_lists_of_a_file(world: World) -> None:
    one = CertificateAuthority.load(world.ca).revocation_list([1])
    two = CertificateAuthority.load(world.ca).revocation_list([2])
    assert revocation_lists_of(b"of both:\n" + one + two) == [one, two]
    assert revocation_lists_of(b"\x30DER") == [b"\x30DER"]


def test_roots_are_told_apart(world: World) -> None:
    config: Any = world.channel.config
    assert trusted_root(config, "AuroraMSP", world.root()) == world.root()
    assert trusted_root(config, "BorealMSP", world.root()) is None
    with pytest.raises(CertificateError):
        trusted_root(config, "AuroraMSP", b"")
