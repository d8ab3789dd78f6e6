"""Report the progress of long loops: a bar on a terminal, a line every few seconds in a log."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0
"""Time in seconds between two progress lines in a log."""

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
        if now - reported >= SECONDS_BETWEEN_LINES:
            reported = now
            logger.info("%s: %d/%d %s, %.1f/s", name, done, total, unit, done / (now - start))
    logger.info("%s: %d %s in %.1f s", name, done, unit, time.monotonic() - start)
