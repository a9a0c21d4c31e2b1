"""Envelopes sent straight to the orderers, past every gateway.

An orderer looks at who signed an envelope, not at what it holds, so each of these is ordered. Every
peer then finds it invalid, with the code that Fabric's peers give, and no state changes. Some are
made with the help of one utility's own peer, which signs whatever it is asked to.
"""

import asyncio
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from consortium.identity.signing import Signer
from consortium.node.network import Utility
from consortium.wire import common_pb2, kvrwset_pb2, peer_pb2
from consortium.wire.envelopes import transaction_id
from gridledger_client import GatewayClient, SignedTransaction

from .conftest import RunningNetwork
from .forging import GARBAGE, HighS, Parts, high_s, impostor, member
from .tools import Ledgers, Wire

pytestmark = [pytest.mark.network]

ACCOUNT = "SUPPLIER-AURORA"
MILLION = b'{"amount_micro":"1000000000000","at":"0","counterparty":"x","kind":"deposit"}'
OTHER_ENDORSEMENTS = ("Boreal", "Cielo")


def deposit(reference: str | None = None, amount: int = 1000) -> dict[str, str]:
    return {
        "account": ACCOUNT,
        "amount_micro": str(amount),
        "bank_reference": reference or f"F-{uuid.uuid4().hex.upper()}",
    }


async def endorsed(
    client: GatewayClient, argument: dict[str, str] | None = None
) -> SignedTransaction:
    """An honest deposit with everybody's endorsement, not yet submitted."""
    return await client.endorse(
        client.prepare(
            "energy",
            "wallet:Deposit",
            argument or deposit(),
            endorsing_organizations=["AuroraMSP", "BorealMSP", "CieloMSP"],
        )
    )


# -- alterations: each takes an honest transaction apart and spoils one thing ------------------


def _write_more(public: kvrwset_pb2.KVRWSet) -> None:
    public.writes.add(key=f"acct/{ACCOUNT}/cr/{'0' * 64}/0", value=MILLION)


def _raise_amount(public: kvrwset_pb2.KVRWSet) -> None:
    for write in public.writes:
        write.value = write.value.replace(b'"1000"', b'"9000"')


def no_endorsement(parts: Parts) -> None:
    del parts.action.action.endorsements[:]


def one_endorsement(parts: Parts) -> None:
    del parts.action.action.endorsements[1:]


def one_endorsement_three_times(parts: Parts) -> None:
    first = parts.action.action.endorsements[0]
    del parts.action.action.endorsements[1:]
    parts.action.action.endorsements.extend([first, first])


def one_utility_with_two_peers(parts: Parts) -> None:
    parts.endorse(parts.peer("Aurora"), member(parts.network.utilities[0], "peer"))


def altered_write(parts: Parts) -> None:
    parts.edit(_raise_amount)


def added_write(parts: Parts) -> None:
    parts.edit(_write_more)


def dropped_read(parts: Parts) -> None:
    parts.edit(lambda public: public.ClearField("reads"))


def altered_event(parts: Parts) -> None:
    parts.chaincode_action.events = peer_pb2.ChaincodeEvent(
        chaincode_id="energy", tx_id=parts.channel_header.tx_id, event_name="trade", payload=b"{}"
    ).SerializeToString()


def altered_answer(parts: Parts) -> None:
    parts.chaincode_action.response.payload = b'{"amount_micro":"9000"}'


def altered_with_one_accomplice(parts: Parts) -> None:
    parts.edit(_raise_amount)
    honest = list(parts.action.action.endorsements)
    parts.endorse(parts.peer("Aurora"))
    parts.action.action.endorsements.extend(
        each for each in honest if each.endorser != parts.peer("Aurora").serialized
    )


def signatures_swapped(parts: Parts) -> None:
    first, second, third = parts.action.action.endorsements
    first.signature, second.signature, third.signature = (
        second.signature,
        third.signature,
        first.signature,
    )


