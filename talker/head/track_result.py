"""The result of tracking a clip, and the content of track_params.pt and track_report.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scipy

from talker import __version__
from talker.clip import Clip
from talker.data.formats import write_track_params
from talker.head.camera import intrinsics, pose_from_viewmats, project

IDENTITIES = 100
"""Number of columns of `id` in published track_params.pt files."""

EXPRESSIONS = 79
"""Number of columns of `exp` in published track_params.pt files."""


@dataclass(frozen=True)
class FocalPrior:
    """What was known about the focal length before it was estimated."""

    given: float | None
    """Focal length in pixels that the user specified, or None."""
    bounds: tuple[float, float]
    """Bounds of an estimated focal length, in multiples of the longer image side."""
    distance: float
    """Expected distance from camera to head in dm."""
    distance_sigma: float
    """Standard deviation of the logarithm of the distance."""


@dataclass(frozen=True)
class Track:
    """A tracked clip of T frames; the origin of the world is the center of `mesh`."""

    viewmats: np.ndarray
    """[T, 4, 4], OpenCV world-to-camera matrices, dm."""
    focal: float
    """Focal length in pixels."""
    rejected: dict[int, str]
    """Frames whose pose is interpolated, with the reason."""
    cuts: list[int]
    """First frame of each new shot."""
    residual: np.ndarray
    """[T] pixels, median reprojection error of the rigid points; nan in rejected frames."""
    motion: dict[str, dict[int, float]]
    """RMS difference in pixels between the motion of the head and the optical flow over 1 and 5
    frames, as {"landmarks" or "final": {frames: pixels}}; nan where it could not be measured."""
    followed: np.ndarray
    """[T - 1], fraction of the points that optical flow followed to the next frame."""
    focal_curve: dict[float, float]
    """Residual in pixels with the focal length multiplied by the key."""
    mesh: np.ndarray
    """[478, 3] dm, mean mesh of the clip."""
    expression: np.ndarray
    """[T, E] dm, weights of `basis`; 0 in rejected frames."""
    basis: np.ndarray
    """[E, 478, 3], orthonormal deviations from `mesh`."""
    identity: np.ndarray
    """[I], identity weights of the head model."""
    vertices: np.ndarray
    """[V, 3] dm, head with a little hair, and upper neck."""
    faces: np.ndarray
    """int [F, 3], triangles of `vertices`."""

    @property
    def valid(self) -> np.ndarray:
        """Frames whose pose was estimated rather than interpolated, bool [T]."""
        return ~np.isin(np.arange(len(self.viewmats)), list(self.rejected))


def save_params(path: Path, track: Track, model: str) -> None:
    """Write track_params.pt: the published keys with one row per frame, and talker's own keys.

    `id` stays 0 where the model has more identities than the published 100; `identity` has all.

    Args:
        path: the file.
        track: the tracked clip.
        model: name of the head model.
    """
    euler, trans = pose_from_viewmats(track.viewmats)
    rank = len(track.basis)
    exp = np.zeros((len(euler), EXPRESSIONS))
    exp[:, :rank] = track.expression
    published = np.zeros(IDENTITIES)
    if len(track.identity) <= IDENTITIES:
        published[: len(track.identity)] = track.identity
    exp_basis = np.zeros((EXPRESSIONS, *track.mesh.shape))
    exp_basis[:rank] = track.basis
    arrays = {
        "id": published[None],
        "identity": track.identity,
        "exp": exp,
        "euler": euler,
        "trans": trans,
        "focal": np.array([track.focal]),
        "vertices": track.vertices[None],
        "exp_basis": exp_basis,
        "mesh478": track.mesh,
        "valid": track.valid,
        "faces": track.faces,
    }
    write_track_params(path, arrays, model)


def summarize(clip: Clip, track: Track, prior: FocalPrior) -> dict[str, Any]:
    """Return the content of track_report.json."""
    valid = track.valid
    pixels = project(track.mesh, track.viewmats, intrinsics(track.focal, clip.width, clip.height))
    face = float(np.median(np.ptp(pixels[valid, :, 0], axis=1)))
    inside = valid[:-2] & valid[1:-1] & valid[2:]
    shake = (pixels[2:] - 2 * pixels[1:-1] + pixels[:-2])[inside]
    middle = _finite_median(track.residual)
    euler, _ = pose_from_viewmats(track.viewmats[valid])
    pitch, yaw, roll = np.degrees(euler).T
    return {
        "frames": clip.frames,
        "valid": int(valid.sum()),
        "face_width_px": face,
        "focal": describe_focal(clip, track, prior),
        "residual": {"px": middle, "percent_of_face": 100 * middle / face},
        "motion_px": {
            name: {f"c{step}": _none_if_nan(value) for step, value in errors.items()}
            for name, errors in track.motion.items()
        },
        "followed_percent": 100 * float(track.followed.mean()),
        "jitter_px": float(np.sqrt((shake**2).sum(axis=-1).mean())) if inside.any() else None,
        "degrees": {
            f"{name}_{end}": float(np.percentile(angle, percentile))
            for name, angle in (("pitch", pitch), ("yaw", yaw), ("roll", roll))
            for end, percentile in (("low", 2), ("high", 98))
        },
        "segments": segments(track),
        "rejected": [{"frame": i, "reason": reason} for i, reason in track.rejected.items()],
        "versions": {
            "talker": __version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "opencv": cv2.__version__,
        },
    }


def describe_focal(clip: Clip, track: Track, prior: FocalPrior) -> dict[str, Any]:
    """Return the facts about the focal length for track_report.json."""
    per_side = track.focal / max(clip.width, clip.height)
    _, trans = pose_from_viewmats(track.viewmats[track.valid])
    return {
        "px": track.focal,
        "per_longer_side": per_side,
        "given": prior.given is not None,
        "at_bound": prior.given is None and bool(np.isclose(per_side, prior.bounds).any()),
        "distance_dm": float(-trans[:, 2].mean()),
        "prior_distance_dm": prior.distance,
        "prior_sigma": prior.distance_sigma,
        "residual_px": {f"x{factor:g}": rms for factor, rms in track.focal_curve.items()},
    }


def segments(track: Track) -> list[dict[str, Any]]:
    """Return the frames and the residual of each shot; a shot of another person fits badly."""
    starts = [0, *track.cuts]
    return [
        {
            "first": start,
            "last": end - 1,
            "valid": int(track.valid[start:end].sum()),
            "residual_px": _none_if_nan(_finite_median(track.residual[start:end])),
        }
        for start, end in zip(starts, [*track.cuts, len(track.viewmats)], strict=True)
    ]


def _finite_median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def _none_if_nan(value: float) -> float | None:
    return value if np.isfinite(value) else None
