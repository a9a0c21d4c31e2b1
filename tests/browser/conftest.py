"""A running demonstration and a browser in front of its Home Assistant, shared by all tests here.

The ledger and its homes are the demonstration's; the first home's Home Assistant is started beside
it and has not joined yet, so that joining is done in the browser as its owner does it.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, ViewportSize, async_playwright

from consortium.node.contracts import client as utility_client
from consortium.node.network import Network, Replay, create_network
from demo.home_assistant import REPOSITORY, USER, Api, HomeAssistant, configure_energy
from demo.homes import ORIGIN
from demo.screenshot import BROWSERS, FLAGS, browser_tokens
from gridledger_client import GatewayClient, Identity
from tests.ports import first_port

START_S = 200
"""What a busy machine may take for a ledger, or a Home Assistant, to come up."""
WAIT_MS = 60_000
RATE = int(os.environ.get("GRIDLEDGER_RATE", "1"))
"""How fast the ledger's clock runs; at 720 a day passes in two minutes."""
HOME, NEIGHBOUR = "HOME-01", "HOME-02"
PHONE: ViewportSize = {"width": 390, "height": 844}
DESKTOP: ViewportSize = {"width": 1440, "height": 900}
CONFIGURATION = """
input_boolean:
  washing_machine:
    name: Washing machine
"""


@dataclass
class House:
    """A home: its Home Assistant, an invitation to the ledger, and a browser."""

    assistant: HomeAssistant
    api: Api
    invitation: str
    browser: Browser
    pictures: Path
    network: Network
    bid_at: float | None = None
    """The instant for which energy of a neighbour was ordered, whichever test did it."""
    complaints: list[str] = field(default_factory=list)
    """What a page has logged as an error, or asked of anyone but Home Assistant."""

    async def context(
        self, *, phone: bool = False, dark: bool = False, language: str = "en"
    ) -> BrowserContext:
        """Open a browser of its own that is logged in."""
        context = await self.browser.new_context(
            viewport=PHONE if phone else DESKTOP,
            has_touch=phone,
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            locale=language,
        )
        context.set_default_timeout(WAIT_MS)
        stored = {
            "hassTokens": browser_tokens(self.api, self.assistant.url),
            "dockedSidebar": '"always_hidden"',
            "selectedLanguage": json.dumps(language),
        }
        # A page that is still empty has no storage.
        write = "for (const [key, value] of Object.entries(%s)) localStorage[key] = value;"
        guarded = "if (location.protocol === 'http:') {" + write % json.dumps(stored) + "}"
        await context.add_init_script(guarded)
        context.on("page", self._listen)
        return context

    def _listen(self, page: Page) -> None:
        own = (self.assistant.url, "data:", "blob:")

        def asked(url: str) -> None:
            if not url.startswith(own):
                self.complaints.append(f"asks {url}")

        def logged(kind: str, text: str) -> None:
            # Core's map asks Home Assistant for tiles, which it can't get here.
            if kind == "error" and "Bad Gateway" not in text:
                self.complaints.append(f"logs {text}")

        page.on("request", lambda request: asked(request.url))
        page.on("console", lambda message: logged(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(f"throws {error.stack or error}"))

    async def open(self, page: Page, path: str) -> None:
        """Go to a page of Home Assistant; within the frontend where it runs already."""
        if page.url.startswith(self.assistant.url):
            await page.evaluate(
                "path => { history.pushState(null, '', path);"
                " window.dispatchEvent(new CustomEvent('location-changed')); }",
                path,
            )
        else:
            await page.goto(self.assistant.url + path)

    def operator(self) -> GatewayClient:
        """A client that acts as the home's utility."""
        return utility_client(self.network, self.network.utility("Aurora"), "operator")

    def neighbour(self) -> GatewayClient:
        """A client that acts as the second home of the demonstration, Boreal's customer."""
        own = self.network.directory / "demo" / "identities"
        certificate, key = (own / f"{NEIGHBOUR}.{part}.pem" for part in ("cert", "key"))
        boreal = self.network.utility("Boreal")
        return GatewayClient(
            [boreal.gateway_address],
            self.network.channel,
            Identity(boreal.msp_id, certificate.read_bytes(), key.read_bytes()),
            self.network.tls_bundle_pem,
        )

    async def picture(self, page: Page, name: str) -> None:
        """Keep what the page shows."""
        await page.screenshot(path=self.pictures / f"{name}.png", full_page=True)


@dataclass
class Ledger:
    """What a run of the demonstration has said that one needs."""

    inverter: str
    invitation: str


async def _start_ledger(folder: Path) -> tuple[asyncio.subprocess.Process, Ledger]:
    """Start the demonstration; again where a busy machine broke it off, which goes on from disk."""
    said: list[str] = []
    for _ in range(3):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "demo.run", "--ledger-only", "--homes", "3"),
            *("--data-dir", str(folder)),
            *(["--prepaid"] if RATE == 1 else []),  # a bill comes where days pass
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        if (ledger := await _begun(process, said)) is not None:
            return process, ledger
        await process.wait()
    raise AssertionError("the demonstration ended:\n" + "".join(said))


