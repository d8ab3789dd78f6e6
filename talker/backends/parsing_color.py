"""Parsing by colors: a network detects the person, and a color model separates the parts.

The outline of the person is corrected by the static background of the clip, which is learned from
the clip itself. `talker.backends.color_model` separates hair, face, neck and clothes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import numpy as np

from talker.backends.color_model import (
    BINS,
    CLOTHES,
    FACE,
    HAIR,
    THROAT,
    Pose,
    align_heads,
    color_bins,
    learn,
    posterior,
    smooth_histogram,
)
from talker.clip import Clip
from talker.core.parallel import ordered_map
from talker.data.layout import BACKGROUND, HEAD, NECK, TORSO
from talker.media.images import read_numbered
from talker.media.mediapipe import segment_person

Item = TypeVar("Item")

LOG_2PI = np.log(2 * np.pi).astype(np.float32)

EVIDENCE = np.float32(3)
"""Maximum change of the person network's log odds by the learned backdrop."""

MOUTH_LEVEL = 0.65
"""Distance of the mouth from the top of the visible skin, as a fraction of the skin's height."""


class Options(Protocol):
    """The options of the stage that this backend reads."""

    samples: int
    rounds: int
    decision_size: int


@dataclass(frozen=True)
class Backdrop:
    """The static background behind the person, and the color distribution of the person."""

    plate: np.ndarray
    """float32 [h, w, 3], mean RGB color of the background."""
    variance: np.ndarray
    """float32 [h, w], variance of a channel; infinite where the background was never visible."""
    peak: np.ndarray
    """float32 [h, w], log density of the background at its mean color."""
    person: np.ndarray
    """float32 [BINS], log density of the RGB colors of the person."""


def learn_backdrop(images: list[np.ndarray], persons: list[np.ndarray]) -> Backdrop:
    """Average the pixels that are clearly background; arguments as for `learn`."""
    count = np.zeros(persons[0].shape, np.float32)
    total = np.zeros(images[0].shape, np.float32)
    squares = np.zeros_like(count)
    colors = np.zeros(BINS)
    for image, person in zip(images, persons, strict=True):
        clear = (person < 0.1).astype(np.float32)
        pixels = image * clear[..., None]
        count += clear
        total += pixels
        squares += (pixels**2).sum(-1)
        colors += np.bincount(color_bins(image).ravel(), (person > 0.9).ravel(), BINS)
    plate = total / np.maximum(count, 1)[..., None]
    variance = (squares / np.maximum(count, 1) - (plate**2).sum(-1)).clip(0) / 3
    noise = np.sqrt(variance + 5.0**2)
    noise[count < 3] = np.inf
    smooth = smooth_histogram(colors)
    density = 0.9 * smooth / max(smooth.sum(), 1e-9) + 0.1 / BINS
    return Backdrop(
        plate=plate,
        variance=noise**2,
        peak=-1.5 * LOG_2PI - 3 * np.log(noise),
        person=np.log(density * BINS / 256**3).astype(np.float32),
    )


def apply_backdrop(
    person: np.ndarray, image: np.ndarray, bins: np.ndarray, backdrop: Backdrop
) -> np.ndarray:
    """Update the person probability by the similarity of each pixel to the backdrop (Bayes' rule).

    Args:
        person: probability that a pixel shows the person, float32 [h, w].
        image: RGB uint8 [h, w, 3].
        bins: its color bins, int32 [h, w].
        backdrop: the learned background.

    Returns:
        float32 [h, w].
    """
    red, green, blue = cv2.split((image - backdrop.plate) ** 2)
    distance = (red + green + blue) / backdrop.variance
    plate = backdrop.peak - distance / 2
    evidence = (backdrop.person.take(bins) - plate).clip(-EVIDENCE, EVIDENCE)
    evidence[np.isinf(backdrop.variance)] = 0
    prior = person.clip(0.002, 0.998)
    return 1 / (1 + (1 / prior - 1) * np.exp(-evidence))


