"""Open pages of talker in Debian's Chromium, with Playwright, for tests with the marker browser."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Page

FLAGS = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
)


@contextmanager
def open_page(
    url: str, width: int = 1280, height: int = 800, flags: Sequence[str] = ()
) -> Iterator["Page"]:
    """Open a page; the test fails if it makes an external request or raises an error."""
    from playwright.sync_api import sync_playwright

    chromium, faults = shutil.which("chromium"), []

    def check(address: str) -> None:
        if urlsplit(address).hostname not in ("127.0.0.1", "localhost", None):
            faults.append(f"external request: {address}")

    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=[*FLAGS, *flags])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("request", lambda request: check(request.url))
        page.on("websocket", lambda websocket: check(websocket.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(url)
        yield page
        browser.close()
    assert not faults, faults
