"""Measure renderings of the held-out frames against the real frames and against two controls."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Integer, Real

from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, render_together
from talker.core.parallel import consume_columns, one_opencv_thread, ordered_map
from talker.core.progress import progress
from talker.data import layout
from talker.dataset import Dataset, over
from talker.encoders import sync_encoder
from talker.errors import UserError, counted
from talker.head.brows import brow_motion
from talker.head.flow import Flow, follow_points
from talker.head.landmarks68 import (
    eye_aspect_ratio,
    landmarks68,
    mouth_opening,
    outer_eye_distance,
)
from talker.measure import metrics as m
from talker.measure.definitions import (
    CONTROLS,
    DEFINITIONS,
    DETECTOR_FLOOR,
    NETWORK_METRICS,
    RESPONSE_DEFINITIONS,
    SYNC_DEFINITIONS,
)
from talker.measure.detection import detect_meshes
from talker.measure.networks import frame_metrics, stretch_metrics
from talker.measure.responses import measure_responses
from talker.measure.sync import fit_predictor, null_reason, sync_score
from talker.media.audio import Waveform, clip_sound

SHAKE_STEPS = {"head_shake": 1, "head_shake_5": 5}
"""Metrics of the head's jitter, and the number of frames over which each compares the motion."""
GAP = 16
"""Frames skipped between training and evaluation, so that their speech windows share no audio."""
MIN_FRAMES_AFTER_GAP = 25
"""Minimum number of held-out frames after the gap. If fewer would remain, no frames are skipped."""

Row = dict[str, float]


@dataclass(frozen=True)
class RealFrames:
    """N real held-out frames and what was detected in them."""

    ids: np.ndarray
    """int64 [N], frame numbers in the clip"""
    frames: np.ndarray
    """uint8 [N, H, W, 3]"""
    targets: np.ndarray
    """uint8 [N, H, W, 3], the real head over torso and background (the target of GaussianTalker)"""
    landmarks: np.ndarray
    """float32 [N, 68, 2], landmarks of the dataset, from which the boxes of the metrics are
    computed"""
    detected: np.ndarray
    """float32 [N, 68, 2], landmarks that MediaPipe detects in `frames`, nan without a face"""
    closure: np.ndarray
    """float32 [N], eye closure of the dataset, 0..1"""
    brows: np.ndarray
    """float [N], `brow_motion` that is detected in `frames`, nan without a face"""
    flow: dict[int, Flow]
    """motion of the head in `frames` over each number of frames in `SHAKE_STEPS`"""

    @classmethod
    def load(cls, dataset: Dataset, ids: np.ndarray) -> "RealFrames":
        """Read the frames `ids` [N] of a dataset and detect landmarks and motion in them."""
        images = dataset.images(ids, "real frames")
        layers = zip(images.frame, images.background, images.head_mask, strict=True)
        ((meshes, flow),) = _follow(((image,) for image in images.frame), dataset.landmarks[ids], 1)
        closure = dataset.eye[ids, 0]
        return cls(
            ids=ids,
            frames=images.frame,
            targets=np.stack(list(ordered_map(lambda layer: over(*layer), layers))),
            landmarks=dataset.landmarks[ids],
            detected=landmarks68(meshes),
            closure=closure,
            brows=brow_motion(meshes, closure),
            flow=flow,
        )


@dataclass(frozen=True)
class Measurement:
    """The metrics of one rendering, and its curves over every frame of the held-out part."""

    row: Row
    mouth: np.ndarray
    """float [last - first + 1], mouth opening, nan where there is no frame or no face"""
    eyes: np.ndarray
    """float [last - first + 1], eye aspect ratio"""
    detected: np.ndarray
    """float32 [N, 68, 2], landmarks of the rendering, nan where no face was detected"""


def head_flow(
    images: Iterable[np.ndarray], landmarks: Float[np.ndarray, "N 68 2"]
) -> dict[int, Flow]:
    """Follow the head's steady points through frames uint8 [H, W, 3], from landmarks [N, 68, 2]."""
    return follow_points(images, landmarks[:, m.STEADY], list(SHAKE_STEPS.values()), threads=1)


