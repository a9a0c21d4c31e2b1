"""The accredited meters of a utility's homes, and the head-end that brings their readings in.

Each meter signs with a key of its own; the head-end, which is the utility's, collects what its
meters remember, keeps it on disk until the ledger has it, and submits it as one transaction for
all meters of an interval. Sending twice does no harm: the contract takes an identical reading as
the one it has.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from consortium.node.agreements import ZONE, Beginning, supply
from demo.files import write_atomically
from demo.homes import HomeSpec, Interval, Neighbourhood
from gridledger_client import (
    CommitFailed,
    GatewayClient,
    GridLedgerError,
    MeterKey,
    Reading,
    TransactionRefused,
    generate_key_pem,
)
from gridledger_client.readings import BATCH_LIMIT, batch_transient

METER_MAX_POWER_W: Final = 40_000
TRANSFORMER_VA: Final = 400_000
TRANSFORMER_NO_LOAD_W: Final = 430
"""Of an oil-filled transformer of that size under Regulation (EU) 548/2014, tier 1."""
MAX_QUEUED_BATCHES: Final = 200
"""With so many waiting, intervals stay in the meters, whose memory is bounded too."""
RETRY_FIRST_S: Final = 1.0
RETRY_LAST_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that the ledger has."""

    utility: str
    accepted: int
    duplicate: int
    refused: Sequence[Mapping[str, str]]
    last_interval: int
    block_number: int


def meter_key(folder: Path, meter_id: str) -> MeterKey:
    """The key of a meter, made where it has none yet; only its owner may read the file."""
    path = folder / f"{meter_id}.json"
    if not path.exists():
        made = {"key": generate_key_pem().decode(), "salt": secrets.token_hex(32)}
        write_atomically(path, json.dumps(made), mode=0o600)
    stored = json.loads(path.read_text(encoding="utf-8"))
    return MeterKey(stored["key"].encode(), bytes.fromhex(stored["salt"]))


