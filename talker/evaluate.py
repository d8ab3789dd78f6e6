"""Measure an avatar on the held-out frames, beside controls that a dead or deaf mouth would pass.

    talker evaluate --data data/me --avatar results/me/avatar --metrics results/me/metrics.json
    talker evaluate --data data/me --avatar results/me/avatar --metrics hello.json --video hello.mp4

The second measures a video of new speech, which has no real counterpart: whether its mouth moves
with its sound, and closes in silence.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion

from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, avatar_dataset, load_avatar, render_frames
from talker.clip import SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.core.config import DEFAULT_ENCODER, AtLeast0, AtLeast1, validated
from talker.core.files import Output, atomic_write
from talker.core.progress import progress
from talker.dataset import Dataset, over
from talker.encoders import sync_encoder
from talker.encoders.features import SLOTS_PER_FRAME
from talker.encoders.loudness import pauses, slot_levels
from talker.errors import UserError
from talker.head.flow import Flow, follow_points
from talker.head.landmarks68 import (
    eye_aspect_ratio,
    landmarks68,
    mouth_opening,
    outer_eye_distance,
)
from talker.measure import metrics as m
from talker.measure.networks import (
    frechet_distance,
    identity_similarity,
    load_judge,
    perceptual_distance,
)
from talker.measure.sync import NULL_FROM, Predictor, fit_predictor, sync_score
from talker.measure.syncnet import load_syncnet, sync_distances
from talker.media.audio import Waveform, decode_audio
from talker.media.mediapipe import track_meshes
from talker.media.video_reader import frame_count, probe, read_frames

logger = logging.getLogger(__name__)

SHAKE = {"head_shake": 1, "head_shake_5": 5}
"""Frames over which the head's motion is compared."""

MIN_DETECTOR_SIZE = 384
"""Pixels; smaller frames, real and rendered alike, are enlarged before faces are looked for."""

DEFINITIONS = {
    "psnr": "dB, whole frame: the rendered head over the torso and plate of the real frame, "
    "against the real head (parsing mask) over the same torso and plate; mean over frames",
    "ssim": "the same pair, 11 x 11 Gaussian window, sigma 1.5",
    "psnr_head": "dB, against the untouched real frame inside the box of the 68 landmarks, 15 % "
    "wider on each side and 45 % higher",
    "ssim_head": "the mean of the SSIM map in that box",
    "psnr_mouth": "dB, against the untouched real frame inside the square around the lips, 1.5 "
    "times as wide as they",
    "ssim_mouth": "the mean of the SSIM map in that square",
    "lmd_mouth": "px of the rendered size: mean distance of the 20 mouth landmarks found in the "
    "rendered and in the real frame, each set centred on its mean. A frozen mouth scores well here",
    "lmd_mouth_relative": "the same over the distance of the outer eye corners",
    "mouth_correlation": "Pearson's r of the mouth opening (inner lips over outer eye corners) of "
    "the rendered and the real frames",
    "mouth_std_ratio": "standard deviation of the rendered mouth opening over the real one: 0 is "
    "frozen, 1 the right amplitude",
    "best_lag_frames": "shift with the highest correlation within 12 frames; positive: the "
    "rendered mouth is late",
    "eye_correlation": "Pearson's r of the eyes' opening (aspect ratio) of the rendered and the "
    "real frames; without a blink among them it is noise",
    "eye_std_ratio": "standard deviation of the rendered eyes' opening over the real one: 0 stares",
    "head_shake": "px of the rendered size: how far the head's motion from one frame to the next "
    "is off the real head's (optical flow of brows, nose and eye corners in both videos, the "
    "median over the points of their difference; RMS over the frames). Shaking poses show here",
    "head_shake_5": "the same over 5 frames",
    "faces_lost": "rendered frames in which no face was found",
}
SYNC = {
    "correlation": "of the mouth that is seen with the mouth that the sound lets expect, mean over "
    "opening, width and jaw. A ridge regression on the real training frames tells the latter from "
    "features that do not drive the avatar (`features`). This is not SyncNet's Sync-C",
    "null_mean": "the same with the sound turned by 1 s and more; null_sd: their deviation; "
    "null_share: how many of them do as well, the sound as it is counted with them; from 80 frames "
    "on",
    "best_lag": "shift in frames within 12 at which the correlation, `best_correlation`, is best; "
    "positive: the mouth is late",
    "real": "the figure of the real held-out video",
}
SILENCE = {
    "silent_frames": "frames in the midst of pauses, 0.2 s and more after and before any sound",
    "opening_silent": "their mean mouth opening (inner lips over outer eye corners)",
    "opening_closed": "that of the tenth of the real training frames that are least open, found as "
    "in the video, at the avatar's size",
    "opening_mean": "that of all real training frames",
    "chatter": "standard deviation of the opening in silence over that in speech",
}
SILENT_MARGIN = 5
"""frames"""
CLOSED = 0.1
GAP = 16
"""frames between the training frames and those that are measured: their windows share no sound"""
ENOUGH = 25
"""frames that have to remain, or there is no gap"""
CONTROLS = {
    "frozen_mouth": "the avatar driven by the mean of the training speech in every frame: what its "
    "mouth still does follows the pose and the blinks",
    "shuffled_audio": "the avatar driven by the sound of other parts of the clip: the track turned "
    "by k/(K+1) of its length for k = 1 .. K; every number is the mean over them (the lag: their "
    "median)",
}
FLOOR = (
    "the real frames halved and enlarged again, measured like a rendering: the detector's own noise"
)
JUDGES = {
    "LPIPS": (
        "lpips",
        "the rendered head over the torso and plate of the real frame against the "
        "real head over the same; mean over frames",
    ),
    "FID": ("inception", "the same two sets of frames"),
    "CSIM": ("identity", "cosine of the rendered and the real face's identity, mean over frames"),
    "Sync-C": ("syncnet", "SyncNet's confidence over the longest unbroken stretch"),
    "Sync-D": ("syncnet", "SyncNet's distance there"),
}
"""Metrics by a network that the user gives: the option that names it, what they measure."""

