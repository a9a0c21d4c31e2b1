"""Everything that reads bytes from outside, called directly: what it may raise, and seeds to spoil.

Each parser takes bytes and returns, or raises one of the errors that its callers expect. Anything
else, or taking longer than `TIME_LIMIT_S`, is a fault.
"""

import datetime as dt
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from google.protobuf.message import DecodeError, Message

from consortium.identity.certificates import (
    ATTRIBUTES_OID,
    CertificateAuthority,
    CertificateError,
    certificate_attributes,
    generate_key,
    load_certificate,
)
from consortium.identity.msp import IdentityError, Msp, MspError, check_not_expired
from consortium.identity.policies import PolicyError, SignaturePolicy, parse_policy
from consortium.identity.signing import verify_signature
from consortium.ledger.channel_config import ChannelConfig
from consortium.ledger.config_changes import PendingUpdate, organization_from_json
from consortium.ledger.config_json import config_from_json, config_to_json
from consortium.ledger.config_update import ConfigError
from consortium.ledger.ledger import Ledger
from consortium.ledger.private_data import PrivateDataError
from consortium.ledger.rwset import open_transaction, parse_rwset
from consortium.ledger.state import LedgerError
from consortium.ledger.validator import check_block_form, verify_block_signature
from consortium.orderer.admission import Admission, Refused, opened
from consortium.orderer.services import seek_range
from consortium.peer.endorser import open_proposal
from consortium.storage.segments import End, Location, SegmentError, Segments
from consortium.wire import (
    common_pb2,
    kvrwset_pb2,
    msp_pb2,
    orderer_pb2,
    peer_pb2,
    rwset_pb2,
)
from consortium.wire.envelopes import WireError, channel_header, open_envelope, signed_envelope
from tests.consortium.ledger.channel import Channel, collection, private_set, public_set

from .messages import Words

RECORDED = Path(__file__).parents[1] / "data" / "fabric" / "recorded"
TIME_LIMIT_S = 5.0
"""CPU time, far more than any of these inputs needs."""


@dataclass(frozen=True)
class Parser:
    """One way in."""

    name: str
    parse: Callable[[bytes], object]
    raises: tuple[type[Exception], ...]
    seeds: Sequence[bytes]
    message: type[Message] | None = None
    """What its bytes are, if they are a protobuf message."""
    puzzles: Sequence[bytes] = ()
    """Taken as they are: what costs a careless reader much."""

    def check(self, raw: bytes) -> None:
        """Call it; raises AssertionError for whatever it should not do."""
        began, said = time.thread_time(), "parsed"
        try:
            self.parse(raw)
        except self.raises as error:
            said = str(error)
        except (Exception, RecursionError) as error:
            raise AssertionError(f"{self.name}: {type(error).__name__}: {error}") from error
        assert said, f"{self.name} raises an error without a sentence"
        assert len(said) < 4000, f"{self.name} says back what it was given"
        took = time.thread_time() - began
        assert took < TIME_LIMIT_S, f"{self.name} took {took:.1f} s for {len(raw)} bytes"


# -- certificates that nobody expects ----------------------------------------------------------


def _certificate(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
    issuer: CertificateAuthority | None = None,
    *extensions: tuple[x509.ExtensionType, bool],
    name: str = "someone",
    units: Sequence[str] = ("client",),
    days: tuple[int, int] = (-1, 100),
) -> x509.Certificate:
    """Certified by itself, or by a channel's member."""
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            *(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units),
        ]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(1 if issuer is None else x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1]))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    if issuer:
        return builder.sign(issuer._key, hashes.SHA256())
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return builder.sign(key, None)
    return builder.sign(key, hashes.SHA256())


def _negative_serial(der: bytes) -> bytes:
    """A serial number of one byte, made negative; the signature over it does not hold any more."""
    return der.replace(b"\x02\x01\x01", b"\x02\x01\x81", 1)


