"""Landmarks by FAN (Bulat and Tzimiropoulos 2017), the network of the package face-alignment."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from talker.backends.detect68 import Options, detect_with, square
from talker.backends.torch_weights import device, load_state
from talker.backends.weights import require_weights
from talker.clip import Clip
from talker.data.weights import WEIGHTS
from talker.errors import UserError

PUBLISHED = WEIGHTS["fan"]
"""The published weights."""

INPUT = 256
"""Width and height of the crop that the network is given, in pixels."""

HEATMAP = 64
"""Width and height of the heat maps that the network predicts, in pixels."""

CROP_UP = 0.03
"""Distance from the center of MediaPipe's face box up to the center of the crop, in box widths. The
network was trained with crops 0.12 box heights above the center of the landmarks' bounding box."""

CROP_SIZE = 1.79
"""Side of the crop in widths of MediaPipe's face box. The network was trained with crops of 200/195
times the sum of width and height of the landmarks' bounding box."""

# fmt: off
MIRRORED = [
    16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0,
    26, 25, 24, 23, 22, 21, 20, 19, 18, 17,
    27, 28, 29, 30, 35, 34, 33, 32, 31,
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55,
    64, 63, 62, 61, 60, 67, 66, 65,
]
# fmt: on
"""Index of each of the 68 landmarks in a mirrored image."""


def detect(clip: Clip, images: Path, options: Options) -> dict[str, np.ndarray]:
    """Detect the landmarks of one face in every frame and complete them to meshes.

    Returns:
        As `talker.backends.landmarks_mediapipe.detect`.

    Raises:
        UserError: face-alignment is not installed, or the weights are missing or wrong.
    """
    return detect_with(predictor(options.weights), clip, images, options)


def predictor(weights: str | None) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a function that maps an image and a face box to landmarks, as `predict` does.

    Raises:
        UserError: face-alignment is not installed, or the weights are missing or wrong.
    """
    return partial(predict, load(weights))


def load(weights: str | None) -> torch.nn.Module:
    """Return the network.

    Raises:
        UserError: face-alignment is not installed, or the weights are missing or wrong.
    """
    file = require_weights(weights, "fan", PUBLISHED)
    try:
        from face_alignment.models import FAN  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "The backend 'fan' needs the package face-alignment. Run `pip install face-alignment`."
        ) from error
    return load_state(FAN(4), file, PUBLISHED)


@torch.no_grad()
def predict(network: Any, image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the landmarks [68, 2] in pixels of the face in a box [4].

    The heat maps of the crop and of its mirror image are added.

    Args:
        network: maps images [N, 3, 256, 256], 0..1, to a list of heat maps [N, 68, 64, 64], of
            which the last is the best.
        image: RGB uint8 [H, W, 3].
        box: x0, y0, x1, y1 of MediaPipe's face detector.
    """
    crop = square(box, CROP_UP, CROP_SIZE)
    scale = INPUT / (crop[2] - crop[0])
    # OpenCV puts pixel centers at whole numbers, everything else here at +0.5.
    shift = scale * (0.5 - crop[:2]) - 0.5
    matrix = np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])
    pixels = cv2.warpAffine(image, matrix, (INPUT, INPUT)).transpose(2, 0, 1)
    tensor = torch.from_numpy(np.ascontiguousarray(pixels))[None].to(device()).float() / 255
    heatmaps = network(tensor)[-1] + network(tensor.flip(-1))[-1][:, MIRRORED].flip(-1)
    return crop[:2] + peaks(heatmaps[0].cpu().numpy()) * (crop[2] - crop[0]) / HEATMAP


def peaks(heatmaps: np.ndarray) -> np.ndarray:
    """Return the peaks [P, 2] of heat maps [P, H, W], pixel centers at +0.5.

    A peak is moved by a quarter of a pixel towards the higher neighbor on each axis (Newell 2016).
    """
    count, _, width = heatmaps.shape
    y, x = np.divmod(heatmaps.reshape(count, -1).argmax(axis=1), width)
    points = np.stack([x, y], axis=1) + 0.5
    padded = np.pad(heatmaps, ((0, 0), (1, 1), (1, 1)), "edge")
    each = np.arange(count)
    points[:, 0] += 0.25 * np.sign(padded[each, y + 1, x + 2] - padded[each, y + 1, x])
    points[:, 1] += 0.25 * np.sign(padded[each, y + 2, x + 1] - padded[each, y, x + 1])
    return points