Row = dict[str, float]


@validated
class Config:
    """Options of `talker evaluate`."""

    batch: AtLeast0 = 0
    """frames rendered at once; 0: 32 on a GPU, 8 without"""
    shuffles: AtLeast1 = 8
    """turns of the sound track that the shuffled-audio control is averaged over, at least 1"""
    lpips: str = ""
    """TorchScript file of LPIPS (talker/measure/networks.py); empty: not computed"""
    lpips_sha256: str = ""
    inception: str = ""
    """TorchScript file of Inception's features, for FID; empty: not computed"""
    inception_sha256: str = ""
    identity: str = ""
    """TorchScript file of a face recogniser (ArcFace), for CSIM; empty: not computed"""
    identity_sha256: str = ""
    syncnet: str = ""
    """weights of SyncNet (syncnet_v2.model), for Sync-C and Sync-D; empty: not computed"""
    syncnet_sha256: str = ""


@dataclass(frozen=True)
class Truth:
    """N real held-out frames and what was found in them."""

    ids: np.ndarray
    """int64 [N], frame numbers in the clip"""
    frames: np.ndarray
    """uint8 [N, H, W, 3]"""
    targets: np.ndarray
    """uint8 [N, H, W, 3], the real head over torso and plate (the target of GaussianTalker)"""
    landmarks: np.ndarray
    """float32 [N, 68, 2], the dataset's; they place the boxes"""
    found: np.ndarray
    """float32 [N, 68, 2], as MediaPipe finds them in `frames`, nan where there is no face"""
    flow: dict[int, Flow]
    """of the head in `frames`: {step: Flow}"""

    @classmethod
    def load(cls, dataset: Dataset, ids: np.ndarray) -> "Truth":
        images = dataset.images(ids, "real frames")
        layers = zip(images.frame, images.background, images.head_mask, strict=True)
        return cls(
            ids=ids,
            frames=images.frame,
            targets=np.stack([over(*layer) for layer in layers]),
            landmarks=dataset.landmarks[ids],
            found=find_landmarks(images.frame),
            flow=head_flow(images.frame, dataset.landmarks[ids]),
        )


