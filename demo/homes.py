"""Homes that replay measured households: load, sun, battery and the meter's registers.

Pure: time is handed in, nothing is read from a clock, and the same calls give the same registers.

Exactness: power is integer watts and time integer seconds, so energy is integer joules (one Wh is
3,600 J) and every balance holds to the joule. A register shows whole Wh of what has flowed since
the meter was made, rounded down; it only rises, and intervals, being differences of register
readings, add up to the register's difference.

Between the quarter hours of the measured series, the cumulated energy is interpolated by a
monotone cubic (F. N. Fritsch and J. Butland, SIAM J. Sci. Stat. Comput. 5, 1984), which goes
through every measured value: power changes smoothly, and each quarter hour keeps its energy.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

DATA: Final = Path(__file__).parent / "data"

JOULES_PER_WH: Final = 3600
QUARTER_S: Final = 900
WEEK_S: Final = 7 * 86_400

DATA_START: Final = 1_466_373_600
"""2016-06-19T22:00:00Z: the Monday, 00:00 local time, at which both series begin."""

ORIGIN: Final = DATA_START + 2 * 86_400 + 10 * 3600 + 1800
"""2016-06-22T08:30:00Z, a sunny Wednesday half past ten: where a new neighbourhood begins."""

STEP_S: Final = 5
"""The inverters decide anew this often."""

COARSE_STEP_S: Final = 60
"""The step where there is much to catch up (:data:`COARSE_AFTER_S`)."""

COARSE_AFTER_S: Final = 2 * 3600

PROFILE_MEMORY_S: Final = 2 * 86_400
"""How long a meter remembers intervals that nobody read; older ones are lost to the ledger, while
the registers keep their energy."""

MAX_HOMES: Final = 40
MAX_COMMANDS: Final = 32
MAX_COMMAND_S: Final = 86_400

STATE_FORMAT: Final = 1


class HomesError(ValueError):
    """A state file, a setting or a command that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Replay:
    """The channel's clock: ``origin + (real - anchor) * rate``, all in epoch seconds."""

    origin: int
    anchor: int
    rate: int = 1

    def channel_time(self, real: float) -> int:
        """The channel's time, whole seconds, at a real time."""
        return self.origin + int((real - self.anchor) * self.rate // 1)

    def real_time(self, channel: int) -> float:
        """The real time at which the channel's clock shows this."""
        return self.anchor + (channel - self.origin) / self.rate


class EnergyCurve:
    """Cumulated energy over a series of quarter hours that repeats for ever."""

    def __init__(self, quarters_j: Sequence[int]) -> None:
        """Takes the energy of each quarter hour, joules, none negative."""
        if not quarters_j or min(quarters_j) < 0:
            raise HomesError("an energy series needs at least one value and none below zero")
        count = len(quarters_j)
        self.period_s: Final = count * QUARTER_S
        self._knots = [0]
        for quarter_j in quarters_j:
            self._knots.append(self._knots[-1] + quarter_j)
        self._slopes = [_slope(quarters_j[i - 1], quarters_j[i % count]) for i in range(count + 1)]

    def joules(self, seconds: int) -> int:
        """Energy from the series' begin to this second; rises with ``seconds``."""
        periods, position = divmod(seconds, self.period_s)
        quarter, offset = divmod(position, QUARTER_S)
        low = self._knots[quarter]
        total = periods * self._knots[-1] + low
        if offset == 0:
            return total
        # Hermite's basis on the unit interval, for a curve that begins at zero.
        x = offset / QUARTER_S
        rise = self._knots[quarter + 1] - low
        curve = (
            rise * x * x * (3 - 2 * x)
            + self._slopes[quarter] * x * (1 - x) ** 2
            + self._slopes[quarter + 1] * x * x * (x - 1)
        )
        return total + min(rise, max(0, round(curve)))


def _slope(before: int, after: int) -> float:
    """The curve's slope at a knot between two quarter hours: their harmonic mean."""
    return 2 * before * after / (before + after) if before and after else 0.0


@dataclass(frozen=True, slots=True)
class Series:
    """Both measured series, by column: Wh and per mille for each quarter hour."""

    load_wh: Mapping[str, Sequence[int]]
    pv_per_mille: Mapping[str, Sequence[int]]

    @classmethod
    def read(cls, folder: Path = DATA) -> Series:
        """Reads the two files that ``SOURCE.md`` describes."""
        return cls(
            load_wh=_columns(folder / "ch_households_import_15min_wh.csv"),
            pv_per_mille=_columns(folder / "simbench_pv_summer_15min.csv", suffix="_per_mille"),
        )


def _columns(path: Path, suffix: str = "") -> dict[str, list[int]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return {
        name.removesuffix(suffix): [int(row[column]) for row in rows[1:]]
        for column, name in enumerate(rows[0])
        if column
    }


@dataclass(frozen=True, slots=True)
class HomeSpec:
    """What stands in a home, and which measured series it replays."""

    number: int
    connection_id: str
    meter_id: str
    load_column: str
    pv_column: str
    pv_peak_w: int
    battery_capacity_wh: int
    battery_power_w: int
    battery_start_percent: int
    first_import_wh: int
    first_export_wh: int
    max_export_w: int
    """What the connection may sell. A sale fills each interval up to this, so that it must not
    promise more than the battery, where there is one, can give."""
    battery_efficiency_per_mille: int = 960
    """One way: of 1,000 Wh charged, 960 are stored; of 1,000 stored, 960 come out."""
    battery_reserve_percent: int = 10
    """The inverter itself never discharges below this."""
    max_import_w: int = 17_000


# The load columns in the order in which homes take them: houses without long flat runs, small and
# large in turn. The first is the Home Assistant's.
_LOADS: Final = (
    *("CH02", "CH11", "CH30", "CH14", "CH29", "CH44", "CH46", "CH03", "CH28", "CH16", "CH12"),
    *("CH40", "CH15", "CH43", "CH48", "CH10", "CH32", "CH36", "CH09", "CH47", "CH21", "CH31"),
    *("CH39", "CH06", "CH33", "CH42", "CH05", "CH34", "CH38", "CH18", "CH26", "CH45", "CH13"),
    *("CH20", "CH23", "CH08", "CH07", "CH17", "CH24", "CH35"),
)
_SUNS: Final = ("PV4", "PV1", "PV2", "PV6", "PV5", "PV3", "PV8", "PV7")
_PEAKS_W: Final = (8_000, 5_400, 9_900, 6_600, 4_200, 7_500, 0, 12_000)
_BATTERIES_WH: Final = (10_000, 5_100, 13_500, 7_700, 0, 10_200)


def home_specs(count: int) -> list[HomeSpec]:
    """The first ``count`` homes of the neighbourhood; always the same ones."""
    if not 1 <= count <= MAX_HOMES:
        raise HomesError(f"the demo has data for 1 to {MAX_HOMES} homes, not {count}")
    specs = []
    for index in range(count):
        number = index + 1
        battery_wh = _BATTERIES_WH[index % len(_BATTERIES_WH)]
        battery_power_w = min(5_000, battery_wh // 2)
        specs.append(
            HomeSpec(
                number=number,
                connection_id=f"HOME-{number:02d}",
                meter_id=f"METER-{number:02d}",
                load_column=_LOADS[index],
                pv_column=_SUNS[index % len(_SUNS)],
                pv_peak_w=_PEAKS_W[index % len(_PEAKS_W)],
                battery_capacity_wh=battery_wh,
                battery_power_w=battery_power_w,
                battery_start_percent=62 if index == 0 else 30 + 17 * index % 50,
                first_import_wh=4_811_000 + 917_431 * index,
                first_export_wh=0 if index % 8 == 6 else 2_204_000 + 611_953 * index,
                max_export_w=battery_power_w or 10_000,
            )
        )
    return specs


class Mode(StrEnum):
    """What the inverter's battery does."""

    AUTO = "auto"
    """Charges from surplus, discharges into the home's own need: self-consumption."""
    HOLD = "hold"
    CHARGE = "charge"
    DISCHARGE = "discharge"


@dataclass(frozen=True, slots=True)
class Command:
    """What somebody told the inverter, in channel time, for ``[start, until)``."""

    mode: Mode
    power_w: int
    start: int
    until: int


@dataclass(frozen=True, slots=True)
class Registers:
    """Whole Wh since the devices were made; each only rises."""

    import_wh: int
    export_wh: int
    pv_wh: int
    load_wh: int
    charge_wh: int
    discharge_wh: int


@dataclass(frozen=True, slots=True)
class Power:
    """The mean power of the last step, W; grid is positive for import, battery for discharge."""

    pv_w: int = 0
    load_w: int = 0
    grid_w: int = 0
    battery_w: int = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """What a meter remembers of one interval, at its end; Wh."""

    start: int
    import_wh: int
    export_wh: int
    import_register_wh: int
    export_register_wh: int


@dataclass(slots=True)
class Flows:
    """Joules that have flowed since the begin."""

    import_j: int = 0
    export_j: int = 0
    pv_j: int = 0
    load_j: int = 0
    charge_j: int = 0
    discharge_j: int = 0


class Home:
    """One home at one instant; :meth:`step` takes it to the next."""

    def __init__(self, spec: HomeSpec, series: Series, time: int) -> None:
        self.spec: Final = spec
        self.time = time
        self.flows = Flows()
        self.power = Power()
        self.commands: list[Command] = []
        self.capacity_j: Final = spec.battery_capacity_wh * JOULES_PER_WH
        self.stored_j = self.capacity_j * spec.battery_start_percent // 100
        self._floor_j = self.capacity_j * spec.battery_reserve_percent // 100
        self._load = EnergyCurve(
            [quarter_wh * JOULES_PER_WH for quarter_wh in series.load_wh[spec.load_column]]
        )
        self._pv = EnergyCurve(
            [
                per_mille * spec.pv_peak_w * QUARTER_S // 1000
                for per_mille in series.pv_per_mille[spec.pv_column]
            ]
        )

    @property
    def soc_percent(self) -> int:
        """The battery's state of charge, 0 without one."""
        return 100 * self.stored_j // self.capacity_j if self.capacity_j else 0

    @property
    def stored_wh(self) -> int:
        """What the battery holds."""
        return self.stored_j // JOULES_PER_WH

    @property
    def available_wh(self) -> int:
        """What the battery could still give above the inverter's own reserve."""
        above_j = max(0, self.stored_j - self._floor_j)
        return above_j * self.spec.battery_efficiency_per_mille // 1000 // JOULES_PER_WH

    def registers(self) -> Registers:
        """What the meter's and the inverter's registers show now."""
        flows = self.flows
        return Registers(
            import_wh=self.spec.first_import_wh + flows.import_j // JOULES_PER_WH,
            export_wh=self.spec.first_export_wh + flows.export_j // JOULES_PER_WH,
            pv_wh=flows.pv_j // JOULES_PER_WH,
            load_wh=flows.load_j // JOULES_PER_WH,
            charge_wh=flows.charge_j // JOULES_PER_WH,
            discharge_wh=flows.discharge_j // JOULES_PER_WH,
        )

    def active_command(self) -> Command | None:
        """The command in force; the latest given wins where two overlap."""
        for command in reversed(self.commands):
            if command.start <= self.time < command.until:
                return command
        return None

    def command(self, mode: Mode, power_w: int, until: int, start: int | None = None) -> Command:
        """Tells the inverter what to do until a moment; ``AUTO`` ends every other command.

        Raises :class:`HomesError` where the battery cannot do that.
        """
        start = self.time if start is None else max(start, self.time)
        if mode is Mode.AUTO:
            self.commands.clear()
            return Command(mode, 0, self.time, self.time)
        if not self.capacity_j:
            raise HomesError(f"{self.spec.connection_id} has no battery")
        if mode in (Mode.CHARGE, Mode.DISCHARGE):
            if not 0 < power_w <= self.spec.battery_power_w:
                raise HomesError(
                    f"power_w is {power_w}; this battery takes 1 to {self.spec.battery_power_w} W"
                )
        elif power_w:
            raise HomesError(f"power_w is {power_w}; the mode {mode} takes none")
        if not start < until <= self.time + MAX_COMMAND_S:
            raise HomesError(
                f"until must lie after the begin and within {MAX_COMMAND_S} s from now: "
                "every command ends by itself"
            )
        self.commands = [command for command in self.commands if command.until > self.time]
        if len(self.commands) >= MAX_COMMANDS:
            raise HomesError(
                f"{MAX_COMMANDS} commands are waiting already; send auto to clear them"
            )
        command = Command(mode, power_w, start, until)
        self.commands.append(command)
        return command

    def step(self, until: int) -> None:
        """Lets energy flow from now to ``until``."""
        seconds = until - self.time
        offset = self.time - DATA_START
        load_j = self._load.joules(offset + seconds) - self._load.joules(offset)
        pv_j = self._pv.joules(offset + seconds) - self._pv.joules(offset)
        battery_j = self._battery(pv_j - load_j, seconds)
        net_j = load_j - pv_j - battery_j

        flows = self.flows
        flows.load_j += load_j
        flows.pv_j += pv_j
        flows.discharge_j += max(0, battery_j)
        flows.charge_j += max(0, -battery_j)
        flows.import_j += max(0, net_j)
        flows.export_j += max(0, -net_j)
        self.power = Power(
            pv_w=pv_j // seconds,
            load_w=load_j // seconds,
            grid_w=net_j // seconds,
            battery_w=battery_j // seconds,
        )
        self.time = until

    def _battery(self, surplus_j: int, seconds: int) -> int:
        """Charges or discharges; joules at the inverter's terminals, positive for discharge."""
        if not self.capacity_j:
            return 0
        command = self.active_command()
        match command.mode if command else Mode.AUTO:
            case Mode.CHARGE:
                assert command is not None
                wanted_j = -command.power_w * seconds
            case Mode.DISCHARGE:
                assert command is not None
                wanted_j = command.power_w * seconds
            case Mode.HOLD:
                return 0
            case _:
                wanted_j = -surplus_j
        limit_j = self.spec.battery_power_w * seconds
        efficiency = self.spec.battery_efficiency_per_mille
        if wanted_j < 0:
            room_j = (self.capacity_j - self.stored_j) * 1000 // efficiency
            charge_j = min(-wanted_j, limit_j, room_j)
            self.stored_j += charge_j * efficiency // 1000
            return -charge_j
        above_j = max(0, self.stored_j - self._floor_j)
        discharge_j = min(wanted_j, limit_j, above_j * efficiency // 1000)
        self.stored_j -= -(-discharge_j * 1000 // efficiency)  # rounded up
        return discharge_j


@dataclass(slots=True)
class Neighbourhood:
    """All homes on one clock, and what their meters remember until it is read."""

    interval_s: int
    homes: list[Home]
    profiles: dict[str, list[Interval]] = field(default_factory=dict)
    """Of each meter: finished intervals that were not read yet, oldest first."""
    _cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of each meter: both registers at the last interval's end."""

    @classmethod
    def create(
        cls, count: int, interval_s: int, time: int = ORIGIN, series: Series | None = None
    ) -> Neighbourhood:
        """A new neighbourhood at a channel time on an interval's boundary."""
        check_interval(interval_s)
        if time % interval_s:
            raise HomesError(f"a neighbourhood begins on a boundary of {interval_s} s, not {time}")
        series = series or Series.read()
        homes = [Home(spec, series, time) for spec in home_specs(count)]
        made = cls(interval_s, homes)
        for home in homes:
            made._remember_cut(home)
        return made

    @property
    def time(self) -> int:
        """The channel time up to which energy has flowed."""
        return self.homes[0].time

    def advance(self, now: int, *, coarse: bool = False) -> int:
        """Lets time pass up to ``now`` as far as whole steps go; the intervals finished.

        Steps are coarse if asked for, and while there is much to catch up.
        """
        finished = 0
        while True:
            far = coarse or now - self.time > COARSE_AFTER_S
            step_s = COARSE_STEP_S if far else STEP_S
            boundary = self.time - self.time % self.interval_s + self.interval_s
            until = min(self.time - self.time % step_s + step_s, boundary)
            if until > now:
                return finished
            for home in self.homes:
                home.step(until)
            if until == boundary:
                finished += 1
                for home in self.homes:
                    self._finish_interval(home)

    def read_profiles(self, meter_ids: Sequence[str]) -> dict[str, list[Interval]]:
        """What these meters remember; it stays until :meth:`forget_profiles`."""
        return {meter: list(self.profiles.get(meter, ())) for meter in meter_ids}

    def forget_profiles(self, read: Mapping[str, Sequence[Interval]]) -> None:
        """Drops the intervals that were read and stored elsewhere."""
        for meter, intervals in read.items():
            if intervals:
                last = intervals[-1].start
                self.profiles[meter] = [i for i in self.profiles[meter] if i.start > last]

    def _finish_interval(self, home: Home) -> None:
        meter = home.spec.meter_id
        import_before, export_before = self._cut[meter]
        self._remember_cut(home)
        import_wh, export_wh = self._cut[meter]
        profile = self.profiles.setdefault(meter, [])
        profile.append(
            Interval(
                start=home.time - self.interval_s,
                import_wh=import_wh - import_before,
                export_wh=export_wh - export_before,
                import_register_wh=import_wh,
                export_register_wh=export_wh,
            )
        )
        del profile[: max(0, len(profile) - PROFILE_MEMORY_S // self.interval_s)]

    def _remember_cut(self, home: Home) -> None:
        registers = home.registers()
        self._cut[home.spec.meter_id] = (registers.import_wh, registers.export_wh)

    def to_json(self) -> str:
        """Everything that a second run needs to go on."""
        return json.dumps(
            {
                "format": STATE_FORMAT,
                "interval_s": self.interval_s,
                "homes": [
                    {
                        "time": home.time,
                        "stored_j": home.stored_j,
                        "flows": asdict(home.flows),
                        "commands": [asdict(command) for command in home.commands],
                        "cut": self._cut[home.spec.meter_id],
                        "profile": [
                            asdict(interval)
                            for interval in self.profiles.get(home.spec.meter_id, ())
                        ],
                    }
                    for home in self.homes
                ],
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str, series: Series | None = None) -> Neighbourhood:
        """What :meth:`to_json` wrote. Raises :class:`HomesError` where it is something else."""
        try:
            state: dict[str, Any] = json.loads(text)
            if state["format"] != STATE_FORMAT:
                raise HomesError(
                    f"the homes' state has format {state['format']}, this version reads "
                    f"{STATE_FORMAT}: use the version that wrote it, or another --data-dir"
                )
            made = cls.create(
                len(state["homes"]), state["interval_s"], time=0, series=series or Series.read()
            )
            for home, stored in zip(made.homes, state["homes"], strict=True):
                meter = home.spec.meter_id
                home.time = stored["time"]
                home.stored_j = stored["stored_j"]
                home.flows = Flows(**stored["flows"])
                home.commands = [
                    Command(Mode(command.pop("mode")), **command) for command in stored["commands"]
                ]
                made._cut[meter] = (stored["cut"][0], stored["cut"][1])
                made.profiles[meter] = [Interval(**interval) for interval in stored["profile"]]
        except (KeyError, TypeError, IndexError, AttributeError, json.JSONDecodeError) as error:
            raise HomesError(f"the homes' state cannot be read: {error!r}") from error
        return made


def check_interval(interval_s: int) -> None:
    """Raises :class:`HomesError` unless the demo can meter and trade in such intervals."""
    if not 10 <= interval_s <= QUARTER_S or QUARTER_S % interval_s or interval_s % STEP_S:
        raise HomesError(
            f"an interval of {interval_s} s does not work: choose 10 to {QUARTER_S} s, "
            f"a multiple of {STEP_S} that divides {QUARTER_S}, such as 15, 60, 300 or 900"
        )
