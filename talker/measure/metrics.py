"""Metrics of a rendered video against the real one: image quality, mouth shape and timing.

All functions take arrays in memory and need no weights. Faces are 68 landmarks in pixels.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Real, UInt8

PSNR_CEILING = 100.0
"""PSNR in dB of identical images, so that a mean over frames stays finite."""
SSIM_MARGIN = 5
"""Width in pixels of the border on which the 11-tap window of SSIM cannot be centered."""
MOUTH = slice(48, 68)
"""Indices of the mouth among the 68 landmarks."""
STEADY = np.r_[17:36, 36, 39, 42, 45]
"""Landmarks that show the motion of the head: brows, nose and eye corners have edges that optical
flow can follow, and speech hardly moves them."""
MIN_STEADY = 6
"""Minimum number of `STEADY` points that must be followed in both videos."""

Box = tuple[int, int, int, int]
"""A box x0, y0, x1, y1 in pixels; x1 and y1 are excluded."""


def psnr(
    image: Real[np.ndarray, "*B H W 3"], truth: Real[np.ndarray, "*B H W 3"], box: Box | None = None
) -> float:
    """Return the peak signal-to-noise ratio in dB of images uint8 [H, W, 3], or inside a box."""
    difference = _inside(image, box).astype(np.float64) - _inside(truth, box)
    error = np.mean(np.square(difference))
    if error == 0:
        return PSNR_CEILING
    return float(min(PSNR_CEILING, 10 * np.log10(255**2 / error)))


def ssim_map(
    image: UInt8[np.ndarray, "H W 3"], truth: UInt8[np.ndarray, "H W 3"]
) -> Float[np.ndarray, "H W 3"]:
    """Return the structural similarity of uint8 images [H, W, 3] at every pixel, [H, W, 3].

    Wang et al., IEEE TIP 2004: 11 x 11 Gaussian window of sigma 1.5, K = (0.01, 0.03), for each
    channel separately. The image is mirrored at its border, which affects the outer `SSIM_MARGIN`
    pixels.
    """
    x, y = image.astype(np.float64), truth.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)

    # Most of the time is spent on memory, so arrays are reused. Only the sum of the variances is
    # needed, so one mean is enough for both.
    mx, my = mean(x), mean(y)
    covariance = mean(x * y)
    x *= x
    y *= y
    x += y
    variance = mean(x)
    np.multiply(mx, my, out=x)
    covariance -= x
    mx *= mx
    my *= my
    mx += my
    variance -= mx
    x *= 2
    x += c1
    mx += c1
    covariance *= 2
    covariance += c2
    variance += c2
    x *= covariance
    mx *= variance
    x /= mx
    return x


def ssim(
    image: UInt8[np.ndarray, "H W 3"], truth: UInt8[np.ndarray, "H W 3"], box: Box | None = None
) -> float:
    """Return the mean of `ssim_map` without its border, or inside a box."""
    if box is not None:
        return float(_ssim_inside(image, truth, box).mean())
    m = SSIM_MARGIN
    similarity = np.ones(image.shape)  # exactly the value where no pixel of the window differs
    channels = cv2.absdiff(image, truth).reshape(len(image), -1)
    x, y, width, height = cv2.boundingRect(channels)
    if width:
        changed = (max(0, x // 3 - m), max(0, y - m), (x + width + 2) // 3 + m, y + height + m)
        _inside(similarity, changed)[:] = _ssim_inside(image, truth, changed)
    return float(similarity[m:-m, m:-m].mean())


def _ssim_inside(image: np.ndarray, truth: np.ndarray, box: Box) -> np.ndarray:
    """Return the part of `ssim_map` inside a box."""
    x0, y0, x1, y1 = box
    left, top = max(0, x0 - SSIM_MARGIN), max(0, y0 - SSIM_MARGIN)
    near = left, top, x1 + SSIM_MARGIN, y1 + SSIM_MARGIN
    similarity = ssim_map(_inside(image, near), _inside(truth, near))
    return similarity[y0 - top : y1 - top, x0 - left : x1 - left]


def head_box(landmarks: Real[np.ndarray, "68 2"], height: int, width: int) -> Box:
    """Return the box of the head: that of 68 landmarks [68, 2], 15 % wider and 45 % higher."""
    (x0, y0), (x1, y1) = landmarks.min(0), landmarks.max(0)
    margin = 0.15 * (x1 - x0)
    return _clipped(
        x0 - margin, y0 - 0.45 * (y1 - y0), x1 + margin, y1 + 0.05 * (y1 - y0), height, width
    )


def mouth_box(landmarks: Real[np.ndarray, "68 2"], height: int, width: int) -> Box:
    """Return the box of the mouth: a square 1.5 times as wide as the lips of landmarks [68, 2]."""
    (x0, y0), (x1, y1) = landmarks[MOUTH].min(0), landmarks[MOUTH].max(0)
    half = 0.75 * max(x1 - x0, y1 - y0)
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    return _clipped(cx - half, cy - half, cx + half, cy + half, height, width)


def mouth_distance(
    landmarks: Real[np.ndarray, "T 68 2"], truth: Real[np.ndarray, "T 68 2"]
) -> Float[np.ndarray, "T"]:
    """Return the landmark distance of the mouth (LMD) [T] in pixels, of two sets [T, 68, 2].

    Each mouth is centered on its mean before the mean distance of corresponding points is taken.
    """
    mouth, real = landmarks[:, MOUTH], truth[:, MOUTH]
    difference = (mouth - mouth.mean(1, keepdims=True)) - (real - real.mean(1, keepdims=True))
    return np.linalg.norm(difference, axis=-1).mean(-1)


def head_shake(
    moved: Real[np.ndarray, "N P 2"],
    truth: Real[np.ndarray, "N P 2"],
    followed: Bool[np.ndarray, "N P"],
) -> Float[np.ndarray, "N"]:
    """Return the error of the head's motion in a rendering, in pixels [N].

    A head rendered with jittering poses moves where the real one does not. For each pair of frames
    the error is the length of the median, over the points, of the difference between both motions.
    The median captures the motion of the whole head and ignores facial expressions. A constant
    displacement has no effect. White noise of sigma pixels in x and y of the poses gives a root
    mean square of 2 sigma between any two frames.

    Args:
        moved: [N, P, 2] pixels, motion of the `STEADY` points in the rendering by optical flow.
        truth: the same in the real video, from the same positions.
        followed: bool [N, P], points followed in both videos; the error is nan with fewer than
            `MIN_STEADY` of them.
    """
    hidden = np.broadcast_to(~followed[..., None], moved.shape)
    off = np.ma.median(np.ma.array(moved - truth, mask=hidden), axis=1).filled(np.nan)
    return np.where(followed.sum(axis=1) >= MIN_STEADY, np.linalg.norm(off, axis=1), np.nan)


def correlation(a: Real[np.ndarray, "N"], b: Real[np.ndarray, "N"]) -> float:
    """Return Pearson's r where both are finite; nan with fewer than 3 entries or a constant one."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return float("nan")
    x, y = a[both] - a[both].mean(), b[both] - b[both].mean()
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 1e-12 else float("nan")


