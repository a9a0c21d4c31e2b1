"""The two days before the first start, for Home Assistant's statistics.

A home that has just been made has no yesterday, and its graphs would be empty for an hour. The
simulation therefore begins two days early, and what the first home's inverter would have shown by
the hour goes into Home Assistant's long-term statistics, as if it had been there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from demo.home_assistant import Api
from demo.homes import Home, Neighbourhood, Power, Registers, Replay

HISTORY_S: Final = 2 * 86_400
HOUR_S: Final = 3600
SAMPLE_S: Final = 600

ENERGY: Final = {
    "sensor.inverter_pv_energy": "pv_wh",
    "sensor.inverter_house_energy": "load_wh",
    "sensor.inverter_grid_import": "import_wh",
    "sensor.inverter_grid_export": "export_wh",
    "sensor.inverter_battery_charge": "charge_wh",
    "sensor.inverter_battery_discharge": "discharge_wh",
}
"""Sensor and register."""

POWER: Final = {
    "sensor.inverter_pv_power": "pv_w",
    "sensor.inverter_house_power": "load_w",
    "sensor.inverter_grid_power": "grid_w",
    "sensor.inverter_battery_power": "battery_w",
}

LEVEL: Final = "sensor.inverter_battery_level"


@dataclass(frozen=True, slots=True)
class Hour:
    """What the inverter showed within one real hour; registers are at its end."""

    start: int
    registers: Registers
    power: tuple[Power, ...]
    soc_percent: tuple[int, ...]


def live_through(hood: Neighbourhood, replay: Replay, until: int) -> list[Hour]:
    """Lets the neighbourhood live up to a channel time; the first home's full real hours.

    What the meters remember of it is dropped: the ledger begins later.
    """
    home = hood.homes[0]
    begin = int(replay.real_time(hood.time))
    hours = []
    hour = begin - begin % HOUR_S + HOUR_S
    # With a fast clock the two days are less than an hour, and the next full one is yet to come.
    hood.advance(min(until, replay.channel_time(hour)), coarse=True)
    while replay.channel_time(hour + HOUR_S) <= until:
        hours.append(_hour(hood, home, replay, hour))
        hour += HOUR_S
    hood.advance(until)  # to the second
    hood.profiles.clear()
    return hours


def _hour(hood: Neighbourhood, home: Home, replay: Replay, start: int) -> Hour:
    power, soc_percent = [], []
    for second in range(SAMPLE_S, HOUR_S + 1, SAMPLE_S):
        hood.advance(replay.channel_time(start + second), coarse=True)
        power.append(home.power)
        soc_percent.append(home.soc_percent)
    return Hour(start, home.registers(), tuple(power), tuple(soc_percent))


def statistics(hours: Sequence[Hour], now: Registers) -> list[dict[str, Any]]:
    """The arguments of ``recorder/import_statistics`` for each sensor.

    The recorder sums an energy sensor from its first state on, which is ``now``; the sums before
    are therefore negative and end at zero, so that no hour's difference jumps.
    """
    imports = [
        _import(
            sensor,
            {"unit_of_measurement": "Wh", "unit_class": "energy", "has_sum": True, "mean_type": 0},
            [
                {
                    "start": _iso(hour),
                    "state": asdict(hour.registers)[register],
                    "sum": asdict(hour.registers)[register] - asdict(now)[register],
                }
                for hour in hours
            ],
        )
        for sensor, register in ENERGY.items()
    ]
    imports += [
        _import(
            sensor,
            {"unit_of_measurement": "W", "unit_class": "power", "has_sum": False, "mean_type": 1},
            [_spread(hour, [asdict(power)[name] for power in hour.power]) for hour in hours],
        )
        for sensor, name in POWER.items()
    ]
    imports.append(
        _import(
            LEVEL,
            {
                "unit_of_measurement": "%",
                "unit_class": "unitless",
                "has_sum": False,
                "mean_type": 1,
            },
            [_spread(hour, hour.soc_percent) for hour in hours],
        )
    )
    return imports


async def import_history(api: Api, hours: Sequence[Hour], now: Registers) -> None:
    """Puts the hours into Home Assistant's long-term statistics."""
    for arguments in statistics(hours, now):
        await api.command("recorder/import_statistics", **arguments)


def _import(
    sensor: str, metadata: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "metadata": {"statistic_id": sensor, "source": "recorder", "name": None, **metadata},
        "stats": list(rows),
    }


def _spread(hour: Hour, values: Sequence[int]) -> dict[str, Any]:
    return {
        "start": _iso(hour),
        "mean": sum(values) / len(values),
        "min": min(values),
        "max": max(values),
    }


def _iso(hour: Hour) -> str:
    return datetime.fromtimestamp(hour.start, UTC).isoformat()
