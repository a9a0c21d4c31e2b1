"""gridledger.OrdererAdministration/Act: what an orderer's own administrators ask of it.

How its channels stand, handing leadership over, joining and leaving channels. A request is an
envelope signed by an admin of the orderer's own organization (and of nobody else: the other
utilities have no say over this machine); it names the organization and carries a timestamp, and
acts that change something are taken once.
"""

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import grpc

from consortium.identity.msp import IdentityError, check_not_expired, check_standing
from consortium.ledger.config_update import ConfigError
from consortium.wire import common_pb2, gridledger_pb2
from consortium.wire.envelopes import OpenedEnvelope, WireError, parse

from .admission import Refused, check_timestamp, opened

if TYPE_CHECKING:
    from .node import Orderer

type ServerContext = grpc.aio.ServicerContext[bytes, bytes]

REMEMBERED_REQUESTS = 10_000
"""Signatures of acts that were carried out, so that none is carried out twice."""


class JoinError(Exception):
    """The orderer cannot join or leave a channel; the message says why and what to do."""


class ChannelExistsError(JoinError):
    """The channel was joined already."""


class ChannelMissingError(JoinError):
    """There is no such channel here."""


class NotReadyError(JoinError):
    """This orderer only follows the channel."""


class AdministrationService:
    """Handler of Act. `administrators` of the node's settings decide who may ask."""

    def __init__(self, orderer: Orderer, threads: Executor) -> None:
        """`threads` check signatures."""
        self._orderer = orderer
        self._threads = threads
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    async def handle(self, raw: bytes, context: ServerContext) -> bytes:
        """Carry out one act."""
        try:
            envelope = opened(raw)
            await asyncio.get_running_loop().run_in_executor(self._threads, self._check, envelope)
            act = parse(gridledger_pb2.OrdererAct, envelope.payload.data, "the act")
            answer = await self._carry_out(act, envelope)
        except Refused as refused:
            code = (
                grpc.StatusCode.PERMISSION_DENIED
                if refused.status == common_pb2.FORBIDDEN
                else grpc.StatusCode.INVALID_ARGUMENT
            )
            await context.abort(code, refused.info)
        except ChannelExistsError as error:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, str(error))
        except ChannelMissingError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except (JoinError, WireError, ConfigError, ValueError) as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return answer.SerializeToString()

    def _check(self, envelope: OpenedEnvelope) -> None:
        """Check who asks; raises Refused."""
        msp = self._orderer.settings.administrators
        if msp is None:
            raise Refused(
                common_pb2.FORBIDDEN,
                "this orderer has no administrators; say in its settings whose it is",
            )
        check_timestamp(envelope, time.time())
        try:
            identity = msp.deserialize(envelope.signature_header.creator)
            msp.validate(identity)
            check_not_expired(identity, time.time())
        except IdentityError as error:
            raise Refused(common_pb2.FORBIDDEN, f"access denied: {error}") from None
        principal = common_pb2.MSPPrincipal(
            principal_classification=common_pb2.MSPPrincipal.ROLE,
            principal=common_pb2.MSPRole(
                msp_identifier=msp.id, role=common_pb2.MSPRole.ADMIN
            ).SerializeToString(),
        )
        if not msp.satisfies(identity, principal):
            raise Refused(
                common_pb2.FORBIDDEN,
                f"access denied: {identity.common_name} is no administrator of {msp.id}, which"
                " runs this orderer",
            )
        if not identity.verify(envelope.envelope.signature, envelope.envelope.payload):
            raise Refused(
                common_pb2.FORBIDDEN, "access denied: the signature is not the administrator's"
            )
        channels = [chain.config.msps for chain in list(self._orderer.channels.values())]
        try:
            check_standing(msp.id, envelope.signature_header.creator, channels)
        except IdentityError as error:
            raise Refused(common_pb2.FORBIDDEN, f"access denied: {error}") from None

    async def _carry_out(
        self, act: gridledger_pb2.OrdererAct, envelope: OpenedEnvelope
    ) -> gridledger_pb2.OrdererAnswer:
        msp = self._orderer.settings.administrators
        if msp is None or act.organization != msp.id:
            raise Refused(
                common_pb2.BAD_REQUEST, f"the act is meant for an orderer of {act.organization}"
            )
        kind = act.WhichOneof("act")
        if kind != "status":
            self._once(envelope.envelope.signature)
        if kind == "status":
            return self._answer(act.status.channel)
        if kind == "transfer":
            channel_id = act.transfer.channel
            chain = self._orderer.channels.get(channel_id)
            if chain is None:
                # For the sentence about the channel that is not there.
                self._orderer.channel_info(channel_id)
                raise ValueError(f"channel {channel_id} takes no part in ordering here")
            chain.transfer_leadership(act.transfer.to)
            return self._answer(channel_id)
        if kind == "join":
            block = parse(common_pb2.Block, act.join, "the configuration block")
            return self._answer((await self._orderer.join_channel(block)).name)
        if kind == "remove":
            await self._orderer.remove_channel(act.remove)
            return self._answer("")
        raise Refused(common_pb2.BAD_REQUEST, "the request names no act")

    def _once(self, signature: bytes) -> None:
        if signature in self._seen:
            raise Refused(common_pb2.BAD_REQUEST, "this request was carried out already; sign anew")
        self._seen[signature] = None
        while len(self._seen) > REMEMBERED_REQUESTS:
            self._seen.popitem(last=False)

    def _answer(self, channel_id: str) -> gridledger_pb2.OrdererAnswer:
        orderer = self._orderer
        infos = [orderer.channel_info(channel_id)] if channel_id else orderer.channel_infos()
        answer = gridledger_pb2.OrdererAnswer()
        for info in infos:
            found = answer.channels.add(
                name=info.name,
                height=info.height,
                status=info.status,
                consensus_relation=info.consensus_relation,
                problem=info.problem,
            )
            chain = orderer.channels.get(info.name)
            if chain is None:
                continue
            status = chain.status()
            found.raft_id = int(str(status.get("raft_id", 0)))
            found.role = str(status["role"])
            found.leader = int(str(status.get("leader", 0)))
            found.term = int(str(status.get("term", 0)))
            found.config_sequence = int(str(status["config_sequence"]))
            found.members.extend(chain.members())
        return answer
