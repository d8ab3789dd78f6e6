"""Detect faces and people with the networks in the mediapipe wheel.

Three generators take images in order and yield one result for each image: the boxes of all faces,
478-point meshes tracked from image to image, and person masks. Results are deterministic, and do
not depend on the number of threads.
"""

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from talker.core.parallel import ordered_map
from talker.errors import UserError

MESH_POINTS = 478
"""Points of the refined face mesh, irises included."""

_import_lock = threading.Lock()
_silence_lock = threading.Lock()
_silenced: list[int] = []
"""The kept descriptor of stderr, once for each block of `silence` that is active."""


def detect_faces(
    images: Iterable[np.ndarray], min_score: float = 0.5, threads: int | None = 1
) -> Iterator[np.ndarray]:
    """Detect all faces in each image independently (full-range BlazeFace, about 7 ms per image).

    Args:
        images: RGB uint8 [H, W, 3].
        min_score: smallest accepted confidence, from 0 to 1.
        threads: number of images that are processed at the same time; if None, as many as the job
            has threads.

    Yields:
        float32 [N, 5]: x0, y0, x1, y1 in pixels (possibly outside the image) and the score, in
        descending order of the score. N may be 0.
    """
    with lean_import():
        from mediapipe.python.solutions.face_detection import FaceDetection

    for image, result in _run_graph(
        lambda: FaceDetection(model_selection=1, min_detection_confidence=min_score),
        images,
        threads,
    ):
        height, width = image.shape[:2]
        boxes = []
        for detection in result.detections or ():
            box = detection.location_data.relative_bounding_box
            x0, y0 = box.xmin * width, box.ymin * height
            boxes.append(
                (x0, y0, x0 + box.width * width, y0 + box.height * height, detection.score[0])
            )
        yield np.array(sorted(boxes, key=lambda box: -box[4]), np.float32).reshape(-1, 5)


def track_meshes(images: Iterable[np.ndarray], max_faces: int = 1) -> Iterator[np.ndarray]:
    """Track faces through a video with the refined 478-point mesh (about 5 ms per face).

    Args:
        images: RGB uint8 [H, W, 3], consecutive frames; a face must take up 1/5 of the image.
        max_faces: number of faces to track; while fewer are tracked, each frame runs a detection.

    Yields:
        float32 [N, 478, 3]: x and y in pixels and z in the same scale (negative values are nearer
        than the center of the head), one mesh for each face. N may be 0.
    """
    with lean_import():
        from mediapipe.python.solutions.face_mesh import FaceMesh

    # The graph assumes square images when it maps points back from a rotated face box.
    for image, result in _run_graph(
        lambda: FaceMesh(max_num_faces=max_faces, refine_landmarks=True), map(_square, images)
    ):
        meshes = [
            [(point.x, point.y, point.z) for point in face.landmark]
            for face in result.multi_face_landmarks or ()
        ]
        yield np.array(meshes, np.float32).reshape(-1, MESH_POINTS, 3) * np.float32(len(image))


def segment_person(images: Iterable[np.ndarray], threads: int | None = 1) -> Iterator[np.ndarray]:
    """Predict the probability that each pixel shows a person (256 px network, about 9 ms).

    Args:
        images: RGB uint8 [H, W, 3].
        threads: number of images that are processed at the same time; if None, as many as the job
            has threads.

    Yields:
        float32 [H, W] from 0 to 1.
    """
    with lean_import():
        from mediapipe.python.solutions.selfie_segmentation import SelfieSegmentation

    for _, result in _run_graph(lambda: SelfieSegmentation(model_selection=0), images, threads):
        yield result.segmentation_mask


def _run_graph(
    make_graph: Any, images: Iterable[np.ndarray], threads: int | None = 1
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield each image and the result of the graph; with several threads, each has a graph."""
    graphs: list[Any] = []
    idle: list[Any] = []

    def process(image: np.ndarray) -> tuple[np.ndarray, Any]:
        graph = None
        with suppress(IndexError):
            graph = idle.pop()
        try:
            if graph is None:
                with silence():
                    graph = make_graph()
                    graphs.append(graph)
                    result = graph.process(image)
            else:
                result = graph.process(image)
        except RuntimeError as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise UserError(
                f"MediaPipe stopped: {reason}. The usual cause is too little memory."
            ) from error
        idle.append(graph)
        return image, result

    try:
        if threads == 1:
            yield from map(process, images)
        else:
            yield from ordered_map(process, images, threads)
    finally:
        for graph in graphs:
            with suppress(RuntimeError):  # a graph that has stopped reports its error again
                graph.close()


@contextmanager
def lean_import() -> Iterator[None]:
    """Import mediapipe inside the block without what only slows it down.

    - matplotlib, which takes longer to import than all the rest. MediaPipe only uses it to plot
      landmarks; it is imported then.
    - the threads of its own copy of OpenCV, which wait for each other in busy loops. The copy reads
      the variable when it is loaded. Ours has read it when it returns its number of threads.
    """
    cv2.getNumThreads()
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
    with _import_lock:  # threads that import different parts of mediapipe would wait for each other
        if "mediapipe" in sys.modules or "matplotlib" in sys.modules:
            yield
            return
        package, later = ModuleType("matplotlib"), ModuleType("matplotlib.pyplot")
        vars(later)["__getattr__"] = _attribute_of_pyplot
        vars(package)["pyplot"] = later
        modules = {module.__name__: module for module in (package, later)}
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name in modules:
                sys.modules.pop(name, None)


def _attribute_of_pyplot(name: str) -> Any:
    """Import matplotlib when one of its functions is used, but not when a module is inspected."""
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(import_module("matplotlib.pyplot"), name)


@contextmanager
def silence() -> Iterator[None]:
    """Discard stderr of native code: these graphs print warnings that no log level suppresses.

    Blocks may overlap in several threads; stderr is restored when the last of them ends. What other
    threads write to stderr meanwhile is lost, and processes that they start have no stderr.
    """
    with _silence_lock:
        if not _silenced:
            sys.stderr.flush()
            with open(os.devnull, "wb") as nowhere:
                kept = os.dup(2)
                os.dup2(nowhere.fileno(), 2)
            _silenced.append(kept)
        else:
            _silenced.append(_silenced[-1])
    try:
        yield
    finally:
        with _silence_lock:
            kept = _silenced.pop()
            if not _silenced:
                os.dup2(kept, 2)
                os.close(kept)


def _square(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:
        return image
    return np.pad(image, ((0, side - height), (0, side - width), (0, 0)))
