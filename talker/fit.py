"""Fit the head to the landmarks: its shape, one focal length, and the pose in every frame.

Frames that do not fit are rejected; frames keep their numbers.
`talker fit --clip clip.json --landmarks landmarks.npz --shots shots.npz --fit fit.npz`
"""

import logging
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from talker.backends import load_backend
from talker.clip import Clip, load_per_frame
from talker.core.config import AtLeast1, NonNegative, Positive, validated
from talker.core.files import Output, atomic_write
from talker.core.pca import pca
from talker.data.formats import EXPRESSIONS, FocalPrior, HeadFit, Shots, read_shots, write_fit
from talker.errors import UserError
from talker.head.camera import pose_from_viewmats
from talker.head.dense import fit_head, head_surface, with_hair
from talker.head.fitting import RigidFit, fit_rigid, outliers
from talker.head.morphable import MorphableHead
from talker.head.poses import HUBER, unproject

logger = logging.getLogger(__name__)


@validated
class Config:
    """How the head and the camera are fitted."""

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
    expressions: Annotated[int, Field(ge=1, le=EXPRESSIONS)] = 32
    """Number of components of the expression basis."""
    max_yaw: NonNegative = 45.0
    """Maximum rotation of the head to the side in degrees; frames beyond it are rejected."""
    max_pitch: NonNegative = 35.0
    """Maximum rotation of the head up or down in degrees; frames beyond it are rejected."""
    min_frames: AtLeast1 = 25
    """Minimum number of frames in which the head fits the landmarks, and is rotated by at most
    `max_yaw` and `max_pitch`."""

    def __post_init__(self) -> None:
        low, high = self.focal_range
        if low >= high:
            raise ValueError(
                f"focal_range must be two increasing positive numbers, not {low:g} {high:g}"
            )


def fit_clip(
    clip: Clip, points: np.ndarray, shots: Shots, head: MorphableHead, config: Config
) -> HeadFit:
    """Fit the head, the focal length and the poses to the landmarks of a clip.

    Args:
        clip: the clip.
        points: face meshes [T, 478, 3] in pixels.
        shots: the shots; frames that do not fit are rejected in it.
        head: head model.
        config: options.

    Raises:
        UserError: too few frames remain after misfits and turned heads are rejected.
    """
    rigid = fit_poses(clip, points[shots.accepted_frames], head, config)
    viewmats = rigid.viewmats[reject_misfits(shots, rigid, config)]
    ids = shots.accepted_frames
    if len(ids) < config.min_frames:
        raise UserError(
            f"Only {len(ids)} of {clip.frames} frames show a face that fits the head model and is "
            f"turned by at most {config.max_yaw:g} degrees to the side and {config.max_pitch:g} "
            f"degrees up or down. At least {config.min_frames} are required. Use a clip of one "
            "person who looks towards the camera."
        )

    # Expressions are computed from the poses before their fusion with optical flow, which moves
    # them away from the landmarks: the landmarks' jitter would otherwise appear as expression.
    deviations = unproject(viewmats, points[ids, :, :2], rigid.mesh, rigid.K)
    deviations -= rigid.mesh
    weights, directions = pca(deviations.reshape(len(ids), -1), config.expressions)
    expression = np.zeros((clip.frames, len(directions)))
    expression[ids] = weights
    fitted, identity = fit_head(head, rigid.mesh)
    vertices, faces = head_surface(head, with_hair(head, fitted))
    return HeadFit(
        shots=shots,
        viewmats=viewmats,
        focal=float(rigid.K[0, 0]),
        focal_curve=rigid.focal_curve,
        prior=FocalPrior(
            config.focal_px is not None, config.focal_range, config.distance, config.distance_sigma
        ),
        mesh=rigid.mesh,
        stable=rigid.stable,
        weights=rigid.weights,
        unit=rigid.unit,
        expression=expression,
        basis=directions.reshape(-1, *rigid.mesh.shape),
        model=config.model,
        identity=identity,
        vertices=vertices,
        faces=faces,
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


def reject_misfits(shots: Shots, rigid: RigidFit, config: Config) -> np.ndarray:
    """Reject frames whose landmarks do not fit the head or whose head is turned too far.

    Returns:
        bool [N], which of the frames in `rigid` remain accepted.
    """
    ids = shots.accepted_frames
    bad = outliers(rigid.residual, floor=HUBER * rigid.unit)
    pitch, yaw, _ = np.abs(np.degrees(pose_from_viewmats(rigid.viewmats)[0])).T
    turned = ~bad & ((yaw > config.max_yaw) | (pitch > config.max_pitch))
    shots.reject(ids[bad], "the landmarks do not fit the head")
    shots.reject(ids[turned], "the head is turned away")
    return ~(bad | turned)


def main(
    *, clip: Path, landmarks: Path, shots: Path, fit: Output, config: Config = Config()
) -> None:
    """Fit the shape of the head, the focal length, and the poses to the landmarks.

    Args:
        clip: clip.json of the dataset.
        landmarks: landmarks.npz, the face mesh of every frame.
        shots: shots.npz, the cuts and the rejected frames.
        fit: fit.npz to write: the head, the focal length, the expressions and the poses.
        config: Options.
    """
    described = Clip.load(clip)
    files = Path(config.model_files) if config.model_files else None
    head = load_backend("head", config.model).load(files)
    points = load_per_frame(landmarks, described.frames, "points")["points"]
    fitted = fit_clip(described, points, read_shots(shots, described.frames), head, config)
    with atomic_write(fit) as (scratch,):
        write_fit(scratch, fitted)
    logger.info(
        "The head fits the landmarks in %d of %d frames. Focal length: %.0f px.",
        len(fitted.viewmats),
        described.frames,
        fitted.focal,
    )
