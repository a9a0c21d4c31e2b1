"""``script/screenshot``: pictures of a running demonstration's dashboard, by a real browser."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from playwright.async_api import Error as BrowserError
from playwright.async_api import async_playwright

from demo.home_assistant import (
    DASHBOARD,
    REPOSITORY,
    RUNNING_FILE,
    USER,
    Api,
    HomeAssistant,
    HomeAssistantError,
)
from demo.run import DEFAULT_DATA_DIR

SCHEMES: Final = {"light": "view-activity.png", "dark": "view-activity-dark.png"}
FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
TIMEOUT_MS: Final = 60_000
SETTLE_MS: Final = 4_000
"""Charts grow into place after they have their data."""


async def take(
    api: Api,
    url: str,
    folder: Path,
    *,
    path: str,
    wait_for: str,
    size: tuple[int, int],
    schemes: dict[str, str] = SCHEMES,
) -> list[Path]:
    """Opens a page of Home Assistant in each colour scheme and writes a picture of each."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    pictures = []
    async with async_playwright() as playwright:
        for scheme, name in schemes.items():
            with tempfile.TemporaryDirectory(prefix="gridledger-browser-") as profile:
                context = await playwright.chromium.launch_persistent_context(
                    profile,
                    executable_path=_browser(),
                    headless=True,
                    args=list(FLAGS),
                    color_scheme="dark" if scheme == "dark" else "light",
                    viewport={"width": size[0], "height": size[1]},
                    device_scale_factor=1,
                    reduced_motion="reduce",
                )
                try:
                    tokens = json.dumps(browser_tokens(api, url))
                    await context.add_init_script(
                        f"localStorage.setItem('hassTokens', {tokens});"
                        "localStorage.setItem('dockedSidebar', '\"always_hidden\"');"
                    )
                    page = await context.new_page()
                    await page.goto(f"{url}/{path}", timeout=TIMEOUT_MS)
                    await page.locator(wait_for).first.wait_for(timeout=TIMEOUT_MS)
                    await page.wait_for_timeout(SETTLE_MS)
                    await page.screenshot(path=folder / name)
                finally:
                    await context.close()
                pictures.append(folder / name)
    return pictures


def browser_tokens(api: Api, url: str) -> str:
    """The frontend's own record of a login."""
    tokens: dict[str, Any] = dict(api.tokens)
    tokens["expires"] = int(time.time() * 1000) + int(tokens["expires_in"]) * 1000
    tokens["hassUrl"] = url
    tokens["clientId"] = f"{url}/"
    return json.dumps(tokens)


def _browser() -> str:
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise HomeAssistantError(f"no browser on PATH; install one of {', '.join(BROWSERS)}")


async def _main(options: argparse.Namespace) -> None:
    try:
        running = json.loads((options.data_dir / "demo" / RUNNING_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise HomeAssistantError(
            f"there is no demonstration in {options.data_dir}; start script/run first"
        ) from error
    url = running["url"]
    password = HomeAssistant(Path(running["folder"]), 0).password
    async with await Api.login(url, USER, password) as api:
        pictures = await take(
            api,
            url,
            options.output,
            path=options.path,
            wait_for=options.wait_for,
            size=options.size,
        )
    for picture in pictures:
        print(picture)


def _size(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="script/screenshot",
        description="Takes the README's pictures of the dashboard, light and dark, from a "
        "script/run that is running, with a headless Chromium or Chrome.",
    )
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DATA_DIR, metavar="FOLDER")
    parser.add_argument(
        "--output", type=Path, default=REPOSITORY / "docs" / "images", metavar="FOLDER"
    )
    parser.add_argument("--path", default=DASHBOARD, help="the page below Home Assistant's address")
    parser.add_argument(
        "--wait-for", default="hui-card", metavar="SELECTOR", help="what must be there first"
    )
    parser.add_argument("--size", type=_size, default=(1640, 1240), metavar="WIDTHxHEIGHT")
    return parser.parse_args(arguments)


def main() -> None:
    """The entry point of ``python -m demo.screenshot``."""
    try:
        asyncio.run(_main(parse()))
    except (HomeAssistantError, BrowserError, OSError) as error:
        print(f"script/screenshot: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