@dataclass(frozen=True)
class Measured:
    """The metrics of one rendering and its curves over the clip's time axis."""

    row: Row
    mouth: np.ndarray
    """float [last - first + 1], mouth opening, nan where there is no frame or no face"""
    eyes: np.ndarray
    """float [last - first + 1], eye opening"""
    found: np.ndarray
    """float32 [N, 68, 2], landmarks of the rendering, nan where no face was found"""


def find_landmarks(images: Iterable[np.ndarray]) -> np.ndarray:
    """MediaPipe's landmarks in consecutive frames, uint8 [H, W, 3] of whatever size.

    Returns:
        float32 [N, 68, 2], pixels of the frames, nan where no face was found.
    """
    scales: list[int] = []

    def enlarged() -> Iterator[np.ndarray]:
        for image in images:
            scale = math.ceil(MIN_DETECTOR_SIZE / max(image.shape[:2]))
            scales.append(scale)
            yield cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)

    missing = np.full((68, 2), np.nan, np.float32)
    found = [
        landmarks68(meshes[0]) if len(meshes) else missing for meshes in track_meshes(enlarged())
    ]
    return np.stack(found) / np.array(scales, np.float32)[:, None, None]


def head_flow(images: Iterable[np.ndarray], landmarks: np.ndarray) -> dict[int, Flow]:
    """Motion of the head's steady points in frames uint8 [H, W, 3], from landmarks [N, 68, 2]."""
    return follow_points(images, landmarks[:, m.STEADY], list(SHAKE.values()))


def measure(images: Iterable[np.ndarray], truth: Truth) -> Measured:
    """Compare rendered frames uint8 [H, W, 3], one for each of `truth`, with the real ones."""
    images = list(images)
    quality = [_image_quality(image, truth, k) for k, image in enumerate(images)]
    found = find_landmarks(images)
    flow = head_flow(images, truth.landmarks)
    (mouth, real_mouth), (eyes, real_eyes) = (
        [_on_time_axis(opening(one), truth.ids) for one in (found, truth.found)]
        for opening in (mouth_opening, eye_aspect_ratio)
    )
    distance = m.mouth_distance(found, truth.found)
    row = {name: _finite([frame[name] for frame in quality]) for name in quality[0]}
    row |= {
        "lmd_mouth": _finite(distance),
        "lmd_mouth_relative": _finite(distance / outer_eye_distance(truth.found)),
        "mouth_correlation": m.correlation(mouth, real_mouth),
        "mouth_std_ratio": m.std_ratio(mouth, real_mouth),
        "best_lag_frames": m.best_lag(mouth, real_mouth),
        "eye_correlation": m.correlation(eyes, real_eyes),
        "eye_std_ratio": m.std_ratio(eyes, real_eyes),
        "faces_lost": int(np.isnan(found[:, 0, 0]).sum()),
        "frames": len(found),
    }
    for name, step in SHAKE.items():
        follows = truth.ids[step:] - truth.ids[:-step] == step
        drawn, real = flow[step], truth.flow[step]
        off = m.head_shake(drawn.moved, real.moved, drawn.good & real.good)
        row[name] = math.sqrt(_finite(off[follows] ** 2))
    return Measured(row, mouth, eyes, found)


