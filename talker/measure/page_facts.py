"""Facts that the report lists: the clip, the tracking, options, run times and versions."""

import csv
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from talker.clip import Clip, load_json
from talker.data import layout
from talker.errors import UserError

STAGES = (
    *("synthesize", "frames", "audio", "speech", "landmarks", "parsing", "blink"),
    *("shots", "fit", "track"),
    *("overlay", "background", "layers", "verify", "lipsync", "check", "train", "render_val"),
    *("render_train", "evaluate", "report"),
)
"""Order of the rows in the table of run times."""
PACKAGES = ["talker-avatar", "torch", "gsplat", "mediapipe", "hama", "numpy", "numba", "av"]
"""Packages whose versions and licenses are listed."""
LICENSE_LENGTH = 60
"""Largest number of characters of the name of a license."""

Section = dict[str, Any]
"""Content of a section of the report, as its template reads it."""


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
    content = load_json(path)
    focal, degrees, lost = content["focal"], content["degrees"], content["rejected"]
    facts = {
        "focal length": (
            f"{focal['px']:.0f} px, {focal['per_longer_side']:.2f} times the longer side of the "
            "image"
        ),
        "distance": f"{focal['distance_dm'] / 10:.2f} m from the camera",
        "reprojection": f"{content['residual']['px']:.2f} px (median), "
        f"{content['residual']['percent_of_face']:.2f} % of the face's width",
        **{
            name: f"{degrees[f'{name}_low']:.1f} to {degrees[f'{name}_high']:.1f} degrees"
            for name in ("pitch", "yaw", "roll")
        },
        "tracked frames": f"{content['valid']} of {content['frames']}",
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


def warnings_of(quality: Path) -> list[str]:
    """Return the warnings of `talker check`; none if its file is missing or damaged."""
    try:
        warnings = load_json(quality).get("warnings")
    except UserError:
        return []
    return [str(one) for one in warnings] if isinstance(warnings, list) else []


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


def versions() -> list[dict[str, str]]:
    """Return name, version and license of Python and of the packages that made the page."""
    rows = [{"name": "python", "version": platform.python_version(), "license": "PSF-2.0"}]
    for name in PACKAGES:
        try:
            package = metadata.metadata(name).json
        except metadata.PackageNotFoundError:
            continue
        terms = str(package.get("license_expression") or package.get("license") or "")
        if not terms or len(terms) > LICENSE_LENGTH:  # some packages store the whole text
            terms = "license in the package"
        rows.append({"name": name, "version": str(package["version"]), "license": terms})
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


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