def signatures_of_another_transaction(parts: Parts) -> None:
    for endorsement, name in zip(
        parts.action.action.endorsements, ("Aurora", "Boreal", "Cielo"), strict=True
    ):
        endorsement.signature = parts.peer(name).sign(os.urandom(32))


def high_s_endorsements(parts: Parts) -> None:
    for endorsement in parts.action.action.endorsements:
        endorsement.signature = high_s(endorsement.signature)


def endorsed_by_operators(parts: Parts) -> None:
    parts.endorse(*(utility.signer("operator") for utility in parts.network.utilities))


def endorsed_by_orderers(parts: Parts) -> None:
    parts.endorse(*(utility.signer("orderer") for utility in parts.network.utilities))


def endorsed_by_impostors(parts: Parts) -> None:
    parts.endorse(*(impostor(utility.msp_id, "peer") for utility in parts.network.utilities))


def endorsers_that_are_no_identities(parts: Parts) -> None:
    for endorsement in parts.action.action.endorsements:
        endorsement.endorser = GARBAGE


def another_utilitys_readings(parts: Parts) -> None:
    """Boreal and Cielo are enough for the contract; Aurora's collection asks for Aurora's peer."""
    name = "metering"
    parts.channel_header.extension = peer_pb2.ChaincodeHeaderExtension(
        chaincode_id=peer_pb2.ChaincodeID(name=name)
    ).SerializeToString()
    parts.chaincode_action.chaincode_id.name = name
    del parts.rwset.ns_rwset[:]
    hashed = kvrwset_pb2.HashedRWSet(
        hashed_writes=[kvrwset_pb2.KVWriteHash(key_hash=bytes(32), value_hash=bytes(32))]
    )
    parts.rwset.ns_rwset.add(namespace=name).collection_hashed_rwset.add(
        collection_name="readings-AuroraMSP",
        hashed_rwset=hashed.SerializeToString(),
        pvt_rwset_hash=bytes(32),
    )
    parts.rehash().endorse(parts.peer("Boreal"), parts.peer("Cielo"))


def definition_by_one_utility(parts: Parts) -> None:
    parts.edit(
        lambda public: public.writes.add(
            key="namespaces/fields/energy/Sequence", value=b"\x08\x09"
        ),
        "_lifecycle",
    )
    parts.endorse(parts.peer("Aurora"))


def another_id(parts: Parts) -> None:
    parts.channel_header.tx_id = "0" * 64
    parts.rehash().endorse(parts.peer("Boreal"), parts.peer("Cielo"))


def another_nonce(parts: Parts) -> None:
    parts.signature_header.nonce = os.urandom(24)


def no_id(parts: Parts) -> None:
    parts.channel_header.tx_id = ""


def another_author(parts: Parts) -> None:
    """Boreal's operator passes Aurora's deposit off as its own: the id is not of its creator."""
    parts.author = parts.network.utility("Boreal").signer("operator")
    parts.signature_header.creator = parts.author.serialized


def another_argument(parts: Parts) -> None:
    proposal = peer_pb2.ChaincodeProposalPayload.FromString(parts.action.chaincode_proposal_payload)
    proposal.input = proposal.input.replace(b'"1000"', b'"9000"')
    parts.action.chaincode_proposal_payload = proposal.SerializeToString()


def another_action_header(parts: Parts) -> None:
    header = common_pb2.SignatureHeader.FromString(parts.action_header)
    header.nonce = os.urandom(24)
    parts.action_header = header.SerializeToString()


def another_hash(parts: Parts) -> None:
    parts.response.proposal_hash = bytes(32)
    parts.endorse(parts.peer("Boreal"), parts.peer("Cielo"))


def later_timestamp(parts: Parts) -> None:
    parts.channel_header.timestamp.seconds += 60


def two_actions(parts: Parts) -> None:
    parts.extra_actions = 1


