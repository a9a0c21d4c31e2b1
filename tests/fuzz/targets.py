"""Every service that a network's nodes offer, and honest requests to each for spoiling.

A request is signed over some inner part. Spoilt only from outside it would never get past its
signature, so that each target names its `Layer`s: an inner part, and what makes a request of it
again, signed by somebody who may ask.
"""

import base64
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from google.protobuf.message import Message

from consortium.ca.service import make_token
from consortium.identity.certificates import generate_key
from consortium.identity.signing import Signer
from consortium.ledger.config_changes import PendingUpdate, change_setting, copied
from consortium.ledger.config_update import compute_update, update_envelope
from consortium.ledger.mvcc import encode_field
from consortium.node.network import Network, Utility
from consortium.wire import (
    common_pb2,
    discovery_pb2,
    gateway_pb2,
    gossip_pb2,
    gridledger_pb2,
    orderer_pb2,
    peer_pb2,
    raftpb_pb2,
    services,
)
from consortium.wire.envelopes import channel_header, signed_envelope, transaction_id
from consortium.wire.health_pb2 import HealthCheckRequest
from consortium.wire.reflection_pb2 import ServerReflectionRequest
from gridledger_client import GatewayClient

from .messages import Words

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"
SNAPSHOT = "/protos.Snapshot/"
CA_PATHS = ("cainfo", "enroll", "reenroll", "register", "revoke")


@dataclass(frozen=True)
class Layer:
    """A part of an honest request, and how a request is made of such a part."""

    name: str
    inner: bytes
    rebuild: Callable[[bytes], bytes]
    kind: type[Message] | None = None
    """What the part is, where strategies can make others like it."""


@dataclass(frozen=True)
class Target:
    """One method of one node."""

    name: str
    path: str
    address: str
    layers: Sequence[Layer]
    shape: str = "unary"
    """unary, events (one request, many answers), stream, or rest."""
    waits: bool = False
    """Whether no answer for a while is an answer: for what has not happened yet."""
    node: Utility | None = None
    """Whose orderer's certificate is shown, at a listener for nodes."""
    may_be_absent: bool = False
    """Whether this version of the nodes may be without the service."""
    method: str = "POST"
    url: str = ""
    """What is called, where `path` has places for names in it."""
    admin: Utility | None = None
    """Whose administrator's certificate is shown over TLS."""


@dataclass
class World:
    """A running network, and who acts in it."""

    network: Network
    client: GatewayClient
    genesis: common_pb2.Block = field(init=False)

    def __post_init__(self) -> None:
        self.genesis = self.network.genesis_block

    @property
    def aurora(self) -> Utility:
        return self.network.utilities[0]

    @property
    def operator(self) -> Signer:
        return self.aurora.signer("operator")

    def words(self) -> Words:
        """What strategies may draw so that messages get further than the first check."""
        creator = self.operator.serialized
        channel = self.network.channel
        contract = peer_pb2.ChaincodeID(name="energy").SerializeToString()
        return Words(
            strings=(channel, "energy", "metering", "AuroraMSP", "readings-AuroraMSP", "Admins"),
            bytes=(creator, b"market:Rates", b"{}", b"[]", channel.encode(), b"GetChainInfo"),
            by_field={
                "common.ChannelHeader.channel_id": (channel,),
                "common.ChannelHeader.epoch": (0,),
                "common.SignatureHeader.creator": (creator,),
                "protos.ChaincodeID.name": ("energy", "metering", "qscc", "cscc", "_lifecycle"),
                "protos.ChaincodeSpec.type": (1,),
                "gateway.CommitStatusRequest.channel_id": (channel,),
                "gateway.CommitStatusRequest.identity": (creator,),
                "gateway.ChaincodeEventsRequest.channel_id": (channel,),
                "gateway.ChaincodeEventsRequest.identity": (creator,),
                "discovery.AuthInfo.client_identity": (creator,),
                "discovery.Query.channel": (channel,),
                "orderer.ConsensusRequest.channel": (channel,),
                "protos.ChaincodeHeaderExtension.chaincode_id": (contract,),
            },
        )


