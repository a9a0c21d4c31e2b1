"""The first home's hybrid inverter, as devices of that kind speak: HTTP and JSON on the home's net.

``GET /api/status`` says what flows, what the registers show and how full the battery is.
``POST /api/battery`` takes ``{"mode": "auto" | "hold" | "charge" | "discharge", "power_w": W,
"until": TIME, "from": TIME}``. Charge and discharge need ``power_w``, every mode but auto needs
``until``; at ``until`` the inverter goes back to auto by itself. A TIME is epoch seconds or ISO
8601 with an offset, in the home's own (real) time.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from demo.homes import Home, HomesError, Mode, Replay

MAX_BODY_BYTES: Final = 4096

_FIELDS: Final = {"mode", "power_w", "until", "from"}


class Inverter:
    """Serves one home's inverter on the loopback interface."""

    def __init__(
        self,
        home: Home,
        replay: Replay,
        *,
        on_command: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``on_command`` keeps an accepted command on disk before it is answered."""
        self._home = home
        self._replay = replay
        self._on_command = on_command
        self._runner: web.AppRunner | None = None
        self._server_port = 0

    @property
    def url(self) -> str:
        """Where it listens once it has started."""
        return f"http://127.0.0.1:{self._server_port}"

    def application(self) -> web.Application:
        """The HTTP application."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_get("/api/status", self._get_status)
        application.router.add_post("/api/battery", self._post_battery)
        return application

    async def start(self, port: int) -> None:
        """Listens on 127.0.0.1."""
        self._runner = web.AppRunner(self.application(), access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self._server_port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stops listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def status(self) -> dict[str, Any]:
        """What the inverter's status page says."""
        home = self._home
        power, registers = home.power, home.registers()
        command = home.active_command()
        return {
            "model": "Demo hybrid inverter",
            "serial_number": f"DEMO-{home.spec.number:04d}",
            "time": self._iso(home.time),
            "pv_power_w": power.pv_w,
            "pv_energy_wh": registers.pv_wh,
            "load_power_w": power.load_w,
            "load_energy_wh": registers.load_wh,
            "grid_power_w": power.grid_w,
            "import_energy_wh": registers.import_wh,
            "export_energy_wh": registers.export_wh,
            "battery_power_w": power.battery_w,
            "battery_soc_percent": round(100 * home.stored_j / home.capacity_j, 1)
            if home.capacity_j
            else 0,
            "battery_stored_wh": home.stored_wh,
            "battery_capacity_wh": home.spec.battery_capacity_wh,
            "battery_max_power_w": home.spec.battery_power_w,
            "battery_charge_energy_wh": registers.charge_wh,
            "battery_discharge_energy_wh": registers.discharge_wh,
            "battery_mode": str(command.mode if command else Mode.AUTO),
            "battery_mode_until": self._iso(command.until) if command else None,
        }

    async def _get_status(self, _request: web.Request) -> web.Response:
        return web.json_response(self.status())

    async def _post_battery(self, request: web.Request) -> web.Response:
        # Only JSON: a web page that the owner happens to open cannot send it across origins.
        if request.content_type != "application/json":
            return _refused(415, "send the command as application/json")
        try:
            mode, power_w, until, start = self._parse(await request.text())
            command = self._home.command(mode, power_w, until, start)
        except HomesError as error:
            return _refused(400, str(error))
        if self._on_command is not None:
            await self._on_command()
        return web.json_response(
            {
                "mode": str(command.mode),
                "power_w": command.power_w,
                "from": self._iso(command.start),
                "until": self._iso(command.until) if command.mode is not Mode.AUTO else None,
            }
        )

    def _parse(self, text: str) -> tuple[Mode, int, int, int | None]:
        try:
            body = json.loads(text)
        except ValueError as error:
            raise HomesError(f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise HomesError("the body must be a JSON object")
        if unknown := sorted(body.keys() - _FIELDS):
            raise HomesError(f"unknown field {unknown[0]!r}; known: {', '.join(sorted(_FIELDS))}")
        if body.get("mode") not in list(Mode):
            raise HomesError(f"mode is {body.get('mode')!r}; one of {', '.join(Mode)} is needed")
        mode = Mode(body["mode"])
        power_w = body.get("power_w") or 0
        if not isinstance(power_w, int) or isinstance(power_w, bool):
            raise HomesError(f"power_w is {power_w!r}; whole watts are needed")
        now = self._home.time
        start = self._moment(body, "from")
        until = self._moment(body, "until")
        if mode is not Mode.AUTO and until is None:
            raise HomesError(f"the mode {mode} needs until, the moment at which auto comes back")
        return mode, power_w, now if until is None else until, start

    def _moment(self, body: dict[str, Any], name: str) -> int | None:
        match body.get(name):
            case None:
                return None
            case bool():
                pass
            case int() | float() as seconds if abs(seconds) < 1e11:
                return self._replay.channel_time(seconds)
            case str() as text:
                try:
                    moment = datetime.fromisoformat(text)
                except ValueError:
                    pass
                else:
                    if moment.tzinfo is not None:
                        return self._replay.channel_time(moment.timestamp())
        raise HomesError(
            f"{name} is {body[name]!r}; epoch seconds or ISO 8601 with an offset are needed"
        )

    def _iso(self, channel_time: int) -> str:
        return datetime.fromtimestamp(self._replay.real_time(channel_time), UTC).isoformat()


def _refused(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)
