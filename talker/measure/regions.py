"""Compare renderings with real frames in the regions of the face that matter most.

The regions are mouth, eyes, brows, hair, the seam between head and neck, and the border of the
head.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int64, Real, UInt8

from talker.head.landmarks68 import BROWS, LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from talker.measure.metrics import Box, finite, mouth_box, psnr, ssim_map
from talker.measure.networks import Network, perceptual_distance
from talker.measure.stlpips import MIN_SIZE

EYE_PARTS = np.r_[RIGHT_EYE, LEFT_EYE]
"""Indices of the landmarks of both eyes."""
BAND = 0.03
"""Half the width of the seam and the border, relative to the width of the face."""


def box_around(points: Real[np.ndarray, "P 2"], height: int, width: int) -> Box:
    """Return the bounding box of points [P, 2], enlarged by a tenth of its width on each side."""
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    margin = 0.1 * (x1 - x0)
    left, top = (max(0, round(float(v - margin))) for v in (x0, y0))
    right, bottom = round(float(x1 + margin)) + 1, round(float(y1 + margin)) + 1
    return min(left, width - 1), min(top, height - 1), min(right, width), min(bottom, height)


def region_masks(
    landmarks: Real[np.ndarray, "68 2"], head: UInt8[np.ndarray, "H W"]
) -> dict[str, Bool[np.ndarray, "H W"]]:
    """Return the pixels of each region of a frame, by name.

    The hair is the part of the head above the brows. Seam and border are bands along the outline of
    the head, below and above the lower lip.

    Args:
        landmarks: [68, 2] in pixels.
        head: coverage of each pixel by the head, 0..255.
    """
    height, width = head.shape
    covered = (head > 127).astype(np.uint8)
    reach = max(1, round(BAND * float(np.ptp(landmarks[:, 0]))))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    outline = (cv2.dilate(covered, kernel) > 0) & (cv2.erode(covered, kernel) == 0)
    rows = np.arange(height)[:, None]
    lower = rows > landmarks[OUTER_LIPS, 1].max()
    masks = {
        "hair": (covered > 0) & (rows < landmarks[BROWS, 1].min()),
        "neck_seam": outline & lower,
        "border": outline & ~lower,
    }
    for name, (x0, y0, x1, y1) in region_boxes(landmarks, height, width).items():
        masks[name] = np.zeros((height, width), bool)
        masks[name][y0:y1, x0:x1] = True
    return masks


def region_boxes(landmarks: Real[np.ndarray, "68 2"], height: int, width: int) -> dict[str, Box]:
    """Return the boxes of mouth, eyes and brows in a frame of `height` x `width` pixels."""
    return {
        "mouth": mouth_box(landmarks, height, width),
        "eyes": box_around(landmarks[EYE_PARTS], height, width),
        "brows": box_around(landmarks[BROWS], height, width),
    }


def compare_regions(
    images: Sequence[UInt8[np.ndarray, "H W 3"]],
    frames: Sequence[UInt8[np.ndarray, "H W 3"]],
    ids: Int64[np.ndarray, "N"],
    landmarks: Float[np.ndarray, "N 68 2"],
    heads: Sequence[UInt8[np.ndarray, "H W"]],
    stlpips: Network | None = None,
) -> dict[str, float]:
    """Return the metrics of each region, as {METRIC_REGION: mean over the frames}.

    `psnr` and `ssim` compare the pixels of the region. `sharpness` is the mean absolute Laplacian,
    relative to that of the real frame. `flicker` is the mean absolute difference between the
    changes from one frame to the next in both videos, in gray levels. `stlpips` compares the boxes
    of mouth, eyes and brows.

    Args:
        images: rendered frames.
        frames: real frames.
        ids: numbers of these frames.
        landmarks: landmarks of the real frames [N, 68, 2] in pixels.
        heads: head masks of the real frames, 0..255.
        stlpips: network; without it, `stlpips` is not computed.
    """
    values: dict[str, list[float]] = {}
    before = None
    for k, (image, frame) in enumerate(zip(images, frames, strict=True)):
        change = cv2.subtract(image.astype(np.int16), frame.astype(np.int16))
        similarity = ssim_map(image, frame)
        edges = [np.abs(cv2.Laplacian(x, cv2.CV_32F)).mean(-1) for x in (image, frame)]
        consecutive = before is not None and ids[k] == ids[k - 1] + 1
        for region, mask in region_masks(landmarks[k], heads[k]).items():
            if not mask.any():
                continue
            row = {
                "psnr": psnr(image[mask][None], frame[mask][None]),
                "ssim": float(similarity[mask].mean()),
                "sharpness": float(edges[0][mask].mean() / max(edges[1][mask].mean(), 1e-6)),
            }
            if consecutive and before is not None:
                row["flicker"] = float(np.abs(change[mask] - before[mask]).mean())
            for name, value in row.items():
                values.setdefault(f"{name}_{region}", []).append(value)
        if stlpips is not None:
            for region, box in region_boxes(landmarks[k], *heads[k].shape).items():
                distance = _perceptual_distance(stlpips, image, frame, box)
                values.setdefault(f"stlpips_{region}", []).append(distance)
        before = change
    return {name: finite(column) for name, column in values.items()}


def _perceptual_distance(network: Network, image: np.ndarray, frame: np.ndarray, box: Box) -> float:
    """Return ST-LPIPS inside a box, enlarged to the smallest size that the network accepts."""
    x0, y0, x1, y1 = box
    scale = max(1.0, MIN_SIZE / min(x1 - x0, y1 - y0))
    parts = [cv2.resize(x[y0:y1, x0:x1], None, fx=scale, fy=scale) for x in (image, frame)]
    return perceptual_distance(network, parts[:1], parts[1:])