@cache
def strange_certificates() -> tuple[bytes, ...]:
    """PEM, from honest to absurd."""
    p256 = generate_key()
    member = channel().authorities["Aurora"]
    unknown = x509.UnrecognizedExtension
    attributes = (
        b'{"attrs":{"gridledger.role":"operator"}}',
        b"[" * 100_000,
        b'{"attrs":' * 50_000,
        b'{"attrs":[]}',
        b'{"attrs":{"a":1e999}}',
        b"\xff",
        b"1" * 10_000,
    )
    made = [
        _certificate(rsa.generate_private_key(65537, 2048)),
        _certificate(rsa.generate_private_key(65537, 2048), member),
        _certificate(ec.generate_private_key(ec.SECP521R1()), member),
        _certificate(ec.generate_private_key(ec.SECP384R1())),
        _certificate(ec.generate_private_key(ec.SECP256K1()), member),
        _certificate(ec.generate_private_key(ec.BrainpoolP256R1()), member),
        _certificate(ed25519.Ed25519PrivateKey.generate(), member),
        _certificate(p256, member, name="\u202e" * 20),
        _certificate(p256, member, units=["client", "peer", "admin", "orderer"]),
        _certificate(p256, member, units=[f"unit{n}" for n in range(2000)]),
        _certificate(p256, member, days=(-25_000, -24_000)),
        _certificate(p256, member, days=(2_000_000, 2_900_000)),
        _certificate(p256, member, (x509.BasicConstraints(True, 300), True)),
        _certificate(
            p256, member, (unknown(x509.ObjectIdentifier("1.2.3.4.5"), b"\xff" * 99), True)
        ),
        _certificate(
            p256,
            member,
            (x509.SubjectAlternativeName([x509.DNSName("a" * 60)] * 3000), False),
        ),
        *(_certificate(p256, member, (unknown(ATTRIBUTES_OID, a), False)) for a in attributes),
    ]
    pem = [one.public_bytes(Encoding.PEM) for one in made]
    der = made[0].public_bytes(Encoding.DER)
    # A modulus of 16,384 bits whose key nobody has, and a negative serial number.
    huge = _pem(_widened(der))
    return (*pem, _pem(_negative_serial(der)), huge)


def _widened(der: bytes) -> bytes:
    """An RSA certificate with a modulus eight times as long, its lengths put right."""
    modulus = der.find(b"\x02\x82\x01\x01\x00")
    assert modulus > 0
    return _relength(der, modulus, b"\x02\x82\x08\x01\x00" + der[modulus + 5 : modulus + 261] * 8)


def _relength(der: bytes, at: int, replacement: bytes) -> bytes:
    """Put another INTEGER in the place of an RSA modulus and correct the lengths around it."""
    end = at + 261
    grown = len(replacement) - 261
    out = bytearray(der[:at] + replacement + der[end:])
    place, inside = 0, []
    while place < at:
        tag, first = der[place], der[place + 1]
        size = first & 0x7F if first & 0x80 else 0
        length = int.from_bytes(der[place + 2 : place + 2 + size]) if size else first
        content = place + 2 + size
        if tag == 0x03 and content + length > at:  # BIT STRING: an unused-bits byte first
            inside.append((place + 2, size, length))
            place = content + 1
        elif content <= at < content + length:
            inside.append((place + 2, size, length))
            place = content
        else:
            place = content + length
    for where, size, length in inside:
        if size:
            out[where : where + size] = (length + grown).to_bytes(size)
    return bytes(out)


def _pem(der: bytes) -> bytes:
    import base64

    body = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"


def pem_puzzles() -> tuple[bytes, ...]:
    """What a careless reader of PEM takes minutes for; all within one gRPC message."""
    begin = b"-----BEGIN CERTIFICATE-----\n"
    return (
        begin * 100_000,
        begin + b"a:\n" * 700_000 + b"-----END CERTIFICATE-----\n",
        b"-----BEGIN " * 200_000,
        b"\n-----BEGIN A-----" * 100_000,
        b"".join(b"-----BEGIN %d-----\n" % n for n in range(60_000)),
        begin + b"=" * 2_000_000 + b"\n-----END CERTIFICATE-----\n",
        begin + b"-----END CERTIFICATE-----\n",
        begin + b" " * 2_000_000,
    )