# -- proposals and transactions ----------------------------------------------------------------


def _proposal(
    world: World, chaincode: str, *arguments: bytes
) -> tuple[bytes, Callable[[bytes], bytes], bytes]:
    """A proposal's bytes, what makes one of a payload, and the payload; the id fits each time."""
    signer = world.operator
    invocation = peer_pb2.ChaincodeInvocationSpec(
        chaincode_spec=peer_pb2.ChaincodeSpec(
            chaincode_id=peer_pb2.ChaincodeID(name=chaincode),
            input=peer_pb2.ChaincodeInput(args=arguments),
        )
    )
    payload = peer_pb2.ChaincodeProposalPayload(
        input=invocation.SerializeToString(), TransientMap={"readings": b'{"readings":[]}'}
    ).SerializeToString()

    def around(inner: bytes) -> bytes:
        nonce = os.urandom(24)
        header = channel_header(
            common_pb2.ENDORSER_TRANSACTION,
            world.network.channel,
            transaction_id(nonce, signer.serialized),
            extension=peer_pb2.ChaincodeHeaderExtension(
                chaincode_id=peer_pb2.ChaincodeID(name=chaincode)
            ).SerializeToString(),
        )
        return peer_pb2.Proposal(
            header=common_pb2.Header(
                channel_header=header.SerializeToString(),
                signature_header=common_pb2.SignatureHeader(
                    creator=signer.serialized, nonce=nonce
                ).SerializeToString(),
            ).SerializeToString(),
            payload=inner,
        ).SerializeToString()

    return around(payload), around, payload


_CALLS: tuple[tuple[str, ...], ...] = (
    ("energy", "market:Rates", '{"day":"2026-01-01"}'),
    ("energy", "wallet:Balance", '{"account":"SUPPLIER-AURORA"}'),
    ("metering", "metering:SubmitReadings", '{"utility":"AuroraMSP"}'),
    ("qscc", "GetBlockByNumber", "neighbourhood", "0"),
    ("qscc", "GetTransactionByID", "neighbourhood", "0"),
    ("qscc", "GetBlockByHash", "neighbourhood", "0"),
    ("cscc", "GetChannelConfig", "neighbourhood"),
    ("_lifecycle", "QueryChaincodeDefinition", "\n\x06energy"),
    ("_lifecycle", "CommitChaincodeDefinition", "\x08\x01\x12\x06energy"),
    ("_lifecycle", "ApproveChaincodeDefinitionForMyOrg", "\x08\x01\x12\x06energy"),
    ("_lifecycle", "CheckCommitReadiness", "\x08\x01\x12\x06energy"),
    ("_lifecycle", "InstallChaincode", "\n\x06energy"),
)


def _proposal_layers(world: World, request: Callable[[bytes, bytes], bytes]) -> list[Layer]:
    """`request` makes a request of a proposal and a signature over it."""

    def signed(proposal: bytes) -> bytes:
        return request(proposal, world.operator.sign(proposal))

    layers = []
    for chaincode, *arguments in _CALLS:
        raw, around, payload = _proposal(world, chaincode, *(a.encode() for a in arguments))
        layers += [
            Layer("outside", signed(raw), lambda whole: whole),
            Layer("proposal", raw, signed, peer_pb2.Proposal),
            Layer(
                "payload",
                payload,
                lambda inner, around=around: signed(around(inner)),  # type: ignore[misc]
                peer_pb2.ChaincodeProposalPayload,
            ),
        ]
    return layers


def _batch(envelope: bytes) -> bytes:
    return gridledger_pb2.EnvelopeBatch(envelopes=[envelope] * 2).SerializeToString()