def no_transaction_inside(parts: Parts) -> None:
    parts.raw_data = GARBAGE


def no_action(parts: Parts) -> None:
    parts.raw_data = b""


def unknown_type(parts: Parts) -> None:
    parts.channel_header.type = common_pb2.MESSAGE


def later_epoch(parts: Parts) -> None:
    parts.channel_header.epoch = 7


def no_nonce(parts: Parts) -> None:
    parts.signature_header.nonce = b""


def stale_read(parts: Parts) -> None:
    """Two utilities vouch for having read what isn't there any more."""

    def change(public: kvrwset_pb2.KVRWSet) -> None:
        for read in public.reads:
            read.version.block_num += 1000
            read.version.tx_num = 3

    parts.edit(change)
    parts.endorse(parts.peer("Boreal"), parts.peer("Cielo"))


def phantom(parts: Parts) -> None:
    """Two utilities vouch for having found nothing where the contract's settings are."""

    def change(public: kvrwset_pb2.KVRWSet) -> None:
        public.range_queries_info.add(start_key="a", end_key="z", itr_exhausted=True)

    parts.edit(change)
    parts.endorse(parts.peer("Boreal"), parts.peer("Cielo"))


def undefined_contract(parts: Parts) -> None:
    parts.channel_header.extension = peer_pb2.ChaincodeHeaderExtension(
        chaincode_id=peer_pb2.ChaincodeID(name="nowhere")
    ).SerializeToString()
    parts.chaincode_action.chaincode_id.name = "nowhere"
    parts.rehash().endorse(*(parts.peer(name) for name in OTHER_ENDORSEMENTS))


def write_into_undefined_namespace(parts: Parts) -> None:
    parts.edit(lambda public: public.writes.add(key="k", value=b"v"), "nowhere")
    parts.endorse(*(parts.peer(name) for name in OTHER_ENDORSEMENTS))


def header_names_another_contract(parts: Parts) -> None:
    parts.channel_header.extension = peer_pb2.ChaincodeHeaderExtension(
        chaincode_id=peer_pb2.ChaincodeID(name="metering")
    ).SerializeToString()
    parts.rehash().endorse(*(parts.peer(name) for name in OTHER_ENDORSEMENTS))


def no_contract_version(parts: Parts) -> None:
    parts.chaincode_action.chaincode_id.version = ""
    parts.endorse(*(parts.peer(name) for name in OTHER_ENDORSEMENTS))


def unreadable_extension(parts: Parts) -> None:
    parts.channel_header.extension = GARBAGE
    parts.rehash().endorse(*(parts.peer(name) for name in OTHER_ENDORSEMENTS))


def unreadable_response(parts: Parts) -> None:
    parts.raw_extension = GARBAGE
    parts.endorse(*(parts.peer(name) for name in OTHER_ENDORSEMENTS))


def unreadable_results(parts: Parts) -> None:
    parts.raw_results = GARBAGE
    parts.endorse(*(parts.peer(name) for name in OTHER_ENDORSEMENTS))


def namespace_twice(parts: Parts) -> None:
    parts.rwset.ns_rwset.append(parts.rwset.ns_rwset[-1])
    parts.endorse(*(parts.peer(name) for name in OTHER_ENDORSEMENTS))


def no_contract_in_extension(parts: Parts) -> None:
    parts.channel_header.extension = b""
    parts.rehash().endorse(*(parts.peer(name) for name in OTHER_ENDORSEMENTS))


def event_of_another_contract(parts: Parts) -> None:
    parts.chaincode_action.events = peer_pb2.ChaincodeEvent(
        chaincode_id="metering", tx_id=parts.channel_header.tx_id, event_name="readings"
    ).SerializeToString()
    parts.endorse(*(parts.peer(name) for name in OTHER_ENDORSEMENTS))