# -- the channel that everything is about ------------------------------------------------------


class _Channel(Channel):
    """A channel whose authorities are at hand too, with a ledger that blocks go into."""

    def __init__(self) -> None:
        made: list[CertificateAuthority] = []
        create = CertificateAuthority.create

        def remember(*arguments: str) -> CertificateAuthority:
            made.append(create(*arguments))
            return made[-1]

        CertificateAuthority.create = remember  # type: ignore[method-assign,assignment]
        try:
            super().__init__()
        finally:
            CertificateAuthority.create = create  # type: ignore[method-assign]
        self.authorities = dict(zip(("Aurora", "Boreal", "Cielo"), made, strict=True))
        self.folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        self.ledger = self.open(Path(self.folder.name) / "ledger")
        self.deploy(self.ledger, collections=[collection("homes", ["Aurora", "Boreal"])])
        self.config = self.ledger.config
        self.admission = Admission(self.config)


@cache
def channel() -> _Channel:
    """Made once; its ledger grows with what is committed to it."""
    return _Channel()


def words() -> Words:
    """What strategies may draw so that messages look right."""
    at_hand = channel()
    creator = at_hand.clients["Aurora"].serialized
    return Words(
        strings=("neighbourhood", "energy", "homes", "AuroraMSP", "VALIDATION_PARAMETER", "Admins"),
        bytes=(creator, at_hand.clients["Aurora"].sign(b"x"), bytes(32)),
        by_field={
            "common.ChannelHeader.channel_id": ("neighbourhood",),
            "common.ChannelHeader.type": (3, 1, 2),
            "common.ChannelHeader.epoch": (0,),
            "common.SignatureHeader.creator": (creator,),
            "msp.SerializedIdentity.mspid": ("AuroraMSP",),
            "msp.SerializedIdentity.id_bytes": (at_hand.clients["Aurora"].certificate_pem,)
            if hasattr(at_hand.clients["Aurora"], "certificate_pem")
            else (),
        },
    )


def _commit(raw: bytes) -> None:
    """An envelope in a block that the orderers have signed: it gets a code, whatever it holds."""
    at_hand = channel()
    height = at_hand.ledger.height
    block = at_hand.block(at_hand.ledger, [raw])
    try:
        committed = at_hand.ledger.commit(block)
    finally:
        assert at_hand.ledger.height in (height, height + 1)
    assert len(committed.codes) == 1


def _commit_block(raw: bytes) -> None:
    block = common_pb2.Block.FromString(raw)
    at_hand = channel()
    before = at_hand.ledger.height
    committed = at_hand.ledger.commit(block)
    assert at_hand.ledger.height in (before, committed.number + 1)


def _endorsed(raw: bytes) -> None:
    """A read-write set that two peers vouch for."""
    at_hand = channel()
    found = rwset_pb2.TxReadWriteSet.FromString(raw)
    _commit(at_hand.transaction(found))


def _block_checks(raw: bytes) -> None:
    block = common_pb2.Block.FromString(raw)
    check_block_form(block)
    verify_block_signature(block, channel().config)


def _admit(raw: bytes) -> None:
    admission = channel().admission
    envelope = opened(raw)
    admission.check(envelope)


def _configuration_update(raw: bytes) -> None:
    """An update inside an envelope that an administrator signed, as an orderer takes it."""
    at_hand = channel()
    header = channel_header(common_pb2.CONFIG_UPDATE, at_hand.config.channel_id)
    envelope = signed_envelope(at_hand.clients["Aurora"], header, raw)
    at_hand.admission.config_transaction(
        open_envelope(envelope.SerializeToString()), at_hand.orderers["Aurora"]
    )


def _configuration(raw: bytes) -> None:
    ChannelConfig.from_config("neighbourhood", common_pb2.Config.FromString(raw))


def _identity(raw: bytes) -> None:
    identity = channel().config.msps.deserialize(raw)
    _ = identity.attributes, identity.common_name, identity.is_admin, identity.role
    check_not_expired(identity, 1.8e9)
    identity.verify(b"\x30\x06\x02\x01\x01\x02\x01\x01", b"x")


