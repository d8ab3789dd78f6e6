"""Track the head: estimate its pose in every frame from landmarks and optical flow.

The poses of rejected frames are interpolated; frames keep their numbers.
`talker track --clip clip.json --images ori_imgs --landmarks landmarks.npz --fit fit.npz
--params track_params.pt --train transforms_train.json --val transforms_val.json
--report track_report.json`
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scipy

from talker import __version__
from talker.clip import Clip, chunks, load_per_frame
from talker.core.config import AtLeast0, NonNegative, validated
from talker.core.files import Output, atomic_write
from talker.core.parallel import one_opencv_thread, ordered_map
from talker.core.progress import progress
from talker.data.formats import (
    EXPRESSIONS,
    FocalPrior,
    HeadFit,
    Shots,
    read_fit,
    write_track_params,
    write_transforms,
)
from talker.errors import UserError
from talker.head.camera import intrinsics, pose_from_viewmats, project, transform_matrices
from talker.head.flow import Flow, follow_points
from talker.head.fusion import common_motion, fuse
from talker.head.poses import fill_poses, move_origin
from talker.head.shots import (
    FACE,
    HeadImages,
    covered_frames,
    face_patch,
    find_jump_cuts,
    outside_fraction,
    still_frames,
)
from talker.media.images import read_frame

logger = logging.getLogger(__name__)

FLOW_PLACES = 160
"""Number of rigid points that optical flow follows; the points with the largest weights."""

STEPS = 1, 5
"""Frame distances over which the poses are compared with optical flow; only the first one is used
to compute the poses."""

IDENTITIES = 100
"""Number of columns of `id` in published track_params.pt files."""


@validated
class Config:
    """How the head is tracked."""

    flow_points: NonNegative = 60.0
    """Weight of the optical flow: the flow of a frame counts as much as this number of landmarks.
    With 0, the poses are estimated from the landmarks alone."""
    max_still: AtLeast0 = 12
    """Maximum number of consecutive frames with the same image. If more frames are identical, the
    video is considered frozen, and these frames are rejected."""


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


@dataclass(frozen=True)
class FusedPoses:
    """Poses [T, 4, 4] before and after fusion with optical flow, and what fusion measured."""

    from_landmarks: np.ndarray
    final: np.ndarray
    points: np.ndarray
    """[Q, 3] dm, the points that were followed."""
    flows: dict[int, Flow]
    """Optical flow of these points over each of `STEPS` frames."""


def track(clip: Clip, images: Path, points: np.ndarray, fit: HeadFit, config: Config) -> Track:
    """Track the head of a clip.

    Args:
        clip: the clip.
        images: folder of its frames.
        points: face meshes [T, 478, 3] in pixels.
        fit: the head, the camera and the poses that fit the landmarks; frames whose image is frozen
            or in which something covers the face are rejected in `fit.shots`.
        config: options.

    Raises:
        UserError: no frame can be tracked.
    """
    shots, K = fit.shots, intrinsics(fit.focal, clip.width, clip.height)
    poses = fuse_with_flow(clip, images, points, fit, K, config)
    shot = shot_of_frames(shots)
    ids = shots.accepted_frames
    viewmats = fill_poses(poses.final[ids], ids, clip.frames)
    residual = np.full(clip.frames, np.nan)
    projected = project(fit.mesh[fit.stable], viewmats[ids], K)
    projected -= points[ids[:, None], fit.stable, :2]
    residual[ids] = np.median(np.linalg.norm(projected, axis=-1), axis=1)
    origin = fit.mesh.mean(axis=0)
    return Track(
        viewmats=move_origin(viewmats, origin),
        focal=fit.focal,
        rejected={i: reason for i, reason in enumerate(shots.reasons) if reason},
        cuts=shots.cuts,
        residual=residual,
        motion={
            name: {
                step: common_motion(each, poses.points, K, flow, step, shots.usable, shot)
                for step, flow in poses.flows.items()
            }
            for name, each in (("landmarks", poses.from_landmarks), ("final", viewmats))
        },
        followed=poses.flows[1].share,
        focal_curve=fit.focal_curve,
        mesh=fit.mesh - origin,
        expression=np.where(shots.usable[:, None], fit.expression, 0.0),
        basis=fit.basis,
        identity=fit.identity,
        vertices=fit.vertices - origin,
        faces=fit.faces,
    )


def fuse_with_flow(
    clip: Clip,
    images: Path,
    points: np.ndarray,
    fit: HeadFit,
    K: np.ndarray,
    config: Config,
) -> FusedPoses:
    """Fuse the landmark poses with optical flow; add jump cuts, reject frozen and occluded frames.

    Args:
        points: meshes [T, 478, 3] in pixels.
        K: [3, 3], intrinsics in pixels.

    Raises:
        UserError: no frame remains.
    """
    shots = fit.shots
    followed = np.sort(np.argsort(-fit.weights, kind="stable")[:FLOW_PLACES])
    stable = fit.mesh[fit.stable]
    from_landmarks = fill_poses(fit.viewmats, shots.accepted_frames, clip.frames)
    expected = project(stable[followed], from_landmarks, K)
    usable = shots.usable
    flows, patches, differences = compute_flow(clip, images, points, expected, usable)
    shots.cuts = sorted({*shots.cuts, *find_jump_cuts(differences, usable)})
    shot = shot_of_frames(shots)
    final = fuse(
        from_landmarks,
        points[:, fit.stable, :2].astype(float) / fit.unit,
        stable,
        fit.weights * usable[:, None],
        K / [[fit.unit], [fit.unit], [1.0]],
        flows[1],
        followed,
        usable[1:] & usable[:-1] & (shot[1:] == shot[:-1]),
        fit.unit,
        config.flow_points,
    )
    ids = shots.accepted_frames
    still = np.intersect1d(ids, still_frames(flows[1], config.max_still))
    shots.reject(still, "the image is frozen")
    ids = shots.accepted_frames
    covered = ids[covered_frames(patches[ids])] if len(ids) else ids
    shots.reject(covered, "something covers the face")
    if not len(shots.accepted_frames):
        raise UserError(
            f"{images} has no frame that can be tracked: in every frame, the image is frozen or "
            "something covers the face. Use a video of a talking head."
        )
    return FusedPoses(from_landmarks, final, stable[followed], flows)


def compute_flow(
    clip: Clip, images: Path, points: np.ndarray, expected: np.ndarray, usable: np.ndarray
) -> tuple[dict[int, Flow], np.ndarray, np.ndarray]:
    """Read all frames once and compute the optical flow, face patches and image differences.

    Args:
        points: meshes [T, 478, 3] in pixels, which align the patches.
        expected: [T, Q, 2], expected pixels of the followed points.
        usable: bool [T], frames that show a usable face.

    Returns:
        {step: Flow} over `STEPS`, patches uint8 [T, 64, 64], and the differences of the images of
        the head [3, T] (`talker.head.shots`).
    """
    patches = np.zeros((clip.frames, *FACE.shape), np.uint8)
    heads = HeadImages(clip, points, usable)

    def read(i: int) -> tuple[np.ndarray, np.ndarray]:
        image = read_frame(images, clip, i)
        patches[i] = face_patch(image, points[i])
        return image, heads.reduce(image)

    def frames() -> Iterator[np.ndarray]:
        pairs = ordered_map(read, range(clip.frames))
        for image, reduced in progress(pairs, "flow", clip.frames):
            heads.compare(reduced)
            yield image

    with one_opencv_thread():
        flows = follow_points(frames(), expected, STEPS)
    return flows, patches, heads.differences


def shot_of_frames(shots: Shots) -> np.ndarray:
    """Return the index of each frame's shot, int [T]."""
    return np.searchsorted(shots.cuts, np.arange(len(shots.reasons)), side="right")


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
    width, shake = measure_motion(clip, track)
    face = float(np.median(width[valid]))
    inside = valid[:-2] & valid[1:-1] & valid[2:]
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
        "jitter_px": float(np.sqrt(shake[inside].mean())) if inside.any() else None,
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


