"""Getting private data that this peer should have and has not, block by block, in the background.

A peer that was down, that nobody could reach, or whose organization has joined a collection since,
has places on its ledger's missing list. They are asked of the collection's members in bounded
batches, and each one that arrives is a transaction of its own on the ledger, which checks it
against the block and lets values become state only while their hash is the current one. Nothing is
lost if it is interrupted: what is still missing is asked for again. (Rules: Fabric
gossip/privdata/reconcile.go.)
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from itertools import groupby

from consortium.ledger.mvcc import Space
from consortium.ledger.private_data import (
    IncompleteSetError,
    PrivateDataError,
    PrivatePlace,
)

from .channel import ChannelPeer
from .discovery import Member
from .private_exchange import MAX_DIGESTS, PrivateExchange

_LOGGER = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
BATCH = 200
"""Places looked at together."""


class Reconciler:
    """Reconciles one channel until it is stopped."""

    def __init__(self, channel: ChannelPeer, exchange: PrivateExchange) -> None:
        self._channel = channel
        self._exchange = exchange
        self._task: asyncio.Task[None] | None = None
        self._pause_s = FIRST_PAUSE_S

    def start(self) -> None:
        """Begin, inside a running loop."""
        self._task = asyncio.create_task(self._run(), name=f"reconcile {self._channel.channel_id}")

    async def stop(self) -> None:
        """End; a set that is being stored is stored."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                reconciled = await self.once()
            except Exception:
                # It is tried again: a disk may have room by then, and so on.
                _LOGGER.exception("reconciling the private data of %s", self._channel.channel_id)
                reconciled = 0
            # In vain: less and less often. Blocks that lack something start it anew.
            self._pause_s = (
                FIRST_PAUSE_S
                if reconciled
                else min(self._pause_s * 2, self._exchange.settings.reconcile_s)
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._channel.data_missing.wait(), self._pause_s)
                self._pause_s = FIRST_PAUSE_S
            self._channel.data_missing.clear()

    async def once(self) -> int:
        """Go through the missing list once; returns how many places were filled."""
        ledger = self._channel.ledger
        while await self._channel.in_commit_thread(ledger.make_eligible):
            pass
        filled = 0
        after: PrivatePlace | None = None
        while places := await asyncio.to_thread(ledger.missing_private, BATCH, after=after):
            after = places[-1]
            ordered = sorted(places, key=lambda place: (place.namespace, place.collection))
            for space, group in groupby(ordered, lambda p: (p.namespace, p.collection)):
                filled += await self._fill(space, list(group))
        if filled:
            _LOGGER.info("%d private write sets of %s arrived", filled, self._channel.channel_id)
        return filled

    async def _fill(self, space: Space, places: Sequence[PrivatePlace]) -> int:
        missing = dict.fromkeys(places)
        # Who belonged to the collection at the oldest of these blocks is asked too: members of
        # old may have what later ones never got.
        for member in await self._exchange.sources(self._channel, space, places[0].block):
            wanted = list(missing)
            for at in range(0, len(wanted), MAX_DIGESTS):
                answer = await self._exchange.ask(
                    self._channel, member, [(place, "") for place in wanted[at : at + MAX_DIGESTS]]
                )
                for place, sets in answer.items():
                    if sets and await self._store(member, place, sets[0]):
                        missing.pop(place, None)
            if not missing:
                break
        return len(places) - len(missing)

    async def _store(self, member: Member, place: PrivatePlace, data: bytes) -> bool:
        ledger = self._channel.ledger
        try:
            await self._channel.in_commit_thread(ledger.reconcile, place, data)
        except IncompleteSetError as error:
            _LOGGER.info("peer %s: %s", member.address, error)
            return False
        except PrivateDataError as error:
            _LOGGER.info("peer %s: %s", member.address, error)
            self._exchange.distrust(member, f"the private write set of {place}")
            return False
        return True