def _certified(pem: bytes) -> None:
    """The same certificate as an identity, as a signer of an envelope and as an MSP's root."""
    serialized = msp_pb2.SerializedIdentity(mspid="AuroraMSP", id_bytes=pem).SerializeToString()
    for step in (lambda: _identity(serialized), lambda: _attributes(pem), lambda: _root(pem)):
        try:
            step()
        except IdentityError, CertificateError, MspError:
            continue


def _attributes(pem: bytes) -> None:
    certificate = load_certificate(pem)
    certificate_attributes(certificate)


def _root(pem: bytes) -> None:
    definition = msp_pb2.FabricMSPConfig(name="XMSP", root_certs=[pem], admins=[pem])
    Msp.from_config(msp_pb2.MSPConfig(type=0, config=definition.SerializeToString()))


def _request(pem: bytes) -> None:
    """A certificate request as the authority takes it."""
    from consortium.ca.service import CaError, CaService

    try:
        csr = CaService._request(None, {"certificate_request": pem.decode("latin-1")})  # type: ignore[arg-type]
    except CaError as error:
        raise CertificateError(str(error)) from None
    channel().authorities["Aurora"].issue_from_csr(csr, "home", "client")


def _config_json(raw: bytes) -> None:
    try:
        tree = json.loads(raw)
    except ValueError, RecursionError:
        return
    config_from_json(tree)
    organization_from_json(tree)


def _policy_text(raw: bytes) -> None:
    parse_policy(raw.decode(errors="replace"))


def _policy(raw: bytes) -> None:
    policy = SignaturePolicy.from_bytes(raw)
    identities = [
        channel().config.msps.identity(one.serialized) for one in channel().peers.values()
    ]
    policy.satisfied_by(identities)
    policy.satisfied_by_peers_of(["AuroraMSP", "BorealMSP"])


def _private(raw: bytes) -> None:
    ledger = channel().ledger
    ledger.store_transient(f"{random.getrandbits(64):x}", raw, ledger.height)


def _segments(raw: bytes) -> None:
    """A file of blocks that is not what was written, read at every place."""
    with tempfile.TemporaryDirectory(prefix="fuzz-segments-") as name:
        folder = Path(name)
        honest = Segments(folder, End(), durable=False)
        places = [honest.append(b"block%d" % n * 20) for n in range(3)]
        honest.flush()
        end = honest.end
        honest.close()
        path = next(folder.iterdir())
        path.write_bytes(raw)
        spoiled = Segments(folder, end, durable=False)
        try:
            for place in (*places, Location(0, 2**40, 10), Location(7, 0, 10), Location(0, 0, 9)):
                spoiled.read(place)
        finally:
            spoiled.close()


def _segment_file() -> bytes:
    with tempfile.TemporaryDirectory(prefix="fuzz-segments-") as name:
        segments = Segments(Path(name), End(), durable=False)
        for n in range(3):
            segments.append(b"block%d" % n * 20)
        segments.flush()
        segments.close()
        return next(Path(name).iterdir()).read_bytes()


def _signature(raw: bytes) -> None:
    signer = channel().clients["Aurora"]
    identity = channel().config.msps.identity(signer.serialized)
    verify_signature(identity.certificate.public_key(), raw, b"message")


def _seek(raw: bytes) -> None:
    seek_range(orderer_pb2.SeekInfo.FromString(raw), 7)


