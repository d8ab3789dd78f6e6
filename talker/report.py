"""Write one self-contained HTML page about a subject: verdict, videos, images and metrics.

    talker report --data data/me --avatar results/me/avatar --metrics results/me/metrics.json \
        --video results/me/val.mp4 --benchmarks benchmarks/me --html results/me/report.html
"""

import csv
import json
import logging
import os
import platform
import re
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape
from scipy.spatial.transform import Rotation

from talker.avatar.renderer import avatar_dataset, load_avatar
from talker.clip import FPS, Clip, load_json, load_text
from talker.core.config import AtLeast1, NonNegative, validated
from talker.core.files import Output, atomic_write
from talker.data import layout
from talker.dataset import Dataset
from talker.errors import UserError
from talker.measure import metrics as m
from talker.measure.figures import Curve, chart, embedded_video, picture
from talker.measure.pictures import comparison, overlays, rejected_frames, stills
from talker.measure.verdict import MIN_FRAMES
from talker.media.video_reader import frame_count, probe, read_frames

logger = logging.getLogger(__name__)

STAGES = (
    *("synthesize", "frames", "audio", "speech", "landmarks", "parsing", "blink", "track"),
    *("overlay", "background", "layers", "check", "train", "render_val", "render_train"),
    *("evaluate", "report"),
)
PACKAGES = ["talker-avatar", "torch", "gsplat", "mediapipe", "hama", "numpy", "numba", "av"]
LICENSE_LENGTH = 60
"""Largest number of characters of the name of a license."""
HALF = 500, 240
"""Width and height of charts shown side by side."""

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
    worst: AtLeast1 = 4
    """Number of held-out frames to show whose mouths differ most from the real ones."""
    rejected: AtLeast1 = 6
    """Number of rejected frames that are shown."""


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
            "split": f"{clip.train_frames} training frames, {held_out} held-out frames",
        }
    }


