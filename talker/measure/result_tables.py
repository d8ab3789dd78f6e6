"""Tables and charts of an avatar's results, as the report shows them.

The functions raise LookupError, TypeError or ValueError if a file holds other values than expected.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from talker.clip import FPS, load_text
from talker.dataset import Dataset
from talker.errors import counted
from talker.measure import metrics as m
from talker.measure.figures import Curve, chart
from talker.measure.page_facts import Section
from talker.measure.verdict import MIN_FRAMES

HALF = 500, 240
"""Width and height of charts shown side by side."""


def verdict(metrics: Section) -> Section:
    """Return grade, reasons and advice of the verdict on the avatar."""
    stored = metrics["verdict"]
    if not str(stored["grade"]).strip():
        raise ValueError("the verdict has no grade")
    return {
        "grade": str(stored["grade"]),
        "reasons": list(stored["reasons"]),
        "advice": list(stored["advice"]),
    }


def numbers(metrics: Section) -> Section:
    """Return the table of metrics: one row for each metric, one column for each rendering."""
    settings, networks = metrics["settings"], metrics.get("network_metrics", {})
    runs = {"avatar": metrics["held_out"], **metrics["controls"], "detector floor": None}
    runs["detector floor"] = metrics["detector_floor"]
    rows = [
        {
            "name": _title(name),
            "text": text,
            "values": [_shown(name, run.get(name)) for run in runs.values()],
        }
        for name, text in settings["definitions"].items()
    ]
    return {
        "columns": [name.replace("_", " ") for name in runs],
        "rows": rows,
        "notes": {
            **{name.replace("_", " "): text for name, text in settings["controls"].items()},
            "detector floor": settings["detector_floor"],
        },
        "networks": [
            {"name": name, "avatar": _number(value), "real": _number(networks["real"].get(name))}
            for name, value in networks.get("avatar", {}).items()
        ],
        "not_computed": dict(metrics["not_computed"].items()),
        "spread": _number(metrics["controls"]["shuffled_audio"].get("mouth_correlation_sd")),
        "frames": metrics["held_out"]["frames"],
        "gap": settings.get("gap"),
    }


def tiles(metrics: Section) -> list[dict[str, str]]:
    """Return the key numbers, each with the values of the controls to compare it with."""
    row = metrics["held_out"]
    shuffled, frozen = (metrics["controls"][name] for name in ("shuffled_audio", "frozen_mouth"))
    low, high = metrics.get("verdict", {}).get("intervals", {}).get("correlation", (None, None))
    between = (
        "" if low is None else f"between {low:.1f} and {high:.1f} (90 % confidence interval); "
    )
    too_few = f"only {counted(row['frames'], 'frame')}" if row["frames"] < MIN_FRAMES else ""

    def of_mouth(label: str, name: str, unit: str, text: str, note: str) -> dict[str, str]:
        """Return a tile about the mouth's motion, which cannot be measured on a few frames."""
        value = row[name]
        shown = "-" if too_few or value is None else text.format(value)
        return {"label": label, "value": shown, "unit": unit, "note": too_few or note}

    def number(value: float | None, text: str) -> str:
        return "-" if value is None else text.format(value)

    def of_picture(label: str, name: str, unit: str, note: str) -> dict[str, str]:
        return {"label": label, "value": number(row[name], "{:.1f}"), "unit": unit, "note": note}

    return [
        of_mouth(
            *("mouth follows speech", "mouth_correlation", "r", "{:z.1f}"),
            f"{between}{number(shuffled['mouth_correlation'], '{:z.1f}')} with shuffled audio",
        ),
        of_mouth(
            *("mouth amplitude", "mouth_std_ratio", "x real", "{:.1f}"),
            f"{number(frozen['mouth_std_ratio'], '{:.1f}')} with a frozen mouth",
        ),
        of_mouth(
            *("lag", "best_lag_frames", "frame" if row["best_lag_frames"] == 1 else "frames"),
            "{:.0f}",
            "0 means that the mouth is in sync; the lag is "
            f"{number(shuffled['best_lag_frames'], '{:.0f}')} with shuffled audio",
        ),
        of_picture(
            *("mouth PSNR", "psnr_mouth", "dB"),
            f"{_shown('psnr_mouth', frozen['psnr_mouth'])} with a frozen mouth",
        ),
        of_picture(
            *("mouth landmarks", "lmd_mouth", "px"),
            f"{number(frozen['lmd_mouth'], '{:.1f}')} with a frozen mouth, "
            f"{number(metrics['detector_floor']['lmd_mouth'], '{:.1f}')} from detector noise alone",
        ),
        of_picture(
            *("whole frame PSNR", "psnr", "dB"),
            f"{_shown('psnr', frozen['psnr'])} with a frozen mouth",
        ),
    ]


