"""Peers under different hash seeds, time zones, locales and time zone data endorse the same bytes.

Three real peers of one utility, each a process: one as a server usually is, one with everything set
otherwise, one whose contracts run in worker processes. A day of trading that succeeds, then every
function of every contract in many ways, of which most are refused: payloads and refusals must be
equal to the byte, and so must what the peers commit.
"""

import asyncio
import base64
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from consortium.chaincode.api import Function
from consortium.contracts import chaincodes
from consortium.contracts.package import VERSION, package_id
from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
    key_pem,
    write_private,
)
from consortium.identity.policies import parse_policy
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import (
    ChannelSpec,
    Consenter,
    OrganizationSpec,
    genesis_block,
)
from consortium.node.executors import SETTINGS_FILE
from consortium.wire import common_pb2, lifecycle_pb2, peer_pb2
from consortium.wire.blocks import LAST_CONFIG, SIGNATURES, header_bytes, header_hash, new_block
from consortium.wire.envelopes import channel_header, signed_envelope, transaction_id
from tests.consortium.contracts.world import TestMeter, batch
from tests.windows import coming_window

CHANNEL = "neighbourhood"
ROOT = Path(__file__).parents[3]
SURROUNDINGS: dict[str, dict[str, str]] = {
    "usual": {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"},
    "otherwise": {
        "PYTHONHASHSEED": "4242",
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "tr_TR.UTF-8",
        "PYTHONTZPATH": "/nowhere",
        "PYTHONOPTIMIZE": "1",
    },
    "workers": {"PYTHONHASHSEED": "7", "TZ": "America/St_Johns", "LC_ALL": "de_DE.UTF-8"},
}
ROUNDS = 6


@dataclass
class Peer:
    """A peer's process."""

    process: asyncio.subprocess.Process
    signer: Signer

    async def ask(self, what: str, raw: bytes) -> dict[str, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = json.dumps({what: base64.b64encode(raw).decode()})
        self.process.stdin.write(line.encode() + b"\n")
        await self.process.stdin.drain()
        answer: dict[str, str] = json.loads(await self.process.stdout.readline())
        return answer


@dataclass
class World:
    """The peers, and who else there is."""

    peers: list[Peer]
    orderer: Signer
    members: dict[str, Signer]
    tip: common_pb2.BlockHeader
    compared: int = 0
    succeeded: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)

    async def call(
        self,
        member: str,
        function: str,
        argument: object = None,
        *,
        transient: Mapping[str, bytes] | None = None,
    ) -> Any:
        """Propose to all; commit what they endorse. The contract's answer, None if refused."""
        contract = function.partition(":")[0]
        chaincode = "metering" if contract == "metering" else "energy"
        raw = json.dumps(argument or {}).encode()
        response = await self.propose(
            member, chaincode, [function.encode(), raw], transient=transient
        )
        self.called.add(function)
        if response.status != 200:
            return None
        self.succeeded.add(function)
        return json.loads(response.payload)

    async def propose(
        self,
        member: str,
        chaincode: str,
        args: list[bytes],
        *,
        transient: Mapping[str, bytes] | None = None,
    ) -> peer_pb2.Response:
        signer = self.members[member]
        nonce = os.urandom(24)
        header = channel_header(
            common_pb2.ENDORSER_TRANSACTION,
            CHANNEL,
            transaction_id(nonce, signer.serialized),
            extension=peer_pb2.ChaincodeHeaderExtension(
                chaincode_id=peer_pb2.ChaincodeID(name=chaincode)
            ).SerializeToString(),
        )
        spec = peer_pb2.ChaincodeInvocationSpec(
            chaincode_spec=peer_pb2.ChaincodeSpec(
                chaincode_id=peer_pb2.ChaincodeID(name=chaincode),
                input=peer_pb2.ChaincodeInput(args=args),
            )
        ).SerializeToString()
        proposal = peer_pb2.Proposal(
            header=common_pb2.Header(
                channel_header=header.SerializeToString(),
                signature_header=common_pb2.SignatureHeader(
                    creator=signer.serialized, nonce=nonce
                ).SerializeToString(),
            ).SerializeToString(),
            payload=peer_pb2.ChaincodeProposalPayload(
                input=spec, TransientMap=dict(transient or {})
            ).SerializeToString(),
        ).SerializeToString()
        signed = peer_pb2.SignedProposal(
            proposal_bytes=proposal, signature=signer.sign(proposal)
        ).SerializeToString()
        answers = await asyncio.gather(*(peer.ask("proposal", signed) for peer in self.peers))
        assert all("response" in answer for answer in answers), answers
        responses = [
            peer_pb2.ProposalResponse.FromString(base64.b64decode(answer["response"]))
            for answer in answers
        ]
        self.compared += 1
        called = f"{chaincode} {args[0].decode()} {args[1:]!r}"[:500]
        assert len({one.response.SerializeToString() for one in responses}) == 1, called
        assert len({one.payload for one in responses}) == 1, called
        if all(one.HasField("endorsement") for one in responses):
            await self.commit(signer, nonce, header, spec, responses)
        return responses[0].response

    async def commit(
        self,
        signer: Signer,
        nonce: bytes,
        header: common_pb2.ChannelHeader,
        spec: bytes,
        responses: list[peer_pb2.ProposalResponse],
    ) -> None:
        """A block of one transaction, for everyone."""
        action = peer_pb2.ChaincodeActionPayload(
            chaincode_proposal_payload=peer_pb2.ChaincodeProposalPayload(
                input=spec
            ).SerializeToString(),
            action=peer_pb2.ChaincodeEndorsedAction(
                proposal_response_payload=responses[0].payload,
                endorsements=[one.endorsement for one in responses],
            ),
        )
        transaction = peer_pb2.Transaction(
            actions=[
                peer_pb2.TransactionAction(
                    header=common_pb2.SignatureHeader(
                        creator=signer.serialized, nonce=nonce
                    ).SerializeToString(),
                    payload=action.SerializeToString(),
                )
            ]
        )
        envelope = signed_envelope(signer, header, transaction.SerializeToString(), nonce=nonce)
        block = new_block(
            self.tip.number + 1, header_hash(self.tip), [envelope.SerializeToString()]
        )
        value = common_pb2.OrdererBlockMetadata(
            last_config=common_pb2.LastConfig(index=0)
        ).SerializeToString()
        signature_header = common_pb2.SignatureHeader(
            creator=self.orderer.serialized, nonce=os.urandom(24)
        ).SerializeToString()
        signature = self.orderer.sign(value + signature_header + header_bytes(block.header))
        block.metadata.metadata[SIGNATURES] = common_pb2.Metadata(
            value=value,
            signatures=[
                common_pb2.MetadataSignature(signature_header=signature_header, signature=signature)
            ],
        ).SerializeToString()
        block.metadata.metadata[LAST_CONFIG] = b""
        raw = block.SerializeToString()
        answers = await asyncio.gather(*(peer.ask("block", raw) for peer in self.peers))
        assert answers[0]["codes"] == "00", answers
        assert all(answer == answers[0] for answer in answers)
        self.tip = block.header

    async def define(self, name: str) -> None:
        """Approve and commit a contract, through `_lifecycle` as anybody would."""
        collections = peer_pb2.CollectionConfigPackage()
        if name == "metering":
            collections.config.add(
                static_collection_config=peer_pb2.StaticCollectionConfig(
                    name="readings-AuroraMSP",
                    member_orgs_policy=peer_pb2.CollectionPolicyConfig(
                        signature_policy=parse_policy("OR('AuroraMSP.member')")
                    ),
                    maximum_peer_count=1,
                    member_only_read=True,
                    member_only_write=True,
                )
            )
        parameters: dict[str, Any] = {
            "name": name,
            "version": VERSION,
            "sequence": 1,
            "collections": collections,
            "validation_parameter": peer_pb2.ApplicationPolicy(
                channel_config_policy_reference="/Channel/Application/Endorsement"
            ).SerializeToString(),
        }
        approval = lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs(
            **parameters,
            source=lifecycle_pb2.ChaincodeSource(
                local_package=lifecycle_pb2.ChaincodeSource.Local(package_id=package_id(name))
            ),
        )
        commit = lifecycle_pb2.CommitChaincodeDefinitionArgs(**parameters)
        for function, argument in (
            ("ApproveChaincodeDefinitionForMyOrg", approval),
            ("CommitChaincodeDefinition", commit),
        ):
            response = await self.propose(
                "admin", "_lifecycle", [function.encode(), argument.SerializeToString()]
            )
            assert response.status == 200, response


def signer_of(authority: CertificateAuthority, name: str, ou: str, **attributes: str) -> Signer:
    key = generate_key()
    certificate = authority.issue(
        name,
        ou,
        key.public_key(),
        attributes={f"gridledger.{one}": value for one, value in attributes.items()} or None,
    )
    return Signer("AuroraMSP", certificate_pem(certificate), key)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    authority = CertificateAuthority.create("Aurora", "aurora.example")
    orderer = signer_of(authority, "orderer", "orderer")
    genesis = genesis_block(
        ChannelSpec(
            CHANNEL,
            (
                OrganizationSpec(
                    "AuroraMSP",
                    authority.certificate_pem,
                    anchor_peers=(),
                    orderer_endpoints=("127.0.0.1:7050",),
                ),
            ),
            (Consenter("127.0.0.1", 7050, orderer.certificate_pem, orderer.certificate_pem),),
        )
    )
    peers = []
    for name, surroundings in SURROUNDINGS.items():
        folder = tmp_path / name
        folder.mkdir()
        key = generate_key()
        certificate = authority.issue(f"peer-{name}", "peer", key.public_key())
        write_private(folder / "sign.key.pem", key_pem(key))
        (folder / "sign.cert.pem").write_bytes(certificate_pem(certificate))
        (folder / "genesis.block").write_bytes(genesis.SerializeToString())
        own = "worker" if name == "workers" else "in-process"
        (folder / SETTINGS_FILE).write_text(json.dumps({"own": own}))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.consortium.peer.endorsing_process"),
            *(str(folder), "AuroraMSP"),
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **surroundings},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=32 * 1024 * 1024,
        )
        peers.append(Peer(process, Signer("AuroraMSP", certificate_pem(certificate), key)))
    members = {
        "admin": signer_of(authority, "admin", "admin"),
        "operator": signer_of(authority, "olga", "client", role="operator"),
        "supplier": signer_of(authority, "sue", "client", role="supplier"),
        "home": signer_of(authority, "home-1", "client", role="home", connection="CP-0001"),
        "neighbour": signer_of(authority, "home-2", "client", role="home", connection="CP-0002"),
    }
    yield World(peers, orderer, members, genesis.header)
    for peer in peers:
        assert peer.process.stdin is not None
        peer.process.stdin.close()
    for peer in peers:
        assert await asyncio.wait_for(peer.process.wait(), 30) == 0


