"""Track the head: its pose in every frame, one focal length, the subject's head and expressions.

Frames without a usable face are rejected and their poses interpolated; frames keep their numbers.
`talker track --clip clip.json --images ori_imgs --landmarks landmarks.npz --params track_params.pt
--train transforms_train.json --val transforms_val.json --report track_report.json`
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from talker.backends import load_backend
from talker.clip import Clip, load_per_frame
from talker.core.config import AtLeast0, AtLeast1, NonNegative, Positive, validated
from talker.core.files import Output, atomic_write
from talker.core.pca import pca
from talker.core.progress import progress
from talker.data.formats import write_transforms
from talker.errors import UserError
from talker.head.camera import pose_from_viewmats, project, transform_matrices
from talker.head.dense import fit_head, head_surface, with_hair
from talker.head.fitting import RigidFit, fit_rigid, outliers
from talker.head.flow import Flow, follow_points
from talker.head.fusion import common_motion, fuse
from talker.head.morphable import MorphableHead
from talker.head.poses import HUBER, fill_poses, move_origin, unproject
from talker.head.shots import (
    FACE,
    covered_frames,
    face_patch,
    find_cuts,
    find_jump_cuts,
    still_frames,
)
from talker.head.track_result import EXPRESSIONS, FocalPrior, Track, save_params, summarize
from talker.media.images import read_numbered

logger = logging.getLogger(__name__)

FLOW_PLACES = 160
"""Number of rigid points that optical flow follows; the points with the largest weights."""

MAX_OUTSIDE = 0.1
"""Fraction of mesh points outside the image above which a frame is rejected. In a close shot whose
border cuts the chin, up to 0.03 of the points are outside."""

STEPS = 1, 5
"""Frame distances over which the poses are compared with optical flow; only the first one is used
to compute the poses."""


@validated
class Config:
    """How the head is tracked."""

    model: Literal["anny", "bfm2009", "ict"] = "anny"
    """Head model: `anny` (part of talker), `bfm2009` or `ict` (read from files that you
    provide)."""
    model_files: str | None = None
    """Folder with 01_MorphableModel.mat or 3DMM_info.npy (`bfm2009`), or a clone of ICT-FaceKit
    (`ict`). Not needed for `anny`."""
    focal_px: Positive | None = None
    """Focal length in pixels of the clip's frames. By default, it is estimated."""
    focal_range: tuple[Positive, Positive] = (0.8, 6.0)
    """Lower and upper bound of the estimated focal length, in multiples of the longer image
    side."""
    distance: Positive = 8.0
    """Expected distance from camera to head in dm. The estimated focal length depends mostly on
    this value, because the motion of a talking head says little about the focal length."""
    distance_sigma: Positive = 0.1
    """Uncertainty of the distance, as the standard deviation of its logarithm: 0.1 is about 10 %.
    Use a smaller value if you measured the distance."""
    keyframes: AtLeast1 = 40
    """Number of frames from which the head shape and the focal length are estimated."""
    flow_points: NonNegative = 60.0
    """Weight of the optical flow: the flow of a frame counts as much as this number of landmarks.
    With 0, the poses are estimated from the landmarks alone."""
    expressions: Annotated[int, Field(ge=1, le=EXPRESSIONS)] = 32
    """Number of components of the expression basis."""
    all_segments: bool = False
    """Use all shots (segments) of a clip that contains cuts. A shot ends at a cut to another camera
    or scene; a jump cut within the same camera view does not end it. By default, only the longest
    shot is used."""
    min_face: NonNegative = 64.0
    """Minimum width of a usable face in pixels."""
    max_yaw: NonNegative = 45.0
    """Maximum rotation of the head to the side in degrees; frames beyond it are rejected."""
    max_pitch: NonNegative = 35.0
    """Maximum rotation of the head up or down in degrees; frames beyond it are rejected."""
    max_still: AtLeast0 = 12
    """Maximum number of consecutive frames with the same image. If more frames are identical, the
    video is considered frozen, and these frames are rejected."""
    min_frames: AtLeast1 = 25
    """Minimum number of usable frames. With fewer frames, the stage fails."""

    def __post_init__(self) -> None:
        low, high = self.focal_range
        if low >= high:
            raise ValueError(
                f"focal_range must be two increasing positive numbers, not {low:g} {high:g}"
            )