def compare(images: Iterable[np.ndarray], real: RealFrames) -> Measurement:
    """Compare rendered frames uint8 [H, W, 3], one for each frame of `real`, with the real ones."""
    return compare_together(((image,) for image in images), real, 1)[0]


def compare_together(
    frames: Iterable[Sequence[np.ndarray]], real: RealFrames, count: int
) -> list[Measurement]:
    """Compare several renderings with the real frames at the same time.

    Only a few batches of each rendering are in memory at once.

    Args:
        frames: for each frame of `real`, one image uint8 [H, W, 3] of each rendering.
        real: the real frames.
        count: number of renderings.
    """
    quality: list[list[Row]] = []

    def rated(numbered: tuple[int, Sequence[np.ndarray]]) -> tuple[Sequence[np.ndarray], list[Row]]:
        k, images = numbered
        return images, [_image_quality(image, real, k) for image in images]

    def rated_frames() -> Iterator[Sequence[np.ndarray]]:
        for images, rows in ordered_map(rated, enumerate(frames)):
            quality.append(rows)
            yield images

    followed = _follow(rated_frames(), real.landmarks, count)
    return [
        _measurement(list(rows), meshes, flow, real)
        for rows, (meshes, flow) in zip(zip(*quality, strict=True), followed, strict=True)
    ]


def _follow(
    frames: Iterable[Sequence[np.ndarray]], landmarks: Float[np.ndarray, "N 68 2"], count: int
) -> list[tuple[np.ndarray, dict[int, Flow]]]:
    """Detect meshes [N, 478, 3], and follow the head, in `count` renderings at the same time."""
    follow = partial(head_flow, landmarks=landmarks)
    pairs = ([*images, *images] for images in frames)
    with one_opencv_thread():
        results = consume_columns(pairs, [detect_meshes] * count + [follow] * count)
    return list(zip(results[:count], results[count:], strict=True))


def _measurement(
    quality: list[Row],
    meshes: Float[np.ndarray, "N 478 3"],
    flow: dict[int, Flow],
    real: RealFrames,
) -> Measurement:
    """Compute the metrics of a rendering from those of its frames, its meshes and its motion."""
    detected = landmarks68(meshes)
    brows, real_brows = (
        on_time_axis(one, real.ids) for one in (brow_motion(meshes, real.closure), real.brows)
    )
    (mouth, real_mouth), (eyes, real_eyes) = (
        [on_time_axis(opening(one), real.ids) for one in (detected, real.detected)]
        for opening in (mouth_opening, eye_aspect_ratio)
    )
    distance = m.mouth_distance(detected, real.detected)
    row = {name: m.finite([frame[name] for frame in quality]) for name in quality[0]}
    row |= {
        "lmd_mouth": m.finite(distance),
        "lmd_mouth_relative": m.finite(distance / outer_eye_distance(real.detected)),
        "mouth_correlation": m.correlation(mouth, real_mouth),
        "mouth_std_ratio": m.std_ratio(mouth, real_mouth),
        "best_lag_frames": m.best_lag(mouth, real_mouth),
        "eye_correlation": m.correlation(eyes, real_eyes),
        "eye_std_ratio": m.std_ratio(eyes, real_eyes),
        "brow_correlation": m.correlation(brows, real_brows),
        "brow_std_ratio": m.std_ratio(brows, real_brows),
        "faces_lost": int(np.isnan(detected[:, 0, 0]).sum()),
        "frames": len(detected),
    }
    for name, step in SHAKE_STEPS.items():
        consecutive = real.ids[step:] - real.ids[:-step] == step
        moved, truth = flow[step], real.flow[step]
        error = m.head_shake(moved.moved, truth.moved, moved.good & truth.good)
        row[name] = math.sqrt(m.finite(error[consecutive] ** 2))
    return Measurement(row, mouth, eyes, detected)