def evaluate(
    avatar: Avatar, dataset: Dataset, config: Config, encoder: str = DEFAULT_ENCODER
) -> dict[str, Any]:
    """All numbers and curves of `metrics.json`; `encoder` is the one that drives the avatar.

    Raises:
        UserError: the dataset holds out no frames, or there is to be no shuffled control.
    """
    ids = measured_ids(dataset)
    if len(ids) == 0:
        raise UserError(
            f"{dataset.folder / 'transforms_val.json'}: holds no usable frame, so there is "
            "nothing to measure on; use a longer clip"
        )
    networks = load_networks(config)
    truth = Truth.load(dataset, ids)

    def driven(name: str, windows: np.ndarray, heard: np.ndarray) -> Measured:
        frames = render_frames(avatar, dataset, Drive(ids, windows, heard), config.batch)
        return measure(progress(frames, name, len(ids)), truth)

    mean_speech = dataset.speech[dataset.train_ids].mean(0, keepdims=True)
    turns = [dataset.frames * k // (config.shuffles + 1) for k in range(1, config.shuffles + 1)]
    true = driven("avatar", dataset.speech, ids)
    frozen = driven("frozen mouth", mean_speech, np.zeros_like(ids))
    shuffled = [
        driven(f"shuffled audio {k}/{len(turns)}", dataset.speech, (ids + turn) % dataset.frames)
        for k, turn in enumerate(turns, 1)
    ]
    floor = measure(map(_halved, truth.frames), truth)
    sound = dataset.sound
    judged: dict[str, Row] = {}
    if networks:
        drive = Drive(ids, dataset.speech, ids)
        rendered = np.stack(list(render_frames(avatar, dataset, drive, config.batch)))
        judged = {
            "avatar": judge_frames(networks, rendered, true.found, truth)
            | judge_sync(networks, rendered, true.found, ids, sound),
            "real": judge_sync(networks, truth.frames, truth.found, ids, sound),
        }
    first, last = int(ids[0]), int(ids[-1])
    family = sync_encoder(encoder)
    predicted = fit_predictor(dataset, family).shapes(sound)[first : last + 1]
    sync = {
        name: sync_score(predicted, _on_time_axis(found, ids))
        for name, found in (("real", truth.found), ("avatar", true.found))
    }
    return {
        "held_out": true.row,
        "controls": {"frozen_mouth": frozen.row, "shuffled_audio": _mean_row(shuffled)},
        "detector_floor": floor.row,
        "sync": {"features": family, **sync},
        "judges": judged,
        "not_computed": not_computed(networks) | no_null(sync),
        "settings": {
            "height": dataset.height,
            "width": dataset.width,
            "frames": [first, last + 1],
            "gap": f"{first - int(dataset.train_ids.max()) - 1} frames lie between the last of "
            f"training and these; {GAP} where {ENOUGH} remain, for windows that share no sound",
            "shuffles": config.shuffles,
            "definitions": DEFINITIONS,
            "controls": CONTROLS,
            "detector_floor": FLOOR,
            "sync": SYNC,
            "judges": {name: text for name, (_, text) in JUDGES.items()},
        },
        "curves": {
            "frames": list(range(first, last + 1)),
            "mouth_opening": {
                "real": _on_time_axis(mouth_opening(truth.found), ids),
                "avatar": true.mouth,
                "frozen_mouth": frozen.mouth,
                "shuffled_audio": [one.mouth for one in shuffled],
            },
            "eye_opening": {
                "real": _on_time_axis(eye_aspect_ratio(truth.found), ids),
                "avatar": true.eyes,
            },
        },
    }


def measured_ids(dataset: Dataset) -> np.ndarray:
    """The held-out frames, less those whose speech windows hear what was trained on."""
    ids = dataset.val_ids
    apart = ids[ids > dataset.train_ids.max(initial=-1) + GAP]
    return apart if len(apart) >= ENOUGH else ids


def load_networks(config: Config) -> dict[str, Any]:
    """The networks that the options name, by option.

    Raises:
        UserError: a file is missing, or is not what its sha256 says, or no such network.
    """
    loaders = {
        "lpips": load_judge,
        "inception": load_judge,
        "identity": load_judge,
        "syncnet": load_syncnet,
    }
    return {
        option: load(Path(path), getattr(config, f"{option}_sha256"))
        for option, load in loaders.items()
        if (path := getattr(config, option))
    }


def not_computed(networks: dict[str, Any]) -> dict[str, str]:
    """Which of `JUDGES` cannot judge, and why."""
    return {
        name: f"needs a network: option {option}"
        for name, (option, _) in JUDGES.items()
        if option not in networks
    }


def no_null(sync: dict[str, Row]) -> dict[str, str]:
    """Why a sync score stands without its null, if it does."""
    frames = sync["avatar"]["frames"]
    reason = f"needs {NULL_FROM} frames with a face that speaks, found {frames}"
    return {"null of the sync score": reason} if frames < NULL_FROM else {}


def judge_frames(
    networks: dict[str, Any], rendered: np.ndarray, found: np.ndarray, truth: Truth
) -> Row:
    """LPIPS, FID and CSIM of N frames uint8 [N, H, W, 3] with landmarks [N, 68, 2]."""
    row: Row = {}
    if network := networks.get("lpips"):
        row["LPIPS"] = perceptual_distance(network, rendered, truth.targets)
    if network := networks.get("inception"):
        row["FID"] = frechet_distance(network, rendered, truth.targets)
    if network := networks.get("identity"):
        row["CSIM"] = identity_similarity(network, rendered, found, truth.frames, truth.found)
    return row


def judge_sync(
    networks: dict[str, Any],
    images: np.ndarray,
    found: np.ndarray,
    ids: np.ndarray,
    sound: Waveform,
) -> Row:
    """Sync-C and Sync-D of the longest unbroken stretch of the frames `ids` [N]."""
    if "syncnet" not in networks:
        return {}
    pieces = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(ids) != 1) + 1)
    part = max(pieces, key=len)
    heard = sound[ids[part[0]] * SAMPLES_PER_FRAME : (ids[part[-1]] + 1) * SAMPLES_PER_FRAME]
    return sync_distances(networks["syncnet"], images[part], found[part], heard)