class Selection:
    """The frames of a clip that are still used, and why the others were rejected."""

    def __init__(self, frames: int, reasons: dict[int, str]) -> None:
        self.frames = frames
        self.reasons = reasons

    @property
    def accepted_frames(self) -> np.ndarray:
        """Sorted indices of the frames that are not rejected."""
        return np.setdiff1d(np.arange(self.frames), list(self.reasons))

    @property
    def usable(self) -> np.ndarray:
        """Whether each frame is accepted, bool [T]."""
        return ~np.isin(np.arange(self.frames), list(self.reasons))

    def reject(self, ids: np.ndarray, reason: str) -> None:
        """Reject the frames `ids`."""
        self.reasons |= {int(i): reason for i in ids}


@dataclass(frozen=True)
class FusedPoses:
    """Poses [T, 4, 4] before and after fusion with optical flow, and what fusion measured."""

    from_landmarks: np.ndarray
    final: np.ndarray
    points: np.ndarray
    """[Q, 3] dm, the points that were followed."""
    flows: dict[int, Flow]
    """Optical flow of these points over each of `STEPS` frames."""


def track(
    clip: Clip,
    images: Path,
    points: np.ndarray,
    valid: np.ndarray,
    head: MorphableHead,
    config: Config,
) -> Track:
    """Track the head of a clip.

    Args:
        clip: the clip.
        images: folder of its frames.
        points: face meshes [T, 478, 3] in pixels.
        valid: bool [T], frames in which a face was detected.
        head: head model.
        config: options.

    Raises:
        UserError: too few frames show a usable face.
    """
    points = points.astype(float)
    selection = Selection(clip.frames, reject_reasons(clip, points, valid, config))
    cuts = find_cuts(clip, images, points, selection.accepted_frames)
    if cuts and not config.all_segments:
        keep_longest_shot(selection, cuts)
    require_faces(images, points[valid], selection, config)
    rigid = fit_poses(clip, points[selection.accepted_frames], head, config)
    viewmats = rigid.viewmats[reject_misfits(selection, rigid, config)]
    require_frontal_faces(images, selection, config)

    # Expressions are computed before fusion, which moves the poses away from the landmarks: the
    # landmarks' jitter would otherwise appear as expression.
    ids = selection.accepted_frames
    deviations = unproject(viewmats, points[ids, :, :2], rigid.mesh, rigid.K) - rigid.mesh
    weights, directions = pca(deviations.reshape(len(ids), -1), config.expressions)
    expression = np.zeros((clip.frames, len(directions)))
    expression[ids] = weights

    cuts = sorted({*cuts, *find_jump_cuts(clip, images, points, selection.usable)})
    shot = np.searchsorted(cuts, np.arange(clip.frames), side="right")
    poses = fuse_with_flow(clip, images, points, viewmats, rigid, selection, shot, config)
    ids = selection.accepted_frames
    viewmats = fill_poses(poses.final[ids], ids, clip.frames)
    expression[~selection.usable] = 0.0
    stable, observed = rigid.mesh[rigid.stable], points[ids][:, rigid.stable, :2]
    residual = np.full(clip.frames, np.nan)
    errors = np.linalg.norm(project(stable, viewmats[ids], rigid.K) - observed, axis=-1)
    residual[ids] = np.median(errors, axis=1)

    fitted, identity = fit_head(head, rigid.mesh)
    vertices, faces = head_surface(head, with_hair(head, fitted))
    origin = rigid.mesh.mean(axis=0)
    return Track(
        viewmats=move_origin(viewmats, origin),
        focal=float(rigid.K[0, 0]),
        rejected=dict(sorted(selection.reasons.items())),
        cuts=cuts,
        residual=residual,
        motion={
            name: {
                step: common_motion(each, poses.points, rigid.K, flow, step, selection.usable, shot)
                for step, flow in poses.flows.items()
            }
            for name, each in (("landmarks", poses.from_landmarks), ("final", viewmats))
        },
        followed=poses.flows[1].share,
        focal_curve=rigid.focal_curve,
        mesh=rigid.mesh - origin,
        expression=expression,
        basis=directions.reshape(-1, *rigid.mesh.shape),
        identity=identity,
        vertices=vertices - origin,
        faces=faces,
    )


