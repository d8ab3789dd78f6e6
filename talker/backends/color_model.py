"""The color model of a person: hair, face, throat and clothes of one video.

A mixture model, which is fitted to each video by expectation maximization. For each class, it has a
color histogram and a spatial prior that moves with the head. The mesh shows where the face is.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

# fmt: off
FACE_OVAL = np.array([
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
])
"""Mesh points of the outline of the face, from the top of the forehead over the person's left."""

RIGID = np.array([168, 6, 197, 195, 4, 33, 133, 362, 263, 8, 9, 151, 10, 127, 356, 234, 454])
"""Mesh points that move with the skull; they align the heads of all frames."""

BARE_SKIN = (
    np.array([117, 118, 101, 36, 205, 187, 123]),
    np.array([346, 347, 330, 266, 425, 411, 352]),
    np.array([151, 108, 69, 104, 67, 109, 10, 338, 297, 333, 299, 337]),
)
# fmt: on
"""Mesh points around patches of bare skin: the cheeks and the forehead."""

TOP, LEFT, CHIN, RIGHT = 0, 8, 18, 28
"""Positions of four points in `FACE_OVAL`."""

JAW = slice(11, 26)
"""Positions of the jaw in `FACE_OVAL`."""

CHIN_LINE = slice(13, 24)
"""Positions of the lower jaw, around the chin, in `FACE_OVAL`."""

HAIR, FACE, THROAT, CLOTHES = range(4)
"""Classes of the mixture model; hair and face together are the head."""

L_BITS = 4
"""Bits of lightness in a color bin."""

AB_BITS = 6
"""Bits of each of the color channels a and b in a color bin."""

CUBE = (1 << L_BITS, 1 << AB_BITS, 1 << AB_BITS)
"""Number of color bins by lightness, a and b."""

BINS = 1 << (L_BITS + 2 * AB_BITS)
"""Number of color bins."""

SHADES = (1.05, 0.9, 0.75, 0.6, 0.45)
"""Brightness factors used to model shadowed neck skin from face skin. The frequency of each factor
is learned directly below the jaw, where dark hair cannot be mistaken for shadowed skin."""


@dataclass(frozen=True)
class Pose:
    """Position of the head in one frame, in pixels of the decision size."""

    to_frame: np.ndarray
    """[2, 3], similarity from the pixels of the mean head to those of the frame."""
    oval: np.ndarray
    """[36, 2], outline of the face."""
    skin: tuple[np.ndarray, ...]
    """Polygons [K, 2] on cheeks and forehead."""


@dataclass(frozen=True)
class Model:
    """The mixture model: p(class | pixel) is proportional to prior * likelihood of the color."""

    prior: np.ndarray
    """float32 [4, h, w], in pixels of the mean head."""
    likelihood: np.ndarray
    """float32 [BINS, 4], by Lab color bin."""


def align_heads(points: np.ndarray, scale: float) -> list[Pose]:
    """Align the head of each frame with the mean head.

    Args:
        points: meshes [T, 478, 2 or 3] in pixels.
        scale: decision pixels per pixel.
    """
    points = points[..., :2].astype(np.float64) * scale
    rigid = points[:, RIGID, 0] + 1j * points[:, RIGID, 1]
    centers = rigid.mean(1)
    shapes = rigid - centers[:, None]
    mean = shapes[len(shapes) // 2]
    for _ in range(3):
        turns = (shapes * mean.conj()).sum(1) / (abs(mean) ** 2).sum()
        mean = (shapes / turns[:, None]).mean(0)
    shifts = centers - turns * centers.mean()
    smooth = cv2.sepFilter2D(
        points.reshape(len(points), -1), -1, np.ones(1), np.array([0.25, 0.5, 0.25])
    ).reshape(points.shape)
    return [
        Pose(
            np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]]),
            mesh[FACE_OVAL],
            tuple(mesh[patch] for patch in BARE_SKIN),
        )
        for turn, shift, mesh in zip(turns, shifts, smooth, strict=True)
    ]