def _envelope_layers(
    world: World, envelope: bytes, request: Callable[[bytes], bytes]
) -> list[Layer]:
    """Of a transaction; `request` makes a request of an envelope."""
    payload = common_pb2.Payload.FromString(common_pb2.Envelope.FromString(envelope).payload)

    def sign(inner: bytes) -> bytes:
        return request(
            common_pb2.Envelope(
                payload=inner, signature=world.operator.sign(inner)
            ).SerializeToString()
        )

    def with_data(data: bytes) -> bytes:
        changed = common_pb2.Payload(header=payload.header, data=data)
        return sign(changed.SerializeToString())

    return [
        Layer("outside", request(envelope), lambda whole: whole),
        Layer("envelope", envelope, request, common_pb2.Envelope),
        Layer("payload", payload.SerializeToString(), sign, common_pb2.Payload),
        Layer("transaction", payload.data, with_data, peer_pb2.Transaction),
    ]


def _signed_layers(
    world: World,
    header_type: int,
    inner: bytes,
    kind: type[Message],
    name: str,
    signer: Signer | None = None,
) -> list[Layer]:
    """Of an envelope around `inner` that Aurora's operator, or `signer`, signs anew each time."""

    def around(data: bytes) -> bytes:
        header = channel_header(header_type, world.network.channel)
        return signed_envelope(signer or world.operator, header, data).SerializeToString()

    return [
        Layer("outside", around(inner), lambda whole: whole, common_pb2.Envelope),
        Layer(name, inner, around, kind),
    ]


def _inside(inner: bytes, kind: type[Message], around: Callable[[bytes], bytes]) -> list[Layer]:
    return [
        Layer("outside", around(inner), lambda whole: whole),
        Layer("request", inner, around, kind),
    ]


# -- the table ---------------------------------------------------------------------------------


