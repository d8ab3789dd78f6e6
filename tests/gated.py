"""The three stages of the gate, one after the other."""

import json
from pathlib import Path
from typing import Any

from talker import check, lipsync, verify
from talker.data import layout


def measure(folder: Path) -> None:
    """Verify a dataset folder and measure its lip sync."""
    verify.main(data=folder, verified=folder / layout.VERIFIED)
    lipsync.main(data=folder, lipsync=folder / layout.LIPSYNC)


def gate(folder: Path, config: check.Config = check.Config()) -> dict[str, Any]:
    """Run all stages of the gate on a dataset folder and return the content of quality.json."""
    measure(folder)
    quality = folder / layout.QUALITY
    check.main(data=folder, quality=quality, config=config)
    return json.loads(quality.read_text())
