"""Follow the head: its pose in every frame, one focal length, the subject's head and expressions.

Frames without a usable face are marked and their poses interpolated; nothing is renumbered.
`talker track --clip clip.json --images ori_imgs --landmarks landmarks.npz --params track_params.pt
--train transforms_train.json --val transforms_val.json --report track_report.json`
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
from talker.clip import Clip, load_per_frame, runs
from talker.core.config import validated
from talker.core.files import Output, replacing
from talker.core.progress import progress
from talker.errors import UserError
from talker.head.camera import intrinsics, pose_from_viewmats, project, transforms_file
from talker.head.dense import fit_head, head_surface, with_hair
from talker.head.fitting import HUBER, fill_poses, fit_rigid, lift, low_rank, outliers
from talker.head.flow import Flow, follow_points
from talker.head.fusion import FOLLOWED, fuse, motion_errors
from talker.head.models import load_head
from talker.head.morphable import MorphableHead
from talker.head.occlusion import FACE, covered_frames, face_patch
from talker.media.images import read_numbered
from talker.media.video_writer import video_writer

logger = logging.getLogger(__name__)

IDENTITIES, EXPRESSIONS = 100, 79
"""Columns of `id` and `exp` in published files."""

FLOW_PLACES = 160
"""Points that are followed from frame to frame: the most reliable ones."""

STEPS = 1, 5
"""Frames over which poses are compared with the images' own motion; only the first enters them."""

CUT_JUMP, CUT_CHANGE = 0.08, 0.03
"""There may be a cut where the face jumps, or its mesh changes, by more than this part of its
width (within a shot: up to 0.06 and 0.027),"""
CUT_COLOURS, CUT_FOLLOWED = 0.2, 0.1
"""and there is one if grey levels differ by more than this (Bhattacharyya distance) or fewer points
than this can be followed."""

STILL = 0.02
"""Pixels: a face that moves less from one frame to the next is a picture that stands still."""


@validated
class Config:
    """How the head is tracked."""

    model: str = "anny"
    """the head: anny (comes with talker), bfm2009 or ict (from files of yours)"""
    model_files: str | None = None
    """folder with 01_MorphableModel.mat (bfm2009) or the clone of ICT-FaceKit (ict)"""
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
    flow_points: float = 60.0
    """how many independent points the optical flow counts as; 0: poses from landmarks alone"""
    expressions: int = 32
    """components of the expression basis; no more than 79 are kept"""
    all_segments: bool = False
    """use all shots of a clip with cuts; otherwise the longest alone"""
    min_face: float = 64.0
    """least width of a usable face in pixels"""
    max_yaw: float = 45.0
    """degrees to the side beyond which the mesh is not to be trusted"""
    max_pitch: float = 35.0
    """the same, up and down"""
    max_still: int = 12
    """frames of a picture that stands still before they are rejected"""
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
    cuts: list[int]
    """first frames of new shots"""
    residual: np.ndarray
    """[T] pixels, median distance of the stable points from the landmarks; nan where no face was
    usable"""
    motion: dict[str, dict[int, float]]
    """of poses from landmarks alone and of the final ones: {frames: pixels}, RMS difference of the
    head's motion over 1 and 5 frames from the images' (nan: never seen)"""
    followed: np.ndarray
    """[T - 1], part of the points that optical flow followed to the next frame"""
    focal_curve: dict[float, float]
    """pixels, residual with the focal length multiplied by the key"""
    mesh: np.ndarray
    """[478, 3] dm, mean of the clip"""
    expression: np.ndarray
    """[T, E] dm, weights of `basis`; 0 in rejected frames"""
    basis: np.ndarray
    """[E, 478, 3], orthonormal deviations from `mesh`"""
    identity: np.ndarray
    """[I], weights of the head model's identities"""
    vertices: np.ndarray
    """[V, 3] dm, head with a little hair, and upper neck"""
    faces: np.ndarray
    """[F, 3]"""

    @property
    def valid(self) -> np.ndarray:
        """bool [T]"""
        return ~np.isin(np.arange(len(self.viewmats)), list(self.rejected))