ALTERATIONS: dict[str, tuple[Callable[[Parts], None], ...]] = {
    "BAD_COMMON_HEADER": (unknown_type, later_epoch, no_nonce),
    "INVALID_ENDORSER_TRANSACTION": (
        another_argument,
        another_action_header,
        another_hash,
        later_timestamp,
        two_actions,
        no_transaction_inside,
        no_action,
    ),
    "BAD_PROPOSAL_TXID": (another_id, another_nonce, no_id, another_author),
    "ENDORSEMENT_POLICY_FAILURE": (
        no_endorsement,
        one_endorsement,
        one_endorsement_three_times,
        one_utility_with_two_peers,
        altered_write,
        added_write,
        dropped_read,
        altered_event,
        altered_answer,
        altered_with_one_accomplice,
        signatures_swapped,
        signatures_of_another_transaction,
        high_s_endorsements,
        endorsed_by_operators,
        endorsed_by_orderers,
        endorsed_by_impostors,
        endorsers_that_are_no_identities,
        another_utilitys_readings,
        definition_by_one_utility,
    ),
    "MVCC_READ_CONFLICT": (stale_read,),
    "PHANTOM_READ_CONFLICT": (phantom,),
    "BAD_HEADER_EXTENSION": (unreadable_extension,),
    "BAD_RESPONSE_PAYLOAD": (unreadable_response,),
    "BAD_RWSET": (unreadable_results,),
    "ILLEGAL_WRITESET": (namespace_twice,),
    "INVALID_CHAINCODE": (
        undefined_contract,
        write_into_undefined_namespace,
        header_names_another_contract,
        no_contract_version,
    ),
    "INVALID_OTHER_REASON": (no_contract_in_extension, event_of_another_contract),
}


@dataclass
class Channel:
    """The running network as these tests see it."""

    running: RunningNetwork
    operator: GatewayClient
    author: Signer
    wire: Wire
    ledgers: Ledgers

    @property
    def utilities(self) -> tuple[Utility, ...]:
        return self.running.network.utilities

    async def parts(self, argument: dict[str, str] | None = None) -> Parts:
        signed = await endorsed(self.operator, argument)
        return Parts.of(self.running.network, self.author, signed.envelope)

    async def balance(self) -> int:
        answer = await self.operator.evaluate("energy", "wallet:Balance", {"account": ACCOUNT})
        return int(answer["balance_micro"])

    async def order(self, utility: Utility, envelope: common_pb2.Envelope) -> None:
        (answer,) = await self.wire.broadcast(utility, envelope)
        assert answer.status == common_pb2.SUCCESS, answer

    async def expect(
        self,
        envelope: common_pb2.Envelope,
        code: str,
        start: int,
        *,
        occurrence: int = 0,
        alone: bool = True,
    ) -> None:
        """Every peer committed these bytes as invalid with this code and without a change."""
        raw = envelope.SerializeToString()
        found = [
            await self.ledgers.find(utility.msp_id, raw, start, occurrence)
            for utility in self.utilities
        ]
        assert [peer_pb2.TxValidationCode.Name(each.code) for each in found] == [code] * 3
        assert len({(each.block, each.index) for each in found}) == 1
        if alone:
            assert not any(each.changed_state for each in found)


@pytest.fixture
async def channel(
    running: RunningNetwork, operator: GatewayClient, wire: Wire, ledgers: Ledgers
) -> Channel:
    return Channel(
        running, operator, running.network.utilities[0].signer("operator"), wire, ledgers
    )


