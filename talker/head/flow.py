"""Sparse optical flow of the face: where its points went, as the images themselves show it."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from talker.core.parallel import ordered_map

WINDOW, LEVELS = (17, 17), 1
RETURN = 0.35
"""A point counts that is found again from its goal to within this, px."""
REACH = 8.0
"""And that went no farther than this from where it was expected, px."""
MARGIN = 48
"""Pixels around the face that are looked at."""


@dataclass(frozen=True)
class Flow:
    """How P points went from frame i to frame i + step, for i in 0..T-step-1."""

    moved: np.ndarray
    """float32 [T - step, P, 2] pixels"""
    good: np.ndarray
    """bool [T - step, P]"""

    @property
    def share(self) -> np.ndarray:
        """float [T - step], how many of the points were followed."""
        return self.good.mean(axis=1)


def follow_points(
    images: Iterable[np.ndarray], places: np.ndarray, steps: Sequence[int]
) -> dict[int, Flow]:
    """Follow points over some numbers of frames (Lucas-Kanade in OpenCV, Bouguet 2001).

    Args:
        images: T frames, RGB uint8 [H, W, 3].
        places: [T, P, 2], where the points are expected, pixels (centres at +0.5).
        steps: over how many frames; no rows for those of T and more.

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

    def look(window: tuple[int, list[np.ndarray]]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        i, recent = window
        return {
            step: between(recent[-1 - step], recent[-1], local[i - step], local[i])
            for step in steps
            if step < len(recent)
        }

    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {step: [] for step in steps}
    for looked in ordered_map(look, windows()):
        for step, pair in looked.items():
            found[step].append(pair)
    count = places.shape[1]
    return {
        step: Flow(
            np.array([moved for moved, _ in pairs], np.float32).reshape(-1, count, 2),
            np.array([good for _, good in pairs], bool).reshape(-1, count),
        )
        for step, pairs in found.items()
    }


def between(
    first: np.ndarray, second: np.ndarray, start: np.ndarray, expected: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Follow points from one grey image to another, and back again.

    Args:
        first, second: uint8 [H, W].
        start: float32 [P, 2], array coordinates (pixel centres at whole numbers).
        expected: float32 [P, 2], where they may be in the second image.

    Returns:
        how far they went, float32 [P, 2], and which of them were followed, bool [P].
    """

    def follow(a: np.ndarray, b: np.ndarray, p: np.ndarray, q: np.ndarray) -> Iterator[np.ndarray]:
        goal, status, _ = cv2.calcOpticalFlowPyrLK(
            a, b, p, q.copy(), winSize=WINDOW, maxLevel=LEVELS, flags=cv2.OPTFLOW_USE_INITIAL_FLOW
        )
        yield goal
        yield status[:, 0] > 0

    goal, found = follow(first, second, start, expected)
    back, returned = follow(second, first, goal, start)
    good = found & returned & (np.linalg.norm(back - start, axis=1) < RETURN)
    return goal - start, good & (np.linalg.norm(goal - expected, axis=1) < REACH)