def track(
    clip: Clip,
    images: Path,
    points: np.ndarray,
    valid: np.ndarray,
    head: MorphableHead,
    config: Config,
) -> Track:
    """Track the head of a clip from its frames and face meshes [T, 478, 3] (px), `valid` [T].

    Raises:
        UserError: too few frames show a face that is large enough.
    """
    points = points.astype(float)
    rejected = unusable(clip, points, valid, config)
    ids = others(clip, rejected)
    cuts = find_cuts(clip, images, points, ids)
    if cuts and not config.all_segments:
        longest = max(np.split(ids, np.searchsorted(ids, cuts)), key=len)
        reject(rejected, np.setdiff1d(ids, longest), "another shot")
        ids = longest
    if len(ids) < config.min_frames:
        width = np.ptp(points[valid][..., 0], axis=1) if valid.any() else np.zeros(1)
        raise UserError(
            f"{images}: a whole face at least {config.min_face:g} pixels wide is needed in "
            f"{config.min_frames} frames without a cut, found in {len(ids)} of {clip.frames} "
            f"(faces are {np.median(width):.0f} pixels wide); use a longer clip or one in which "
            "the face is larger"
        )
    rigid = fit_rigid(
        points[ids],
        head.landmarks(head.vertices.astype(float)),
        clip.width,
        clip.height,
        focal_range=focal_range(clip, config),
        distance=config.distance,
        distance_sigma=config.distance_sigma,
        keyframes=config.keyframes,
    )
    bad = outliers(rigid.residual, floor=HUBER * rigid.unit)
    pitch, yaw, _ = np.abs(np.degrees(pose_from_viewmats(rigid.viewmats)[0])).T
    turned = ~bad & ((yaw > config.max_yaw) | (pitch > config.max_pitch))
    reject(rejected, ids[bad], "landmarks do not fit the head")
    reject(rejected, ids[turned], "the head is turned away")
    ids, viewmats = ids[~(bad | turned)], rigid.viewmats[~(bad | turned)]
    if len(ids) < config.min_frames:
        raise UserError(
            f"{images}: only {len(ids)} of {clip.frames} frames show a face from the front, at "
            f"least {config.min_frames} are needed; use a clip of one person who looks towards the "
            "camera"
        )

    # Before poses are fused, or the landmarks' jitter would be taken for expression.
    deviation = lift(viewmats, points[ids, :, :2], rigid.mesh, rigid.K) - rigid.mesh
    weights, basis = low_rank(deviation, min(config.expressions, EXPRESSIONS))
    expression = np.zeros((clip.frames, len(basis)))
    expression[ids] = weights

    followed = np.sort(np.argsort(-rigid.weights, kind="stable")[:FLOW_PLACES])
    stable, observed = rigid.mesh[rigid.stable], points[:, rigid.stable, :2]
    alone = fill_poses(viewmats, ids, clip.frames)
    places = project(stable[followed], alone, rigid.K)
    flows, patches = watch(clip, images, points, places)
    shot = np.searchsorted(cuts, np.arange(clip.frames), side="right")
    usable = np.isin(np.arange(clip.frames), ids)
    viewmats = fuse(
        alone,
        observed / rigid.unit,
        stable,
        rigid.weights * usable[:, None],
        rigid.K / [[rigid.unit], [rigid.unit], [1.0]],
        flows[1],
        followed,
        usable[1:] & usable[:-1] & (shot[1:] == shot[:-1]),
        rigid.unit,
        config.flow_points,
    )
    still = np.intersect1d(ids, still_frames(flows[1], config.max_still))
    ids = np.setdiff1d(ids, still)
    covered = ids[covered_frames(patches[ids])] if len(ids) else ids
    ids = np.setdiff1d(ids, covered)
    reject(rejected, still, "the picture stands still")
    reject(rejected, covered, "something covers the face")
    if not len(ids):
        raise UserError(
            f"{images}: the picture stands still, or something covers the face, all through; "
            "expected a video of a talking head"
        )
    viewmats = fill_poses(viewmats[ids], ids, clip.frames)
    usable = np.isin(np.arange(clip.frames), ids)
    expression[~usable] = 0.0
    residual = np.full(clip.frames, np.nan)
    off = np.linalg.norm(project(stable, viewmats[ids], rigid.K) - observed[ids], axis=-1)
    residual[ids] = np.median(off, axis=1)

    fitted, identity = fit_head(head, rigid.mesh)
    vertices, faces = head_surface(head, with_hair(head, fitted))
    origin = rigid.mesh.mean(axis=0)
    return Track(
        viewmats=moved_origin(viewmats, origin),
        focal=float(rigid.K[0, 0]),
        rejected=dict(sorted(rejected.items())),
        cuts=cuts,
        residual=residual,
        motion={
            name: {
                step: common_motion(poses, stable[followed], rigid.K, flow, step, usable, shot)
                for step, flow in flows.items()
            }
            for name, poses in (("landmarks", alone), ("final", viewmats))
        },
        followed=flows[1].share,
        focal_curve=rigid.focal_curve,
        mesh=rigid.mesh - origin,
        expression=expression,
        basis=basis,
        identity=identity,
        vertices=vertices - origin,
        faces=faces,
    )