async def targets(world: World) -> dict[str, Target]:
    """All of them by name; makes one honest transaction to have something to spoil."""
    client, network, aurora = world.client, world.network, world.aurora
    channel, operator = network.channel, world.operator
    reference = f"FUZZ-{os.urandom(8).hex().upper()}"
    signed = await client.endorse(
        client.prepare(
            "energy",
            "wallet:Deposit",
            {
                "account": "SUPPLIER-AURORA",
                "amount_micro": "1000",
                "bank_reference": reference,
            },
        )
    )
    await client.submit_signed(signed)
    gateway, orderer = aurora.gateway_address, f"127.0.0.1:{aurora.ports.orderer}"
    peer_node = f"127.0.0.1:{aurora.ports.peer_node}"
    cluster = f"127.0.0.1:{network.utilities[1].ports.cluster}"

    def endorsing(proposal: bytes, signature: bytes) -> bytes:
        return gateway_pb2.EndorseRequest(
            channel_id=channel, proposed_transaction=_sp(proposal, signature)
        ).SerializeToString()

    def evaluating(proposal: bytes, signature: bytes) -> bytes:
        return gateway_pb2.EvaluateRequest(
            channel_id=channel, proposed_transaction=_sp(proposal, signature)
        ).SerializeToString()

    def submitting(envelope: bytes) -> bytes:
        head = gateway_pb2.SubmitRequest(transaction_id=signed.transaction_id, channel_id=channel)
        # By hand: the envelope may be none.
        from .mutation import LENGTH, Field

        return head.SerializeToString() + Field(3, LENGTH, envelope).encoded()

    status = gateway_pb2.CommitStatusRequest(
        transaction_id=signed.transaction_id, channel_id=channel, identity=operator.serialized
    ).SerializeToString()
    events = gateway_pb2.ChaincodeEventsRequest(
        channel_id=channel,
        chaincode_id="energy",
        identity=operator.serialized,
        start_position=orderer_pb2.SeekPosition(specified=orderer_pb2.SeekSpecified(number=1)),
    ).SerializeToString()
    at_zero = orderer_pb2.SeekPosition(specified=orderer_pb2.SeekSpecified(number=0))
    seek = orderer_pb2.SeekInfo(start=at_zero, stop=at_zero).SerializeToString()
    interest = peer_pb2.ChaincodeInterest(
        chaincodes=[
            peer_pb2.ChaincodeCall(name="metering", collection_names=["readings-AuroraMSP"])
        ]
    )
    discovering = discovery_pb2.Request(
        authentication=discovery_pb2.AuthInfo(client_identity=operator.serialized),
        queries=[
            discovery_pb2.Query(channel=channel, config_query=discovery_pb2.ConfigQuery()),
            discovery_pb2.Query(channel=channel, peer_query=discovery_pb2.PeerMembershipQuery()),
            discovery_pb2.Query(local_peers=discovery_pb2.LocalPeerQuery()),
            discovery_pb2.Query(
                channel=channel, cc_query=discovery_pb2.ChaincodeQuery(interests=[interest])
            ),
        ],
    ).SerializeToString()
    seeking = _signed_layers(
        world, common_pb2.DELIVER_SEEK_INFO, seek, orderer_pb2.SeekInfo, "seek"
    )
    snapshot = peer_pb2.SnapshotRequest(
        signature_header=common_pb2.SignatureHeader(
            creator=operator.serialized, nonce=os.urandom(24)
        ),
        channel_id=channel,
    ).SerializeToString()
    found = [
        Target("evaluate", services.EVALUATE, gateway, _proposal_layers(world, evaluating)),
        Target("endorse", services.ENDORSE, gateway, _proposal_layers(world, endorsing)),
        Target(
            "process-proposal",
            services.PROCESS_PROPOSAL,
            gateway,
            _proposal_layers(world, lambda p, s: _sp(p, s).SerializeToString()),
        ),
        Target(
            "node-process-proposal",
            services.PROCESS_PROPOSAL,
            peer_node,
            _proposal_layers(world, lambda p, s: _sp(p, s).SerializeToString()),
            node=aurora,
        ),
        Target(
            "submit",
            services.SUBMIT,
            gateway,
            _envelope_layers(world, signed.envelope, submitting),
        ),
        Target(
            "commit-status",
            services.COMMIT_STATUS,
            gateway,
            _inside(
                status,
                gateway_pb2.CommitStatusRequest,
                lambda raw: gateway_pb2.SignedCommitStatusRequest(
                    request=raw, signature=operator.sign(raw)
                ).SerializeToString(),
            ),
            waits=True,
        ),
        Target(
            "chaincode-events",
            services.CHAINCODE_EVENTS,
            gateway,
            _inside(
                events,
                gateway_pb2.ChaincodeEventsRequest,
                lambda raw: gateway_pb2.SignedChaincodeEventsRequest(
                    request=raw, signature=operator.sign(raw)
                ).SerializeToString(),
            ),
            shape="events",
            waits=True,
        ),
        *(
            Target(name, path, address, seeking, shape="stream", waits=True, node=node)
            for name, path, address, node in (
                ("deliver", services.DELIVER, gateway, None),
                ("deliver-filtered", services.DELIVER_FILTERED, gateway, None),
                ("deliver-private", services.DELIVER_WITH_PRIVATE_DATA, gateway, None),
                ("orderer-deliver", services.ORDERER_DELIVER, orderer, None),
                ("cluster-deliver", services.ORDERER_DELIVER, cluster, aurora),
            )
        ),
        *(
            Target(
                name,
                services.DISCOVER,
                address,
                _inside(
                    discovering,
                    discovery_pb2.Request,
                    lambda raw: discovery_pb2.SignedRequest(
                        payload=raw, signature=operator.sign(raw)
                    ).SerializeToString(),
                ),
                node=node,
            )
            for name, address, node in (
                ("discover", gateway, None),
                ("node-discover", peer_node, aurora),
            )
        ),
        Target(
            "broadcast",
            services.BROADCAST,
            orderer,
            [
                *_envelope_layers(world, signed.envelope, lambda envelope: envelope),
                *_signed_layers(
                    world,
                    common_pb2.CONFIG_UPDATE,
                    _update(world),
                    common_pb2.ConfigUpdateEnvelope,
                    "update",
                ),
            ],
            shape="stream",
        ),
        Target(
            "broadcast-batches",
            services.BROADCAST_BATCHES,
            orderer,
            [
                *_envelope_layers(world, signed.envelope, _batch),
                Layer(
                    "batch", _batch(signed.envelope), lambda raw: raw, gridledger_pb2.EnvelopeBatch
                ),
            ],
            shape="stream",
        ),
        Target(
            "cluster-step",
            services.CLUSTER_STEP,
            cluster,
            _step_layers(world),
            shape="stream",
            waits=True,
            node=aurora,
        ),
        *(
            Target(
                f"{kind}-{name}",
                path,
                address,
                [Layer("outside", message.SerializeToString(), lambda raw: raw, type(message))],
                shape=shape,
                waits=waits,
            )
            for kind, address in (("peer", gateway), ("orderer", orderer))
            for name, path, message, shape, waits in (
                ("health", HEALTH_CHECK, HealthCheckRequest(service="x"), "unary", False),
                ("health-watch", HEALTH_WATCH, HealthCheckRequest(), "events", True),
                *(
                    (
                        f"reflection-{version}",
                        REFLECT.format(version),
                        ServerReflectionRequest(file_containing_symbol="gateway.Gateway"),
                        "stream",
                        False,
                    )
                    for version in ("v1", "v1alpha")
                ),
            )
        ),
        *(
            Target(
                f"snapshot-{name.lower()}",
                SNAPSHOT + name,
                gateway,
                _inside(
                    snapshot,
                    peer_pb2.SnapshotRequest,
                    lambda raw: peer_pb2.SignedSnapshotRequest(
                        request=raw, signature=operator.sign(raw)
                    ).SerializeToString(),
                ),
                may_be_absent=True,
            )
            for name in ("Generate", "Cancel", "QueryPendings")
        ),
        *_private_targets(channel, peer_node, aurora),
        Target(
            "administration",
            services.ORDERER_ACT,
            orderer,
            _signed_layers(
                world,
                common_pb2.MESSAGE,
                gridledger_pb2.OrdererAct(
                    organization=aurora.msp_id, status=gridledger_pb2.OrdererStatusQuery()
                ).SerializeToString(),
                gridledger_pb2.OrdererAct,
                "act",
                aurora.signer("admin"),
            ),
        ),
        Target(
            "recall",
            "/gridledger.Consenters/Recall",
            cluster,
            [
                Layer(
                    "outside",
                    gridledger_pb2.RecallRequest(
                        claims=[gridledger_pb2.RecallClaim(channel="elsewhere", raft_id=1)]
                    ).SerializeToString(),
                    lambda raw: raw,
                    gridledger_pb2.RecallRequest,
                )
            ],
            node=aurora,
            may_be_absent=True,
        ),
        *_ca_targets(world),
        *_participation_targets(world),
    ]
    return {target.name: target for target in found}


