"""Contract `feeder`, of chaincode `metering`: sums of homes behind a transformer, from registers.

Private computations of one utility; what they come to stands in its collection, and the channel
has the commitment. Answers of transactions are public, so they say nothing of the amounts: the
records are read with feeder:Share and feeder:Delivered on the utility's own peer, and those that
may be published are shown to `balance:Report` and `balance:Close`.

A period ends when the transformer's own meter was read, whenever that is: a missing reading there
is a quarter hour of all homes, as large as a theft. A home that was not read just then counts up to
its last reading before; what came later counts in the next period, so nothing is guessed, nothing
counted twice and nothing lost. (Measured: docs/benchmarks.md.)
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    MspId,
    NotFound,
    query,
    transaction,
)

from ..common import access, settings
from ..common.clock import utc_text
from ..common.commitments import Salt, called, opened, put, salt
from ..common.settings import MeteringSettings
from ..meters.meters import Meter, meters_of
from ..meters.readings import Store
from .losses import Suspect, suspects
from .sums import (
    MAX_HOMES,
    MAX_PERIOD_S,
    MIN_PERIOD_S,
    Delivered,
    Homes,
    NetEnergy,
    Share,
    delivered_key,
    hides_each,
    lines_key,
    share_key,
)

MAX_LATE_INTERVALS = 16
"""A home that was not read for so long before a period's end can't be balanced then."""
MAX_DAYS = 60
_Energy = Annotated[int, Integer(0, 10**15, "Wh")]


@dataclass(frozen=True, slots=True)
class Line:
    """One meter's part of a sum."""

    connection_id: Identifier
    meter_id: Identifier
    read_at: Instant
    import_register_wh: _Energy
    export_register_wh: _Energy
    import_wh: _Energy
    """In the period."""
    export_wh: _Energy


@dataclass(frozen=True, slots=True)
class Lines:
    """What a sum was made of."""

    node_id: Identifier
    utility: MspId
    from_: Instant
    to: Instant
    lines: Annotated[tuple[Line, ...], AtMost(4 * MAX_HOMES)]
    salt: Salt


@dataclass(frozen=True, slots=True)
class _Homes:
    connections: Annotated[tuple[Identifier, ...], AtMost(MAX_HOMES)]


@dataclass(frozen=True, slots=True)
class Basis:
    """The periods that an alert was raised from, as `balance:Basis` answers."""

    ends: Annotated[tuple[Instant, ...], AtMost(MAX_DAYS)]
    """Of the periods, in order."""
    since: Homes
    """Which of them is the first with the loss."""
    loss_wh: NetEnergy
    """On all from then on."""


@dataclass(frozen=True, slots=True)
class _Registers:
    read_at: int
    import_wh: int
    export_wh: int
    salt: str


class _Registry:
    """Registers of meters at instants."""

    def __init__(self, context: Context, utility: str, interval_s: int) -> None:
        self._store = Store(context, utility)
        self._interval_s = interval_s

    def exactly(self, meter_id: str, at: int) -> _Registers | None:
        """As read at an instant: on its own, or with the interval that ends then."""
        alone = self._store.register(meter_id, at)
        if alone is not None:
            return _Registers(at, alone.import_register_wh, alone.export_register_wh, alone.salt)
        if at % self._interval_s or at < self._interval_s:
            return None
        reading = self._store.latest(meter_id, at - self._interval_s)
        if reading is None:
            return None
        return _Registers(at, reading.import_register_wh, reading.export_register_wh, reading.salt)

    def last(self, meter_id: str, at: int) -> _Registers | None:
        """The last before an instant, if it is not too long ago."""
        for back in range(MAX_LATE_INTERVALS + 1):
            found = self.exactly(meter_id, at - back * self._interval_s)
            if found is not None:
                return found
        return None

    def net_wh(self, meter_id: str, interval_start: int) -> int | None:
        """Import less export of an interval."""
        reading = self._store.latest(meter_id, interval_start)
        return None if reading is None else reading.import_wh - reading.export_wh


def _checked_period(context: Context, from_: int, to: int) -> int:
    """The channel's interval; raises InvalidArgument."""
    channel = settings.read(context, MeteringSettings, "metering:Configure")
    for name, instant in (("from", from_), ("to", to)):
        if instant % channel.interval_s:
            raise InvalidArgument(
                f"{name} is {instant}, but must be a multiple of the channel's interval of "
                f"{channel.interval_s} s"
            )
    if not MIN_PERIOD_S <= to - from_ <= MAX_PERIOD_S:
        raise InvalidArgument(
            f"to is {utc_text(to)}, but must be {MIN_PERIOD_S} to {MAX_PERIOD_S} s after from, "
            f"{utc_text(from_)}: sums are of a day or longer"
        )
    now = settings.now(context, channel)
    if to > now:
        raise InvalidArgument(
            f"to is {utc_text(to)}, but the channel's time is {utc_text(now)}: the period is not "
            "over yet"
        )
    return channel.interval_s