def reject_reasons(
    clip: Clip, points: np.ndarray, valid: np.ndarray, config: Config
) -> dict[int, str]:
    """Return {frame: reason} for frames that are rejected because of their mesh [T, 478, 3]."""
    width = np.ptp(points[..., 0], axis=1)
    reasons = {
        f"the face is narrower than {config.min_face:g} pixels": width < config.min_face,
        "the face leaves the image": outside_fraction(clip, points) > MAX_OUTSIDE,
        "no face": ~valid,
    }
    return {int(i): reason for reason, bad in reasons.items() for i in np.flatnonzero(bad)}


def outside_fraction(clip: Clip, points: np.ndarray) -> np.ndarray:
    """Return the fraction [T] of the points of meshes [T, 478, 3] that are outside the image."""
    inside = (points[..., :2] >= 0).all(axis=-1)
    inside &= (points[..., :2] <= [clip.width, clip.height]).all(axis=-1)
    return 1.0 - inside.mean(axis=1)


def keep_longest_shot(selection: Selection, cuts: list[int]) -> None:
    """Reject the frames of all shots except the shot with the most accepted frames."""
    ids = selection.accepted_frames
    longest = max(np.split(ids, np.searchsorted(ids, cuts)), key=len)
    selection.reject(np.setdiff1d(ids, longest), "another shot")


def require_faces(images: Path, points: np.ndarray, selection: Selection, config: Config) -> None:
    """Raise a UserError if too few frames show a whole face that is large enough."""
    count = len(selection.accepted_frames)
    if count < config.min_frames:
        width = np.ptp(points[..., 0], axis=1) if len(points) else np.zeros(1)
        raise UserError(
            f"Only {count} of the {selection.frames} frames in {images} are usable: they belong "
            f"to a shot that is used, and show the whole face at least {config.min_face:g} pixels "
            f"wide. At least {config.min_frames} such frames are required. (The median face is "
            f"{np.median(width):.0f} pixels wide.) Use a longer clip, or one in which the face is "
            "larger."
        )


def fit_poses(clip: Clip, points: np.ndarray, head: MorphableHead, config: Config) -> RigidFit:
    """Fit rigid poses and the focal length to the meshes [N, 478, 3] of the accepted frames."""
    side = max(clip.width, clip.height)
    low, high = (bound * side for bound in config.focal_range)
    return fit_rigid(
        points,
        head.landmarks(head.vertices.astype(float)),
        clip.width,
        clip.height,
        focal_range=(config.focal_px or low, config.focal_px or high),
        distance=config.distance,
        distance_sigma=config.distance_sigma,
        keyframes=config.keyframes,
    )


def reject_misfits(selection: Selection, rigid: RigidFit, config: Config) -> np.ndarray:
    """Reject frames whose landmarks do not fit the head or whose head is turned too far.

    Returns:
        bool [N], which of the frames in `rigid` remain accepted.
    """
    ids = selection.accepted_frames
    bad = outliers(rigid.residual, floor=HUBER * rigid.unit)
    pitch, yaw, _ = np.abs(np.degrees(pose_from_viewmats(rigid.viewmats)[0])).T
    turned = ~bad & ((yaw > config.max_yaw) | (pitch > config.max_pitch))
    selection.reject(ids[bad], "the landmarks do not fit the head")
    selection.reject(ids[turned], "the head is turned away")
    return ~(bad | turned)


def require_frontal_faces(images: Path, selection: Selection, config: Config) -> None:
    """Raise a UserError if too few frames show a face from the front."""
    count = len(selection.accepted_frames)
    if count < config.min_frames:
        raise UserError(
            f"{images} shows a face from the front in only {count} of {selection.frames} "
            f"frames. At least {config.min_frames} are required. Use a clip of one person "
            "who looks towards the camera."
        )