@pytest.mark.parametrize(
    ("code", "alter"),
    [
        pytest.param(code, alter, id=f"{alter.__name__}-{code}")
        for code, alterations in ALTERATIONS.items()
        for alter in alterations
    ],
)
async def test_a_forged_transaction_commits_as_invalid_everywhere(
    channel: Channel, code: str, alter: Callable[[Parts], None]
) -> None:
    """One forgery to each of the three orderers, looked up at each of the three peers."""
    start = (await channel.ledgers.settled()).height
    balance = await channel.balance()
    forged = []
    for _ in channel.utilities:
        parts = await channel.parts()
        alter(parts)
        forged.append((parts.channel_header.tx_id, parts.envelope()))
    await asyncio.gather(
        *(
            channel.order(utility, envelope)
            for utility, (_, envelope) in zip(channel.utilities, forged, strict=True)
        )
    )
    for tx_id, envelope in forged:
        await channel.expect(envelope, code, start)
        if tx_id in ("", "0" * 64):
            continue  # two of the forgeries have no id of their own
        for utility in channel.utilities:
            stored = await channel.ledgers.transaction(utility.msp_id, tx_id)
            assert stored.transactionEnvelope == envelope
            assert peer_pb2.TxValidationCode.Name(stored.validationCode) == code
        status = await channel.operator.commit_status(tx_id, timeout_s=60)
        assert (status.code, status.valid) == (code, False)
    assert await channel.balance() == balance
    await channel.ledgers.settled()


async def test_the_honest_transaction_put_together_again_is_valid(channel: Channel) -> None:
    """What the forgeries start from would be accepted: it is the alteration that is refused."""
    start = (await channel.ledgers.settled()).height
    balance = await channel.balance()
    honest = [(await channel.parts()).envelope() for _ in channel.utilities]
    await asyncio.gather(
        *(
            channel.order(utility, envelope)
            for utility, envelope in zip(channel.utilities, honest, strict=True)
        )
    )
    for envelope in honest:
        await channel.expect(envelope, "VALID", start, alone=False)
    assert await channel.balance() == balance + 3000


async def test_a_transaction_id_counts_once(channel: Channel) -> None:
    """The same envelope again, through every orderer: the first stands, the others are 9."""
    start = (await channel.ledgers.settled()).height
    balance = await channel.balance()
    signed = await endorsed(channel.operator)
    envelope = common_pb2.Envelope.FromString(signed.envelope)
    await channel.operator.submit_signed(signed)
    assert (await channel.operator.commit_status(signed.transaction_id)).valid
    for utility in channel.utilities:
        await channel.order(utility, envelope)
    await channel.expect(envelope, "VALID", start, alone=False)
    for occurrence in (1, 2, 3):
        await channel.expect(envelope, "DUPLICATE_TXID", start, occurrence=occurrence)
    assert await channel.balance() == balance + 1000
    for utility in channel.utilities:
        stored = await channel.ledgers.transaction(utility.msp_id, signed.transaction_id)
        assert stored.validationCode == peer_pb2.VALID
    assert (await channel.operator.commit_status(signed.transaction_id)).valid


async def test_an_id_twice_in_one_block(channel: Channel) -> None:
    """Two copies on one stream, cut into one block: the second is a duplicate."""
    start = (await channel.ledgers.settled()).height
    balance = await channel.balance()
    envelope = (await channel.parts()).envelope()
    answers = await channel.wire.broadcast(channel.utilities[1], envelope, envelope)
    assert [answer.status for answer in answers] == [common_pb2.SUCCESS] * 2
    await channel.expect(envelope, "VALID", start, alone=False)
    await channel.expect(envelope, "DUPLICATE_TXID", start, occurrence=1, alone=False)
    assert await channel.balance() == balance + 1000


async def test_the_second_of_two_that_read_the_same_is_stale(channel: Channel) -> None:
    """Two honest deposits of one bank reference, endorsed at the same time: one counts."""
    start = (await channel.ledgers.settled()).height
    balance = await channel.balance()
    argument = deposit()
    first, second = [(await channel.parts(argument)).envelope() for _ in range(2)]
    await channel.order(channel.utilities[0], first)
    await channel.order(channel.utilities[2], second)
    await channel.expect(first, "VALID", start, alone=False)
    await channel.expect(second, "MVCC_READ_CONFLICT", start, alone=False)
    assert await channel.balance() == balance + 1000


# -- what an orderer itself refuses ------------------------------------------------------------