def _hung(context: Context, place: str, utility: str, from_: int, to: int) -> list[Meter]:
    """The utility's accredited meters that hung at a place in some part of a period."""
    return [
        meter
        for meter in meters_of(context, place)
        if meter.utility == utility
        and meter.purpose == "exchange"
        and meter.installed_at < to
        and (meter.removed_at is None or meter.removed_at > from_)
    ]


class Feeders(Contract):
    """Sums of homes behind transformers."""

    name: ClassVar[str] = "feeder"

    @transaction
    def sum_homes(
        self,
        context: Context,
        *,
        node_id: Identifier,
        utility: MspId,
        from_: Instant,
        to: Instant,
    ) -> dict[str, Any]:
        """Sum a utility's homes behind a node over a period, in private."""
        access.require_operator(context.creator, utility, f"sum the homes of {utility}")
        interval_s = _checked_period(context, from_, to)
        key = share_key(node_id, to)
        known = opened(context, utility, key, Share)
        if known is not None:
            # The same bytes again: a transaction without a private write would not fall under
            # the collection's policy, which the utility alone satisfies.
            return self._answer(known, put(context, utility, key, known))
        connections = called(
            context, "energy", "balance:Homes", _Homes, node_id=node_id, utility=utility, at=from_
        ).connections
        if not connections:
            raise Conflict(
                f"{utility} meters no homes behind {node_id} at {utc_text(from_)}; see grid:Connect"
            )
        lines, secrets = self._lines(context, node_id, utility, connections, from_, to, interval_s)
        nets: dict[str, int] = {}
        late: dict[str, bool] = {}
        for line in lines:
            nets[line.connection_id] = (
                nets.get(line.connection_id, 0) + line.import_wh - line.export_wh
            )
            if line.read_at < to:
                late[line.meter_id] = True
        ended = {
            meter.meter_id: True
            for place in connections
            for meter in _hung(context, place, utility, from_, to)
            if meter.removed_at is not None and meter.removed_at <= to
        }
        record_key = lines_key(node_id, to)
        record = Lines(
            node_id, utility, from_, to, tuple(lines), salt(context, record_key, secrets)
        )
        commitment = put(context, utility, record_key, record)
        share = Share(
            node_id,
            utility,
            from_,
            to,
            sum(nets.values()),
            len(nets),
            sum(meter_id not in ended for meter_id in late),
            hides_each(list(nets.values())),
            commitment,
            salt(context, key, [record.salt]),
        )
        return self._answer(share, put(context, utility, key, share))

    @staticmethod
    def _answer(share: Share, commitment: str) -> dict[str, Any]:
        """What everybody may know of a sum."""
        return {
            "node_id": share.node_id,
            "utility": share.utility,
            "from": share.from_,
            "to": share.to,
            "homes": share.homes,
            "public": share.public,
            "commitment": commitment,
        }

    def _lines(
        self,
        context: Context,
        node_id: str,
        utility: str,
        connections: tuple[str, ...],
        from_: int,
        to: int,
        interval_s: int,
    ) -> tuple[list[Line], list[str]]:
        """The meters' parts, and the salts of what they were read from."""
        before = opened(context, utility, lines_key(node_id, from_), Lines)
        ended = {line.meter_id: line for line in before.lines} if before else {}
        registers = _Registry(context, utility, interval_s)
        lines: list[Line] = []
        secrets = [before.salt] if before else []
        missing: list[str] = []
        for place in connections:
            hung = _hung(context, place, utility, from_, to)
            if not hung:
                missing.append(f"{place} (no accredited meter)")
            for meter in hung:
                line = self._line(meter, ended.get(meter.meter_id), registers, from_, to, secrets)
                if line is None:
                    missing.append(f"{place} (meter {meter.meter_id})")
                else:
                    lines.append(line)
        if missing:
            raise Conflict(
                f"{len(missing)} of {len(connections)} homes were not read at {utc_text(from_)} "
                f"and {utc_text(to)} or within {MAX_LATE_INTERVALS} intervals before: "
                f"{', '.join(missing[:20])}; submit their readings, or end the period later"
            )
        return lines, secrets

    @staticmethod
    def _line(
        meter: Meter,
        ended: Line | None,
        registers: _Registry,
        from_: int,
        to: int,
        secrets: list[str],
    ) -> Line | None:
        if ended is not None:
            begin_import, begin_export = ended.import_register_wh, ended.export_register_wh
        else:
            installed = meter.installed_at > from_
            begin = (
                registers.exactly(meter.meter_id, meter.installed_at)
                if installed
                else registers.last(meter.meter_id, from_)
            )
            if begin is None:
                return None
            begin_import, begin_export = begin.import_wh, begin.export_wh
            secrets.append(begin.salt)
        if meter.removed_at is not None and meter.removed_at <= to:
            end = registers.exactly(meter.meter_id, meter.removed_at)
        else:
            end = registers.last(meter.meter_id, to)
        if end is None:
            return None
        secrets.append(end.salt)
        imported = meter.risen_wh(begin_import, end.import_wh)
        exported = meter.risen_wh(begin_export, end.export_wh)
        if imported < 0 or exported < 0:
            raise Conflict(
                f"a register of meter {meter.meter_id} is lower at {utc_text(to)} than at "
                f"{utc_text(from_)}; registers only rise"
            )
        return Line(
            meter.connection_id,
            meter.meter_id,
            end.read_at,
            end.import_wh,
            end.export_wh,
            imported,
            exported,
        )

    @transaction
    def measure(
        self,
        context: Context,
        *,
        node_id: Identifier,
        utility: MspId,
        from_: Instant,
        to: Instant,
    ) -> dict[str, Any]:
        """Note what a node's own meters delivered over a period, in private."""
        access.require_operator(context.creator, utility, f"measure nodes of {utility}")
        interval_s = _checked_period(context, from_, to)
        key = delivered_key(node_id, to)
        record = opened(context, utility, key, Delivered)
        if record is None:
            record = self._delivered(context, node_id, utility, from_, to, interval_s)
        return {
            "node_id": node_id,
            "utility": utility,
            "from": record.from_,
            "to": record.to,
            "commitment": put(context, utility, key, record),
        }

    @staticmethod
    def _delivered(
        context: Context, node_id: str, utility: str, from_: int, to: int, interval_s: int
    ) -> Delivered:
        hung = _hung(context, node_id, utility, from_, to)
        if not hung:
            raise NotFound(
                f"no accredited meter of {utility} hangs at {node_id}; its operator calls "
                f"metering:RegisterMeter with connection_id {node_id}"
            )
        registers = _Registry(context, utility, interval_s)
        secrets: list[str] = []
        net = 0
        for meter in hung:
            first, last = max(from_, meter.installed_at), min(to, meter.removed_at or to)
            begin = registers.exactly(meter.meter_id, first)
            end = registers.exactly(meter.meter_id, last)
            for instant, found in ((first, begin), (last, end)):
                if found is None:
                    raise Conflict(
                        f"meter {meter.meter_id} of {node_id} was not read at {utc_text(instant)};"
                        " a period begins and ends when the node's own meters were read"
                    )
            assert begin is not None
            assert end is not None
            secrets += [begin.salt, end.salt]
            net += meter.risen_wh(begin.import_wh, end.import_wh)
            net -= meter.risen_wh(begin.export_wh, end.export_wh)
        square = known = missing = 0
        for start in range(from_, to, interval_s):
            energies = [registers.net_wh(meter.meter_id, start) for meter in hung]
            whole = [energy for energy in energies if energy is not None]
            if not whole:
                missing += 1
                continue
            known += sum(whole)
            square += sum(whole) ** 2
        if missing:  # what the missing intervals carried, spread evenly: for the square alone
            square += (net - known) ** 2 // missing
        key = delivered_key(node_id, to)
        return Delivered(node_id, utility, from_, to, net, square, salt(context, key, secrets))

    @query
    def share(self, context: Context, *, node_id: Identifier, utility: MspId, to: Instant) -> Share:
        """A utility's sum, to be shown to balance:Report if it is public."""
        access.require_operator(context.creator, utility, f"read sums of {utility}")
        return self._opened(context, utility, share_key(node_id, to), Share)

    @query
    def lines(self, context: Context, *, node_id: Identifier, utility: MspId, to: Instant) -> Lines:
        """The registers that a utility's sum was made of."""
        access.require_operator(context.creator, utility, f"read sums of {utility}")
        return self._opened(context, utility, lines_key(node_id, to), Lines)

    @query
    def delivered(
        self, context: Context, *, node_id: Identifier, utility: MspId, to: Instant
    ) -> Delivered:
        """What a node's own meters delivered, to be shown to balance:Close."""
        access.require_operator(context.creator, utility, f"read sums of {utility}")
        return self._opened(context, utility, delivered_key(node_id, to), Delivered)

    @staticmethod
    def _opened[R](context: Context, utility: str, key: str, record: type[R]) -> R:
        found = opened(context, utility, key, record)
        if found is None:
            raise NotFound(f"{utility} has no record {key}; feeder:SumHomes and :Measure make them")
        return found

    @query
    def suspects(
        self,
        context: Context,
        *,
        node_id: Identifier,
        utility: MspId,
        alert: Annotated[int, Integer(1, 1_000_000)],
    ) -> list[Suspect]:
        """A utility's own meters whose behaviour changed when an alert's loss began."""
        access.require_operator(
            context.creator, utility, f"look for suspects among meters of {utility}"
        )
        basis = called(context, "energy", "balance:Basis", Basis, node_id=node_id, number=alert)
        daily: dict[str, list[int]] = {}
        for index, to in enumerate(basis.ends):
            for line in self._opened(context, utility, lines_key(node_id, to), Lines).lines:
                energies = daily.setdefault(line.meter_id, [0] * len(basis.ends))
                energies[index] += line.import_wh
        return suspects(daily, basis.since, basis.loss_wh)