def _csr() -> bytes:
    key = generate_key()
    request = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "home")])
    )
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _rwsets() -> list[bytes]:
    hashed, _ = private_set("homes", {"k": b"v"}, reads={"k": (1, 0)}, purges=["p"])
    query = kvrwset_pb2.RangeQueryInfo(start_key="a", end_key="z", itr_exhausted=True)
    summary = kvrwset_pb2.QueryReadsMerkleSummary(
        max_degree=2, max_level=1, max_level_hashes=[bytes(32)] * 3
    )
    ranged = kvrwset_pb2.KVRWSet(
        range_queries_info=[
            query,
            kvrwset_pb2.RangeQueryInfo(start_key="a", end_key="z", reads_merkle_hashes=summary),
        ]
    ).SerializeToString()
    return [
        public_set(
            reads={"a": (1, 0), "b": None},
            writes={"a": b"1", "c": b""},
            policies={"a": "OR('AuroraMSP.peer')"},
        ).SerializeToString(),
        hashed.SerializeToString(),
        rwset_pb2.TxReadWriteSet(
            ns_rwset=[rwset_pb2.NsReadWriteSet(namespace="energy", rwset=ranged)]
        ).SerializeToString(),
    ]


def _fuzzed_proposal(raw: bytes) -> None:
    open_proposal(peer_pb2.SignedProposal.FromString(raw))


def _files(pattern: str, count: int = 5) -> list[bytes]:
    return [path.read_bytes() for path in sorted(RECORDED.glob(pattern))[:count]]


@cache
def parsers() -> dict[str, Parser]:
    """All of them by name."""
    at_hand = channel()
    genesis = at_hand.genesis
    config = at_hand.config.config
    rwsets = _rwsets()
    transactions = [
        at_hand.transaction(rwset_pb2.TxReadWriteSet.FromString(raw), event=b"e") for raw in rwsets
    ]
    block = at_hand.block(at_hand.ledger, transactions).SerializeToString()
    update = common_pb2.ConfigUpdate(channel_id="neighbourhood")
    changed = common_pb2.Config()
    changed.CopyFrom(config)
    updates = _files("config-updates/*.config_update")
    seek = orderer_pb2.SeekInfo(
        start=orderer_pb2.SeekPosition(oldest={}), stop=orderer_pb2.SeekPosition(newest={})
    )
    private = rwset_pb2.TxPvtReadWriteSet(
        ns_pvt_rwset=[
            rwset_pb2.NsPvtReadWriteSet(
                namespace="energy",
                collection_pvt_rwset=[
                    rwset_pb2.CollectionPvtReadWriteSet(
                        collection_name="homes", rwset=private_set("homes", {"k": b"v"})[1]
                    )
                ],
            )
        ]
    )
    definition = config.channel_group.groups["Application"].groups["AuroraMSP"].values["MSP"].value
    policy = parse_policy("OutOf(2, 'AuroraMSP.peer', 'BorealMSP.peer', AND('CieloMSP.admin'))")
    serialized = at_hand.clients["Aurora"].serialized
    strange = [
        msp_pb2.SerializedIdentity(mspid="AuroraMSP", id_bytes=pem).SerializeToString()
        for pem in strange_certificates()
    ]
    broken = (DecodeError,)
    table = [
        Parser("open_envelope", open_envelope, (WireError,), transactions, common_pb2.Envelope),
        Parser(
            "open_transaction",
            lambda raw: open_transaction(0, raw),
            (),
            transactions,
            common_pb2.Envelope,
        ),
        Parser(
            "open_proposal",
            _fuzzed_proposal,
            (WireError, *broken),
            _proposals(),
            peer_pb2.SignedProposal,
        ),
        Parser("parse_rwset", parse_rwset, (WireError,), rwsets, rwset_pb2.TxReadWriteSet),
        Parser("admission", _admit, (Refused,), transactions, common_pb2.Envelope),
        Parser("block", _block_checks, (LedgerError, *broken), [block], common_pb2.Block),
        Parser("commit_block", _commit_block, (LedgerError, *broken), [block], common_pb2.Block),
        Parser("commit", _commit, (LedgerError,), transactions, common_pb2.Envelope),
        Parser(
            "commit_endorsed", _endorsed, (LedgerError, *broken), rwsets, rwset_pb2.TxReadWriteSet
        ),
        Parser(
            "genesis",
            lambda raw: ChannelConfig.from_block(common_pb2.Block.FromString(raw)),
            (ConfigError, *broken),
            [genesis.SerializeToString(), *_files("blocks/0000.block")],
            common_pb2.Block,
        ),
        Parser(
            "configuration",
            _configuration,
            (ConfigError, *broken),
            [config.SerializeToString()],
            common_pb2.Config,
        ),
        Parser(
            "configuration_update",
            _configuration_update,
            (Refused, ConfigError),
            [
                common_pb2.ConfigUpdateEnvelope(config_update=raw).SerializeToString()
                for raw in (*updates, update.SerializeToString())
            ],
            common_pb2.ConfigUpdateEnvelope,
        ),
        Parser(
            "pending_update",
            PendingUpdate.from_bytes,
            (ConfigError, WireError),
            _files("config-updates/*.envelope"),
            common_pb2.Envelope,
        ),
        Parser(
            "config_json",
            _config_json,
            (ConfigError,),
            [json.dumps(config_to_json(config)).encode()],
        ),
        Parser(
            "msp",
            lambda raw: Msp.from_config(msp_pb2.MSPConfig.FromString(raw)),
            (MspError, *broken),
            [definition],
            msp_pb2.MSPConfig,
        ),
        Parser(
            "identity",
            _identity,
            (IdentityError,),
            [serialized, *strange],
            msp_pb2.SerializedIdentity,
        ),
        Parser("certificate", _certified, (), strange_certificates(), puzzles=pem_puzzles()),
        Parser("certificate_request", _request, (CertificateError,), [_csr()]),
        Parser(
            "policy",
            _policy,
            (PolicyError,),
            [policy.SerializeToString()],
            common_pb2.SignaturePolicyEnvelope,
        ),
        Parser(
            "policy_text",
            _policy_text,
            (PolicyError,),
            [
                b"OutOf(2, 'AuroraMSP.peer', 'BorealMSP.peer', AND('CieloMSP.admin'))",
                b"AND(" * 3000,
                "OutOf(\u00b2, 'A.peer')".encode(),
                b"OutOf(99999999999999999999, 'A.peer')",
            ],
        ),
        Parser("signature", _signature, (), [at_hand.clients["Aurora"].sign(b"message")]),
        Parser("seek", _seek, (Refused, *broken), [seek.SerializeToString()], orderer_pb2.SeekInfo),
        Parser(
            "transient",
            _private,
            (PrivateDataError, WireError),
            [private.SerializeToString()],
            rwset_pb2.TxPvtReadWriteSet,
        ),
        Parser("segments", _segments, (SegmentError,), [_segment_file()]),
    ]
    return {parser.name: parser for parser in table}


