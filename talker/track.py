"""Follow the head: its pose in every frame, one focal length, the subject's head and expressions.

Frames without a usable face are marked and their poses interpolated; nothing is renumbered.
`talker track --clip clip.json --landmarks landmarks.npz --params track_params.pt
--train transforms_train.json --val transforms_val.json --report track_report.json`
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from talker import __version__
from talker.clip import Clip, load_per_frame
from talker.errors import UserError
from talker.files import Output, replacing
from talker.head.camera import intrinsics, pose_from_viewmats, project, transform_matrices
from talker.head.dense import fit_head, head_surface, with_hair
from talker.head.fitting import (
    fill_poses,
    fit_rigid,
    lift,
    low_rank,
    outliers,
    stable_points,
    steady_poses,
)
from talker.head.morphable import MorphableHead

logger = logging.getLogger(__name__)

IDENTITIES, EXPRESSIONS = 100, 79
"""Columns of `id` and `exp` in published files."""


@dataclass(frozen=True)
class Config:
    """How the head is tracked."""

    focal_px: float | None = None
    """focal length in pixels of the clip's frames; None estimates it"""
    focal_range: tuple[float, float] = (0.8, 6.0)
    """bounds of an estimated focal length, in longer image sides"""
    distance: float = 8.0
    """expected distance from camera to head in dm: it decides the focal length, which a talking
    head hardly shows"""
    distance_sigma: float = 0.1
    """how far the logarithm of the distance may be off (standard deviation)"""
    keyframes: int = 40
    """frames from which shape and focal length are found"""
    steadiness: float = 3.0
    """how much an even course of rotation and distance counts against the landmarks; 0: nothing"""
    expressions: int = 32
    """components of the expression basis; no more than 79 are kept"""
    min_face: float = 64.0
    """least width of a usable face in pixels"""
    min_frames: int = 25
    """least usable frames"""


@dataclass(frozen=True)
class Track:
    """A tracked clip of T frames; the world is the head, its origin the middle of `mesh`."""

    viewmats: np.ndarray
    """[T, 4, 4] OpenCV world to camera, dm"""
    focal: float
    """pixels"""
    rejected: dict[int, str]
    """frames whose pose is interpolated, and why"""
    residual: np.ndarray
    """[T] pixels, RMS of the stable points; nan where no face was usable"""
    focal_curve: dict[float, float]
    """pixels, residual with the focal length multiplied by the key"""
    mesh: np.ndarray
    """[478, 3] dm, mean of the clip"""
    expression: np.ndarray
    """[T, E] dm, weights of `basis`; 0 in rejected frames"""
    basis: np.ndarray
    """[E, 478, 3], orthonormal deviations from `mesh`"""
    vertices: np.ndarray
    """[V, 3] dm, head with a little hair, and upper neck"""
    faces: np.ndarray
    """[F, 3]"""

    @property
    def valid(self) -> np.ndarray:
        """bool [T]"""
        return ~np.isin(np.arange(len(self.viewmats)), list(self.rejected))


def track(
    clip: Clip, points: np.ndarray, valid: np.ndarray, head: MorphableHead, config: Config
) -> Track:
    """Track the head of a clip from face meshes [T, 478, 3] (px) that are `valid` [T].

    Raises:
        UserError: too few frames show a face that is large enough.
    """
    points = points.astype(float)
    template = head.landmarks(head.vertices.astype(float))
    width = np.ptp(points[..., 0], axis=1)
    rejected = {int(i): "no face" for i in np.flatnonzero(~valid)}
    small = f"face narrower than {config.min_face:g} pixels"
    rejected |= {int(i): small for i in np.flatnonzero(valid & (width < config.min_face))}
    ids = np.flatnonzero(valid & (width >= config.min_face))
    if len(ids) < config.min_frames:
        raise UserError(
            f"a face at least {config.min_face:g} pixels wide is needed in {config.min_frames} "
            f"frames, found in {len(ids)} of {clip.frames} (faces are "
            f"{np.median(width[valid]) if valid.any() else 0:.0f} pixels wide); use a longer clip "
            "or one in which the face is larger"
        )
    side = max(clip.width, clip.height)
    rigid = fit_rigid(
        points[ids],
        template,
        clip.width,
        clip.height,
        focal_range=(config.focal_px, config.focal_px)
        if config.focal_px is not None
        else (config.focal_range[0] * side, config.focal_range[1] * side),
        distance=config.distance,
        distance_sigma=config.distance_sigma,
        keyframes=config.keyframes,
    )
    bad = outliers(rigid.residual)
    rejected |= {int(i): "landmarks do not fit the head" for i in ids[bad]}
    residual = np.full(clip.frames, np.nan)
    residual[ids] = rigid.residual
    ids, viewmats = ids[~bad], rigid.viewmats[~bad]

    # Before poses are steadied or refined, or their jitter would be taken for expression.
    deviation = lift(viewmats, points[ids, :, :2], rigid.mesh, rigid.K) - rigid.mesh
    weights, basis = low_rank(deviation, min(config.expressions, EXPRESSIONS))
    expression = np.zeros((clip.frames, len(basis)))
    expression[ids] = weights

    vertices, faces = head_surface(head, with_hair(head, fit_head(head, rigid.mesh)))
    origin = rigid.mesh.mean(axis=0)
    centre = rigid.mesh[stable_points(template)].mean(axis=0) - origin
    viewmats[:, :3, 3] += viewmats[:, :3, :3] @ origin
    return Track(
        viewmats=steady_poses(fill_poses(viewmats, ids, clip.frames), centre, config.steadiness),
        focal=float(rigid.K[0, 0]),
        rejected=dict(sorted(rejected.items())),
        residual=residual,
        focal_curve=rigid.focal_curve,
        mesh=rigid.mesh - origin,
        expression=expression,
        basis=basis,
        vertices=vertices - origin,
        faces=faces,
    )


