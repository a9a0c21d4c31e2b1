"""Contract `gate`: hours that have begun, so that what may happen only before can't happen after.

A transaction's time is its client's, and a client may keep an endorsed transaction and submit it
when it likes: a sale after the sun has shone, prices after the day. So what may only happen before
an instant reads the gate of the hour that ends the wait, which nobody has written yet. Once that
hour has begun, any utility's agent writes it, and whatever has read it fails validation by itself.

Whoever is endorsed in time and submitted within the hour, or before an agent writes the gate, is
in time. Books have gates of their own, to the second.

    gate/{hour}     that the hour has begun
"""

from typing import Any, ClassVar

from consortium.chaincode.api import (
    Conflict,
    Context,
    Contract,
    Instant,
    InvalidArgument,
    canonical_json,
    query,
    transaction,
)

from ..common import access, settings
from ..common.clock import utc_text
from ..registry.registry import energy_settings

HOUR_S = 3600
WRITTEN_AT_ONCE = 24
"""Hours whose gates a call writes: as many as may be missing when agents come back."""
FASTEST_RATE = 60
"""Of a replay clock on which agents still write gates: one a minute."""


def _key(hour: int) -> str:
    return f"gate/{hour:012d}"


def before(context: Context, until: int) -> None:
    """Let this transaction be valid only if it is committed before `until`, within the hour.

    Besides the check of the transaction's time, which is the caller's.

    Raises:
        Conflict: the gate is written already.
    """
    hour = -(-until // HOUR_S) * HOUR_S
    if context.get_state(_key(hour)) is not None:
        raise Conflict(
            f"this could happen until {utc_text(until)}, and the hour from {utc_text(hour)} on has "
            "begun"
        )


class Gates(Contract):
    """Writing gates."""

    name: ClassVar[str] = "gate"

    @transaction
    def begin(self, context: Context, *, at: Instant) -> dict[str, Any]:
        """Say that an hour has begun, and those of the day before it; again changes nothing."""
        access.require(
            access.is_operator(context.creator, context.creator.msp_id),
            context.creator,
            "write gates",
            "operators of any utility",
        )
        if at % HOUR_S:
            raise InvalidArgument(f"at is {at}, but must be the beginning of an hour")
        now = settings.now(context, energy_settings(context))
        if now < at:
            raise Conflict(
                f"the hour from {utc_text(at)} on has not begun; the channel's time is "
                f"{utc_text(now)}"
            )
        first = max(0, at - (WRITTEN_AT_ONCE - 1) * HOUR_S)
        missing = [
            hour for hour in range(first, at + 1, HOUR_S) if context.get_state(_key(hour)) is None
        ]
        for hour in missing:
            context.put_state(_key(hour), canonical_json({"begun": True}))
        return {"at": at, "written": len(missing)}

    @query
    def due(self, context: Context) -> list[dict[str, Any]]:
        """The call that writes the present hour's gate, unless it is written."""
        channel = energy_settings(context)
        if channel.replay is not None and channel.replay.rate > FASTEST_RATE:
            return []
        now = settings.now(context, channel)
        hour = now - now % HOUR_S
        if context.get_state(_key(hour)) is not None:
            return []
        return [{"function": "gate:Begin", "argument": {"at": hour}}]
