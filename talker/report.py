"""Write one self-contained HTML page about a subject: verdict, videos, images and metrics.

    talker report --data data/me --avatar results/me/avatar --metrics results/me/metrics.json \
        --video results/me/val.mp4 --benchmarks benchmarks/me --html results/me/report.html
"""

import functools
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from talker.avatar.bundle import disclosure_of
from talker.avatar.model import Avatar
from talker.avatar.renderer import avatar_dataset
from talker.clip import load_json
from talker.core.config import AtLeast1, NonNegative, validated
from talker.core.files import Output, atomic_write
from talker.data import layout
from talker.errors import UserError
from talker.measure.figures import embedded_video, picture
from talker.measure.page_facts import (
    Section,
    clip_facts,
    commit,
    json_facts,
    timings,
    tracking_facts,
    versions,
    warnings_of,
)
from talker.measure.pictures import comparison, overlays, rejected_frames, stills
from talker.measure.result_tables import (
    mouth_curves,
    numbers,
    pose_curves,
    sync_note,
    tiles,
    training,
    verdict,
)
from talker.media.video_reader import frame_count, probe, read_frames

logger = logging.getLogger(__name__)


@validated
class Config:
    """Options of `talker report`."""

    stills: AtLeast1 = 6
    """Number of held-out frames shown next to their renderings."""
    samples: AtLeast1 = 4
    """Number of frames on which landmarks, masks and mesh are shown."""
    embed_mb: NonNegative = 6.0
    """Maximum size in MB of a video that is embedded in the page. The page links to larger videos
    instead."""
    worst: AtLeast1 = 4
    """Number of worst held-out frames to show, that is, those in which the rendered mouth differs
    most from the real one."""
    rejected: AtLeast1 = 6
    """Number of rejected frames that are shown."""


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
    """Write the report of a subject as one HTML page that can be read offline.

    The page contains all images and videos, except large videos (see `embed_mb`). It lists the
    optional inputs that are missing.

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
    model = Avatar.load(avatar)
    dataset = avatar_dataset(data, model)

    def measured() -> Section:
        return load_json(_given(metrics, "metrics"))

    disclosure = disclosure_of(model, dataset)
    held_out = _section(
        "comparison", lambda: comparison(_given(video, "video"), dataset, config.worst, disclosure)
    )
    sections = {
        "verdict": _section("verdict", lambda: verdict(measured())),
        "warnings": warnings_of(data / layout.QUALITY),
        "novel": _section(
            "new speech", lambda: new_speech(_given(novel, "novel"), html, config.embed_mb)
        ),
        "tiles": _section("key numbers", lambda: {"tiles": tiles(measured())}),
        "comparison": held_out,
        "stills": _section(
            "stills", lambda: stills(_given(video, "video"), dataset, config.stills)
        ),
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
            page(subject=data.resolve().name, dataset=dataset, **sections),
            encoding="utf-8",
            errors="xmlcharrefreplace",  # JSON can contain half of a surrogate pair
        )


def page(**content: Any) -> str:
    """Render the template `report.html.jinja`."""
    return _template().render(**content)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("talker", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    return environment.get_template("report.html.jinja")


def _code(text: str) -> Markup:
    """Return a text as HTML, with `code` in the font of code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _section(name: str, make: Callable[[], Section]) -> Section:
    """Return the section that `make` returns, or {"missing": reason} if an input is missing."""
    try:
        section = make()
        if not isinstance(section, dict):
            raise TypeError(f"it must be a JSON object, not {type(section).__name__}")
        return section
    except (
        *(OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, UserError),
    ) as error:
        reason = str(error)
        if isinstance(error, TypeError | AttributeError | IndexError | ArithmeticError):
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