def focal_range(clip: Clip, config: Config) -> tuple[float, float]:
    """Least and greatest focal length, pixels; equal if it is given."""
    if config.focal_px is not None:
        return config.focal_px, config.focal_px
    low, high = config.focal_range
    side = max(clip.width, clip.height)
    return low * side, high * side


def moved_origin(viewmats: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """The same cameras [T, 4, 4] for a world whose origin [3] lies there."""
    moved = viewmats.copy()
    moved[:, :3, 3] += viewmats[:, :3, :3] @ origin
    return moved


def reject(rejected: dict[int, str], ids: np.ndarray, reason: str) -> None:
    """Note why the frames `ids` are of no use."""
    rejected |= {int(i): reason for i in ids}


def watch(
    clip: Clip, images: Path, points: np.ndarray, places: np.ndarray
) -> tuple[dict[int, Flow], np.ndarray]:
    """See all frames once: flow of `places` [T, P, 2] over `STEPS`, patches of the faces `points`.

    Returns:
        {step: Flow}, and patches uint8 [T, 64, 64] (`talker.head.occlusion`).
    """
    patches = np.zeros((clip.frames, *FACE.shape), np.uint8)

    def look() -> Iterator[np.ndarray]:
        frames = progress(read_numbered(images, clip), "flow", clip.frames)
        for i, image in enumerate(frames):
            patches[i] = face_patch(image, points[i])
            yield image

    return follow_points(look(), places, STEPS), patches


def unusable(clip: Clip, points: np.ndarray, valid: np.ndarray, config: Config) -> dict[int, str]:
    """Frames whose mesh [T, 478, 3] says by itself that it is of no use, and why."""
    width = np.ptp(points[..., 0], axis=1)
    inside = (points[..., :2] >= 0).all(axis=-1)
    inside &= (points[..., :2] <= [clip.width, clip.height]).all(axis=-1)
    reasons = {
        f"face narrower than {config.min_face:g} pixels": width < config.min_face,
        "the face leaves the image": ~inside.all(axis=1),
        "no face": ~valid,
    }
    return {int(i): reason for reason, bad in reasons.items() for i in np.flatnonzero(bad)}


def others(clip: Clip, rejected: dict[int, str]) -> np.ndarray:
    """The frames that are not rejected."""
    return np.setdiff1d(np.arange(clip.frames), list(rejected))


def find_cuts(clip: Clip, images: Path, points: np.ndarray, ids: np.ndarray) -> list[int]:
    """The first frames of new shots among the frames `ids`, which show faces [T, 478, 3]."""
    if not len(ids):
        return []
    faces = points[ids, :, :2]
    centres = faces.mean(axis=1)
    width = np.ptp(faces[..., 0], axis=1)
    width = np.minimum(width[1:], width[:-1])
    jump = np.linalg.norm(np.diff(centres, axis=0), axis=1) / width
    change = np.linalg.norm(np.diff(faces - centres[:, None], axis=0), axis=-1).mean(axis=1) / width
    cuts = []
    for row in np.flatnonzero((jump > CUT_JUMP) | (change > CUT_CHANGE)):
        pair = list(read_numbered(images, clip, ids=ids[row : row + 2]))
        first, second = (histogram(image) for image in pair)
        differ = cv2.compareHist(first, second, cv2.HISTCMP_BHATTACHARYYA) > CUT_COLOURS
        # Where landmarks jump but nothing moves, they err.
        goals = faces[row : row + 2], faces[[row, row]]
        followed = max(follow_points(pair, goal, [1])[1].share[0] for goal in goals)
        if differ or followed < CUT_FOLLOWED:
            cuts.append(int(ids[row + 1]))
    return cuts


def histogram(image: np.ndarray) -> np.ndarray:
    """How often each of 64 grey levels occurs in RGB uint8 [H, W, 3]: float32 [64, 1]."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.calcHist([grey], [0], None, [64], [0, 256])


def still_frames(flow: Flow, longest: int) -> np.ndarray:
    """Frames in which nothing has moved for more than `longest` frames."""
    size = np.linalg.norm(flow.moved, axis=-1)
    count = flow.good.sum(axis=1)
    mean = (size * flow.good).sum(axis=1) / np.maximum(count, 1)
    bounds = zip(*runs((mean < STILL) & (flow.share > FOLLOWED)), strict=True)
    still = [np.arange(a + 1, b + 1) for a, b in bounds if b - a > longest]
    return np.concatenate(still) if still else np.zeros(0, int)


def common_motion(
    viewmats: np.ndarray,
    points: np.ndarray,
    K: np.ndarray,
    flow: Flow,
    step: int,
    valid: np.ndarray,
    shot: np.ndarray,
) -> float:
    """RMS difference of the head's motion over `step` frames of a shot from the images', pixels."""
    error = motion_errors(viewmats, points, K, flow, step)
    seen = valid[step:] & valid[:-step] & (shot[step:] == shot[:-step]) & np.isfinite(error)
    return float(np.sqrt((error[seen] ** 2).mean())) if seen.any() else float("nan")


def save_params(path: Path, found: Track, model: str) -> None:
    """Write track_params.pt: the published keys, one row a frame, and what makes it complete.

    `id` stays 0 where the model has more identities than the published 100; `identity` has all.
    """
    import torch

    euler, trans = pose_from_viewmats(found.viewmats)
    rank = len(found.basis)
    exp = np.zeros((len(euler), EXPRESSIONS))
    exp[:, :rank] = found.expression
    published = np.zeros(IDENTITIES)
    if len(found.identity) <= IDENTITIES:
        published[: len(found.identity)] = found.identity
    exp_basis = np.zeros((EXPRESSIONS, *found.mesh.shape))
    exp_basis[:rank] = found.basis
    arrays = {
        "id": published[None],
        "identity": found.identity,
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
        "model": model,
        "units": "dm",
    }
    torch.save(params, path)


def segments(found: Track) -> list[dict[str, Any]]:
    """The shots of a clip and how well the head fits in each: of another person it does not."""
    frames = len(found.viewmats)
    starts = [0, *found.cuts]
    return [
        {
            "first": start,
            "last": end - 1,
            "valid": int(found.valid[start:end].sum()),
            "residual_px": _number(_median(found.residual[start:end])),
        }
        for start, end in zip(starts, [*found.cuts, frames], strict=True)
    ]


def summary(clip: Clip, found: Track, config: Config) -> dict[str, Any]:
    """What is worth knowing about a track, as JSON values."""
    valid = found.valid
    pixels = project(found.mesh, found.viewmats, intrinsics(found.focal, clip.width, clip.height))
    face = float(np.median(np.ptp(pixels[valid, :, 0], axis=1)))
    whole = valid[:-2] & valid[1:-1] & valid[2:]
    shake = (pixels[2:] - 2 * pixels[1:-1] + pixels[:-2])[whole]
    middle = float(_median(found.residual))
    euler, trans = pose_from_viewmats(found.viewmats[valid])
    pitch, yaw, roll = np.degrees(euler).T
    per_side = found.focal / max(clip.width, clip.height)
    return {
        "frames": clip.frames,
        "valid": int(valid.sum()),
        "face_width_px": face,
        "focal": {
            "px": found.focal,
            "per_longer_side": per_side,
            "given": config.focal_px is not None,
            "at_bound": config.focal_px is None
            and bool(np.isclose(per_side, config.focal_range).any()),
            "distance_dm": float(-trans[:, 2].mean()),
            "prior_distance_dm": config.distance,
            "prior_sigma": config.distance_sigma,
            "residual_px": {f"x{factor:g}": rms for factor, rms in found.focal_curve.items()},
        },
        "residual": {"px": middle, "percent_of_face": 100 * middle / face},
        "motion_px": {
            name: {f"c{step}": _number(value) for step, value in errors.items()}
            for name, errors in found.motion.items()
        },
        "followed_percent": 100 * float(found.followed.mean()),
        "jitter_px": float(np.sqrt((shake**2).sum(axis=-1).mean())) if whole.any() else None,
        "degrees": {
            f"{name}_{end}": float(np.percentile(angle, percentile))
            for name, angle in (("pitch", pitch), ("yaw", yaw), ("roll", roll))
            for end, percentile in (("low", 2), ("high", 98))
        },
        "segments": segments(found),
        "rejected": [{"frame": i, "reason": reason} for i, reason in found.rejected.items()],
        "versions": {
            "talker": __version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "opencv": cv2.__version__,
        },
    }


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def draw_overlay(image: np.ndarray, found: Track, frame: int, K: np.ndarray) -> np.ndarray:
    """A frame, RGB uint8 [H, W, 3], with the head's mesh and the face's points drawn over it."""
    view = found.viewmats[frame : frame + 1]
    bits = 4
    corners = project(found.vertices, view, K)[0][found.faces]
    a, b = np.moveaxis(corners[:, 1:] - corners[:, :1], 1, 0)
    front = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0] < 0
    lines = np.round((corners[front] - 0.5) * 2**bits).astype(np.int32)
    canvas = image.copy()
    colour = (255, 80, 80) if frame in found.rejected else (120, 220, 255)
    cv2.polylines(canvas, list(lines), True, colour, 1, cv2.LINE_AA, bits)
    drawn = cv2.addWeighted(image, 0.65, canvas, 0.35, 0)
    shape = found.mesh + np.tensordot(found.expression[frame], found.basis, 1)
    for x, y in np.round((project(shape, view, K)[0] - 0.5) * 2**bits).astype(int).tolist():
        cv2.circle(drawn, (x, y), 2**bits, (90, 255, 90), -1, cv2.LINE_AA, bits)
    return drawn


def write_overlay(path: Path, clip: Clip, images: Path, found: Track) -> None:
    """Write a video of every frame with what was tracked; red where a frame was rejected."""
    K = intrinsics(found.focal, clip.width, clip.height)
    with video_writer(path, crf=20) as write:
        frames = progress(read_numbered(images, clip), "overlay", clip.frames)
        for i, image in enumerate(frames):
            write(draw_overlay(image, found, i, K))


def _refuse_unfit(config: Config) -> None:
    for name in ("focal_px", "distance", "distance_sigma", "keyframes"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"{name}: expected more than 0, found {value}")
    low, high = config.focal_range
    if not 0 < low < high:
        raise UserError(f"focal_range: expected 0 < low < high, found {low:g} {high:g}")


def main(
    *,
    clip: Path,
    images: Path,
    landmarks: Path,
    params: Output,
    train: Output,
    val: Output,
    report: Output,
    overlay: Output | None = None,
    config: Config = Config(),
) -> None:
    """Find the head's pose in every frame, the focal length, the subject's head and expressions.

    Args:
        clip: clip.json of the dataset.
        images: folder of the frames, %d.jpg.
        landmarks: landmarks.npz, the face mesh of every frame.
        params: track_params.pt to write: poses, expressions, head.
        train: transforms_train.json to write: cameras of the training frames.
        val: transforms_val.json to write: cameras of the held-out frames.
        report: track_report.json to write: focal length, residuals, rejected frames.
        overlay: video to write, if wanted: the frames with the tracked mesh over them.
        config: options.
    """
    _refuse_unfit(config)
    described = Clip.load(clip)
    head = load_head(config.model, Path(config.model_files) if config.model_files else None)
    faces = load_per_frame(landmarks, described.frames, "points")
    found = track(described, images, faces["points"], faces["valid"], head, config)
    facts = summary(described, found, config)
    euler, trans = pose_from_viewmats(found.viewmats)
    split = described.train_frames
    size = described.height, described.width
    kept = others(described, found.rejected)
    halves = kept[kept < split].tolist(), kept[kept >= split].tolist()
    transforms = [transforms_file(euler, trans, found.focal, size, ids) for ids in halves]
    with replacing(params, train, val, report) as scratch:
        save_params(scratch[0], found, config.model)
        for path, content in zip(scratch[1:], (*transforms, facts), strict=True):
            path.write_text(json.dumps(content, indent=2) + "\n")
    if overlay is not None:
        write_overlay(overlay, described, images, found)
    motion = facts["motion_px"]["final"]
    logger.info(
        "head followed in %d of %d frames, off by %.2f px (median), its motion by %s px from one "
        "frame to the next, focal length %.0f px",
        facts["valid"],
        described.frames,
        facts["residual"]["px"],
        "unknown" if motion["c1"] is None else f"{motion['c1']:.3f}",
        found.focal,
    )
