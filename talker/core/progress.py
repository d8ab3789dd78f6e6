"""Report the progress of long loops: a bar on a terminal, a line every few seconds in a log.

`talker run` reads the last line of each log with `read_progress`.
"""

import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 1.0, 10.0
"""Time in seconds between two progress lines in a log, at the start of a loop and later on."""
LINE = re.compile(r"^(.+): (\d+)/(\d+) (\w+), ([\d.]+)/s$", re.MULTILINE)
"""A progress line in a log."""

logger = logging.getLogger(__name__)


def progress(items: Iterable[Item], name: str, total: int, unit: str = "frames") -> Iterator[Item]:
    """Yield `items` and report the progress, such as `name: 120/1129 frames, 34.1/s`.

    Args:
        name: what is being done; each line begins with it.
        total: number of items.
        unit: plural noun for the items.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=name, total=total, unit=f" {unit}", leave=False)
        return
    start = reported = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        first, last = SECONDS_BETWEEN_LINES
        if now - reported >= min(max(first, 0.2 * (now - start)), last):
            reported = now
            logger.info("%s: %d/%d %s, %.1f/s", name, done, total, unit, done / (now - start))
    logger.info("%s: %d %s in %.1f s", name, done, unit, time.monotonic() - start)


@dataclass(frozen=True)
class State:
    """The progress of a loop."""

    name: str
    """What is being done."""
    done: int
    """Number of items done."""
    total: int
    """Number of items."""
    unit: str
    """Plural noun for the items."""
    seconds_left: float
    """Estimated time to the end of the loop in seconds."""


def read_progress(log: str) -> State | None:
    """Return the progress of the loop that a log is about, or None if no loop is running.

    Args:
        log: the log, or its last lines.
    """
    lines = list(LINE.finditer(log))
    if not lines or f"\n{lines[-1][1]}: {lines[-1][3]} {lines[-1][4]} in " in log:
        return None
    name, done, total, unit, rate = lines[-1].groups()
    left = (int(total) - int(done)) / max(float(rate), 1e-3)
    return State(name, int(done), int(total), unit, left)
