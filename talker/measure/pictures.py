"""Images and videos of a subject's report, as data URIs."""

import heapq
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from talker.clip import FPS, SAMPLES_PER_FRAME, load_json
from talker.core.parallel import ordered_map
from talker.data import layout
from talker.dataset import Dataset
from talker.errors import UserError
from talker.head.camera import project
from talker.measure import metrics as m
from talker.measure.figures import (
    blend,
    draw_mesh,
    draw_points,
    embedded_video,
    picture,
)
from talker.media.audio import clip_sound, write_wav
from talker.media.disclosure import Disclosure
from talker.media.images import read_image
from talker.media.video_reader import probe, read_frames
from talker.media.video_writer import video_writer

YELLOW = (255, 214, 10)
MASKS = {
    "head": ((0, 0, 255), (64, 110, 255)),
    "neck": ((0, 255, 0), (60, 200, 120)),
    "torso": ((255, 0, 0), (255, 150, 50)),
}
"""Class name -> (color in the parsing files, color on the page)."""
COMPARED_SECONDS = 20
"""Length of the video that shows the real person next to the avatar, so that the page stays
small."""
COMPARED_CRF = 22
"""Constant rate factor of that video."""
WORST_APART = 8
"""Minimum distance, in frames, between two of the worst frames that are shown, so that they show
different faults."""
DIFFERENCE_GAIN = 4
"""Factor by which differences between real and rendered frames are brightened."""

Section = dict[str, Any]


def stills(video: Path, dataset: Dataset, count: int) -> Section:
    """Show rendered held-out frames and crops of their mouths, next to the real ones, as images.

    Args:
        video: video of the held-out part, written by `talker render --split val`.

    Raises:
        UserError: the video is missing or damaged, or the clip has no held-out frame.
    """
    chosen = set(_spread(dataset.val_ids, count).tolist())
    columns = []
    for i, image in _rendered(video, dataset):
        if i not in chosen:
            continue
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


def comparison(video: Path, dataset: Dataset, count: int, disclosure: Disclosure) -> Section:
    """Show the real held-out part next to the rendered one, as one video and as its worst frames.

    Both halves are one video, so they cannot drift apart.

    Args:
        video: video of the held-out part, written by `talker render --split val`.
        count: number of worst frames.
        disclosure: what the metadata of the video state.

    Raises:
        UserError: the video is missing or damaged, or the clip has no held-out frame.
    """
    rendered = _rendered(video, dataset)
    first = int(dataset.val_ids[0])
    count_frames = min(int(dataset.val_ids[-1]) + 1 - first, COMPARED_SECONDS * FPS)
    pairs: list[tuple[float, int, np.ndarray, np.ndarray]] = []
    poster = None

    def with_real(numbered: tuple[int, np.ndarray]) -> tuple[int, np.ndarray, np.ndarray]:
        return *numbered, dataset.frame(numbered[0])

    with tempfile.TemporaryDirectory() as folder:
        sound, joined = Path(folder) / layout.SOUND, Path(folder) / "comparison.mp4"
        start, end = (SAMPLES_PER_FRAME * i for i in (first, first + count_frames))
        write_wav(sound, clip_sound(dataset.folder / layout.SOUND, dataset.frames)[start:end])
        with video_writer(joined, sound, COMPARED_CRF, disclosure=disclosure) as write:
            for i, avatar, real in ordered_map(with_real, islice(rendered, count_frames)):
                both = np.concatenate([real, avatar], axis=1)
                write(both)
                if i == first + count_frames // 2:
                    poster = picture(both, 80)
                if dataset.valid[i]:
                    box = m.mouth_box(dataset.landmarks[i], dataset.height, dataset.width)
                    pairs.append((m.psnr(avatar, real, box), i, real, avatar))
                    pairs = _worst(pairs, count)
        source = embedded_video(joined)
    return {
        "source": source,
        "poster": poster,
        "seconds": count_frames / FPS,
        "worst": [_worst_column(dataset, *pair) for pair in pairs],
    }


def _rendered(video: Path, dataset: Dataset) -> Iterator[tuple[int, np.ndarray]]:
    """Return the numbers and images of the frames in a video of the held-out part."""
    if len(dataset.val_ids) == 0:
        raise UserError(f"The clip in {dataset.folder} has no held-out frame.")
    size = dataset.width, dataset.height
    images = read_frames(video, probe(video))
    same_size = (one if one.shape[1::-1] == size else cv2.resize(one, size) for one in images)
    return enumerate(same_size, int(dataset.val_ids[0]))


def _worst(
    pairs: list[tuple[float, int, np.ndarray, np.ndarray]], count: int
) -> list[tuple[float, int, np.ndarray, np.ndarray]]:
    """Return the `count` pairs of lowest PSNR that are at least `WORST_APART` frames apart."""
    kept: list[tuple[float, int, np.ndarray, np.ndarray]] = []
    for pair in heapq.nsmallest(len(pairs), pairs, key=lambda pair: pair[:2]):
        if len(kept) < count and all(abs(pair[1] - one[1]) >= WORST_APART for one in kept):
            kept.append(pair)
    return kept


def _worst_column(
    dataset: Dataset, decibels: float, i: int, real: np.ndarray, avatar: np.ndarray
) -> Section:
    box = m.mouth_box(dataset.landmarks[i], dataset.height, dataset.width)
    difference = cv2.convertScaleAbs(cv2.absdiff(real, avatar), alpha=DIFFERENCE_GAIN)
    return {
        "time": f"{i / FPS:.2f} s",
        "psnr": f"{decibels:.1f} dB",
        "real": picture(_close_up(real, box)),
        "avatar": picture(_close_up(avatar, box)),
        "difference": picture(_close_up(difference, box)),
    }


def rejected_frames(dataset: Dataset, count: int) -> list[Section]:
    """Show frames that tracking rejected, spread over the clip, with their reasons.

    Raises:
        UserError: track_report.json is missing or damaged.
    """
    report = load_json(dataset.folder / layout.TRACK_REPORT)
    rows = report.get("rejected") or []
    chosen = _spread(np.arange(len(rows)), count)
    return [
        {
            "time": f"{rows[k]['frame'] / FPS:.2f} s",
            "reason": rows[k]["reason"],
            "image": picture(_tile(dataset.frame(int(rows[k]["frame"])), 240)),
        }
        for k in map(int, chosen)
    ]


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
