"""Networks of MediaPipe Tasks, whose files the user downloads: segmentation and blendshapes."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from talker.media.mediapipe import lean_import, silence


def segment_classes(images: Iterable[np.ndarray], model: Path) -> Iterator[np.ndarray]:
    """Predict the class probabilities of each pixel.

    The model is loaded when this function is called.

    Args:
        images: RGB uint8 [H, W, 3].
        model: TensorFlow Lite file of an image segmenter with C classes.

    Returns:
        An iterator of float32 [C, H, W].

    Raises:
        RuntimeError, ValueError: the file is not an image segmenter.
    """
    with lean_import():
        from mediapipe.tasks.python import vision

    options = vision.ImageSegmenterOptions(
        base_options=_base_options(model), output_confidence_masks=True, output_category_mask=False
    )
    with silence():
        segmenter = vision.ImageSegmenter.create_from_options(options)

    def segment() -> Iterator[np.ndarray]:
        with segmenter:
            for image in images:
                masks = segmenter.segment(_as_mediapipe(image)).confidence_masks
                yield np.stack([mask.numpy_view() for mask in masks])

    return segment()


def predict_blendshapes(
    images: Iterable[np.ndarray], model: Path
) -> Iterator[dict[str, float] | None]:
    """Predict the blendshape weights, 0 to 1 by name, of the face in each image.

    The model is loaded when this function is called.

    Args:
        images: RGB uint8 [H, W, 3].
        model: task file of the face landmarker.

    Returns:
        An iterator of {name: weight}, None for an image without a face.

    Raises:
        RuntimeError, ValueError: the file is not a face landmarker.
    """
    with lean_import():
        from mediapipe.tasks.python import vision

    options = vision.FaceLandmarkerOptions(
        base_options=_base_options(model), output_face_blendshapes=True, num_faces=1
    )
    with silence():
        landmarker = vision.FaceLandmarker.create_from_options(options)

    def predict() -> Iterator[dict[str, float] | None]:
        with landmarker:
            for image in images:
                faces = landmarker.detect(_as_mediapipe(image)).face_blendshapes
                yield {each.category_name: each.score for each in faces[0]} if faces else None

    return predict()


def _base_options(model: Path) -> Any:
    from mediapipe.tasks.python.core.base_options import BaseOptions

    return BaseOptions(model_asset_buffer=model.read_bytes())


def _as_mediapipe(image: np.ndarray) -> Any:
    from mediapipe.python import Image, ImageFormat

    return Image(image_format=ImageFormat.SRGB, data=np.ascontiguousarray(image))