def std_ratio(values: Real[np.ndarray, "N"], truth: Real[np.ndarray, "N"]) -> float:
    """Return the standard deviation of `values` over that of `truth`, where both are finite."""
    both = np.isfinite(values) & np.isfinite(truth)
    spread = np.std(truth[both]) if both.any() else 0.0
    return float(np.std(values[both]) / spread) if spread > 0 else float("nan")


def lag_curve(
    values: Real[np.ndarray, "N"], truth: Real[np.ndarray, "N"], reach: int
) -> Float[np.ndarray, "{2*reach+1}"]:
    """Return the correlation at lags -reach .. reach; at a positive lag `values` are late."""
    n = len(truth)
    return np.array(
        [
            correlation(
                values[max(lag, 0) : n + min(lag, 0)], truth[max(-lag, 0) : n - max(lag, 0)]
            )
            for lag in range(-reach, reach + 1)
        ]
    )


def best_lag(values: Real[np.ndarray, "N"], truth: Real[np.ndarray, "N"], reach: int = 12) -> float:
    """Return the lag in frames with the highest correlation; nan if none is defined.

    At least half of the frames are compared at every lag.
    """
    reach = min(reach, len(truth) // 2)
    curve = lag_curve(values, truth, reach)
    return float(np.nanargmax(curve) - reach) if np.isfinite(curve).any() else float("nan")


def finite(values: Any, statistic: Callable[[np.ndarray], Any] = np.mean) -> float:
    """Return a statistic of the finite values, or nan if there are none."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return float(statistic(known)) if known.size else float("nan")


def _inside(image: np.ndarray, box: Box | None) -> np.ndarray:
    if box is None:
        return image
    x0, y0, x1, y1 = box
    return image[y0:y1, x0:x1]


def _clipped(x0: float, y0: float, x1: float, y1: float, height: int, width: int) -> Box:
    """Round to whole pixels inside the image, at least one of them."""
    left, top = (int(np.clip(round(v), 0, n - 1)) for v, n in ((x0, width), (y0, height)))
    right, bottom = (
        int(np.clip(round(x1), left + 1, width)),
        int(np.clip(round(y1), top + 1, height)),
    )
    return left, top, right, bottom
