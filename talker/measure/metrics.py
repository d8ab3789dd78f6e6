"""How near a rendered video is to the real one: image quality, mouth shape, timing.

Everything here takes arrays in memory and needs no weights; faces are 68 landmarks in pixels.
"""

import cv2
import numpy as np

PSNR_CEILING = 100.0
"""dB; what identical images score, so that a mean over frames stays finite."""
SSIM_MARGIN = 5
"""Pixels at each border that the 11-tap window of SSIM cannot be centred on."""
MOUTH = slice(48, 68)
STEADY = np.r_[17:36, 36, 39, 42, 45]
"""Brows, nose and corners of the eyes: they have edges to follow, and speech hardly moves them."""
LEAST_STEADY = 6
"""Of these points, followed in both videos, tell the head's motion."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, the upper ends excluded."""


def psnr(image: np.ndarray, truth: np.ndarray, box: Box | None = None) -> float:
    """Peak signal-to-noise ratio in dB of uint8 images [H, W, 3], inside `box` if given."""
    difference = _inside(image, box).astype(np.float64) - _inside(truth, box)
    error = np.mean(np.square(difference))
    if error == 0:
        return PSNR_CEILING
    return float(min(PSNR_CEILING, 10 * np.log10(255**2 / error)))


def ssim_map(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity of uint8 images [H, W, 3] at every pixel, [H, W, 3].

    Wang et al., IEEE TIP 2004: 11 x 11 Gaussian window of sigma 1.5, K = (0.01, 0.03), each
    channel on its own. The outer `SSIM_MARGIN` pixels see a mirrored border.
    """
    x, y = image.astype(np.float64), truth.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    return ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))


def mean_ssim(similarity: np.ndarray, box: Box | None = None) -> float:
    """Mean of an `ssim_map` without its border, or of the part of it inside `box`."""
    m = SSIM_MARGIN
    part = similarity[m:-m, m:-m] if box is None else _inside(similarity, box)
    return float(part.mean())


def head_box(landmarks: np.ndarray, height: int, width: int) -> Box:
    """The head: the box of 68 landmarks [68, 2], 15 % wider on each side and 45 % higher."""
    (x0, y0), (x1, y1) = landmarks.min(0), landmarks.max(0)
    margin = 0.15 * (x1 - x0)
    return _clipped(
        x0 - margin, y0 - 0.45 * (y1 - y0), x1 + margin, y1 + 0.05 * (y1 - y0), height, width
    )


def mouth_box(landmarks: np.ndarray, height: int, width: int) -> Box:
    """The mouth: a square around the lips of 68 landmarks [68, 2], 1.5 times as wide as they."""
    (x0, y0), (x1, y1) = landmarks[MOUTH].min(0), landmarks[MOUTH].max(0)
    half = 0.75 * max(x1 - x0, y1 - y0)
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    return _clipped(cx - half, cy - half, cx + half, cy + half, height, width)


def mouth_distance(landmarks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Landmark distance of the mouth (LMD) in pixels: two sets [T, 68, 2] -> [T].

    Each mouth is centred on its own mean, then the mean distance between partners is taken.
    """
    mouth, real = landmarks[:, MOUTH], truth[:, MOUTH]
    apart = (mouth - mouth.mean(1, keepdims=True)) - (real - real.mean(1, keepdims=True))
    return np.linalg.norm(apart, axis=-1).mean(-1)


def head_shake(moved: np.ndarray, truth: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """How far the head's motion in a rendering is off the real one's, pixels: [N].

    A head that is rendered with shaking poses moves where the real one does not. For each pair of
    frames it is the length of the median over the points of the difference of both motions: what
    the whole head did, not its mimics. A constant displacement counts nothing. For poses with
    white noise of sigma px in x and in y, the RMS is 2 sigma between any two frames.

    Args:
        moved: [N, P, 2] pixels, where optical flow saw the `STEADY` points go in the rendering.
        truth: the same in the real video, from the same places.
        seen: bool [N, P], which were followed in both; nan where fewer than `LEAST_STEADY` were.
    """
    hidden = np.broadcast_to(~seen[..., None], moved.shape)
    off = np.ma.median(np.ma.array(moved - truth, mask=hidden), axis=1).filled(np.nan)
    return np.where(seen.sum(axis=1) >= LEAST_STEADY, np.linalg.norm(off, axis=1), np.nan)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r over the entries where both are finite; nan if there are < 3 or one is flat."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return float("nan")
    x, y = a[both] - a[both].mean(), b[both] - b[both].mean()
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 1e-12 else float("nan")


def std_ratio(values: np.ndarray, truth: np.ndarray) -> float:
    """Standard deviation of `values` over that of `truth`, where both are finite."""
    both = np.isfinite(values) & np.isfinite(truth)
    spread = np.std(truth[both]) if both.any() else 0.0
    return float(np.std(values[both]) / spread) if spread > 0 else float("nan")


def lag_curve(values: np.ndarray, truth: np.ndarray, reach: int) -> np.ndarray:
    """Correlation at lags -reach .. reach: [2 reach + 1]; a positive lag: `values` are late."""
    n = len(truth)
    return np.array(
        [
            correlation(
                values[max(lag, 0) : n + min(lag, 0)], truth[max(-lag, 0) : n - max(lag, 0)]
            )
            for lag in range(-reach, reach + 1)
        ]
    )


def best_lag(values: np.ndarray, truth: np.ndarray, reach: int = 12) -> float:
    """The lag in frames with the highest correlation; nan where none is defined.

    No lag leaves less than half of the frames to compare.
    """
    reach = min(reach, len(truth) // 2)
    curve = lag_curve(values, truth, reach)
    return float(np.nanargmax(curve) - reach) if np.isfinite(curve).any() else float("nan")


def _inside(image: np.ndarray, box: Box | None) -> np.ndarray:
    if box is None:
        return image
    x0, y0, x1, y1 = box
    return image[y0:y1, x0:x1]


def _clipped(x0: float, y0: float, x1: float, y1: float, height: int, width: int) -> Box:
    """Whole pixels inside the image, at least one of them."""
    left, top = (int(np.clip(round(v), 0, n - 1)) for v, n in ((x0, width), (y0, height)))
    right, bottom = (
        int(np.clip(round(x1), left + 1, width)),
        int(np.clip(round(y1), top + 1, height)),
    )
    return left, top, right, bottom
