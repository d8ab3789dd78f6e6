"""Write one self-contained HTML page about a subject: verdict, videos, images and all numbers.

    talker report --data data/me --avatar results/me/avatar --metrics results/me/metrics.json \
        --video results/me/val.mp4 --benchmarks benchmarks/me --html results/me/report.html
"""

import csv
import json
import logging
import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, avatar_dataset, load_avatar, render_frames
from talker.clip import FPS, Clip
from talker.core.config import AtLeast1, NonNegative, validated
from talker.core.files import Output, atomic_write
from talker.data import layout
from talker.dataset import Dataset
from talker.errors import UserError
from talker.head.camera import project
from talker.measure import metrics as m
from talker.measure.figures import (
    Curve,
    blend,
    chart,
    draw_mesh,
    draw_points,
    embedded_video,
    picture,
)
from talker.media.images import read_image

logger = logging.getLogger(__name__)

STAGES = (
    *("synthesize", "frames", "audio", "speech", "landmarks", "parsing", "blink", "track"),
    *("background", "layers", "check", "train", "render_val", "render_train", "evaluate", "report"),
)
PACKAGES = ("talker", "torch", "gsplat", "mediapipe", "hama", "numpy", "numba", "av")
YELLOW = (255, 214, 10)
HALF = 500, 240
"""Width and height of charts shown side by side."""
MASKS = {
    "head": ((0, 0, 255), (64, 110, 255)),
    "neck": ((0, 255, 0), (60, 200, 120)),
    "torso": ((255, 0, 0), (255, 150, 50)),
}
"""Class name -> (color in the parsing files, color on the page)."""

Section = dict[str, Any]


@validated
class Config:
    """Options of `talker report`."""

    stills: AtLeast1 = 6
    """Number of held-out frames shown next to their renderings."""
    samples: AtLeast1 = 4
    """Number of frames on which landmarks, masks and mesh are shown."""
    embed_mb: NonNegative = 6.0
    """Maximum size in MB of a video that is embedded in the page. A larger video is linked."""


def stills(avatar: Avatar, dataset: Dataset, count: int) -> Section:
    """Render held-out frames next to the real ones, whole and around the mouth, as images."""
    ids = _spread(dataset.val_ids, count)
    if len(ids) == 0:
        raise ValueError("the clip has no held-out frame")
    rendered = render_frames(avatar, dataset, Drive(ids, dataset.speech, ids), batch=count)
    columns = []
    for i, image in zip(ids, rendered, strict=True):
        real = dataset.frame(i)
        box = m.mouth_box(dataset.landmarks[i], dataset.height, dataset.width)
        columns.append(
            {
                "time": f"{i / FPS:.2f} s",
                "real": picture(real),
                "avatar": picture(image),
                "real_mouth": picture(_close_up(real, box)),
                "avatar_mouth": picture(_close_up(image, box)),
            }
        )
    return {"columns": columns, "size": f"{dataset.width} x {dataset.height}"}


def overlays(data: Path, encoder: str, count: int) -> Section:
    """Draw landmarks, masks and the reprojected mesh on frames spread over the clip."""
    size = max(read_image(layout.FRAMES.path(data, 0)).shape[:2])
    dataset = Dataset.load(data, size, encoder)
    columns = []
    for i in _spread(np.flatnonzero(dataset.valid), count):
        frame = dataset.frame(i)
        viewmat = dataset.viewmats[i]
        if dataset.faces is None:
            points = project(dataset.vertices, viewmat[None], dataset.K)[0]
            mesh = draw_points(frame, points, YELLOW)
        else:
            mesh = draw_mesh(frame, dataset.vertices, dataset.faces, viewmat, dataset.K)
        parsing = read_image(layout.MASKS.path(data, int(i)))
        masked = frame
        for stored, shown in MASKS.values():
            masked = blend(masked, np.all(parsing == stored, axis=-1), shown)
        columns.append(
            {
                "frame": i,
                "landmarks": picture(_tile(draw_points(frame, dataset.landmarks[i], YELLOW))),
                "masks": picture(_tile(masked)),
                "mesh": picture(_tile(mesh)),
            }
        )
    return {"columns": columns, "legend": {name: shown for name, (_, shown) in MASKS.items()}}


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
            {"name": name, "avatar": value, "real": networks["real"].get(name)}
            for name, value in networks.get("avatar", {}).items()
        ],
        "not_computed": metrics["not_computed"],
        "spread": metrics["controls"]["shuffled_audio"].get("mouth_correlation_sd"),
        "frames": metrics["held_out"]["frames"],
        "gap": settings.get("gap"),
    }


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


