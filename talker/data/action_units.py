"""The table of action units, OpenFace's csv, of which only AU45 (eye closure) is used."""

from pathlib import Path

import numpy as np

from talker.clip import FPS

CLOSED = 5.0
"""AU45 intensity of a closed eye: the upper end of OpenFace's scale."""
HEADER = "frame, timestamp, confidence, success, AU45_r"


def write_au45(path: Path, au45: np.ndarray, valid: np.ndarray) -> None:
    """Write AU45 intensities [T] as an OpenFace csv; frames that are not `valid` have success 0."""
    rows = [
        f"{i + 1}, {i / FPS:.2f}, {int(ok):.2f}, {int(ok)}, {value:.3f}"
        for i, (ok, value) in enumerate(zip(valid, au45, strict=True))
    ]
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