def _sp(proposal: bytes, signature: bytes) -> peer_pb2.SignedProposal:
    return peer_pb2.SignedProposal(proposal_bytes=proposal, signature=signature)


def _update(world: World) -> bytes:
    """A change of the channel's configuration that nobody has signed."""
    from consortium.ledger.channel_config import ChannelConfig

    config = ChannelConfig.from_block(world.genesis).config
    after = copied(config)
    change_setting(after, "batch-timeout", "300ms")
    update = compute_update(world.network.channel, config, after)
    pending = PendingUpdate(world.network.channel, update.SerializeToString())
    envelope = common_pb2.Envelope.FromString(pending.to_bytes())
    return common_pb2.Payload.FromString(envelope.payload).data


def _step_layers(world: World) -> list[Layer]:
    """Frames between orderers, with Raft messages that none takes for true.

    Raft trusts its members: whoever holds a consenter's key can stop a channel, in Fabric too. A
    live channel is sent messages for nobody; what the core makes of forged ones is looked at in
    `tests/consortium/orderer`.
    """
    channel = world.network.channel
    message = raftpb_pb2.Message(type=raftpb_pb2.MsgHeartbeat, to=77, term=1, **{"from": 1})
    consensus = orderer_pb2.StepRequest(
        consensus_request=orderer_pb2.ConsensusRequest(
            channel=channel, payload=message.SerializeToString()
        )
    ).SerializeToString()
    envelope = signed_envelope(world.operator, channel_header(common_pb2.MESSAGE, channel), b"data")
    submit = orderer_pb2.StepRequest(
        submit_request=orderer_pb2.SubmitRequest(channel="elsewhere", payload=envelope)
    ).SerializeToString()

    def step(raw: bytes) -> bytes:
        return orderer_pb2.StepRequest(
            consensus_request=orderer_pb2.ConsensusRequest(channel=channel, payload=raw)
        ).SerializeToString()

    def forward(raw: bytes) -> bytes:
        """By hand, since `raw` may be no envelope: fields 1 channel and 3 payload."""
        request = orderer_pb2.SubmitRequest(channel=channel).SerializeToString()
        request += encode_field(3, raw)
        return encode_field(orderer_pb2.StepRequest.SUBMIT_REQUEST_FIELD_NUMBER, request)

    return [
        Layer("consensus", consensus, lambda raw: raw, orderer_pb2.StepRequest),
        Layer("submit", submit, lambda raw: raw),
        Layer("forwarded", envelope.SerializeToString(), forward, common_pb2.Envelope),
        Layer("message", b"\xff\xff\xff\xff", step),
    ]


