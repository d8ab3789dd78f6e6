"""Eye closure and brows by OpenFace 2 (Baltrusaitis et al. 2018): the intensities in its csv file.

Both header styles are read: " AU45_r" (Windows and older versions) and "AU45_r".
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from talker.backends.blink_table import column, largest_group, require_table, resample
from talker.clip import FPS, Clip
from talker.data.formats import AU_MAX, BROW_UNITS, has_values, read_table


class Options(Protocol):
    """The options of the stage that this backend reads."""

    table: str | None


def measure(
    clip: Clip, images: Path | None, points: np.ndarray, valid: np.ndarray, options: Options
) -> dict[str, np.ndarray]:
    """Return the intensities of AU45 and, if the table has them, of the brows, float64 [T], 0 to 5.

    Columns of the brows that are empty are omitted.

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
    names = ["AU45_r", *(name for name in BROW_UNITS if has_values(table, name))]
    units = {name: column(path, table, name, -1.0, 100.0).clip(0, AU_MAX) for name in names}
    rows = len(units["AU45_r"])
    good = np.ones(rows, bool)
    if "success" in table:
        good = column(path, table, "success", 0, 1) > 0
    if rows == clip.frames:
        times = np.arange(clip.frames) / FPS
    else:
        times = column(path, table, "timestamp", 0, 1e6)
    return {name: resample(path, clip, times, unit, good) for name, unit in units.items()}