def _proposals() -> list[bytes]:
    at_hand = channel()
    signer = at_hand.clients["Aurora"]
    nonce = os.urandom(24)
    from consortium.wire.envelopes import transaction_id

    invocation = peer_pb2.ChaincodeInvocationSpec(
        chaincode_spec=peer_pb2.ChaincodeSpec(
            chaincode_id=peer_pb2.ChaincodeID(name="energy"),
            input=peer_pb2.ChaincodeInput(args=[b"market:Rates", b"{}"]),
        )
    )
    header = channel_header(
        common_pb2.ENDORSER_TRANSACTION,
        "neighbourhood",
        transaction_id(nonce, signer.serialized),
        extension=peer_pb2.ChaincodeHeaderExtension(
            chaincode_id=peer_pb2.ChaincodeID(name="energy")
        ).SerializeToString(),
    )
    proposal = peer_pb2.Proposal(
        header=common_pb2.Header(
            channel_header=header.SerializeToString(),
            signature_header=common_pb2.SignatureHeader(
                creator=signer.serialized, nonce=nonce
            ).SerializeToString(),
        ).SerializeToString(),
        payload=peer_pb2.ChaincodeProposalPayload(
            input=invocation.SerializeToString(), TransientMap={"secret": b"x"}
        ).SerializeToString(),
    ).SerializeToString()
    return [
        peer_pb2.SignedProposal(
            proposal_bytes=proposal, signature=signer.sign(proposal)
        ).SerializeToString()
    ]


__all__ = ["Ledger", "Parser", "channel", "parsers", "pem_puzzles", "strange_certificates", "words"]