def _private_targets(channel: str, address: str, node: Utility) -> list[Target]:
    """The peers' own exchange of private data, whose messages are all in gridledger.proto."""
    signer = node.signer("orderer")
    certificate = x509.load_pem_x509_certificate(
        (node.directory / "orderer" / "tls.cert.pem").read_bytes()
    )
    digest = certificate.fingerprint(hashes.SHA256())
    private = gossip_pb2.PrivatePayload(
        collection_name="readings-AuroraMSP", namespace="metering", tx_id="0" * 64
    )
    wanted = gossip_pb2.PvtDataDigest(
        tx_id="0" * 64, namespace="metering", collection="readings-AuroraMSP", block_seq=1
    )
    contents = {
        services.PRIVATE_PUSH: gridledger_pb2.PrivateDataRequest(
            channel_id=channel,
            tls_certificate_hash=digest,
            push=gridledger_pb2.PrivateDataPush(payloads=[private]),
        ),
        services.PRIVATE_PULL: gridledger_pb2.PrivateDataRequest(
            channel_id=channel,
            tls_certificate_hash=digest,
            pull=gossip_pb2.RemotePvtDataRequest(digests=[wanted]),
        ),
    }

    def signed(raw: bytes) -> bytes:
        return gridledger_pb2.NodeRequest(
            payload=raw, identity=signer.serialized, signature=signer.sign(raw)
        ).SerializeToString()

    return [
        Target(
            f"private-{path.rsplit('/', 1)[1].lower()}",
            path,
            address,
            _inside(content.SerializeToString(), gridledger_pb2.PrivateDataRequest, signed),
            node=node,
            may_be_absent=True,
        )
        for path, content in contents.items()
    ]


# -- REST --------------------------------------------------------------------------------------