def tracking_facts(path: Path) -> Section:
    """Return the results of tracking from `track_report.json`, as label -> text."""
    found = load_json(path)
    focal, degrees, lost = found["focal"], found["degrees"], found["rejected"]
    facts = {
        "focal length": (
            f"{focal['px']:.0f} px, {focal['per_longer_side']:.2f} times the longer side of the "
            "image"
        ),
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
    for key, value in load_json(path).items():
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
        raise ValueError(f"{benchmarks} contains no benchmark file")
    rows.sort(key=lambda row: (row["order"], row["name"]))
    longest = max(row["seconds"] for row in rows)
    return {
        "rows": [row | {"share": 100 * row["seconds"] / longest} for row in rows],
        "minutes": sum(row["seconds"] for row in rows) / 60,
        "peak": max((row["memory"] for row in rows if row["memory"] is not None), default=None),
    }


def new_speech(folder: Path, html: Path, embed_mb: float) -> Section:
    """Return the videos of new speech in a folder, with how well the mouth follows each.

    Raises:
        ValueError: the folder contains no video.
    """
    videos = []
    for video in sorted(folder.glob("*.mp4")):
        source = probe(video)
        middle = frame_count(source) // 2
        poster = next(frame for i, frame in enumerate(read_frames(video, source)) if i == middle)
        facts = video.with_suffix(".json")
        measured = load_json(facts) if facts.exists() else None
        videos.append(
            video_section(video, html, embed_mb)
            | {
                "name": video.stem,
                "poster": picture(poster, 80),
                "size": f"{source.width} x {source.height}",
                "sync": sync_note(measured["sync"]) if measured else None,
            }
        )
    if not videos:
        raise ValueError(f"{folder} contains no video of new speech")
    return {"videos": videos}


def sync_note(sync: Section) -> str:
    """Return a sentence about how well the mouth follows a sound, compared with chance."""
    score, real = sync["avatar"], sync["real"]["correlation"]
    if score["correlation"] is None:
        return "The speech is too short to measure whether the mouth follows it."
    note = f"The correlation of the mouth with the audio is {score['correlation']:z.1f}"
    if score["null_mean"] is not None:
        note += f", and {score['null_mean']:z.1f} ± {score['null_sd']:.1f} with shifted audio"
    if real is not None:
        note += f". In the real video, it is {real:z.1f}"
    return f"{note}."


def video_section(video: Path, html: Path, embed_mb: float) -> Section:
    """Embed the video if it is small, else link it relative to the page."""
    size = video.stat().st_size / 1e6
    link = os.path.relpath(video, html.parent)
    return {
        "source": embedded_video(video) if size <= embed_mb else link,
        "link": link,
        "embedded": size <= embed_mb,
        "megabytes": f"{size:.1f} MB",
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


def warnings_of(quality: Path) -> list[str]:
    """Return the warnings of `talker check`; none if its file is missing or damaged."""
    try:
        found = load_json(quality).get("warnings")
    except UserError:
        return []
    return [str(one) for one in found] if isinstance(found, list) else []


def versions() -> list[dict[str, str]]:
    """Return name, version and license of Python and of the packages that made the page."""
    rows = [{"name": "python", "version": platform.python_version(), "license": "PSF-2.0"}]
    for name in PACKAGES:
        try:
            found = metadata.metadata(name).json
        except metadata.PackageNotFoundError:
            continue
        terms = str(found.get("license_expression") or found.get("license") or "")
        if not terms or len(terms) > LICENSE_LENGTH:  # some packages store the whole text
            terms = "license in the package"
        rows.append({"name": name, "version": str(found["version"]), "license": terms})
    return rows


def commit() -> str | None:
    """Return the commit of the checkout that this code is in, or None if it is not in one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", Path(__file__).name],
            capture_output=True,
            check=True,
        )
        if not tracked.stdout:
            return None
        return subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, check=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def tiles(metrics: Section) -> list[dict[str, str]]:
    """Return the key numbers, each with the values of the controls to compare it with."""
    row = metrics["held_out"]
    shuffled, frozen = (metrics["controls"][name] for name in ("shuffled_audio", "frozen_mouth"))
    low, high = metrics.get("verdict", {}).get("intervals", {}).get("correlation", (None, None))
    between = "" if low is None else f"between {low:.1f} and {high:.1f} (90 %); "
    too_few = f"only {row['frames']} frames" if row["frames"] < MIN_FRAMES else ""

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
            *("mouth follows speech", "mouth_correlation", "r", "{:z.2f}"),
            f"{between}{number(shuffled['mouth_correlation'], '{:z.2f}')} with shuffled audio",
        ),
        of_mouth(
            *("mouth amplitude", "mouth_std_ratio", "x real", "{:.1f}"),
            f"{number(frozen['mouth_std_ratio'], '{:.1f}')} with a frozen mouth",
        ),
        of_mouth(
            *("lag", "best_lag_frames", "frames", "{:.0f}"),
            f"0 is in sync; {number(shuffled['best_lag_frames'], '{:.0f}')} with shuffled audio",
        ),
        of_picture(
            *("mouth PSNR", "psnr_mouth", "dB"),
            f"{_shown('psnr_mouth', frozen['psnr_mouth'])} with a frozen mouth",
        ),
        of_picture(
            *("mouth landmarks", "lmd_mouth", "px"),
            f"{number(frozen['lmd_mouth'], '{:.1f}')} with a frozen mouth, "
            f"{number(metrics['detector_floor']['lmd_mouth'], '{:.1f}')} by detector noise alone",
        ),
        of_picture(
            *("whole frame PSNR", "psnr", "dB"),
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
    """Write a report about a subject: one HTML page that needs no other files and no network.

    The page lists the optional inputs that are missing.

    Args:
        data: Dataset folder.
        avatar: Avatar folder written by `talker train`.
        html: HTML file to write.
        metrics: JSON file written by `talker evaluate`.
        video: Video (mp4) of the held-out frames, written by `talker render`.
        novel: Folder with videos of new speech, written by `talker render`, and their metrics,
            written by `talker evaluate`.
        benchmarks: Folder with Snakemake's benchmark files.
        config: Options.
    """
    model = load_avatar(avatar)
    dataset = avatar_dataset(data, model)

    def measured() -> Section:
        return load_json(_given(metrics, "metrics"))

    held_out = _section(
        "comparison", lambda: comparison(_given(video, "video"), dataset, config.worst)
    )
    sections = {
        "verdict": _section("verdict", lambda: measured()["verdict"]),
        "warnings": warnings_of(data / layout.QUALITY),
        "novel": _section(
            "new speech", lambda: new_speech(_given(novel, "novel"), html, config.embed_mb)
        ),
        "tiles": _section("key numbers", lambda: {"tiles": tiles(measured())}),
        "comparison": held_out,
        "stills": _section("stills", lambda: stills(model, dataset, config.stills)),
        "curves": _section("curves", lambda: mouth_curves(measured())),
        "numbers": _section("numbers", lambda: numbers(measured())),
        "overlays": _section(
            "overlays", lambda: overlays(data, model.config.encoder, config.samples)
        ),
        "tracked": _section(
            "tracking video",
            lambda: video_section(data / layout.TRACK_OVERLAY, html, config.embed_mb),
        ),
        "rejected": _section(
            "rejected frames",
            lambda: {"frames": rejected_frames(dataset, config.rejected)},
        ),
        "poses": _section("poses", lambda: pose_curves(dataset)),
        "training": _section("training", lambda: training(avatar / "log.jsonl")),
        "clip": _section("clip", lambda: clip_facts(data)),
        "tracking": _section("tracking", lambda: tracking_facts(data / layout.TRACK_REPORT)),
        "quality": _section("quality", lambda: json_facts(data / layout.QUALITY)),
        "options": _section("options", lambda: json_facts(avatar / "config.json")),
        "timings": _section("timings", lambda: timings(_given(benchmarks, "benchmarks"))),
        "versions": versions(),
        "commit": commit(),
    }
    with atomic_write(html) as (scratch,):
        scratch.write_text(
            page(subject=data.resolve().name, dataset=dataset, **sections), encoding="utf-8"
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
    environment.filters["code"] = _code
    return environment.get_template("report.html.jinja").render(**content)


def _code(text: str) -> Markup:
    """Return a text as HTML, with `code` in the font of code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _section(name: str, make: Callable[[], Section]) -> Section:
    """Return the section that `make` returns, or {"missing": reason} if an input is missing."""
    try:
        section = make()
        if not isinstance(section, dict):
            raise TypeError(f"expected an object, found {type(section).__name__}")
        return section
    except (OSError, LookupError, ValueError, TypeError, AttributeError, UserError) as error:
        reason = str(error)
        if isinstance(error, TypeError | AttributeError | IndexError):
            reason = f"the file contains a value of an unexpected type ({error})"
        elif isinstance(error, KeyError):
            reason = f"the file lacks the key {error}"
        elif isinstance(error, FileNotFoundError):
            reason = f"{error.filename} does not exist"
        logger.warning("The section '%s' was left out: %s", name, reason)
        return {"missing": reason}


def _given(path: Path | None, option: str) -> Path:
    if path is None:
        raise ValueError(f"--{option} was not given")
    return path


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
