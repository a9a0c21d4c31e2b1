"""A real Home Assistant for the demonstration's first home.

Makes a configuration folder, starts the ``hass`` of this Python environment on the loopback
interface, and then does over its HTTP and websocket interfaces what an owner would do by hand:
names the energy sensors, connects GridLedger, opens its dashboard first. What was done stays; a
second start finds it.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import aiohttp

from demo.files import write_atomically

REPOSITORY: Final = Path(__file__).parent.parent
TEMPLATE: Final = Path(__file__).parent / "config"
USER: Final = "demo"
DASHBOARD: Final = "grid-ledger"
RUNNING_FILE: Final = "home-assistant.json"
"""Of the demonstration: where its Home Assistant answers."""
AUTOMATION_ID: Final = "deliver_sold_energy"
START_TIMEOUT_S: Final = 300
"""A first start compiles Home Assistant's modules, on a Raspberry Pi for minutes."""
STOP_TIMEOUT_S: Final = 40
RESTART_CODE: Final = 100
"""With which Home Assistant ends to be started again."""
LOGIN_FILE: Final = "demo-password"
PID_FILE: Final = "demo-hass.pid"
LOG_FILE: Final = "demo-hass.log"

HTTP_DEFAULTS: Final[dict[str, Any]] = {
    "cors_allowed_origins": ["https://cast.home-assistant.io"],
    "created_at": "2026-01-01T00:00:00+00:00",
    "error": None,
    "error_message": None,
    "ip_ban_enabled": True,
    "login_attempts_threshold": -1,
    "ssl_profile": "modern",
    "use_x_frame_options": True,
}
"""What Home Assistant itself stores where nothing was configured: it asks for each of them."""

ENERGY_PREFERENCES: Final[dict[str, Any]] = {
    "energy_sources": [
        {
            "type": "grid",
            "stat_energy_from": "sensor.inverter_grid_import",
            "stat_energy_to": "sensor.inverter_grid_export",
            "stat_cost": None,
            "entity_energy_price": None,
            "number_energy_price": None,
            "stat_compensation": None,
            "entity_energy_price_export": None,
            "number_energy_price_export": None,
            "power_config": {"stat_rate": "sensor.inverter_grid_power"},
            "cost_adjustment_day": 0,
        },
        {
            "type": "solar",
            "stat_energy_from": "sensor.inverter_pv_energy",
            "stat_rate": "sensor.inverter_pv_power",
            "config_entry_solar_forecast": None,
        },
        {
            "type": "battery",
            "stat_energy_from": "sensor.inverter_battery_discharge",
            "stat_energy_to": "sensor.inverter_battery_charge",
            "power_config": {"stat_rate": "sensor.inverter_battery_power"},
            "stat_soc": "sensor.inverter_battery_level",
            "capacity": 10.0,
        },
    ],
    "device_consumption": [],
}


class HomeAssistantError(Exception):
    """Home Assistant did not do what the demonstration needs; the message says what."""