def save_params(path: Path, found: Track) -> None:
    """Write track_params.pt: the published keys, one row a frame, and what makes it complete."""
    import torch

    euler, trans = pose_from_viewmats(found.viewmats)
    rank = len(found.basis)
    exp = np.zeros((len(euler), EXPRESSIONS))
    exp[:, :rank] = found.expression
    exp_basis = np.zeros((EXPRESSIONS, *found.mesh.shape))
    exp_basis[:rank] = found.basis
    arrays = {
        "id": np.zeros((1, IDENTITIES)),
        "exp": exp,
        "euler": euler,
        "trans": trans,
        "focal": np.array([found.focal]),
        "vertices": found.vertices[None],
        "exp_basis": exp_basis,
        "mesh478": found.mesh,
    }
    params = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    params |= {
        "frame_ids": torch.arange(len(euler)),
        "valid": torch.from_numpy(found.valid),
        "faces": torch.from_numpy(found.faces.astype(np.int64)),
        "model": "anny",
        "units": "dm",
    }
    torch.save(params, path)


def transforms(clip: Clip, found: Track, ids: range) -> dict[str, Any]:
    """The content of a transforms file: the valid frames among `ids` under their own numbers."""
    matrices = transform_matrices(*pose_from_viewmats(found.viewmats))
    rows = [
        {"img_id": i, "aud_id": i, "transform_matrix": matrices[i].tolist()}
        for i in ids
        if i not in found.rejected
    ]
    return {
        "focal_len": found.focal,
        "cx": clip.width / 2,
        "cy": clip.height / 2,
        "w": clip.width,
        "h": clip.height,
        "fl_x": found.focal,
        "fl_y": found.focal,
        "frames": rows,
    }


def summary(clip: Clip, found: Track, config: Config) -> dict[str, Any]:
    """What is worth knowing about a track, as JSON values."""
    valid = found.valid
    pixels = project(found.mesh, found.viewmats, intrinsics(found.focal, clip.width, clip.height))
    face = float(np.median(np.ptp(pixels[valid, :, 0], axis=1)))
    whole = valid[:-2] & valid[1:-1] & valid[2:]
    shake = (pixels[2:] - 2 * pixels[1:-1] + pixels[:-2])[whole]
    middle = float(np.median(found.residual[valid]))
    euler, trans = pose_from_viewmats(found.viewmats[valid])
    pitch, yaw, roll = np.degrees(euler).T
    return {
        "frames": clip.frames,
        "valid": int(valid.sum()),
        "face_width_px": face,
        "focal": {
            "px": found.focal,
            "per_longer_side": found.focal / max(clip.width, clip.height),
            "given": config.focal_px is not None,
            "distance_dm": float(-trans[:, 2].mean()),
            "prior_distance_dm": config.distance,
            "prior_sigma": config.distance_sigma,
            "residual_px": {f"x{factor:g}": rms for factor, rms in found.focal_curve.items()},
        },
        "residual": {"px": middle, "percent_of_face": 100 * middle / face},
        "jitter_px": float(np.sqrt((shake**2).sum(axis=-1).mean())) if whole.any() else None,
        "degrees": {
            f"{name}_{end}": float(np.percentile(angle, percentile))
            for name, angle in (("pitch", pitch), ("yaw", yaw), ("roll", roll))
            for end, percentile in (("low", 2), ("high", 98))
        },
        "rejected": [{"frame": i, "reason": reason} for i, reason in found.rejected.items()],
        "versions": {"talker": __version__, "numpy": np.__version__, "scipy": scipy.__version__},
    }


def main(
    *,
    clip: Path,
    landmarks: Path,
    params: Output,
    train: Output,
    val: Output,
    report: Output,
    config: Config = Config(),
) -> None:
    """Find the head's pose in every frame, the focal length, the subject's head and expressions.

    Args:
        clip: clip.json of the dataset.
        landmarks: landmarks.npz, the face mesh of every frame.
        params: track_params.pt to write: poses, expressions, head.
        train: transforms_train.json to write: cameras of the training frames.
        val: transforms_val.json to write: cameras of the held-out frames.
        report: track_report.json to write: focal length, residuals, rejected frames.
        config: options.
    """
    described = Clip.load(clip)
    faces = load_per_frame(landmarks, described.frames)
    try:
        found = track(described, faces["points"], faces["valid"], MorphableHead.load(), config)
    except UserError as error:
        raise UserError(f"{landmarks}: {error}") from error
    facts = summary(described, found, config)
    split = described.train_frames
    with replacing(params, train, val, report) as scratch:
        save_params(scratch[0], found)
        for path, content in (
            (scratch[1], transforms(described, found, range(split))),
            (scratch[2], transforms(described, found, range(split, described.frames))),
            (scratch[3], facts),
        ):
            path.write_text(json.dumps(content, indent=2) + "\n")
    logger.info(
        "head followed in %d of %d frames, off by %.2f px (median), focal length %.0f px",
        facts["valid"],
        described.frames,
        facts["residual"]["px"],
        found.focal,
    )