def sync_note(sync: Section) -> str:
    """Return a sentence about how well the mouth follows the audio, compared with chance."""
    score, real = sync["avatar"], sync["real"]["correlation"]
    if score["correlation"] is None:
        return "The speech is too short to measure whether the mouth follows it."
    note = f"The correlation of the mouth with the audio is {score['correlation']:z.1f}"
    if score["null_mean"] is not None:
        note += f", and {score['null_mean']:z.1f} ± {score['null_sd']:.1f} with shifted audio"
    if real is not None:
        note += f". In the real video, it is {real:z.1f}"
    return f"{note}."


def mouth_curves(metrics: Section) -> Section:
    """Draw mouth and eye opening over time, and the correlation by lag."""
    curves = metrics["curves"]
    times = np.array(curves["frames"]) / FPS
    mouth = {name: _series(values) for name, values in curves["mouth_opening"].items()}
    eyes = {name: _series(values) for name, values in curves["eye_opening"].items()}
    reach = min(12, len(times) // 2)
    lags = np.arange(-reach, reach + 1)
    by_lag = [
        Curve("avatar", "avatar", lags, m.lag_curve(mouth["avatar"], mouth["real"], reach)),
    ]
    shuffled = np.atleast_2d(mouth["shuffled_audio"])
    if shuffled.size:
        turned = np.stack([m.lag_curve(one, mouth["real"], reach) for one in shuffled])
        by_lag.insert(0, Curve("shuffled audio", "shuffled", lags, turned.mean(0)))
    return {
        "mouth": chart(
            [
                Curve("frozen mouth", "frozen", times, mouth["frozen_mouth"]),
                Curve("real", "real", times, mouth["real"]),
                Curve("avatar", "avatar", times, mouth["avatar"]),
            ],
            "time in the clip, s",
            "mouth opening",
        ),
        "eyes": chart(
            [
                Curve("real", "real", times, eyes["real"]),
                Curve("avatar", "avatar", times, eyes["avatar"]),
            ],
            "time in the clip, s",
            "eye opening",
            *HALF,
        ),
        "lags": chart(by_lag, "lag, frames", "correlation", *HALF, zero=True),
    }


def pose_curves(dataset: Dataset) -> Section:
    """Draw the head's rotation and position over time, relative to their means."""
    ids = np.flatnonzero(dataset.valid)
    to_camera = dataset.viewmats[ids].astype(float)
    rotations = Rotation.from_matrix(to_camera[:, :3, :3])
    turned = (rotations.mean().inv() * rotations).as_rotvec(degrees=True)
    moved = 100 * (to_camera[:, :3, 3] - to_camera[:, :3, 3].mean(0))  # dm to mm

    def curves(values: np.ndarray, names: tuple[str, str, str]) -> list[Curve]:
        rows = np.full((dataset.frames, 3), np.nan)
        rows[ids] = values
        times = np.arange(dataset.frames) / FPS
        styles = ("real", "avatar", "frozen")
        return [
            Curve(name, style, times, rows[:, k])
            for k, (name, style) in enumerate(zip(names, styles, strict=True))
        ]

    return {
        "rotation": chart(
            curves(turned, ("pitch", "yaw", "roll")), "time in the clip, s", "degrees", *HALF
        ),
        "position": chart(
            curves(moved, ("right", "down", "away")), "time in the clip, s", "mm", *HALF
        ),
    }


def training(log: Path) -> Section:
    """Draw the losses of both training stages."""
    entries = [json.loads(line) for line in load_text(log).splitlines()]
    charts = {}
    for stage in dict.fromkeys(entry["stage"] for entry in entries):
        rows = [entry for entry in entries if entry["stage"] == stage]
        steps = [row["step"] for row in rows]
        curves = [
            Curve(name, style, steps, [row[name] for row in rows])
            for name, style in (("lips", "frozen"), ("l1", "real"), ("loss", "avatar"))
            if name in rows[0]
        ]
        charts[stage] = chart(curves, "step", "loss", *HALF, log_y=True)
    if not charts:
        raise ValueError(f"{log} is empty")
    return {
        "charts": charts,
        "gaussians": int(entries[-1]["gaussians"]),
        "minutes": float(entries[-1].get("seconds", 0)) / 60,
    }


def _number(value: Any) -> float | None:
    """Return a JSON number or null; the template formats it.

    Raises:
        TypeError, ValueError, OverflowError: it is something else, or too large for a float.
    """
    return None if value is None else float(value)


def _series(values: list[Any]) -> np.ndarray:
    """Convert JSON numbers and nulls to floats and nans."""
    return np.array(values, np.float64)


def _title(name: str) -> str:
    for short in ("psnr", "ssim", "lmd"):
        name = name.replace(short, short.upper())
    return name.replace("_", " ")


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in ("best_lag_frames", "faces_lost"):
        return f"{value:.3g}"
    return f"{value:.1f}" if name.startswith("psnr") else f"{value:.3f}"