async def a_day(world: World, window: dict[str, int]) -> tuple[int, TestMeter]:
    """What works: settings, connections, meters, readings, money, a rate, a sale."""
    now = int(time.time())
    interval = now - now % 900
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("admin", "metering:Configure", {"interval_s": 900}),
        ("admin", "registry:Configure", {"interval_s": 900, "grid_fee_micro_per_kwh": 20_000}),
    ]
    for connection_id in ("CP-0001", "CP-0002"):
        connection = {
            "connection_id": connection_id,
            "utility": "AuroraMSP",
            "zone": "NORTH",
            "max_export_w": 10_000,
            "max_import_w": 20_000,
        }
        steps.append(("operator", "registry:RegisterConnection", connection))
    for member, function, argument in steps:
        assert await world.call(member, function, argument) is not None, function
    meter = TestMeter()
    registered = {
        "meter_id": meter.meter_id,
        "connection_id": "CP-0001",
        "utility": "AuroraMSP",
        "source_class": "declared",
        "public_key": meter.public_key,
    }
    assert await world.call("home", "metering:RegisterMeter", registered)
    readings = batch(*meter.day(interval - 130 * 900, 120), {"meter_id": "none"})
    answer = await world.call(
        "home", "metering:SubmitReadings", {"utility": "AuroraMSP"}, transient=readings
    )
    assert answer["accepted"] == "120"
    asked = {"meter_id": meter.meter_id, "from": interval - 130 * 900, "to": interval}
    assert len(await world.call("home", "metering:Readings", asked)) == 120
    for kind, price in (("buy", 81_000), ("sell", 301_000)):
        for day in (interval, interval + 86_400):
            rate = {
                "supplier": "AuroraMSP",
                "day": time.strftime("%Y-%m-%d", time.gmtime(day)),
                "kind": kind,
                "price_micro_per_kwh": price,
            }
            assert await world.call("supplier", "market:PublishRate", rate)
    for index in range(3):
        asked = {"connection_id": "CP-0001", "energy_wh": 1001 + index, **window}
        quoted = await world.call("home", "market:Quote", asked)
        agreed = {"request_id": f"r-{index}", "quote": quoted["quote"]}
        assert (await world.call("home", "market:Authorise", agreed))["status"] == "committed"
    deposit = {"account": "CP-0002", "amount_micro": 5_000_000, "bank_reference": "B-1"}
    assert await world.call("operator", "wallet:Deposit", deposit)
    for account in ("CP-0001", "CP-0002", "SUPPLIER-AURORA"):
        assert await world.call("operator", "wallet:Balance", {"account": account})
        assert await world.call("operator", "wallet:Statement", {"account": account, "limit": 2})
    return interval, meter