def training(log: Path) -> Section:
    """Draw the losses of both training stages."""
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
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
        raise ValueError(f"{log}: is empty")
    return {
        "charts": charts,
        "gaussians": entries[-1].get("gaussians"),
        "minutes": entries[-1].get("seconds", 0) / 60,
    }


def clip_facts(data: Path) -> Section:
    """Return the source of the clip and how it was cropped and split, as label -> text."""
    clip = Clip.load(data / layout.CLIP)
    source = clip.source
    crop = clip.crop
    rate = "variable, " if source.variable_rate else ""
    held_out = clip.frames - clip.train_frames
    return {
        "facts": {
            "source": f"{source.name}, {source.codec}",
            "source image": f"{source.width} x {source.height}, {rate}{source.fps:.4g} fps",
            "crop": f"{crop.size} px square at ({crop.x}, {crop.y})" if crop else "none",
            "clip": f"{clip.width} x {clip.height}, {clip.frames} frames, "
            f"{clip.frames / clip.fps:.1f} s at {clip.fps} fps",
            "split": f"{clip.train_frames} training frames, {held_out} held out",
        }
    }


def tracking_facts(path: Path) -> Section:
    """Return the results of tracking from `track_report.json`, as label -> text."""
    found = json.loads(path.read_text(encoding="utf-8"))
    focal, degrees, lost = found["focal"], found["degrees"], found["rejected"]
    facts = {
        "focal length": f"{focal['px']:.0f} px, {focal['per_longer_side']:.2f} x the image",
        "distance": f"{focal['distance_dm'] / 10:.2f} m from the camera",
        "reprojection": f"{found['residual']['px']:.2f} px (median), "
        f"{found['residual']['percent_of_face']:.2f} % of the face's width",
        **{
            name: f"{degrees[f'{name}_low']:.1f} to {degrees[f'{name}_high']:.1f} degrees"
            for name in ("pitch", "yaw", "roll")
        },
        "tracked frames": f"{found['valid']} of {found['frames']}",
    }
    for reason in dict.fromkeys(row["reason"] for row in lost):
        ids = [str(row["frame"]) for row in lost if row["reason"] == reason]
        shown = ", ".join(ids[:12]) + (" ..." if len(ids) > 12 else "")
        facts[f"{len(ids)} rejected"] = f"{reason}: {shown}"
    return {"facts": facts}


def json_facts(path: Path) -> Section:
    """Return the values of a JSON file, one level deep, as label -> text."""
    facts = {}
    for key, value in json.loads(path.read_text(encoding="utf-8")).items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for name, one in inner:
            label = f"{key} {name}".replace("_", " ").strip()
            if isinstance(one, list):
                facts[label] = ", ".join(map(str, one)) or "none"
            elif not isinstance(one, dict) and one is not None:
                facts[label] = f"{one:.4g}" if isinstance(one, float) else str(one)
    return {"facts": facts}


