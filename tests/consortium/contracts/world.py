"""A channel in memory: callers, a clock, and calls that go through simulator and state."""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from consortium.chaincode import api
from consortium.chaincode.api import Creator
from consortium.chaincode.executor import Invocation, SimulatorContext, run_contract
from consortium.chaincode.simulator import SimulationResults, TransactionSimulator
from consortium.contracts import chaincodes
from consortium.wire import kvrwset_pb2, rwset_pb2
from tests.consortium.chaincode.memory_state import MemoryState

CHANNEL = "neighbourhood"
NOON = 1_795_262_400
"""2026-11-21T12:00:00Z."""


ADMIN = Creator("AuroraMSP", b"", "admin", "admin", {})
OPERATOR = Creator("AuroraMSP", b"", "olga", "client", {"gridledger.role": "operator"})
BOREAL_OPERATOR = Creator("BorealMSP", b"", "bo", "client", {"gridledger.role": "operator"})
SUPPLIER = Creator("AuroraMSP", b"", "sue", "client", {"gridledger.role": "supplier"})
BOREAL_SUPPLIER = Creator("BorealMSP", b"", "sid", "client", {"gridledger.role": "supplier"})


def home(connection_id: str, utility: str = "AuroraMSP") -> Creator:
    attributes = {"gridledger.role": "home", "gridledger.connection": connection_id}
    return Creator(utility, b"", f"home-{connection_id}", "client", attributes)


HOME = home("CP-0001")
OTHER_HOME = home("CP-0002")


@dataclass
class Answer:
    """What a call came to, before anything is committed."""

    value: Any
    results: SimulationResults
    event: tuple[str, Any] | None
    transaction_id: str


class _Context(SimulatorContext):
    """Calls other chaincodes of the channel there and then."""

    def call(self, chaincode: str, args: Sequence[bytes], channel: str = "") -> api.Answer:
        called = replace(self._invocation, chaincode=chaincode, args=list(args))
        context = _Context(called, self._simulator)
        response, _ = run_contract(chaincodes()[chaincode], context, args)
        return api.Answer(response.status, response.message, response.payload)


def _chaincode_of(function: str) -> str:
    for name, chaincode in chaincodes().items():
        if function in chaincode.functions:
            return name
    return "energy"


@dataclass
class World:
    """The channel's state and clock."""

    state: MemoryState = field(default_factory=MemoryState)
    now: int = NOON
    calls: int = 0

    def simulate(
        self,
        caller: Creator,
        function: str,
        argument: object = None,
        *,
        transient: Mapping[str, bytes] | None = None,
    ) -> Answer:
        name = _chaincode_of(function)
        self.calls += 1
        transaction_id = hashlib.sha256(f"{self.calls}".encode()).hexdigest()
        raw = argument if isinstance(argument, bytes) else json.dumps(argument or {}).encode()
        invocation = Invocation(
            name,
            CHANNEL,
            transaction_id,
            self.now,
            caller,
            [function.encode(), raw],
            transient or {},
        )
        simulator = TransactionSimulator(self.state, CHANNEL)
        context = _Context(invocation, simulator)
        payload = chaincodes()[name].invoke(context, invocation.args)
        event = context.event and (context.event[0], json.loads(context.event[1]))
        return Answer(json.loads(payload), simulator.results(), event, transaction_id)

    def evaluate(self, caller: Creator, function: str, **argument: object) -> Any:
        answer = self.simulate(caller, function, argument)
        assert not writes(answer.results), f"{function} is a query, but writes"
        return answer.value

    def submit(
        self,
        caller: Creator,
        function: str,
        *,
        transient: Mapping[str, bytes] | None = None,
        frozen: bool = False,
        **argument: object,
    ) -> Any:
        """Commit a call. Only what nobody can append to any more (`frozen`) is read as a range."""
        answer = self.simulate(caller, function, argument, transient=transient)
        assert frozen or not ranges(answer.results), f"{function} writes and reads a range"
        assert self.state.commit(answer.results) == [0]
        return answer.value

    def money(self) -> dict[str, int]:
        """Balances of all accounts, read from the state itself: postings, which must agree with
        what the accounts hold in shards, holds and entries."""
        postings: dict[str, int] = {}
        held: dict[str, int] = {}
        for (namespace, key), stored in self.state.public.items():
            if namespace != "energy" or not key.startswith("acct/"):
                continue
            account, part = re.fullmatch(
                r"acct/(ext/bank/[^/]+|[^/]+)/(avail|in|hold|ended|post|limit)(?:/.*)?", key
            ).groups()  # type: ignore[union-attr]
            record = json.loads(stored.value)
            if part == "limit" or record.get("state", "pending") != "pending":
                continue
            sums = postings if part == "post" else held
            sums[account] = sums.get(account, 0) + int(record["amount_micro"])
        assert {k: v for k, v in postings.items() if v} == {k: v for k, v in held.items() if v}
        return postings