async def _begun(process: asyncio.subprocess.Process, said: list[str]) -> Ledger | None:
    assert process.stdout is not None
    inverter = invitation = ""
    async with asyncio.timeout(START_S):
        while line := (await process.stdout.readline()).decode():
            said.append(line)
            if found := re.search(r"answers at (http://\S+)/api/status", line):
                inverter = found[1]
            if line.startswith("gridledger1."):
                invitation = line.strip()
            if "Ctrl-C stops everything" in line:
                return Ledger(inverter, invitation)
    return None


async def _write_down(process: asyncio.subprocess.Process, log: Path) -> None:
    """Keep what the demonstration says."""
    assert process.stdout is not None
    with log.open("wb", buffering=0) as file:
        while line := await process.stdout.readline():
            file.write(line)


def _executable() -> str:
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        pytest.fail(f"no browser on PATH: one of {', '.join(BROWSERS)}")
    pytest.skip(f"no browser on PATH: one of {', '.join(BROWSERS)}")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """Everything, once for all tests."""
    executable = _executable()
    folder: Path = tmp_path_factory.mktemp("browser")
    pictures = Path(os.environ.get("GRIDLEDGER_PICTURES") or folder / "pictures")
    pictures.mkdir(parents=True, exist_ok=True)
    network = create_network(
        folder / "ledger",
        interval_s=60 if RATE == 1 else 900,
        replay=Replay(origin=ORIGIN, anchor=int(time.time()), rate=RATE),
        base_port=first_port(),
    )
    process, ledger = await _start_ledger(folder / "ledger")
    drain = asyncio.create_task(_write_down(process, folder / "ledger.log"))
    assistant = HomeAssistant(folder / "house", first_port(1))
    try:
        await assistant.prepare(ledger.inverter)
        _equip(assistant.folder)
        await assistant.start(lambda _: None)
        async with (
            await Api.login(assistant.url, USER, assistant.password) as api,
            async_playwright() as playwright,
        ):
            await configure_energy(api)
            browser = await playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
            yield House(assistant, api, ledger.invitation, browser, pictures, network)
            await browser.close()
    finally:
        await assistant.stop()
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), 30)
        except TimeoutError:
            process.kill()
            await process.wait()
        drain.cancel()


def _equip(folder: Path) -> None:
    """Give the home a washing machine, and the blueprints that its owner has imported."""
    with (folder / "configuration.yaml").open("a") as file:
        file.write(CONFIGURATION)
    shutil.copytree(
        REPOSITORY / "blueprints" / "automation" / "gridledger",
        folder / "blueprints" / "automation" / "gridledger",
    )


async def state_of(api: Api, entity_id: str) -> dict[str, Any]:
    """Return an entity's state."""
    found: dict[str, Any] = await api.get(f"/api/states/{entity_id}")
    return found