def timings(benchmarks: Path) -> Section:
    """Return the time and peak memory of every step, from Snakemake's benchmark files."""
    rows = []
    for path in sorted(benchmarks.rglob("*.tsv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                name = str(path.relative_to(benchmarks).with_suffix(""))
                rows.append(
                    {
                        "name": name.replace("_", " "),
                        "order": STAGES.index(name) if name in STAGES else len(STAGES),
                        "seconds": float(row["s"]),
                        "memory": _float(row["max_rss"]),
                    }
                )
    if not rows:
        raise ValueError(f"{benchmarks}: contains no benchmark file")
    rows.sort(key=lambda row: (row["order"], row["name"]))
    longest = max(row["seconds"] for row in rows)
    return {
        "rows": [row | {"share": 100 * row["seconds"] / longest} for row in rows],
        "minutes": sum(row["seconds"] for row in rows) / 60,
        "peak": max((row["memory"] for row in rows if row["memory"] is not None), default=None),
    }


def video_section(video: Path, html: Path, embed_mb: float) -> Section:
    """Embed the video if it is small, else link it relative to the page."""
    size = video.stat().st_size / 1e6
    link = os.path.relpath(video, html.parent)
    return {
        "source": embedded_video(video) if size <= embed_mb else link,
        "link": link,
        "embedded": size <= embed_mb,
        "size": f"{size:.1f} MB",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that made the page."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def tiles(metrics: Section) -> list[dict[str, str]]:
    """Return the key numbers, each with the value of the control to compare it with."""
    row = metrics["held_out"]
    shuffled, frozen = (metrics["controls"][name] for name in ("shuffled_audio", "frozen_mouth"))

    def tile(label: str, name: str, unit: str, note: str) -> dict[str, str]:
        return {"label": label, "value": _shown(name, row[name]), "unit": unit, "note": note}

    return [
        tile(
            "mouth follows speech",
            *("mouth_correlation", "r"),
            f"{_shown('mouth_correlation', shuffled['mouth_correlation'])} with shuffled audio",
        ),
        tile("mouth amplitude", "mouth_std_ratio", "x real", "1 is correct, 0 is frozen"),
        tile("best lag", "best_lag_frames", "frames", "0 is in sync"),
        tile(
            "mouth PSNR",
            *("psnr_mouth", "dB"),
            f"{_shown('psnr_mouth', frozen['psnr_mouth'])} with a frozen mouth",
        ),
        tile(
            "mouth landmarks",
            *("lmd_mouth", "px"),
            f"detector noise {_shown('lmd_mouth', metrics['detector_floor']['lmd_mouth'])}",
        ),
        tile(
            "whole frame PSNR",
            *("psnr", "dB"),
            f"{_shown('psnr', frozen['psnr'])} with a frozen mouth",
        ),
    ]


def main(
    *,
    data: Path,
    avatar: Path,
    html: Output,
    metrics: Path | None = None,
    video: Path | None = None,
    novel: Path | None = None,
    benchmarks: Path | None = None,
    config: Config = Config(),
) -> None:
    """Write a self-contained HTML page about a subject, which needs no other files and no network.

    The page says which of the optional inputs are missing.

    Args:
        data: Dataset folder.
        avatar: Avatar written by `talker train`.
        html: Page to write.
        metrics: JSON file written by `talker evaluate`.
        video: Video of the held-out part (mp4), written by `talker render`.
        novel: Folder of videos of new speech, with their metrics (`talker render`, `evaluate`).
        benchmarks: Folder of Snakemake's benchmark files.
        config: Options.
    """
    model = load_avatar(avatar)
    dataset = avatar_dataset(data, model)

    def measured() -> Section:
        return json.loads(_given(metrics, "metrics").read_text(encoding="utf-8"))

    sections = {
        "verdict": _section("verdict", lambda: measured()["verdict"]),
        "tiles": _section("key numbers", lambda: {"tiles": tiles(measured())}),
        "stills": _section("stills", lambda: stills(model, dataset, config.stills)),
        "video": _section(
            "video", lambda: video_section(_given(video, "video"), html, config.embed_mb)
        ),
        "curves": _section("curves", lambda: mouth_curves(measured())),
        "numbers": _section("numbers", lambda: numbers(measured())),
        "overlays": _section(
            "overlays", lambda: overlays(data, model.config.encoder, config.samples)
        ),
        "training": _section("training", lambda: training(avatar / "log.jsonl")),
        "clip": _section("clip", lambda: clip_facts(data)),
        "tracking": _section("tracking", lambda: tracking_facts(data / layout.TRACK_REPORT)),
        "quality": _section("quality", lambda: json_facts(data / layout.QUALITY)),
        "timings": _section("timings", lambda: timings(_given(benchmarks, "benchmarks"))),
    }
    with atomic_write(html) as (scratch,):
        scratch.write_text(
            page(subject=data.resolve().name, dataset=dataset, versions=versions(), **sections),
            encoding="utf-8",
        )


def page(**content: Any) -> str:
    """Render the template `report.html.jinja`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("talker", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(**content)


def _section(name: str, make: Callable[[], Section]) -> Section:
    """Return the section that `make` returns, or {"missing": reason} if an input is missing."""
    try:
        return make()
    except (OSError, KeyError, ValueError, UserError) as error:
        reason = str(error)
        if isinstance(error, KeyError):
            reason = f"the file has no value {error}"
        elif isinstance(error, FileNotFoundError):
            reason = f"{error.filename} does not exist"
        logger.warning("The section '%s' was left out: %s", name, reason)
        return {"missing": reason}


def _given(path: Path | None, option: str) -> Path:
    if path is None:
        raise ValueError(f"--{option} was not given")
    return path


def _spread(ids: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` distinct ids, evenly spread."""
    if len(ids) <= count:
        return ids
    return ids[((np.arange(count) + 0.5) * len(ids) / count).astype(int)]


def _close_up(pixels: np.ndarray, box: m.Box, side: int = 160) -> np.ndarray:
    x0, y0, x1, y1 = box
    return cv2.resize(pixels[y0:y1, x0:x1], (side, side), interpolation=cv2.INTER_CUBIC)


def _tile(pixels: np.ndarray, side: int = 400) -> np.ndarray:
    scale = side / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _series(values: list[Any]) -> np.ndarray:
    """Convert JSON numbers and nulls to floats and nans."""
    return np.array(values, np.float64)


def _title(name: str) -> str:
    for short in ("psnr", "ssim", "lmd"):
        name = name.replace(short, short.upper())
    return name.replace("_", " ")


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in ("best_lag_frames", "faces_lost"):
        return f"{value:.3g}"
    return f"{value:.1f}" if name.startswith("psnr") else f"{value:.3f}"