class HomeAssistant:
    """One configuration folder and, once started, the process that runs on it."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        self.folder: Final = folder
        self.port = port
        self.options = options
        """What ``hass`` is started with beside its folder."""
        self.stopping = False
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def password(self) -> str:
        """The password of :data:`USER`, made with the folder."""
        return (self.folder / LOGIN_FILE).read_text(encoding="utf-8").strip()

    @property
    def is_new(self) -> bool:
        """Whether the folder has not been made yet."""
        return not (self.folder / LOGIN_FILE).exists()

    async def prepare(self, inverter_url: str) -> None:
        """Makes the folder where it is new, and says where the inverter is this time."""
        if self.is_new:
            await asyncio.to_thread(self._copy_template)
            await self._add_user()
        write_atomically(
            self.folder / "secrets.yaml",
            f"inverter_status_url: {inverter_url}/api/status\n"
            f"inverter_battery_url: {inverter_url}/api/battery\n"
            f"time_zone: {_time_zone()}\n",
        )
        # The address is a stored setting; in YAML it would wait for a person's confirmation.
        self._store(
            "http",
            {
                "stable": HTTP_DEFAULTS | {"server_host": ["127.0.0.1"], "server_port": self.port},
                "pending": None,
                "yaml_migration_done": True,
            },
            version=2,
            minor_version=2,
        )

    async def start(self, progress: Callable[[str], None]) -> None:
        """Starts ``hass`` and returns when it is running."""
        log = (self.folder / LOG_FILE).open("wb")
        try:
            # In a session of its own: Ctrl-C in the terminal reaches the demonstration alone,
            # which then stops Home Assistant before what it talks to.
            self._process = await asyncio.create_subprocess_exec(
                *_hass("-c", str(self.folder), *self.options),
                cwd=self.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            log.close()
        write_atomically(self.folder / PID_FILE, str(self._process.pid))
        async with asyncio.timeout(START_TIMEOUT_S), aiohttp.ClientSession() as session:
            while not await self._answers(session):
                if self._process.returncode is not None:
                    raise HomeAssistantError(
                        f"Home Assistant ended with code {self._process.returncode} while "
                        f"starting; see {self.folder / LOG_FILE}"
                    )
                await asyncio.sleep(0.25)
        progress("logging in")
        async with await self.connect() as api:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await self._runs(api):  # noqa: ASYNC110 - another process's state
                    await asyncio.sleep(0.25)

    async def stop(self) -> None:
        """Stops the process, gently at first."""
        self.stopping = True
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        (self.folder / PID_FILE).unlink(missing_ok=True)

    async def wait(self) -> int:
        """Waits for the process to end by itself; its exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def connect(self) -> Api:
        """Logs in as the demonstration's user."""
        return await Api.login(self.url, USER, self.password)

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with session.get(f"{self.url}/manifest.json") as response:
                return response.status == 200
        return False

    async def _runs(self, api: Api) -> bool:
        return bool((await api.get("/api/config"))["state"] == "RUNNING")

    def _copy_template(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(TEMPLATE, self.folder)
        (self.folder / "custom_components").mkdir()
        (self.folder / "custom_components" / "gridledger").symlink_to(
            REPOSITORY / "custom_components" / "gridledger", target_is_directory=True
        )
        self._store(
            "onboarding",
            {"done": ["user", "core_config", "analytics", "integration"]},
            version=4,
        )

    async def _add_user(self) -> None:
        password = secrets.token_hex(8)  # nothing that looks like an option
        # The password goes through a pipe: arguments can be read by every user of the machine.
        script = (
            "import sys; from homeassistant.scripts import auth; "
            f"auth.run(['-c', sys.argv[1], 'add', {USER!r}, sys.stdin.readline().strip()])"
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, str(self.folder)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate(password.encode() + b"\n")
        if process.returncode or b"Auth created" not in output:
            raise HomeAssistantError(f"Home Assistant made no user: {output.decode()}")
        # Last: a folder without it is begun anew.
        write_atomically(self.folder / LOGIN_FILE, password + "\n", mode=0o600)

    def _store(self, key: str, data: Any, *, version: int, minor_version: int = 1) -> None:
        write_atomically(
            self.folder / ".storage" / key,
            json.dumps(
                {"version": version, "minor_version": minor_version, "key": key, "data": data}
            ),
            mode=0o600,
        )

    def end_left_over_process(self) -> None:
        """Ends our own Home Assistant where a killed demonstration left it behind."""
        pid_file = self.folder / PID_FILE
        try:
            pid = int(pid_file.read_text(encoding="utf-8"))
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError, ValueError:
            return
        if os.fsencode(self.folder) not in command.split(b"\0"):
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        for _ in range(4 * STOP_TIMEOUT_S):
            time.sleep(0.25)
            if not Path(f"/proc/{pid}").exists():
                return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Api:
    """Home Assistant's HTTP and websocket interfaces, logged in."""

    def __init__(self, session: aiohttp.ClientSession, url: str, tokens: dict[str, Any]) -> None:
        self._session = session
        self._url = url
        self.tokens: Final = tokens
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._last_id = 0

    @classmethod
    async def login(cls, url: str, user: str, password: str) -> Self:
        """Logs in as a browser does."""
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
        try:
            client = {"client_id": f"{url}/"}
            async with session.post(
                f"{url}/auth/login_flow",
                json=client | {"handler": ["homeassistant", None], "redirect_uri": f"{url}/"},
            ) as response:
                flow = await response.json()
            async with session.post(
                f"{url}/auth/login_flow/{flow['flow_id']}",
                json=client | {"username": user, "password": password},
            ) as response:
                step = await response.json()
            if step.get("type") != "create_entry":
                raise HomeAssistantError(f"Home Assistant refused the user {user}: {step}")
            async with session.post(
                f"{url}/auth/token",
                data=client | {"grant_type": "authorization_code", "code": step["result"]},
            ) as response:
                response.raise_for_status()
                tokens = await response.json()
        except BaseException:
            await session.close()
            raise
        return cls(session, url, tokens)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections."""
        if self._socket is not None:
            await self._socket.close()
        await self._session.close()

    async def get(self, path: str) -> Any:
        """Gets JSON."""
        return await self._request("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Posts JSON, gets JSON."""
        return await self._request("POST", path, body)

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        async with self._session.request(
            method,
            self._url + path,
            json=body,
            headers={"Authorization": f"Bearer {self.tokens['access_token']}"},
        ) as response:
            if response.status >= 400:
                raise HomeAssistantError(
                    f"{method} {path}: {response.status} {(await response.text())[:500]}"
                )
            return await response.json()

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        """Opens the websocket and logs in."""
        socket = await self._session.ws_connect(f"{self._url}/api/websocket", max_msg_size=0)
        await socket.receive_json()
        await socket.send_json({"type": "auth", "access_token": self.tokens["access_token"]})
        if (answer := await socket.receive_json())["type"] != "auth_ok":
            raise HomeAssistantError(f"the websocket refused the token: {answer}")
        return socket

    async def command(self, type_: str, **arguments: Any) -> Any:
        """Sends one websocket command; its result."""
        socket = self._socket = self._socket or await self._connect()
        self._last_id += 1
        message = {"id": self._last_id, "type": type_, **arguments}
        try:
            await socket.send_json(message)
        except aiohttp.ClientConnectionError:
            # Nobody has read from it for long, so its pings went unanswered.
            socket = self._socket = await self._connect()
            await socket.send_json(message)
        try:
            answer = await socket.receive_json(timeout=60)
            while answer.get("id") != self._last_id:
                answer = await socket.receive_json(timeout=60)
        except TypeError as error:  # aiohttp's, for a message that closes the socket
            raise HomeAssistantError(f"Home Assistant closed the websocket: {error}") from error
        if not answer["success"]:
            raise HomeAssistantError(f"{type_}: {answer['error']['message']}")
        return answer["result"]

    async def call_service(self, domain: str, service: str, data: Mapping[str, Any]) -> Any:
        """Calls an action that answers; its response."""
        result = await self.command(
            "call_service",
            domain=domain,
            service=service,
            service_data=dict(data),
            return_response=True,
        )
        return result["response"]


async def configure_energy(api: Api) -> None:
    """Tells the Energy dashboard which sensors are the home's."""
    await api.command("energy/save_prefs", **ENERGY_PREFERENCES)


async def add_integration(
    api: Api, domain: str, answer: Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    """Walks through an integration's config flow; ``answer`` fills in each form.

    Returns the finished entry. Raises :class:`HomeAssistantError` where the flow ends otherwise
    or shows one form twice, which means that it refused the answer.
    """
    step = await api.post("/api/config/config_entries/flow", {"handler": domain})
    seen = set()
    while step["type"] in ("form", "menu"):
        if step["step_id"] in seen:
            raise HomeAssistantError(
                f"the step {step['step_id']} of {domain} refused the answer: {step.get('errors')}"
            )
        seen.add(step["step_id"])
        path = f"/api/config/config_entries/flow/{step['flow_id']}"
        step = await api.post(path, await answer(step))
    if step["type"] != "create_entry":
        raise HomeAssistantError(f"{domain} was not added: {step.get('reason') or step}")
    result: dict[str, Any] = step["result"]
    return result


def prefilled(step: Mapping[str, Any]) -> dict[str, Any]:
    """What a form of a config flow suggests."""
    answers = {}
    for field in step["data_schema"]:
        suggested = (field.get("description") or {}).get("suggested_value", field.get("default"))
        if suggested is not None:
            answers[field["name"]] = suggested
    return answers


async def connect_home(
    api: Api, invitation: str, msp_id: str, battery: Mapping[str, float]
) -> None:
    """Adds the GridLedger integration: the invitation as given, the plant as suggested.

    ``battery`` completes what the Energy dashboard does not know of it; ``msp_id`` is the
    utility's, for an enrolment authority that does not tell.
    """

    async def answer(step: Mapping[str, Any]) -> dict[str, Any]:
        match step["step_id"]:
            case "user":
                return {"invitation": invitation}
            case "member":
                return {"msp_id": msp_id}
            case "confirm":
                return {}
            case _:
                return prefilled(step) | dict(battery)

    await add_integration(api, "gridledger", answer)


async def is_connected(api: Api) -> bool:
    """Whether the GridLedger integration was added before."""
    entries = await api.command("config_entries/get", domain="gridledger")
    return bool(entries)


async def deliver_sold_energy(api: Api) -> None:
    """Adds the automation that discharges the battery in the window of each committed sale."""
    entities = await api.command("config/entity_registry/list")
    events = [
        entity["entity_id"]
        for entity in entities
        if entity["platform"] == "gridledger" and entity["entity_id"].startswith("event.")
    ]
    if not events:
        raise HomeAssistantError("GridLedger has no event entity for trades")
    trade = "trigger.to_state.attributes"
    await api.post(
        f"/api/config/automation/config/{AUTOMATION_ID}",
        {
            "alias": "Deliver sold energy",
            "description": "Discharges the battery in the delivery window of each committed sale.",
            "triggers": [
                {
                    "trigger": "state",
                    "entity_id": events[0],
                    "not_from": ["unavailable"],
                    "not_to": ["unavailable", "unknown"],
                }
            ],
            "conditions": [
                {
                    "condition": "template",
                    "value_template": "{{ " + trade + ".event_type == 'committed' }}",
                }
            ],
            "actions": [
                {
                    "variables": {
                        "start": "{{ " + trade + ".window_start }}",
                        "until": "{{ " + trade + ".window_end }}",
                        "sold_w": "{{ " + trade + ".energy_kwh * 3600000 /"
                        " (as_timestamp(until) - as_timestamp(start)) }}",
                        "house_w": "{{ [states('sensor.inverter_house_power') | float(0)"
                        " - states('sensor.inverter_pv_power') | float(0), 0] | max }}",
                    }
                },
                {
                    "action": "rest_command.inverter_battery",
                    "data": {
                        "mode": "discharge",
                        "power_w": "{{ [sold_w + house_w, 5000] | min | round(0, 'ceil') }}",
                        "start": "{{ start }}",
                        "until": "{{ until }}",
                    },
                },
            ],
            "mode": "queued",
        },
    )


async def open_dashboard_first(api: Api, title: str, config: Mapping[str, Any]) -> None:
    """Makes a dashboard where it is missing, and the one that everybody sees first."""
    dashboards = await api.command("lovelace/dashboards/list")
    if not any(dashboard["url_path"] == DASHBOARD for dashboard in dashboards):
        await api.command(
            "lovelace/dashboards/create",
            url_path=DASHBOARD,
            title=title,
            icon="mdi:transmission-tower-export",
            mode="storage",
            show_in_sidebar=True,
        )
    await api.command("lovelace/config/save", url_path=DASHBOARD, config=dict(config))
    await api.command("frontend/set_system_data", key="core", value={"default_panel": DASHBOARD})


def _hass(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "homeassistant", *arguments]


def _time_zone() -> str:
    """The machine's own time zone, so that Home Assistant's clock is the wall's."""
    with suppress(OSError, ValueError):
        target = Path("/etc/localtime").resolve(strict=True)
        name = str(target).split("/zoneinfo/", 1)[1] if "/zoneinfo/" in str(target) else ""
        if name and not name.startswith("Etc/"):
            return name
    return "UTC"