def evaluate_held_out(
    avatar: Avatar,
    dataset: Dataset,
    networks: Mapping[str, Any],
    encoder: str,
    batch: int = 0,
    shuffles: int = 8,
) -> dict[str, Any]:
    """Measure an avatar and its controls on the held-out frames.

    Args:
        networks: metric networks by option (`talker.measure.networks.load_networks`).
        encoder: the speech encoder that drives the avatar.
        batch: number of frames rendered at once; 0 selects it by device.
        shuffles: number of rotations of the audio for the shuffled control.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: the dataset has no usable held-out frame.
    """
    ids = evaluated_ids(dataset)
    if len(ids) == 0:
        raise UserError(
            f"{dataset.folder / layout.TRANSFORMS_VAL} lists no tracked frame, so the avatar "
            "cannot be evaluated. Use a longer clip."
        )
    mean_speech = dataset.speech[dataset.train_ids].mean(0, keepdims=True)
    rotations = [dataset.frames * k // (shuffles + 1) for k in range(1, shuffles + 1)]
    drives = [
        Drive(ids, dataset.speech, ids),
        Drive(ids, mean_speech, np.zeros_like(ids)),
        *(Drive(ids, dataset.speech, (ids + by) % dataset.frames) for by in rotations),
    ]
    together = render_together(avatar, dataset, drives, batch)
    with ThreadPoolExecutor(1) as pool:  # the first frames on a GPU take seconds
        first = pool.submit(next, together)
        real = RealFrames.load(dataset, ids)
        shown = progress(chain([first.result()], together), "avatar and controls", len(ids))
    rendered: list[np.ndarray] = []

    def frames() -> Iterator[list[np.ndarray]]:
        for image, images in zip(real.frames, shown, strict=True):
            if networks:
                rendered.append(images[0])
            yield [*images, _halved(image)]

    driven, frozen, *shuffled, floor = compare_together(frames(), real, len(drives) + 1)
    sound = clip_sound(dataset.folder / layout.SOUND, dataset.frames)
    sync = _sync_scores(dataset, encoder, real, driven, sound)
    return {
        "held_out": driven.row,
        "controls": {"frozen_mouth": frozen.row, "shuffled_audio": _mean_row(shuffled)},
        "detector_floor": floor.row,
        "responses": measure_responses(avatar, dataset, ids, driven.detected, real.detected, batch),
        "sync": sync,
        "network_metrics": _network_rows(
            networks,
            rendered,
            driven,
            real,
            clip_sound(dataset.folder / layout.SOUND, dataset.frames),
        ),
        "not_computed": not_computed(networks) | null_reason(sync["avatar"]),
        "settings": _settings(avatar, dataset, ids, shuffles),
        "curves": _curves(real, driven, frozen, shuffled),
    }


def evaluated_ids(dataset: Dataset) -> Integer[np.ndarray, "N"]:
    """Return the held-out frames, without those whose speech windows overlap training audio.

    The overlapping ones are kept if fewer than `MIN_FRAMES_AFTER_GAP` frames would remain.
    """
    ids = dataset.val_ids
    independent = ids[ids > dataset.train_ids.max(initial=-1) + GAP]
    return independent if len(independent) >= MIN_FRAMES_AFTER_GAP else ids


def not_computed(networks: Mapping[str, Any]) -> dict[str, str]:
    """Return the metrics whose network was not given, and why they are missing."""
    return {
        name: f"needs a neural network, and the option `{option}` is not set"
        for name, (option, _) in NETWORK_METRICS.items()
        if option not in networks
    }


def on_time_axis(
    values: Real[np.ndarray, "N *C"], ids: Integer[np.ndarray, "N"]
) -> Float[np.ndarray, "L *C"]:
    """Spread values [N, ...] over every frame from the first to the last id, nan in the gaps."""
    curve = np.full((ids[-1] - ids[0] + 1, *values.shape[1:]), np.nan)
    curve[ids - ids[0]] = values
    return curve


def _sync_scores(
    dataset: Dataset, encoder: str, real: RealFrames, driven: Measurement, sound: Waveform
) -> dict[str, Any]:
    predictor = fit_predictor(dataset, sync_encoder(encoder))
    first, last = int(real.ids[0]), int(real.ids[-1])
    predicted = predictor.shapes(clip_sound(dataset.folder / layout.SOUND, dataset.frames))
    predicted = predicted[first : last + 1]
    return {
        "features": predictor.features.name,
        "real": sync_score(predicted, on_time_axis(real.detected, real.ids)),
        "avatar": sync_score(predicted, on_time_axis(driven.detected, real.ids)),
    }


def _network_rows(
    networks: Mapping[str, Any],
    rendered: list[np.ndarray],
    driven: Measurement,
    real: RealFrames,
    sound: Waveform,
) -> dict[str, Row]:
    if not networks:
        return {}
    images = np.stack(rendered)
    return {
        "avatar": frame_metrics(
            networks, images, driven.detected, real.targets, real.frames, real.detected
        )
        | stretch_metrics(networks, images, driven.detected, real.ids, sound),
        "real": stretch_metrics(networks, real.frames, real.detected, real.ids, sound),
    }


def _deformation(avatar: Avatar) -> str:
    blendshapes = avatar.blendshapes
    if blendshapes is None:
        return "network"
    return (
        f"{len(blendshapes.shapes)} blendshapes, which lower the PSNR on training frames by "
        f"{blendshapes.loss:.3f} dB compared with the network"
    )


def _settings(avatar: Avatar, dataset: Dataset, ids: np.ndarray, shuffles: int) -> dict[str, Any]:
    skipped = int(ids[0]) - int(dataset.train_ids.max()) - 1
    return {
        "height": dataset.height,
        "width": dataset.width,
        "frames": [int(ids[0]), int(ids[-1]) + 1],
        "gap": (
            f"The evaluation skipped {counted(skipped, 'held-out frame')} at the start. "
            f"(`evaluate` skips up to {GAP} frames whose speech windows overlap the training "
            f"audio, if at least {MIN_FRAMES_AFTER_GAP} frames remain.)"
        ),
        "shuffles": shuffles,
        "deformation": _deformation(avatar),
        "definitions": DEFINITIONS,
        "controls": CONTROLS,
        "detector_floor": DETECTOR_FLOOR,
        "responses": RESPONSE_DEFINITIONS,
        "sync": SYNC_DEFINITIONS,
        "network_metrics": {name: text for name, (_, text) in NETWORK_METRICS.items()},
    }


def _curves(
    real: RealFrames, driven: Measurement, frozen: Measurement, shuffled: list[Measurement]
) -> dict[str, Any]:
    return {
        "frames": list(range(int(real.ids[0]), int(real.ids[-1]) + 1)),
        "mouth_opening": {
            "real": on_time_axis(mouth_opening(real.detected), real.ids),
            "avatar": driven.mouth,
            "frozen_mouth": frozen.mouth,
            "shuffled_audio": [one.mouth for one in shuffled],
        },
        "eye_opening": {
            "real": on_time_axis(eye_aspect_ratio(real.detected), real.ids),
            "avatar": driven.eyes,
        },
    }


def _image_quality(image: np.ndarray, real: RealFrames, k: int) -> Row:
    frame, target = real.frames[k], real.targets[k]
    height, width = frame.shape[:2]
    head = m.head_box(real.landmarks[k], height, width)
    mouth = m.mouth_box(real.landmarks[k], height, width)
    return {
        "psnr": m.psnr(image, target),
        "ssim": m.ssim(image, target),
        "psnr_head": m.psnr(image, frame, head),
        "ssim_head": m.ssim(image, frame, head),
        "psnr_mouth": m.psnr(image, frame, mouth),
        "ssim_mouth": m.ssim(image, frame, mouth),
    }


def _halved(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    small = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _mean_row(measurements: list[Measurement]) -> Row:
    columns = {name: [one.row[name] for one in measurements] for name in measurements[0].row}
    statistics: dict[str, Callable[[np.ndarray], Any]] = {"best_lag_frames": np.median}
    row = {
        name: m.finite(values, statistics.get(name, np.mean)) for name, values in columns.items()
    }
    row["mouth_correlation_sd"] = m.finite(columns["mouth_correlation"], np.std)
    return row