def _signed_by_another(parts: Parts) -> common_pb2.Envelope:
    return parts.envelope(parts.network.utility("Boreal").signer("operator"))


def _high_s(parts: Parts) -> common_pb2.Envelope:
    return parts.envelope(HighS(parts.author))


def _unsigned(parts: Parts) -> common_pb2.Envelope:
    envelope = parts.envelope()
    envelope.ClearField("signature")
    return envelope


def _altered_after_signing(parts: Parts) -> common_pb2.Envelope:
    envelope = parts.envelope()
    parts.edit(_raise_amount)
    return common_pb2.Envelope(payload=parts.payload(), signature=envelope.signature)


def _by(author: Signer, parts: Parts) -> common_pb2.Envelope:
    parts.author = author
    parts.signature_header.creator = author.serialized
    parts.channel_header.tx_id = transaction_id(parts.signature_header.nonce, author.serialized)
    return parts.envelope()


def _impostor(parts: Parts) -> common_pb2.Envelope:
    return _by(impostor("AuroraMSP"), parts)


def _stranger(parts: Parts) -> common_pb2.Envelope:
    return _by(impostor("DeltaMSP"), parts)


def _expired(parts: Parts) -> common_pb2.Envelope:
    return _by(member(parts.network.utilities[0], valid_days=0), parts)


def _another_channel(parts: Parts) -> common_pb2.Envelope:
    parts.channel_header.channel_id = "elsewhere"
    return parts.envelope()


def _config(parts: Parts) -> common_pb2.Envelope:
    parts.channel_header.type = common_pb2.CONFIG
    return parts.envelope()


def _config_update(parts: Parts) -> common_pb2.Envelope:
    parts.channel_header.type = common_pb2.CONFIG_UPDATE
    return parts.envelope()


def _no_payload(_parts: Parts) -> common_pb2.Envelope:
    return common_pb2.Envelope(signature=b"x")


def _oversize(parts: Parts) -> common_pb2.Envelope:
    parts.edit(lambda public: public.writes.add(key="k", value=bytes(10 * 1024 * 1024)))
    return parts.envelope()


REFUSED: dict[str, tuple[tuple[Callable[[Parts], common_pb2.Envelope], str], ...]] = {
    "FORBIDDEN": (
        (_signed_by_another, "signature"),
        (_high_s, "low S"),
        (_unsigned, "signature"),
        (_altered_after_signing, "signature"),
        (_impostor, "access denied"),
        (_stranger, "DeltaMSP"),
    ),
    "BAD_REQUEST": (
        (_expired, "expired"),
        (_config, "CONFIG_UPDATE"),
        (_config_update, ""),
        (_no_payload, "no payload"),
        (_oversize, "AbsoluteMaxBytes"),
    ),
    "NOT_FOUND": ((_another_channel, "elsewhere"),),
}


@pytest.mark.parametrize(
    ("status", "make", "said"),
    [
        pytest.param(status, make, said, id=f"{make.__name__[1:]}-{status}")
        for status, cases in REFUSED.items()
        for make, said in cases
    ],
)
async def test_an_orderer_refuses(
    channel: Channel, status: str, make: Callable[[Parts], common_pb2.Envelope], said: str
) -> None:
    """Every orderer says no with a status and a sentence, ends the stream, and goes on serving."""
    before = await channel.ledgers.settled()
    for utility in channel.utilities:
        (answer,) = await channel.wire.broadcast(utility, make(await channel.parts()))
        assert common_pb2.Status.Name(answer.status) == status, answer
        assert said in answer.info
        assert len(answer.info) > 20, f"not a sentence: {answer.info}"
    assert await channel.ledgers.settled() == before
    good = (await channel.parts()).envelope()
    await channel.order(channel.utilities[0], good)
    for utility in channel.utilities:
        await channel.ledgers.find(utility.msp_id, good.SerializeToString(), before.height)