def _polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw a filled polygon [K, 2] with soft edges: float32 [h, w] in 0..1."""
    canvas = np.zeros((height, width), np.uint8)
    bits = 4
    corners = np.round((points - 0.5) * 2**bits).astype(np.int32)
    cv2.fillPoly(canvas, [corners], (255,), cv2.LINE_AA, bits)
    return cv2.GaussianBlur(canvas, (0, 0), max(height, width) / 400).astype(np.float32) / 255


def _warp(planes: np.ndarray, to_frame: np.ndarray, inverse: bool = False) -> np.ndarray:
    """Warp planes [4, h, w] from the mean head to the frame, or back if `inverse`."""
    flags = cv2.INTER_LINEAR | (cv2.WARP_INVERSE_MAP if inverse else 0)
    size = planes.shape[:0:-1]
    border = cv2.BORDER_CONSTANT if inverse else cv2.BORDER_REPLICATE
    together = cv2.merge(tuple(planes))
    warped = cv2.warpAffine(together, to_frame, size, flags=flags, borderMode=border)
    return np.stack(cv2.split(warped))


def _below(oval: np.ndarray, part: slice) -> np.ndarray:
    """Return the polygon between a part of a face oval [36, 2] and one face height below it."""
    edge = oval[part]
    return np.concatenate([edge, (edge + oval[CHIN] - oval[TOP])[::-1]])


def _ramp(values: np.ndarray, zero: float, one: float) -> np.ndarray:
    """Return a linear ramp that is 0 at `zero`, 1 at `one` and clipped beyond."""
    return np.clip((values - zero) / (one - zero), 0, 1)


def anatomical_prior(oval: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the prior of hair, face, throat and clothes around a face oval [36, 2].

    Horizontal distances are measured in face widths from the center line, vertical distances in
    face heights from the chin.

    Returns:
        float32 [4, h, w], sums to 1.
    """
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    across = abs(x - oval[:, 0].mean()) / np.linalg.norm(oval[RIGHT] - oval[LEFT])
    face_height = np.linalg.norm(oval[CHIN] - oval[TOP])
    down = (y - oval[CHIN, 1]) / face_height
    jaw = oval[JAW][np.argsort(oval[JAW, 0])]
    under_jaw = y > np.interp(x, jaw[:, 0], jaw[:, 1])
    hair = (0.5 - 0.48 * _ramp(down, -0.35, 0.05)) * _ramp(across, 1.3, 0.9)
    hair *= 1 - 0.9 * under_jaw * _ramp(across, 0.6, 0.45)
    face = 0.3 * _ramp(across, 0.8, 0.5) * _ramp(down, 0.05, -0.15)
    throat = 0.8 * under_jaw * _ramp(across, 0.48, 0.33) * _ramp(down, 0.6, 0.3)
    clothes = 0.7 * _ramp(down, -0.35, 0.1) * _ramp(across, 0.4, 0.6) + 0.3 * _ramp(down, 0, 0.35)
    clothes += 0.002 * _ramp(down, -0.5, -0.3)
    prior = np.stack([hair + 0.002, face + 0.002, throat + 0.002, clothes + 1e-5])
    prior = prior.astype(np.float32)
    return prior / prior.sum(0)


def color_bins(image: np.ndarray) -> np.ndarray:
    """Return the Lab color bin of each pixel of RGB uint8 [..., 3]."""
    lab = cv2.cvtColor(image.reshape(1, -1, 3), cv2.COLOR_RGB2LAB)
    lightness, a, b = (plane.astype(np.int32) for plane in cv2.split(lab))
    ab_shift = 8 - AB_BITS
    bins = (
        (lightness >> (8 - L_BITS) << (2 * AB_BITS)) | (a >> ab_shift << AB_BITS) | (b >> ab_shift)
    )
    return bins.reshape(image.shape[:-1])


def smooth_histogram(counts: np.ndarray) -> np.ndarray:
    """Spread the counts of colors [BINS] to similar colors."""
    return gaussian_filter(counts.astype(float).reshape(CUBE), 1.0).ravel()