def _ca_targets(world: World) -> list[Target]:
    """fabric-ca's REST; a request is JSON with headers and body, each of which is a layer."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "home")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    pem = request.sign(generate_key(), hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    bodies: dict[str, dict[str, object]] = {
        "cainfo": {"caname": ""},
        "enroll": {"certificate_request": pem, "profile": "", "label": "", "caname": ""},
        "reenroll": {"certificate_request": pem, "caname": ""},
        "register": {"id": "fuzz", "type": "client", "attrs": [{"name": "a", "value": "b"}]},
        "revoke": {"id": "fuzz", "reason": "keycompromise", "serial": "01", "aki": "02"},
    }
    signer = world.operator
    made = []
    for method, body in bodies.items():
        path = f"/api/v1/{method}"

        def whole(raw: bytes, path: str = path, basic: bool = method == "enroll") -> bytes:
            if basic:
                token = "Basic " + base64.b64encode(b"fuzz:secret").decode()
            else:
                token = make_token(signer.sign, "POST", path, raw, signer.certificate_pem)
            return rest(raw, token)

        def with_token(raw: bytes, body: bytes = json.dumps(body).encode()) -> bytes:
            return rest(body, raw.decode("latin-1"))

        honest = make_token(signer.sign, "POST", path, b"{}", signer.certificate_pem)
        layers = [
            Layer("body", json.dumps(body).encode(), whole),
            Layer("token", honest.encode(), with_token),
        ]
        made.append(Target(f"ca-{method}", path, world.aurora.ca_url, layers, shape="rest"))
    return made


def _participation_targets(world: World) -> list[Target]:
    """Channel participation; what would end a channel is asked of one that is not there."""
    utility = world.aurora
    if not utility.ports.admin:
        return []
    address, channels = f"https://127.0.0.1:{utility.ports.admin}", "/participation/v1/channels"
    boundary = b"fuzz"

    def form(block: bytes, key: bytes = b"config-block") -> bytes:
        return (
            b"--"
            + boundary
            + b'\r\nContent-Disposition: form-data; name="'
            + key
            + b'"; filename="config.block"\r\nContent-Type: application/octet-stream\r\n\r\n'
            + block
            + b"\r\n--"
            + boundary
            + b"--\r\n"
        )

    kind = "multipart/form-data; boundary=fuzz"
    # A block of a running channel: whole, it is refused as joined already.
    genesis = world.genesis.SerializeToString()
    layers = [
        Layer("block", genesis[: len(genesis) // 2], lambda raw: rest(form(raw), "", kind)),
        Layer("form", form(b"x"), lambda raw: rest(raw, "", kind)),
        Layer("kind", kind.encode(), lambda raw: rest(form(b"x"), "", raw.decode("latin-1"))),
    ]
    # An update that its submitter has signed and no admin: as it is, it is refused.
    update = common_pb2.ConfigUpdate(channel_id="neighbourhood").SerializeToString()
    envelope = update_envelope("neighbourhood", update, [], utility.signer("admin"))
    key = b"config-update-envelope"
    updates = [
        Layer(
            "envelope",
            envelope.SerializeToString(),
            lambda raw: rest(form(raw, key), "", kind),
            common_pb2.Envelope,
        ),
        Layer("form", form(b"x", key), lambda raw: rest(raw, "", kind)),
    ]
    nothing = [Layer("body", b"{}", lambda raw: rest(raw, ""))]
    one = channels + "/{channel}"
    table = (
        ("list", "GET", channels, channels, nothing),
        ("join", "POST", channels, channels, layers),
        ("update", "PUT", channels, channels, updates),
        ("show", "GET", one, channels + "/neighbourhood", nothing),
        ("remove", "DELETE", one, channels + "/elsewhere", nothing),
        ("block", "GET", one + "/blocks/{block}", channels + "/neighbourhood/blocks/no", nothing),
        ("redirect", "GET", "/participation/v1/", "/participation/v1/", nothing),
    )
    return [
        Target(
            f"participation-{name}",
            path,
            address,
            each,
            shape="rest",
            method=method,
            url=url,
            admin=utility,
        )
        for name, method, path, url, each in table
    ]


def rest(body: bytes, authorization: str, content_type: str = "") -> bytes:
    """A REST request as bytes, for saving and replaying."""
    return json.dumps(
        {
            "authorization": authorization,
            "content_type": content_type,
            "body": base64.b64encode(body).decode(),
        }
    ).encode()


__all__ = ["CA_PATHS", "Layer", "Target", "World", "rest", "targets"]
