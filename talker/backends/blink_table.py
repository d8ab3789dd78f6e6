"""Read the eye closure of every frame from a table that another program wrote."""

from pathlib import Path

import numpy as np

from talker.clip import FPS, Clip
from talker.data.formats import numbers
from talker.errors import UserError

TOLERANCE = 0.2
"""Largest accepted difference between the durations of the table and of the clip, in seconds."""


def require_table(path: str | None, backend: str, program: str) -> Path:
    """Return the path of a table that exists.

    Raises:
        UserError: the option is not set or the file is missing.
    """
    if not path or not Path(path).is_file():
        reason = f"The table {path} does not exist." if path else "The option `table` is not set."
        raise UserError(
            f"{reason} The backend '{backend}' reads the csv file that {program} writes."
        )
    return Path(path)


def column(path: Path, table: dict[str, list[str]], name: str, low: float, high: float):
    """Return a column of numbers, float64 [R].

    Raises:
        UserError: the table has no such column, or a value is not a number in the range.
    """
    if name not in table:
        raise UserError(
            f"{path} has no column {name}. Its first columns are: "
            f"{', '.join(list(table)[:8]) or 'none'}. Give a table that was written by "
            "OpenFace or py-feat."
        )
    return numbers(path, name, table[name], low, high)


def largest_group(table: dict[str, list[str]], name: str) -> dict[str, list[str]]:
    """Keep the rows of the most frequent value of a column, such as the id of a face."""
    if name not in table or not table[name]:
        return table
    values, counts = np.unique(table[name], return_counts=True)
    rows = [i for i, value in enumerate(table[name]) if value == values[counts.argmax()]]
    return {key: [cells[i] for i in rows] for key, cells in table.items()}


def resample(
    path: Path, clip: Clip, times: np.ndarray, values: np.ndarray, good: np.ndarray
) -> np.ndarray:
    """Interpolate values [R] at increasing times [R] (seconds) at the frames of the clip: [T].

    Args:
        path: path of the table, for error messages.
        clip: the clip.
        times: time of each row since the first frame of the video.
        values: value of each row.
        good: bool [R], rows to use.

    Raises:
        UserError: no row is good, times do not increase, or the table has another duration than
            the clip.
    """
    if not good.any():
        raise UserError(
            f"{path} has no row in which a face was detected. Run OpenFace or py-feat on the video "
            "of this clip, or use `blink: {backend: ear}`."
        )
    if (np.diff(times) <= 0).any():
        row = int(np.flatnonzero(np.diff(times) <= 0)[0]) + 1
        raise UserError(
            f"In {path}, the time in row {row} is not later than the time in the row before it. "
            "Sort the rows by time."
        )
    period = float(np.median(np.diff(times))) if len(times) > 1 else 1 / FPS
    end, expected = times[-1] + period, clip.frames / FPS
    if times[0] > TOLERANCE or abs(end - expected) > TOLERANCE:
        raise UserError(
            f"{path} has {len(times)} rows, from {times[0]:.2f} to {end:.2f} s, but the "
            f"clip lasts from 0 to {expected:.2f} s. Run OpenFace or py-feat on the video of "
            "this clip."
        )
    return np.interp(np.arange(clip.frames) / FPS, times[good], values[good])
