"""Eye closure by OpenFace 2 (Baltrusaitis et al. 2018): the AU45 intensities of its csv file.

Both header styles are read: " AU45_r" (Windows and older versions) and "AU45_r".
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from talker.backends.blink_table import column, largest_group, require_table, resample
from talker.clip import FPS, Clip
from talker.data.formats import AU45_CLOSED, read_table


class Options(Protocol):
    """The options of the stage that this backend reads."""

    table: str | None


def measure(
    clip: Clip, images: Path | None, points: np.ndarray, valid: np.ndarray, options: Options
) -> np.ndarray:
    """Return the AU45 intensity of every frame, float64 [T] from 0 (open) to 5 (closed).

    Rows are assigned by their timestamps. A table with exactly one row per frame is assigned row
    by row, because OpenFace assumes 30 frames per second for a folder of images.

    Args:
        clip: the clip.
        images: not used.
        points: not used.
        valid: not used.
        options: options of the stage.

    Raises:
        UserError: the table is missing, damaged, or of another duration than the clip.
    """
    path = require_table(options.table, "openface", "OpenFace's FeatureExtraction")
    table = largest_group(read_table(path), "face_id")
    au45 = column(path, table, "AU45_r", -1.0, 100.0).clip(0, AU45_CLOSED)
    good = np.ones(len(au45), bool)
    if "success" in table:
        good = column(path, table, "success", 0, 1) > 0
    if len(au45) == clip.frames:
        times = np.arange(clip.frames) / FPS
    else:
        times = column(path, table, "timestamp", 0, 1e6)
    return resample(path, clip, times, au45, good)
