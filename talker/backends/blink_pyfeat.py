"""Eye closure and brows by py-feat (Cheong et al. 2023): the table that its detector returns.

py-feat runs in an environment of its own (envs/pyfeat.yaml) and downloads its networks itself.
docs/backends.md has the command that writes the table.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from talker.backends.blink_table import column, require_table, resample
from talker.clip import FPS, Clip
from talker.data.formats import AU_MAX, has_values, is_missing, read_table

COLUMNS = {"AU45_r": "AU43", "AU01_r": "AU01", "AU02_r": "AU02", "AU04_r": "AU04"}
"""Column of py-feat's table for each action unit. AU43 is the probability of closed eyes."""


class Options(Protocol):
    """The options of the stage that this backend reads."""

    table: str | None


def measure(
    clip: Clip, images: Path | None, points: np.ndarray, valid: np.ndarray, options: Options
) -> dict[str, np.ndarray]:
    """Return the intensities of the action units of `COLUMNS` in every frame, float64 [T], 0 to 5.

    The probabilities in the table are scaled to this range. Columns of the brows that the table
    does not have, or that are empty, are omitted. Other empty cells are interpolated. Rows are
    assigned by their frame numbers. If the table has as many frames as the clip, these are frame
    numbers of the clip, otherwise of the video. If a frame shows several faces, the largest one is
    used.

    Args:
        clip: the clip.
        images: not used.
        points: not used.
        valid: not used.
        options: options of the stage.

    Raises:
        UserError: the table is missing, damaged, or of another duration than the clip.
    """
    path = require_table(options.table, "pyfeat", "py-feat's detector")
    table = read_table(path)
    frames = column(path, table, "frame", 0, 1e7).astype(int)
    units = {
        unit: AU_MAX * _numbers(table, path, name)
        for unit, name in COLUMNS.items()
        if unit == "AU45_r" or has_values(table, name)
    }
    areas = _numbers(table, path, "FaceRectWidth") * _numbers(table, path, "FaceRectHeight")
    areas = np.nan_to_num(areas, nan=-1.0)
    order = np.lexsort([-areas, frames])
    first = order[np.unique(frames[order], return_index=True)[1]]
    rate = FPS if frames.max(initial=0) + 1 == clip.frames else clip.source.fps
    return {
        unit: resample(path, clip, frames[first] / rate, values[first], ~np.isnan(values[first]))
        for unit, values in units.items()
    }


def _numbers(table: dict[str, list[str]], path: Path, name: str) -> np.ndarray:
    """Return a column; empty cells, which py-feat writes for frames without a face, become nan."""
    filled = dict(table)
    if name in filled:
        filled[name] = ["-1" if is_missing(cell) else cell for cell in table[name]]
    values = column(path, filled, name, -1.0, 1e6)
    return np.where(values < 0, np.nan, values)