def table(results: dict[str, Any]) -> str:
    """The rows of `evaluate` as aligned plain text."""
    rows = {
        "avatar": results["held_out"],
        **{name.replace("_", " "): row for name, row in results["controls"].items()},
        "detector floor": results["detector_floor"],
    }
    lines = [["", *rows]]
    lines += [[name, *(_shown(row[name]) for row in rows.values())] for name in DEFINITIONS]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def judge(
    video: Path, dataset: Dataset, predictor: Predictor, networks: dict[str, Any]
) -> dict[str, Any]:
    """Sync score of a video's mouth and sound, and what its mouth does in silence.

    Of the `networks` only SyncNet can judge it.

    Raises:
        UserError: the video cannot be read, or has no sound.
    """
    source = probe(video)
    frames = frame_count(source)
    images = progress(read_frames(video, source), video.name, frames)
    found = find_landmarks(images)
    sound = decode_audio(video, source.video_start)
    samples = len(found) * SAMPLES_PER_FRAME
    sound = np.pad(sound[:samples], (0, max(0, samples - len(sound))))
    ids = measured_ids(dataset)
    real = _on_time_axis(dataset.landmarks[ids], ids) if len(ids) else np.empty((0, 68, 2))
    heard = predictor.shapes(dataset.sound)
    judged: Row = {}
    if network := networks.get("syncnet"):
        judged = sync_distances(network, read_frames(video, source), found, sound)
    sync = {
        "real": sync_score(heard[ids[0] : ids[-1] + 1] if len(ids) else heard[:0], real),
        "avatar": sync_score(predictor.shapes(sound), found),
    }
    return {
        "frames": len(found),
        "seconds_of_sound": len(sound) / SAMPLE_RATE,
        "faces_lost": int(np.isnan(found[:, 0, 0]).sum()),
        "sync": {"features": predictor.encoder.name, **sync},
        "silence": silence_row(sound, mouth_opening(found), dataset),
        "judges": {"avatar": judged},
        "not_computed": no_null(sync),
        "settings": {"definitions": SYNC | SILENCE},
    }


def silence_row(sound: np.ndarray, opening: np.ndarray, dataset: Dataset) -> Row:
    """What the mouth does in the pauses of int16 [640 T]: the numbers of `SILENCE`; opening [T]."""
    silent = pauses(slot_levels(sound), shortest=0.3).reshape(-1, SLOTS_PER_FRAME).min(1) == 1
    reach = np.ones(2 * SILENT_MARGIN + 1, bool)
    deep = np.asarray(binary_erosion(silent, reach, border_value=1), bool)
    spoken = ~np.asarray(binary_dilation(silent, reach), bool)
    recorded = mouth_opening(dataset.landmarks[dataset.train_ids])
    closed = dataset.train_ids[recorded <= np.quantile(recorded, CLOSED)]
    found = find_landmarks(dataset.frame(int(i)) for i in closed)
    moves = _finite(opening[spoken], np.std)
    return {
        "silent_frames": int(deep.sum()),
        "opening_silent": _finite(opening[deep]),
        "opening_closed": _finite(mouth_opening(found)),
        "opening_mean": float(recorded.mean()),
        "chatter": _finite(opening[deep], np.std) / (moves or float("nan")),
    }