def _mixture(weights: np.ndarray, parts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the weights [N] with which parts [N, BINS] explain the counts [BINS] (8 EM steps)."""
    for _ in range(8):
        joint = weights[:, None] * parts
        weights = joint @ (counts / np.maximum(joint.sum(0), 1e-9)) + 1
        weights /= weights.sum()
    return weights


def _likelihood(counts: np.ndarray) -> np.ndarray:
    """Turn color counts [4, BINS] into likelihoods [BINS, 4]; clothes may have any color."""
    surprise = np.array([0.02, 0.02, 0.01, 0.1])
    rows = np.stack([smooth_histogram(row) for row in counts])
    rows /= np.maximum(rows.sum(1, keepdims=True), 1e-9)
    rows = rows * (1 - surprise[:, None]) + surprise[:, None] / BINS
    return np.ascontiguousarray((rows / rows.sum(0)).T, np.float32)


def posterior(model: Model, bins: np.ndarray, person: np.ndarray, pose: Pose) -> np.ndarray:
    """Return p(hair, face, throat, clothes) of each pixel that shows the person.

    Args:
        model: the mixture model.
        bins: color bins of the image at the decision size, int32 [h, w] (`color_bins`).
        person: probability that a pixel shows the person, float32 [h, w].
        pose: position of the head.

    Returns:
        float32 [4, h, w], sums to 1.
    """
    height, width = bins.shape
    oval = _polygon(pose.oval, height, width)
    under, core = (
        np.minimum(_polygon(_below(pose.oval, part), height, width), 1 - oval)
        for part in (JAW, CHIN_LINE)
    )
    belief = _warp(model.prior, pose.to_frame) * (1 - oval)
    belief[FACE] *= 1 - 0.95 * under
    belief[HAIR] *= 1 - 0.95 * core
    belief[[THROAT, CLOTHES]] *= np.where(_hanging(person), np.float32(0.05), 1)
    belief *= np.moveaxis(model.likelihood.take(bins, axis=0), -1, 0)
    belief *= (1 - oval) / (belief.sum(0) + 1e-12)
    belief[FACE] += oval
    return belief


def _hanging(person: np.ndarray) -> np.ndarray:
    """Return which pixels have background somewhere below them, bool [h, w].

    There may be background below hair, but not below clothes. Rows without any person pixel are
    ignored, because a caption may cover them.
    """
    gap = (person < 0.1) & (person > 0.5).any(1, keepdims=True)
    return np.logical_or.accumulate(gap[::-1])[::-1]


def learn(
    images: list[np.ndarray], persons: list[np.ndarray], poses: list[Pose], rounds: int
) -> Model:
    """Fit the mixture model to some frames by expectation maximization.

    Args:
        images: RGB uint8 [h, w, 3] of the decision size.
        persons: probability that a pixel shows the person, float32 [h, w].
        poses: position of the head in each frame.
        rounds: number of EM rounds.
    """
    height, width = persons[0].shape
    to_mean = [cv2.invertAffineTransform(pose.to_frame) for pose in poses]
    ovals = [
        pose.oval @ back[:, :2].T + back[:, 2] for pose, back in zip(poses, to_mean, strict=True)
    ]
    anatomy = anatomical_prior(np.mean(ovals, 0), height, width)
    skin = np.concatenate(
        [
            image[np.max([_polygon(patch, height, width) for patch in pose.skin], 0) > 0.5]
            for image, pose in zip(images, poses, strict=True)
        ]
    )
    shades = [color_bins(np.clip(skin * shade, 0, 255).astype(np.uint8)) for shade in SHADES]
    shades = np.stack([np.bincount(bins, minlength=BINS) for bins in shades])
    frequencies = np.ones(len(SHADES))
    all_bins = [color_bins(image) for image in images]
    model = Model(anatomy, np.ones((BINS, 4), np.float32))
    for _ in range(rounds):
        counts = np.zeros((4, BINS))
        throat = np.zeros(BINS)
        visible = np.zeros((4, height, width), np.float32)
        for bins, person, pose in zip(all_bins, persons, poses, strict=True):
            belief = posterior(model, bins, person, pose) * np.where(person > 0.8, person, 0)
            flat = bins.ravel()
            counts += [np.bincount(flat, plane.ravel(), BINS) for plane in belief]
            sure = belief[THROAT] * _polygon(_below(pose.oval, CHIN_LINE), height, width)
            throat += np.bincount(flat, sure.ravel(), BINS)
            visible += _warp(belief, pose.to_frame, inverse=True)
        frequencies = _mixture(
            frequencies, np.stack([smooth_histogram(row) for row in shades]), throat
        )
        counts[THROAT] = frequencies @ shades
        visible = np.stack([cv2.GaussianBlur(plane, (0, 0), height / 128) for plane in visible])
        prior = (visible + 2 * anatomy) / (visible.sum(0) + 2)
        model = Model(prior, _likelihood(counts))
    return model
