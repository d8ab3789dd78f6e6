"""Faces and people by the networks inside the mediapipe wheel; the only file that imports it.

Three generators take images in order and yield one result for each: boxes of all faces, 478-point
meshes that are tracked from image to image, and person masks. Same images, same bytes.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

MESH_POINTS = 478


def detect_faces(images: Iterable[np.ndarray], min_score: float = 0.5) -> Iterator[np.ndarray]:
    """Find every face, small ones too, each image on its own (full-range BlazeFace, 7 ms).

    Args:
        images: RGB uint8 [H, W, 3].
        min_score: least confidence, 0..1.

    Yields:
        float32 [N, 5]: x0, y0, x1, y1 in pixels (they may leave the image) and the score, best
        score first. N may be 0.
    """
    from mediapipe.python.solutions.face_detection import FaceDetection

    for image, answer in _answers(
        lambda: FaceDetection(model_selection=1, min_detection_confidence=min_score), images
    ):
        height, width = image.shape[:2]
        boxes = []
        for detection in answer.detections or ():
            box = detection.location_data.relative_bounding_box
            x0, y0 = box.xmin * width, box.ymin * height
            boxes.append(
                (x0, y0, x0 + box.width * width, y0 + box.height * height, detection.score[0])
            )
        yield np.array(sorted(boxes, key=lambda box: -box[4]), np.float32).reshape(-1, 5)


def track_meshes(images: Iterable[np.ndarray], max_faces: int = 1) -> Iterator[np.ndarray]:
    """Follow faces through a video with the refined 478-point mesh (5 ms a face).

    Args:
        images: RGB uint8 [H, W, 3], consecutive frames; faces of >= 1/5 of the image are found.
        max_faces: most faces to follow; fewer than these start a detection in every frame.

    Yields:
        float32 [N, 478, 3]: x, y in pixels and z in the same scale (negative is nearer than the
        head's centre), one mesh a face. N may be 0.
    """
    from mediapipe.python.solutions.face_mesh import FaceMesh

    # The graph assumes square images when it maps points back from a rotated face box.
    for image, answer in _answers(
        lambda: FaceMesh(max_num_faces=max_faces, refine_landmarks=True), map(_square, images)
    ):
        meshes = [
            [(point.x, point.y, point.z) for point in face.landmark]
            for face in answer.multi_face_landmarks or ()
        ]
        yield np.array(meshes, np.float32).reshape(-1, MESH_POINTS, 3) * np.float32(len(image))


def segment_person(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """How likely each pixel belongs to a person (256 px network, 9 ms).

    Args:
        images: RGB uint8 [H, W, 3].

    Yields:
        float32 [H, W] in 0..1.
    """
    from mediapipe.python.solutions.selfie_segmentation import SelfieSegmentation

    for _, answer in _answers(lambda: SelfieSegmentation(model_selection=0), images):
        yield answer.segmentation_mask


def _answers(make_graph: Any, images: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, Any]]:
    graph = None
    try:
        for image in images:
            if graph is None:
                with _silence():
                    graph = make_graph()
                    answer = graph.process(image)
            else:
                answer = graph.process(image)
            yield image, answer
    finally:
        if graph is not None:
            graph.close()


@contextmanager
def _silence() -> Iterator[None]:
    """Drop what native code writes to stderr: these graphs greet with warnings nobody can act on,
    before their log level can be set."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _square(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:
        return image
    return np.pad(image, ((0, side - height), (0, side - width), (0, 0)))