def fuse_with_flow(
    clip: Clip,
    images: Path,
    points: np.ndarray,
    viewmats: np.ndarray,
    rigid: RigidFit,
    selection: Selection,
    shot: np.ndarray,
    config: Config,
) -> FusedPoses:
    """Fuse the landmark poses with optical flow; reject frozen and occluded frames.

    Args:
        points: meshes [T, 478, 3] in pixels.
        viewmats: [N, 4, 4], landmark poses of the accepted frames.
        shot: int [T], index of each frame's shot.

    Raises:
        UserError: no frame remains.
    """
    followed = np.sort(np.argsort(-rigid.weights, kind="stable")[:FLOW_PLACES])
    stable = rigid.mesh[rigid.stable]
    from_landmarks = fill_poses(viewmats, selection.accepted_frames, clip.frames)
    expected = project(stable[followed], from_landmarks, rigid.K)
    flows, patches = compute_flow(clip, images, points, expected)
    usable = selection.usable
    final = fuse(
        from_landmarks,
        points[:, rigid.stable, :2] / rigid.unit,
        stable,
        rigid.weights * usable[:, None],
        rigid.K / [[rigid.unit], [rigid.unit], [1.0]],
        flows[1],
        followed,
        usable[1:] & usable[:-1] & (shot[1:] == shot[:-1]),
        rigid.unit,
        config.flow_points,
    )
    ids = selection.accepted_frames
    still = np.intersect1d(ids, still_frames(flows[1], config.max_still))
    selection.reject(still, "the image is frozen")
    ids = selection.accepted_frames
    covered = ids[covered_frames(patches[ids])] if len(ids) else ids
    selection.reject(covered, "something covers the face")
    if not len(selection.accepted_frames):
        raise UserError(
            f"{images} has no frame that can be tracked: in every frame, the image is frozen or "
            "something covers the face. Use a video of a talking head."
        )
    return FusedPoses(from_landmarks, final, stable[followed], flows)


def compute_flow(
    clip: Clip, images: Path, points: np.ndarray, expected: np.ndarray
) -> tuple[dict[int, Flow], np.ndarray]:
    """Read all frames once and compute the optical flow and the face patches.

    Args:
        points: meshes [T, 478, 3] in pixels, which align the patches.
        expected: [T, Q, 2], expected pixels of the followed points.

    Returns:
        {step: Flow} over `STEPS`, and patches uint8 [T, 64, 64] (`talker.head.shots`).
    """
    patches = np.zeros((clip.frames, *FACE.shape), np.uint8)

    def frames() -> Iterator[np.ndarray]:
        for i, image in enumerate(progress(read_numbered(images, clip), "flow", clip.frames)):
            patches[i] = face_patch(image, points[i])
            yield image

    return follow_points(frames(), expected, STEPS), patches


def main(
    *,
    clip: Path,
    images: Path,
    landmarks: Path,
    params: Output,
    train: Output,
    val: Output,
    report: Output,
    config: Config = Config(),
) -> None:
    """Estimate the head pose of every frame, the focal length, the head shape and expressions.

    Args:
        clip: clip.json of the dataset.
        images: Folder of the frames, %d.jpg.
        landmarks: landmarks.npz, the face mesh of every frame.
        params: track_params.pt to write: the poses, the expressions and the head mesh.
        train: transforms_train.json to write: cameras of the training frames.
        val: transforms_val.json to write: cameras of the held-out frames.
        report: track_report.json to write: the focal length, the residuals, and the rejected
            frames.
        config: Options.
    """
    described = Clip.load(clip)
    files = Path(config.model_files) if config.model_files else None
    head = load_backend("head", config.model).load(files)
    faces = load_per_frame(landmarks, described.frames, "points")
    tracked = track(described, images, faces["points"], faces["valid"], head, config)
    prior = FocalPrior(config.focal_px, config.focal_range, config.distance, config.distance_sigma)
    facts = summarize(described, tracked, prior)
    cut_off = int(((outside_fraction(described, faces["points"]) > 0) & tracked.valid).sum())
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
        save_params(scratch[0], tracked, config.model)
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
