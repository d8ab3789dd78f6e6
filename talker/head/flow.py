"""Sparse optical flow of face points (pyramidal Lucas-Kanade)."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from talker.core.parallel import ordered_map

WINDOW = (17, 17)
"""Window of the Lucas-Kanade tracker in pixels."""

LEVELS = 1
"""Pyramid levels above full resolution in the Lucas-Kanade tracker."""

FB_THRESHOLD = 0.35
"""Maximum forward-backward error of a followed point, in pixels."""

MAX_SURPRISE = 8.0
"""Maximum distance of a followed point from its expected position, in pixels."""

MARGIN = 48
"""Width of the border around the face points that the tracker reads, in pixels."""


@dataclass(frozen=True)
class Flow:
    """Displacement of P points from frame i to frame i + step, for i in 0..T-step-1."""

    moved: np.ndarray
    """float32 [T - step, P, 2], displacements in pixels."""
    good: np.ndarray
    """bool [T - step, P], whether the point was followed reliably."""

    @property
    def share(self) -> np.ndarray:
        """Fraction of the points that were followed, float [T - step]."""
        return self.good.mean(axis=1)


def follow_points(
    images: Iterable[np.ndarray],
    places: Float[np.ndarray, "T P 2"],
    steps: Sequence[int],
    threads: int | None = None,
) -> dict[int, Flow]:
    """Follow points over one or several frame distances (Lucas-Kanade in OpenCV, Bouguet 2001).

    Args:
        images: T frames, RGB uint8 [H, W, 3].
        places: [T, P, 2], expected positions in pixels (pixel centers at +0.5).
        steps: frame distances; a distance of T or more gives a flow without rows.
        threads: number of threads; by default, those of `ordered_map`.

    Returns:
        {step: Flow}.
    """
    places = np.ascontiguousarray(places, np.float32)
    low = np.maximum(places.min(axis=(0, 1)) - MARGIN, 0).astype(int)
    high = np.maximum(places.max(axis=(0, 1)) + MARGIN, low + 1).astype(int)
    local = places - low.astype(np.float32) - np.float32(0.5)

    def windows() -> Iterator[tuple[int, list[np.ndarray]]]:
        recent: deque[np.ndarray] = deque(maxlen=max(steps) + 1)
        for i, image in enumerate(images):
            crop = image[low[1] : high[1], low[0] : high[0]]
            recent.append(cv2.cvtColor(np.ascontiguousarray(crop), cv2.COLOR_RGB2GRAY))
            yield i, list(recent)

    def follow(window: tuple[int, list[np.ndarray]]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        i, recent = window
        return {
            step: track_forward_backward(recent[-1 - step], recent[-1], local[i - step], local[i])
            for step in steps
            if step < len(recent)
        }

    frames, count = places.shape[:2]
    flows = {
        step: Flow(
            np.empty((max(frames - step, 0), count, 2), np.float32),
            np.empty((max(frames - step, 0), count), bool),
        )
        for step in steps
    }
    for i, tracked in enumerate(ordered_map(follow, windows(), threads)):
        for step, (moved, good) in tracked.items():
            flows[step].moved[i - step], flows[step].good[i - step] = moved, good
    return flows


def track_forward_backward(
    first: UInt8[np.ndarray, "H W"],
    second: UInt8[np.ndarray, "H W"],
    start: Float[np.ndarray, "P 2"],
    expected: Float[np.ndarray, "P 2"],
) -> tuple[Float[np.ndarray, "P 2"], Bool[np.ndarray, "P"]]:
    """Track points from one gray image to another and back again.

    Args:
        first: uint8 [H, W].
        second: uint8 [H, W].
        start: float32 [P, 2], array coordinates (pixel centers at whole numbers).
        expected: float32 [P, 2], expected positions in the second image.

    Returns:
        Displacements float32 [P, 2], and bool [P]: whether the point returned to its start within
        `FB_THRESHOLD` and ended within `MAX_SURPRISE` of its expected position.
    """

    def track(a: np.ndarray, b: np.ndarray, p: np.ndarray, q: np.ndarray) -> Iterator[np.ndarray]:
        goal, status, _ = cv2.calcOpticalFlowPyrLK(
            a, b, p, q.copy(), winSize=WINDOW, maxLevel=LEVELS, flags=cv2.OPTFLOW_USE_INITIAL_FLOW
        )
        yield goal
        yield status[:, 0] > 0

    goal, tracked = track(first, second, start, expected)
    back, returned = track(second, first, goal, start)
    good = tracked & returned & (np.linalg.norm(back - start, axis=1) < FB_THRESHOLD)
    return goal - start, good & (np.linalg.norm(goal - expected, axis=1) < MAX_SURPRISE)