def writes(results: SimulationResults) -> list[str]:
    """Public keys written, and private ones as `collection:key`."""
    written = []
    for namespace in rwset_pb2.TxReadWriteSet.FromString(results.rwset).ns_rwset:
        public = kvrwset_pb2.KVRWSet.FromString(namespace.rwset)
        written += [write.key for write in public.writes]
    for private in results.private.ns_pvt_rwset if results.private else ():
        for collection in private.collection_pvt_rwset:
            name = collection.collection_name
            keys = kvrwset_pb2.KVRWSet.FromString(collection.rwset).writes
            written += [f"{name}:{write.key}" for write in keys]
    return written


def ranges(results: SimulationResults) -> list[str]:
    """Where ranges of public keys that were read begin."""
    return [
        info.start_key
        for namespace in rwset_pb2.TxReadWriteSet.FromString(results.rwset).ns_rwset
        for info in kvrwset_pb2.KVRWSet.FromString(namespace.rwset).range_queries_info
    ]


def oversee(world: World, creator: Creator, kind: str, **terms: object) -> None:
    """Let two utilities agree that somebody oversees the channel, and the time come."""
    name = {"msp_id": creator.msp_id, "enrolment_id": creator.common_name}
    agreement = world.submit(
        OPERATOR,
        "oversight:ProposeOverseer",
        terms={**name, "kind": kind, **terms},
        effective_from=world.now + 1,
    )
    world.submit(BOREAL_OPERATOR, "oversight:ApproveOverseer", version=agreement["version"], **name)
    world.now += 1


def energy_world(**settings: object) -> World:
    """A channel with two connections of Aurora, ready to trade."""
    world = World()
    world.submit(ADMIN, "registry:Configure", **{"grid_fee_micro_per_kwh": 20_000, **settings})
    for connection_id in ("CP-0001", "CP-0002"):
        world.submit(
            OPERATOR,
            "registry:RegisterConnection",
            connection_id=connection_id,
            utility="AuroraMSP",
            zone="NORTH",
            max_export_w=10_000,
            max_import_w=20_000,
        )
    return world


class TestMeter:
    """A meter with its own key."""

    __test__ = False

    def __init__(self, meter_id: str = "M-0001") -> None:
        self.meter_id = meter_id
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.public_key = (
            self._key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )

    def sign(self, reading: dict[str, str], channel: str = CHANNEL) -> dict[str, str]:
        fields = {name: value for name, value in reading.items() if name != "signature"}
        message = json.dumps(
            {"channel": channel, **fields}, sort_keys=True, separators=(",", ":")
        ).encode()
        order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
        r, s = decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA256())))
        signature = encode_dss_signature(r, min(s, order - s))
        return {**fields, "signature": base64.b64encode(signature).decode()}

    def reading(
        self,
        interval_start: int,
        import_wh: int = 100,
        export_wh: int = 0,
        import_register_wh: int = 1_000_000,
        export_register_wh: int = 0,
        **other: str,
    ) -> dict[str, str]:
        salt = hmac.digest(b"secret", f"{self.meter_id}/{interval_start}/1".encode(), "sha256")
        return self.sign(
            {
                "meter_id": self.meter_id,
                "interval_start": str(interval_start),
                "interval_s": "900",
                "version": "1",
                "import_wh": str(import_wh),
                "export_wh": str(export_wh),
                "import_register_wh": str(import_register_wh),
                "export_register_wh": str(export_register_wh),
                "quality": "measured",
                "salt": salt.hex(),
                **other,
            }
        )

    def day(self, first: int, count: int = 96, register_wh: int = 500_000) -> list[dict[str, str]]:
        """Consistent readings of `count` intervals from `first` on."""
        readings = []
        for index in range(count):
            register_wh += 100 + index
            readings.append(
                self.reading(first + index * 900, 100 + index, import_register_wh=register_wh)
            )
        return readings


def batch(*readings: object) -> dict[str, bytes]:
    return {"readings": json.dumps({"readings": readings}).encode()}