def _parts(region: np.ndarray, enough: float = 1.0, at_the_bottom: bool = False) -> np.ndarray:
    """Keep the connected parts of bool [H, W] that are at least `enough` times the largest one.

    With `at_the_bottom` they must also reach the lowest row that any of them reaches.
    """
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8))
    areas = statistics[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    keep = (areas > 0) & (areas >= enough * areas.max())
    if at_the_bottom:
        ends = statistics[:, cv2.CC_STAT_TOP] + statistics[:, cv2.CC_STAT_HEIGHT]
        keep &= ends == np.max(ends, initial=0, where=keep)
    kept = np.flatnonzero(keep)
    return parts == kept[0] if len(kept) == 1 else keep.take(parts)  # the first is faster


def _starts_at_mouth(hair: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Return the connected parts of `hair` whose top is below the mouth of `face`, bool [H, W].

    Hair hangs down from above, so such a part is probably a dark collar that touches the cheek.
    """
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(hair.astype(np.uint8))
    rows = np.flatnonzero(face.any(1))
    if len(rows) == 0:
        return np.zeros_like(hair)
    low = statistics[:, cv2.CC_STAT_TOP] > rows[0] + MOUTH_LEVEL * np.ptp(rows)
    low[0] = False
    return low.take(parts)


def label(person: np.ndarray, belief: np.ndarray) -> np.ndarray:
    """Decide the class of each pixel.

    Person, head and neck are one connected part each, and clothes reach the bottom of the image.
    All other pixels of the person take the class of the nearest labeled pixel.

    Args:
        person: probability that a pixel shows the person, float32 [H, W].
        belief: posterior of hair, face, throat and clothes, float32 [4, h, w].

    Returns:
        uint8 [H, W], the classes of talker.data.layout.
    """
    height, width = person.shape
    hair, face, neck, torso = (
        cv2.resize(belief[part], (width, height)) for part in (HAIR, FACE, THROAT, CLOTHES)
    )
    inside = _parts(person >= 0.5)
    is_head = inside & (hair + face >= np.maximum(neck, torso))
    is_hair = is_head & (hair > face)
    is_head &= ~_starts_at_mouth(is_hair, _parts(is_head & ~is_hair))
    is_neck = inside & ~is_head & (neck >= torso)
    mask = np.zeros(inside.shape, np.uint8)
    mask[_parts(inside & ~is_head & ~is_neck, 0.01, at_the_bottom=True)] = TORSO
    mask[_parts(is_neck)] = NECK
    mask[_parts(is_head)] = HEAD
    specks = inside & (mask == BACKGROUND)
    if specks.any() and not specks.all():
        known = mask != BACKGROUND
        _, nearest = cv2.distanceTransformWithLabels(
            (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        class_of = np.zeros(nearest.max() + 1, np.uint8)
        class_of[nearest[known]] = mask[known]
        mask[specks] = class_of[nearest[specks]]
    return mask


def outline(image: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Align the person probability [h, w] with the edges of the image (guided filter, He 2010).

    Args:
        image: RGB uint8 [H, W, 3].
        person: float32 [h, w].

    Returns:
        float32 [H, W].
    """
    height, width = image.shape[:2]
    person = cv2.resize(person, (width, height))
    radius = max(2, round(max(height, width) / 64))
    return cv2.ximgproc.guidedFilter(image, person, radius, 6.5, scale=0.5)


def with_neighbors(frames: Iterable[Item]) -> Iterator[tuple[Item, Item, Item]]:
    """Yield each frame with those before and after it; the first and last frames are repeated."""
    before = now = None
    for after in frames:
        if now is not None:
            yield before or now, now, after
        before, now = now, after
    if now is not None:
        yield before or now, now, now


def smooth(three: tuple[tuple[np.ndarray, ...], ...]) -> tuple[np.ndarray, ...]:
    """Average the arrays of a frame with those of its neighbors (1/4, 1/2, 1/4), without lag."""
    return tuple((a + c) / 4 + b / 2 for a, b, c in zip(*three, strict=True))


def parse(clip: Clip, images: Path, points: np.ndarray, options: Options) -> Iterator[np.ndarray]:
    """Yield the mask of each frame, uint8 [H, W] of the classes in talker.data.layout.

    Args:
        clip: the clip.
        images: folder of its frames.
        points: face meshes [T, 478, 3] in pixels.
        options: options of the stage.
    """
    scale = min(1.0, options.decision_size / max(clip.height, clip.width))
    size = round(clip.width * scale), round(clip.height * scale)
    heads = align_heads(points, scale)

    def shrink(image: np.ndarray) -> np.ndarray:
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    ids = np.unique(np.linspace(0, clip.frames - 1, options.samples).round().astype(int))
    samples = list(read_numbered(images, clip, ids=ids))
    persons = [cv2.resize(person, size) for person in segment_person(samples, threads=None)]
    small = [shrink(image) for image in samples]
    model = learn(small, persons, [heads[i] for i in ids], options.rounds)
    backdrop = learn_backdrop(small, persons)
    del samples, persons, small

    def score(frame: tuple[np.ndarray, np.ndarray, Pose]) -> tuple[np.ndarray, np.ndarray]:
        image, person, pose = frame
        small = shrink(image)
        bins = color_bins(small)
        person = apply_backdrop(cv2.resize(person, size), small, bins, backdrop)
        return outline(image, person), posterior(model, bins, person, pose)

    first, second = tee(read_numbered(images, clip))
    segmented = zip(first, segment_person(second, threads=None), heads, strict=True)
    scores = with_neighbors(ordered_map(score, segmented))
    yield from ordered_map(lambda three: label(*smooth(three)), scores)