class Arguments:
    """Arguments of every function by its own schema: mostly plausible, some on a limit."""

    def __init__(self, seed: int, interval: int, meter: TestMeter, window: dict[str, int]) -> None:
        self._chance = random.Random(seed)
        day = time.strftime("%Y-%m-%d", time.gmtime(interval))
        connections = ("CP-0001", "CP-0002")
        self._known: dict[str, tuple[Any, ...]] = {
            "connection_id": (*connections, "CP-NEW"),
            "account": (*connections, "SUPPLIER-AURORA", "GRID-AURORA"),
            "payee": connections,
            "utility": ("AuroraMSP",),
            "supplier": ("AuroraMSP",),
            "meter_id": (meter.meter_id, "M-NONE"),
            "public_key": (meter.public_key,),
            "day": (day,),
            "zone": ("NORTH", "SOUTH"),
            "currency": ("EUR", "USD"),
            **{name: (instant,) for name, instant in window.items()},
            "interval_start": (interval + 7200, interval - 900),
            "from": (interval - 9000,),
            "to": (interval,),
            "at": (interval,),
            "effective_from": (interval + 86_400,),
            "energy_wh": (100, 1000),
            "price_micro_per_kwh": (81_000, 120_000),
            "amount_micro": (1_000, 1_000_000),
            "limit": (2, 100),
        }

    def of(self, function: Function) -> dict[str, Any]:
        return self._record(function.argument)

    def _record(self, record: Any) -> dict[str, Any]:
        found = {}
        for one in record.fields:
            if one.required or self._chance.random() < 0.5:
                found[one.json_name] = self._value(one.json_name, one.rule)
        return found

    def _value(self, name: str, rule: Any) -> Any:
        if name in self._known and self._chance.random() < 0.95:
            return self._chance.choice(self._known[name])
        if hasattr(rule, "fields"):
            return self._record(rule)
        if hasattr(rule, "item"):
            return [self._value(name, rule.item) for _ in range(self._chance.randint(0, 3))]
        if hasattr(rule, "rule"):
            return self._value(name, rule.rule)
        if hasattr(rule, "options"):
            return self._chance.choice(rule.options)
        if hasattr(rule, "minimum"):
            likely = min(max(self._chance.randint(0, 5), rule.minimum), rule.maximum)
            return self._chance.choice((likely, str(rule.minimum), str(rule.maximum)))
        if hasattr(rule, "pattern"):
            number = self._chance.randint(0, 3)
            digest = hashlib.sha256(str(number).encode()).hexdigest()
            return self._chance.choice((f"X-{number}", f"x{number}", digest, "Ωß"))
        return bool(self._chance.getrandbits(1))


async def test_every_function_on_peers_that_differ(world: World) -> None:
    for name in chaincodes():
        await world.define(name)
    window = dict(
        zip(("window_start", "window_end"), coming_window(1800, 3600, interval_s=900), strict=True)
    )
    interval, meter = await a_day(world, window)
    arguments = Arguments(1, interval, meter, window)
    functions = {
        name: function
        for chaincode in chaincodes().values()
        for name, function in chaincode.functions.items()
    }
    members = list(world.members)
    for at in range(ROUNDS):
        for index, (name, function) in enumerate(sorted(functions.items())):
            transient = batch(*meter.day(interval - 900, 1)) if "Submit" in name else None
            member = members[(index + at) % len(members)]
            await world.call(member, name, arguments.of(function), transient=transient)
    assert world.called == set(functions)
    assert world.compared > ROUNDS * len(functions)
    print(f"{world.compared} proposals; functions that succeeded: {sorted(world.succeeded)}")