def measure_motion(clip: Clip, track: Track) -> tuple[np.ndarray, np.ndarray]:
    """Measure the projected mean mesh in all frames.

    Returns:
        The width of the face in pixels [T], and the squared second difference of the position of
        each point, in square pixels [T - 2, 478].
    """
    frames = len(track.viewmats)
    K = intrinsics(track.focal, clip.width, clip.height)
    width, shake = np.empty(frames), np.empty((max(frames - 2, 0), len(track.mesh)))
    for part in chunks(frames):
        pixels = project(track.mesh, track.viewmats[part.start : part.stop + 2], K)
        width[part] = np.ptp(pixels[: part.stop - part.start, :, 0], axis=1)
        change = pixels[2:] - 2 * pixels[1:-1] + pixels[:-2]
        shake[part] = (change**2).sum(axis=-1)
    return width, shake


def describe_focal(clip: Clip, track: Track, prior: FocalPrior) -> dict[str, Any]:
    """Return the facts about the focal length for track_report.json."""
    per_side = track.focal / max(clip.width, clip.height)
    _, trans = pose_from_viewmats(track.viewmats[track.valid])
    return {
        "px": track.focal,
        "per_longer_side": per_side,
        "given": prior.given,
        "at_bound": not prior.given and bool(np.isclose(per_side, prior.bounds).any()),
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


def main(
    *,
    clip: Path,
    images: Path,
    landmarks: Path,
    fit: Path,
    params: Output,
    train: Output,
    val: Output,
    report: Output,
    config: Config = Config(),
) -> None:
    """Estimate the head pose of every frame from landmarks and optical flow.

    Args:
        clip: clip.json of the dataset.
        images: Folder of the frames, %d.jpg.
        landmarks: landmarks.npz, the face mesh of every frame.
        fit: fit.npz, the head and the poses that fit the landmarks.
        params: track_params.pt to write: the poses, the expressions and the head mesh.
        train: transforms_train.json to write: cameras of the training frames.
        val: transforms_val.json to write: cameras of the held-out frames.
        report: track_report.json to write: the focal length, the residuals, and the rejected
            frames.
        config: Options.
    """
    described = Clip.load(clip)
    points = load_per_frame(landmarks, described.frames, "points")["points"]
    fitted = read_fit(fit, described.frames)
    tracked = track(described, images, points, fitted, config)
    facts = summarize(described, tracked, fitted.prior)
    cut_off = int(((outside_fraction(described, points) > 0) & tracked.valid).sum())
    facts["cut_by_border"] = cut_off
    if cut_off:
        logger.warning(
            "The image border cuts off a part of the face in %d of %d frames. These frames "
            "are used, but that part of the face cannot be rendered.",
            cut_off,
            described.frames,
        )
    euler, trans = pose_from_viewmats(tracked.viewmats)
    split = described.train_frames
    size = described.height, described.width
    kept = np.flatnonzero(tracked.valid)
    halves = kept[kept < split].tolist(), kept[kept >= split].tolist()
    matrices = transform_matrices(euler, trans)
    with atomic_write(params, train, val, report) as scratch:
        save_params(scratch[0], tracked, fitted.model)
        for path, ids in zip(scratch[1:3], halves, strict=True):
            write_transforms(path, matrices, tracked.focal, size, ids)
        scratch[3].write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    motion = facts["motion_px"]["final"]["c1"]
    logger.info(
        "The head is tracked in %d of %d frames. Reprojection error: %.2f px (median). "
        "Motion error from frame to frame: %s px. Focal length: %.0f px.",
        facts["valid"],
        described.frames,
        facts["residual"]["px"],
        "unknown" if motion is None else f"{motion:.3f}",
        tracked.focal,
    )
