"""Write a complete dataset folder from the synthetic ground truth, without the face stages."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from talker.clip import FPS, SAMPLES_PER_FRAME, Clip, Source, save_per_frame
from talker.core.config import DEFAULT_ENCODER
from talker.data import layout
from talker.data.formats import (
    AU45_SATURATION,
    brow_units,
    write_action_units,
    write_track_params,
    write_transforms,
)
from talker.head.brows import brow_raise
from talker.head.camera import pose_from_viewmats, transform_matrices
from talker.head.landmarks68 import write_lms
from talker.media.audio import write_wav
from talker.media.images import write_image
from talker.synthetic.subject import GroundTruth

SPEECH_CHANNELS = 32
"""Number of channels of the artificial speech features, the same as for a real encoder."""
EXPRESSIONS = 79
"""Expression coefficients per frame, as many as the Basel Face Model has."""


def write_dataset(
    folder: Path,
    truth: GroundTruth,
    images: Iterable[np.ndarray],
    bodies: Iterable[tuple[np.ndarray, np.ndarray]],
    samples: np.ndarray,
) -> None:
    """Write a dataset folder (see `talker.data.layout`) of the synthetic clip.

    Args:
        folder: created if missing.
        truth: ground truth of T frames.
        images: the T frames, uint8 [H, W, 3].
        bodies: image uint8 [H, W, 3] and mask uint8 [H, W] of each frame without the head.
        samples: int16 [640 T], the speech.
    """
    frames, height, width = truth.masks.shape
    clip = Clip(frames, height, width, _source(frames, height, width))
    for kind in layout.IMAGES:
        (folder / kind.folder).mkdir(parents=True, exist_ok=True)
    clip.save(folder / layout.CLIP)
    write_image(folder / layout.PLATE, truth.plate, quality=100)
    for i, (image, body) in enumerate(zip(images, bodies, strict=True)):
        _write_images(folder, i, image, truth.masks[i], truth.plate, body)
        write_lms(layout.FRAME_LANDMARKS.path(folder, i), truth.landmarks68[i])
    _write_sound(folder, clip, samples)
    _write_landmarks(folder / layout.LANDMARKS, truth)
    every = np.ones(frames, bool)
    units = {"AU45_r": AU45_SATURATION * truth.blink}
    units |= brow_units(brow_raise(truth.mesh, every, truth.blink))
    write_action_units(folder / layout.ACTION_UNITS, units, every)
    _write_track(folder, clip, truth)
    np.save(folder / layout.speech_features(DEFAULT_ENCODER), speech_windows(truth.weights))


def speech_windows(weights: np.ndarray) -> np.ndarray:
    """Return artificial speech features float32 [T, 16, 32]: a fixed projection of `weights` [T,
    52].

    Like real features they are vectors at 50 Hz; window i holds vectors [2 i - 8, 2 i + 8).
    """
    frames = len(weights)
    projection = np.random.default_rng(0).standard_normal((weights.shape[1], SPEECH_CHANNELS))
    centered = weights - weights.mean(0)
    times = np.arange(2 * frames) / 2
    rows = np.stack([np.interp(times, np.arange(frames), column) for column in centered.T], 1)
    vectors = 4 * rows @ projection
    index = 2 * np.arange(frames)[:, None] + np.arange(-8, 8)
    return vectors[index.clip(0, 2 * frames - 1)].astype(np.float32)


def _source(frames: int, height: int, width: int) -> Source:
    return Source(
        name="synthetic.mp4",
        width=width,
        height=height,
        fps=float(FPS),
        variable_rate=False,
        rotation=0,
        duration=frames / FPS,
        video_start=0.0,
        audio_start=0.0,
        codec="h264",
    )


def _write_images(
    folder: Path,
    i: int,
    image: np.ndarray,
    mask: np.ndarray,
    plate: np.ndarray,
    body: tuple[np.ndarray, np.ndarray],
) -> None:
    write_image(layout.FRAMES.path(folder, i), image, quality=100)
    write_image(layout.MASKS.path(folder, i), layout.COLORS[mask])
    composite = np.where(mask[..., None] == 0, plate, image)
    write_image(layout.COMPOSITES.path(folder, i), composite, quality=100)
    color, covered = body[0], body[1][..., None] > 0
    torso = np.dstack([color * covered, 255 * covered]).astype(np.uint8)
    write_image(layout.TORSOS.path(folder, i), torso)


def _write_sound(folder: Path, clip: Clip, samples: np.ndarray) -> None:
    split = clip.train_frames * SAMPLES_PER_FRAME
    write_wav(folder / layout.SOUND, samples)
    write_wav(folder / layout.TRAIN_SOUND, samples[:split])
    write_wav(folder / layout.NOVEL_SOUND, samples[split:])


def _write_landmarks(path: Path, truth: GroundTruth) -> None:
    frames = len(truth.landmarks)
    depth = np.einsum("tij,tpj->tpi", truth.viewmats[:, :3, :3], truth.mesh)[..., 2]
    scale = truth.focal / truth.viewmats[:, 2, 3]
    box = np.concatenate([truth.landmarks.min(1), truth.landmarks.max(1)], axis=1)
    save_per_frame(
        path,
        valid=np.ones(frames, bool),
        points=np.dstack([truth.landmarks, depth * scale[:, None]]).astype(np.float32),
        n_faces=np.ones(frames, int),
        box=box.astype(np.float32),
    )


def _write_track(folder: Path, clip: Clip, truth: GroundTruth) -> None:
    frames = len(truth.viewmats)
    euler, trans = pose_from_viewmats(truth.viewmats)
    mean = truth.mesh.mean(0)
    offsets = (truth.mesh - mean).reshape(frames, -1)
    left, sizes, basis = np.linalg.svd(offsets, full_matrices=False)
    rank = min(EXPRESSIONS, len(sizes))
    expression = np.zeros((frames, EXPRESSIONS), np.float32)
    expression[:, :rank] = (left * sizes)[:, :rank]
    padded = np.zeros((EXPRESSIONS, *mean.shape), np.float32)
    padded[:rank] = basis[:rank].reshape(rank, *mean.shape)
    arrays = {
        "id": np.zeros((1, 100)),
        "exp": expression,
        "euler": euler,
        "trans": trans,
        "focal": np.array([truth.focal]),
        "vertices": truth.vertices[None],
        "exp_basis": padded,
        "valid": np.ones(frames, bool),
        "faces": truth.faces,
    }
    write_track_params(folder / layout.TRACK_PARAMS, arrays, "anny")
    matrices, size = transform_matrices(euler, trans), (clip.height, clip.width)
    for name, ids in (
        (layout.TRANSFORMS_TRAIN, range(clip.train_frames)),
        (layout.TRANSFORMS_VAL, range(clip.train_frames, frames)),
    ):
        write_transforms(folder / name, matrices, truth.focal, size, ids)
