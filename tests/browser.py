"""Open pages of talker in Debian's Chromium, with Playwright, for tests with the marker browser.

Every call of Playwright ends: most of them after `PATIENCE`, and those without a time limit of
their own, such as the evaluation of a promise, when the browser is killed after `LIMIT`.
"""

import faulthandler
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
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
PATIENCE = 30.0
"""Time in seconds after which an action in a page fails."""
LIMIT = 100.0
"""Time in seconds after which a page is killed, so that all calls that wait for it fail."""


@contextmanager
def open_page(
    url: str, width: int = 1280, height: int = 800, flags: Sequence[str] = (), limit: float = LIMIT
) -> Iterator["Page"]:
    """Open a page; the test fails if it makes an external request or raises an error."""
    from playwright.sync_api import sync_playwright

    chromium, faults = shutil.which("chromium"), []

    def check(address: str) -> None:
        if urlsplit(address).hostname not in ("127.0.0.1", "localhost", None):
            faults.append(f"external request: {address}")

    with killed_after(limit), sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=[*FLAGS, *flags])
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(1000 * PATIENCE)
            page.on("request", lambda request: check(request.url))
            page.on("websocket", lambda websocket: check(websocket.url))
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.goto(url)
            yield page
        finally:
            browser.close()
    assert not faults, faults


def children(parent: int) -> set[int]:
    """Return the ids of all processes that a process has started, and that those have started."""
    found: set[int] = set()
    for file in Path(f"/proc/{parent}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            for child in map(int, file.read_text().split()):
                found |= {child} | children(child)
    return found


@contextmanager
def killed_after(seconds: float) -> Iterator[None]:
    """Print the stacks, and kill what the block has started, if it takes too long."""
    before = children(os.getpid())

    def kill() -> None:
        faulthandler.dump_traceback()
        for process in children(os.getpid()) - before:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
