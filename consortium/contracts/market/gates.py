"""Contract `gate`: times that have begun, so that what may happen only before can't happen after.

A transaction's time is its client's, and a client may keep an endorsed transaction and submit it
when it likes: a sale after the sun has shone, prices after the day. So what may only happen before
an instant reads the gate, one every five minutes, that ends the wait, and which nobody has written
yet. Once its time has come, any utility's agent writes it, and whatever has read it fails
validation by itself. What may only happen after an instant reads that gate as written.

What is left: peers endorse what is `SKEW_S` off their clocks at most, so a gate can be written that
much too early; and who is endorsed in time is in time until the next gate is written, that is for
five minutes and as long as agents take. Where nobody must lose by it, such as in revealing sealed
orders, `SKEW_S` is added. Books have gates of their own, to the second.

    gate/{instant}     that the time has begun
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
from ..common.settings import EnergySettings
from ..registry.registry import energy_settings

GATE_S = 300
"""Between two gates."""
SLOW_GATE_S = 3600
"""The same under a replay clock faster than five."""
WRITTEN_BACK_S = 86_400
"""So far back a call writes what is missing, when agents come back."""
FASTEST_RATE = 60
"""Of a replay clock on which agents still write gates: one a minute."""
SKEW_S = 900
"""How far from their own clocks a transaction's time may be for peers to endorse it."""


def _key(at: int) -> str:
    return f"gate/{at:012d}"


def length_s(channel: EnergySettings) -> int | None:
    """How long it is from gate to gate; None where none are written."""
    rate = 1 if channel.replay is None else channel.replay.rate
    if rate > FASTEST_RATE:
        return None
    return GATE_S if rate * 60 <= GATE_S else SLOW_GATE_S


def _after(until: int, length: int) -> int:
    """The first gate that is not before an instant."""
    return -(-until // length) * length


def before(context: Context, until: int) -> None:
    """Let this transaction be valid only if it is committed before `until`, or by the next gate.

    Besides the check of the transaction's time, which is the caller's.

    Raises:
        Conflict: the gate is written already.
    """
    gate = _after(until, length_s(energy_settings(context)) or SLOW_GATE_S)
    if context.get_state(_key(gate)) is not None:
        raise Conflict(
            f"this could happen until {utc_text(until)}, and the time from {utc_text(gate)} on has "
            "begun"
        )


def first_unwritten(context: Context, at: int) -> int:
    """The first gate from an instant on that isn't written: the present, whatever a clock says.

    Where no gates are written it is the instant itself.
    """
    length = length_s(energy_settings(context))
    if length is None:
        return at
    gate = _after(at, length)
    for _ in range(WRITTEN_BACK_S // length):
        if context.get_state(_key(gate)) is None:
            break
        gate += length
    return gate


def is_over(context: Context, instant: int) -> bool:
    """Whether an instant is over: its gate is written, or, where there are none, by the clock."""
    channel = energy_settings(context)
    length = length_s(channel)
    if length is None:
        return settings.now(context, channel) >= instant
    return context.get_state(_key(_after(instant, length))) is not None


class Gates(Contract):
    """Writing gates."""

    name: ClassVar[str] = "gate"

    @transaction
    def begin(self, context: Context, *, at: Instant) -> dict[str, Any]:
        """Say that a time has begun, and all of the day before it; again changes nothing."""
        access.require_member(context.creator, "write gates")
        channel = energy_settings(context)
        length = length_s(channel)
        if length is None or at % length:
            raise InvalidArgument(
                f"at is {at}, but must be a multiple of {length} s"
                if length is not None
                else f"at is {at}, but under a replay clock faster than {FASTEST_RATE} no gates "
                "are written"
            )
        now = settings.now(context, channel)
        if now < at:
            raise Conflict(
                f"the time from {utc_text(at)} on has not begun; the channel's time is "
                f"{utc_text(now)}"
            )
        first = max(0, at - WRITTEN_BACK_S + length)
        missing = [
            gate for gate in range(first, at + 1, length) if context.get_state(_key(gate)) is None
        ]
        for gate in missing:
            context.put_state(_key(gate), canonical_json({"begun": True}))
        return {"at": at, "written": len(missing)}

    @query
    def due(self, context: Context) -> list[dict[str, Any]]:
        """The call that writes the present gate, unless it is written."""
        channel = energy_settings(context)
        length = length_s(channel)
        if length is None:
            return []
        now = settings.now(context, channel)
        gate = now - now % length
        if context.get_state(_key(gate)) is not None:
            return []
        return [{"function": "gate:Begin", "argument": {"at": gate}}]
