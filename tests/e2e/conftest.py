"""A real fleet with a real title on it, and a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console

from bench.demo import bring_up
from bench.fleet import Fleet

CLIP = Path(__file__).parents[1] / "media" / "bigbuckbunny.mp4"
TITLE = "demo"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Controller, origin and three appliances in two sites, the clip packaged, placed and filled."""
    with Fleet(tmp_path_factory.mktemp("fleet"), wait_s=1.0) as fleet:
        bring_up(fleet, CLIP, TITLE, Console(stderr=True), seconds=32)
        yield fleet


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not for the whole session: while Playwright is in use its event loop counts as running, and no other may."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    yield context.new_page()
    context.close()