def main(
    *,
    data: Path,
    avatar: Path,
    metrics: Output,
    video: Path | None = None,
    config: Config = Config(),
) -> None:
    """Measure an avatar on the frames that were held out of its training, or a video of it.

    Args:
        data: dataset folder.
        avatar: folder that `talker train` wrote.
        metrics: JSON file to write.
        video: measure this video of new speech instead.
        config: options.
    """
    model = load_avatar(avatar)
    dataset = avatar_dataset(data, model)
    if video is not None:
        predictor = fit_predictor(dataset, sync_encoder(model.config.encoder))
        results = judge(video, dataset, predictor, load_networks(config))
        logger.info("%s: %s", video, sync_text(results["sync"]))
    else:
        results = evaluate(model, dataset, config, model.config.encoder)
        logger.info("%s\n%s", table(results), sync_text(results["sync"]))
    for name, reason in results["not_computed"].items():
        logger.info("%s: not computed, %s", name, reason)
    for who, row in results["judges"].items():
        for name, value in row.items():
            logger.info("%s, %s: %.4f", name, who, value)
    with atomic_write(metrics) as (scratch,):
        scratch.write_text(json.dumps(_plain(results), indent=1) + "\n", encoding="utf-8")


def sync_text(sync: dict[str, Any]) -> str:
    """One line about a sync score, its null and the real video's."""
    row, real = sync["avatar"], sync["real"]
    return (
        f"mouth and sound ({sync['features']}): correlation {_shown(row['correlation'])}, "
        f"turned sound {_shown(row['null_mean'])} +- {_shown(row['null_sd'])}, best at lag "
        f"{_shown(row['best_lag'])}; the real video {_shown(real['correlation'])}, best at lag "
        f"{_shown(real['best_lag'])}"
    )


def _image_quality(image: np.ndarray, truth: Truth, k: int) -> Row:
    real, target = truth.frames[k], truth.targets[k]
    similarity = m.ssim_map(image, real)
    height, width = real.shape[:2]
    head = m.head_box(truth.landmarks[k], height, width)
    mouth = m.mouth_box(truth.landmarks[k], height, width)
    return {
        "psnr": m.psnr(image, target),
        "ssim": m.mean_ssim(m.ssim_map(image, target)),
        "psnr_head": m.psnr(image, real, head),
        "ssim_head": m.mean_ssim(similarity, head),
        "psnr_mouth": m.psnr(image, real, mouth),
        "ssim_mouth": m.mean_ssim(similarity, mouth),
    }


def _on_time_axis(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Spread [N, ...] over every frame from the first to the last id, nan in the gaps."""
    curve = np.full((ids[-1] - ids[0] + 1, *values.shape[1:]), np.nan)
    curve[ids - ids[0]] = values
    return curve


def _halved(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    small = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _finite(values: Any, statistic: Callable[[np.ndarray], Any] = np.mean) -> float:
    """A statistic of the finite values; nan if there is none."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return float(statistic(known)) if known.size else float("nan")


def _mean_row(runs: list[Measured]) -> Row:
    columns = {name: [run.row[name] for run in runs] for name in runs[0].row}
    row = {name: _finite(values) for name, values in columns.items()}
    row["best_lag_frames"] = _finite(columns["best_lag_frames"], np.median)
    row["mouth_correlation_sd"] = _finite(columns["mouth_correlation"], np.std)
    return row


def _shown(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return str(int(value)) if value == int(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    """JSON has neither arrays nor nan: lists, null, and five digits are what a reader needs."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(one) for one in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), 5) if math.isfinite(value) else None
    return value