class HeadEnd:
    """Registers one utility's connections and meters, and submits their readings."""

    def __init__(
        self,
        *,
        utility: str,
        channel: str,
        client: GatewayClient,
        homes: Sequence[HomeSpec],
        neighbourhood: Neighbourhood,
        folder: Path,
        on_batch: Callable[[Batch], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        """``client`` acts as the utility's operator; ``utility`` is its MSP id."""
        self.utility: Final = utility
        self.homes: Final = tuple(homes)
        self._channel = channel
        self._client = client
        self._neighbourhood = neighbourhood
        self._queue = folder / "queue" / utility
        self._aside = folder / "refused" / utility
        self._keys = {home.meter_id: meter_key(folder / "meters", home.meter_id) for home in homes}
        self._on_batch = on_batch
        self._on_trouble = on_trouble
        self._wake = asyncio.Event()

    async def register(self) -> None:
        """Enters connections and meters, which changes nothing where they are entered already."""
        await asyncio.gather(*(self._register(home) for home in self.homes))

    async def _register(self, home: HomeSpec) -> None:
        await self._client.submit(
            "energy",
            "registry:RegisterConnection",
            {
                "connection_id": home.connection_id,
                "utility": self.utility,
                "zone": ZONE,
                "max_export_w": home.max_export_w,
                "max_import_w": home.max_import_w,
            },
        )
        await self._client.submit(
            "metering",
            "metering:RegisterMeter",
            {
                "meter_id": home.meter_id,
                "connection_id": home.connection_id,
                "utility": self.utility,
                "source_class": "accredited",
                "public_key": self._keys[home.meter_id].public_key_pem,
                "max_power_w": METER_MAX_POWER_W,
            },
        )

    async def supply(self, begin: Beginning, prepaid: str | None = None) -> None:
        """Agrees on each home's supply, and says what hangs where in the grid.

        The home ``prepaid`` pays in advance.
        """
        name = self.utility.removesuffix("MSP").upper()
        source = {
            "source_id": f"SUBSTATION-{name}",
            "utility": self.utility,
            "kind": "substation",
            "zone": ZONE,
        }
        transformer = {
            "transformer_id": f"TRANSFORMER-{name}",
            "utility": self.utility,
            "zone": ZONE,
            "rated_va": TRANSFORMER_VA,
            "no_load_w": TRANSFORMER_NO_LOAD_W,
        }
        await asyncio.gather(
            self._client.submit("energy", "grid:RegisterSource", {"source": source}),
            self._client.submit("energy", "grid:RegisterTransformer", {"transformer": transformer}),
            *(self._supply(home, begin, prepaid) for home in self.homes),
        )
        await asyncio.gather(
            self._hang(
                "grid:Fed",
                "grid:Feed",
                {"source_id": source["source_id"]},
                "transformers",
                [f"TRANSFORMER-{name}"],
                begin,
            ),
            self._hang(
                "grid:Behind",
                "grid:Connect",
                {"transformer_id": f"TRANSFORMER-{name}"},
                "connections",
                [home.connection_id for home in self.homes],
                begin,
            ),
        )

    async def _hang(
        self,
        known: str,
        function: str,
        above: Mapping[str, object],
        field: str,
        names: Sequence[str],
        begin: Beginning,
    ) -> None:
        there = {one["child"] for one in await self._client.evaluate("energy", known, above)}
        if missing := [name for name in names if name not in there]:
            await self._client.submit(
                "energy", function, {**above, field: missing, "from": begin.at}
            )

    async def _supply(self, home: HomeSpec, begin: Beginning, prepaid: str | None) -> None:
        name = home.connection_id
        known = await self._client.evaluate("energy", "billing:Supplies", {"connection_id": name})
        if not known["versions"]:
            terms = supply(name, self.utility, begin.first_day)
            if name == prepaid:
                terms["payment"] = "prepaid"
            await self._client.submit("energy", "billing:AgreeSupply", {"supply": terms})
        if await self._client.evaluate(
            "energy", "grid:Plants", {"connection_id": name, "at": begin.at}
        ):
            return
        if home.pv_peak_w or home.battery_capacity_wh:
            plant = {
                "plant_id": f"PLANT-{home.number:02d}",
                "connection_id": name,
                "kind": "solar" if home.pv_peak_w else "battery",
                "peak_w": home.pv_peak_w,
                "inverter_w": max(home.pv_peak_w, home.battery_power_w),
                "battery_wh": home.battery_capacity_wh,
            }
            if home.battery_capacity_wh:
                plant["battery_efficiency_ppm"] = home.battery_efficiency_per_mille**2
            await self._client.submit(
                "energy", "grid:RegisterPlant", {"plant": plant, "from": begin.at}
            )

    def wake(self) -> None:
        """Says that an interval has ended."""
        self._wake.set()

    async def run(self) -> None:
        """Collects and sends until it is cancelled."""
        retry_s = RETRY_FIRST_S
        while True:
            self._wake.clear()
            try:
                await self.collect()
                await self.send()
            except (GridLedgerError, OSError) as error:
                self._on_trouble(f"{self.utility}: readings wait {retry_s:.0f} s: {error}")
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_LAST_S)
            else:
                retry_s = RETRY_FIRST_S
                await self._wake.wait()

    async def collect(self) -> None:
        """Signs what the meters remember and puts it into the queue on disk."""
        if len(await asyncio.to_thread(self._queued)) >= MAX_QUEUED_BATCHES:
            return
        read = self._neighbourhood.read_profiles(list(self._keys))
        if any(read.values()):
            await asyncio.to_thread(self._sign_and_store, read)
            self._neighbourhood.forget_profiles(read)

    async def send(self) -> None:
        """Submits what is queued, the oldest first. Raises the client's errors."""
        for path in await asyncio.to_thread(self._queued):
            stored = json.loads(await asyncio.to_thread(path.read_text, "utf-8"))
            readings: list[dict[str, str]] = stored["readings"]
            try:
                committed = await self._client.submit(
                    "metering",
                    "metering:SubmitReadings",
                    {"utility": self.utility},
                    transient=batch_transient(readings),
                    endorsing_organizations=[self.utility],
                )
            except TransactionRefused as error:
                if error.status is None or error.status >= 500:
                    raise
                # The contract's own no: it would say the same for ever.
                self._on_trouble(f"{self.utility}: a batch was refused and set aside: {error}")
                await asyncio.to_thread(self._set_aside, path)
                continue
            except CommitFailed as error:
                self._on_trouble(f"{self.utility}: {error}")
                raise
            await asyncio.to_thread(path.unlink)
            result = committed.result
            self._on_batch(
                Batch(
                    utility=self.utility,
                    accepted=int(result["accepted"]),
                    duplicate=int(result["duplicate"]),
                    refused=result["refused"],
                    last_interval=max(int(reading["interval_start"]) for reading in readings),
                    block_number=committed.block_number,
                )
            )

    def _sign_and_store(self, read: Mapping[str, Sequence[Interval]]) -> None:
        rows = sorted(
            (
                (interval.start, meter_id, interval)
                for meter_id in read
                for interval in read[meter_id]
            ),
            key=lambda row: row[:2],
        )
        for first in range(0, len(rows), BATCH_LIMIT):
            batch = rows[first : first + BATCH_LIMIT]
            signed = [self._sign(meter_id, interval) for _, meter_id, interval in batch]
            name = f"{batch[0][0]:012d}-{first // BATCH_LIMIT:04d}.json"
            write_atomically(
                self._queue / name,
                json.dumps({"readings": signed}, separators=(",", ":")),
                mode=0o600,
            )

    def _sign(self, meter_id: str, interval: Interval) -> dict[str, str]:
        reading = Reading(
            meter_id=meter_id,
            interval_start=interval.start,
            interval_s=self._neighbourhood.interval_s,
            import_wh=interval.import_wh,
            export_wh=interval.export_wh,
            import_register_wh=interval.import_register_wh,
            export_register_wh=interval.export_register_wh,
        )
        return dict(self._keys[meter_id].sign(reading, self._channel).fields)

    def _queued(self) -> list[Path]:
        with suppress(FileNotFoundError):
            return sorted(
                path
                for path in self._queue.iterdir()
                if path.name.endswith(".json") and not path.name.startswith(".")
            )
        return []

    def _set_aside(self, path: Path) -> None:
        self._aside.mkdir(parents=True, exist_ok=True)
        path.replace(self._aside / path.name)
