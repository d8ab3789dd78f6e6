"""The training frames of a clip, cropped to the region that the head covers in any of them.

They are stored as bytes on the GPU if they fit, and otherwise in host memory, from which a thread
copies the next batch through pinned memory while the GPU works on the current one. The images of a
long clip are in temporary files instead, which the system keeps in memory as far as there is room.
"""

import math
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from talker.avatar.expression import expression_targets, rest_expression
from talker.core.progress import progress
from talker.dataset import Dataset
from talker.errors import UserError
from talker.head.landmarks68 import (
    LEFT_BROW,
    LEFT_EYE,
    OUTER_LIPS,
    RIGHT_BROW,
    RIGHT_EYE,
    mouth_opening,
)

CROP_MARGIN = 0.08
"""Margin around the region of the head, relative to its width and height."""
CROP_MULTIPLE = 16
"""Width and height of the crop are multiples of this many pixels."""
REGIONS = (OUTER_LIPS, RIGHT_EYE, LEFT_EYE, RIGHT_BROW, LEFT_BROW)
"""Landmarks of the lips, of both eyes and of both brows. These small parts of the face move most,
so they have their own terms of the loss, and lips and eyes also their own Gaussians."""
MOUTH = REGIONS.index(OUTER_LIPS)
"""Index of the lips in `REGIONS`."""
EYES = slice(MOUTH + 1, MOUTH + 3)
"""Indices of the eyes in `REGIONS`."""
BROWS = slice(MOUTH + 3, len(REGIONS))
"""Indices of the brows in `REGIONS`."""
REGION_FRAMES = 32
"""Number of training frames from which the Gaussians of a region are selected."""
REGION_MARGIN = 1.15
"""Size of the area in which Gaussians belong to a region, relative to its box."""
REGION_DEPTH = 0.45
"""Depth of a region behind the surface of the face in dm: it includes teeth, tongue and eyeballs,
but not the back of the head."""
IN_MEMORY = 2**28
"""Size in bytes above which an array of images is in a temporary file instead of host memory."""
WORKING_MEMORY = 12 * 2**30
"""Bytes of GPU memory reserved for training; images are stored on the GPU if they fit the rest."""


class Targets(NamedTuple):
    """The images that B rendered crops are compared with."""

    frame: Tensor
    """uint8 [B, H, W, 3]"""
    background: Tensor
    """uint8 [B, H, W, 3]"""
    mask: Tensor
    """uint8 [B, H, W], coverage of each pixel by the head, 0..255"""
    regions: Tensor
    """int64 [B, 5, 4], boxes x0, y0, x1, y1 around the lips, each eye and each brow (`REGIONS`)"""


@dataclass(frozen=True)
class TrainingSet:
    """The N training frames, cropped; all but the images are on the device of `ids`."""

    frame: UInt8[Tensor, "N H W 3"]
    """uint8 [N, H, W, 3]"""
    background: UInt8[Tensor, "N H W 3"]
    """uint8 [N, H, W, 3]"""
    mask: UInt8[Tensor, "N H W"]
    """uint8 [N, H, W]"""
    regions: Int64[Tensor, "N 5 4"]
    """int64 [N, 5, 4], boxes x0, y0, x1, y1 around the lips, each eye and each brow in the crop"""
    viewmats: Float[Tensor, "N 4 4"]
    """[N, 4, 4], world to camera"""
    K: Float[Tensor, "3 3"]
    """[3, 3], intrinsics of the crop in pixels"""
    eye: Float[Tensor, "N 2"]
    """[N, 2], eye closure and raise of the brows"""
    windows: Float[Tensor, "T 16 C"]
    """[T, 16, C], speech windows of all frames of the clip"""
    ids: Int64[Tensor, "N"]
    """int64 [N], frame ids"""
    expression: Float[Tensor, "N 10"]
    """[N, 10], tracked expressions, which are predicted from speech"""
    opening: Float[Tensor, "N"]
    """[N], mouth opening relative to the distance of the outer eye corners"""
    rest: Float[Tensor, "10"]
    """[10], expression of a closed mouth"""
    silence: Float[Tensor, "channels"]
    """[C], speech features of a pause; [0] where they are unknown"""
    speech_scale: Tensor
    """[C], standard deviation of each speech component before it was whitened; 1 where unknown"""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the crop in pixels."""
        return self.frame.shape[1], self.frame.shape[2]

    def targets(self, rows: Int64[Tensor, "B"]) -> Targets:
        """Return the images of `rows`, int64 [B] on any device, on the device of `ids`."""
        device, selected = self.ids.device, []
        on_device = rows.to(device, non_blocking=True)
        for images in (self.frame, self.background, self.mask):
            if images.device == device:
                selected.append(images[on_device])
                continue
            batch = torch.empty((len(rows), *images.shape[1:]), dtype=torch.uint8, pin_memory=True)
            torch.index_select(images, 0, rows.cpu(), out=batch)
            selected.append(batch.to(device, non_blocking=True))
        frame, background, mask = selected
        return Targets(frame, background, mask, self.regions[on_device])


class Prefetch:
    """Returns the targets of each step; if they are in host memory, they are copied ahead of use.

    Args:
        rows: returns the rows of a step.
    """

    def __init__(self, subset: TrainingSet, rows: Callable[[int], Tensor]) -> None:
        self.subset, self.rows = subset, rows
        self.ahead = subset.frame.device != subset.ids.device
        self.thread = ThreadPoolExecutor(1)
        self.waiting: tuple[int, Future[tuple[Targets, torch.cuda.Event]]] | None = None

    def __call__(self, step: int) -> Targets:
        if not self.ahead:
            return self.subset.targets(self.rows(step))
        if self.waiting is None or self.waiting[0] != step:
            self.waiting = step, self.thread.submit(self._fetch, step)
        targets, copied = self.waiting[1].result()
        self.waiting = step + 1, self.thread.submit(self._fetch, step + 1)
        stream = torch.cuda.current_stream()
        stream.wait_event(copied)
        for image in targets:
            image.record_stream(stream)
        return targets

    def _fetch(self, step: int) -> tuple[Targets, torch.cuda.Event]:
        copied = torch.cuda.Event()
        with torch.cuda.stream(torch.cuda.Stream(self.subset.ids.device)):
            targets = self.subset.targets(self.rows(step))
            copied.record()
        return targets, copied


def region_rows(
    subset: TrainingSet, region: int, means: Float[Tensor, "G 3"], opacities: Float[Tensor, "G"]
) -> Int64[Tensor, "N"]:
    """Return the rows [N] of the Gaussians of a region, on and behind the face.

    They are inside the boxes of the region in most frames, and less than `REGION_DEPTH` behind the
    frontmost opaque Gaussians there.

    Args:
        region: index in `REGIONS`.
        means: centers [G, 3], dm.
        opacities: logits of the opacities [G].
    """
    frames = torch.linspace(0, len(subset.ids) - 1, REGION_FRAMES, device=means.device).long()
    votes = torch.zeros(len(means), device=means.device)
    boxes = subset.regions[frames, region]
    for viewmat, box in zip(subset.viewmats[frames], boxes, strict=True):
        camera = means @ viewmat[:3, :3].T + viewmat[:3, 3]
        pixels = (camera @ subset.K.T)[:, :2] / camera[:, 2:]
        center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * REGION_MARGIN
        inside = ((pixels - center).abs() < half).all(dim=1)
        opaque = camera[inside & (opacities >= 0), 2]
        if len(opaque):
            votes += inside & (camera[:, 2] < opaque.quantile(0.1) + REGION_DEPTH)
    return (votes > REGION_FRAMES / 2).nonzero()[:, 0]


def crop_box(covered: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """Return the box x0, y0, x1, y1 around the true pixels of bool [H, W], with a margin."""
    height, width = covered.shape
    spans = []
    for along, limit in ((covered.any(0), width), (covered.any(1), height)):
        inside = np.flatnonzero(along)
        margin = math.ceil(CROP_MARGIN * (inside[-1] - inside[0]))
        low = max(inside[0] - margin, 0)
        size = math.ceil((inside[-1] + 1 + margin - low) / CROP_MULTIPLE) * CROP_MULTIPLE
        low = max(min(low, limit - size), 0)
        spans.append((int(low), int(min(low + size, limit))))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def region_boxes(
    landmarks: Float[np.ndarray, "N 68 2"], height: int, width: int
) -> Int64[np.ndarray, "N 5 4"]:
    """Return the squares around the outer lips (GaussianTalker), each eye and each brow.

    Args:
        landmarks: [N, 68, 2], pixels of an image of `height` x `width`.

    Returns:
        int64 [N, 5, 4], in the order of `REGIONS`.
    """
    boxes = [_square_boxes(landmarks[:, region], height, width) for region in REGIONS]
    return np.stack(boxes, axis=1)


def _square_boxes(
    points: Float[np.ndarray, "N P 2"], height: int, width: int
) -> Int64[np.ndarray, "N 4"]:
    """Return squares around points [N, P, 2], int64 [N, 4], inside an image."""
    low, high = points.min(1), points.max(1)
    center, half = (low + high) / 2, ((high - low).max(-1, keepdims=True) / 2)
    box = np.concatenate([center - half, center + half], axis=1).round().astype(np.int64)
    limit = np.array([width, height, width, height])
    box = box.clip(0, limit)
    box[:, 2:] = np.maximum(box[:, 2:], np.minimum(box[:, :2] + 1, limit[2:]))
    return box


def training_set(data: Dataset, device: torch.device) -> TrainingSet:
    """Decode the training split on all cores and copy it to the device, frame by frame.

    Raises:
        UserError: no training frame shows a head.
    """
    ids = data.train_ids
    masks = _allocate(len(ids), data.height, data.width)

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    with ThreadPoolExecutor() as pool:

        def fill(job: Callable[[int], None], name: str) -> None:
            for _ in progress(pool.map(job, range(len(ids))), name, total=len(ids)):
                pass

        def mask_of(row: int) -> None:
            masks[row] = data.head_mask(int(ids[row]))

        fill(mask_of, "head masks")
        covered = masks.any(0)
        if not covered.any():
            raise UserError(
                f"{data.folder} has no training frame whose mask (parsing/*.png) has head "
                "pixels. Run `talker parsing` again."
            )
        x0, y0, x1, y1 = crop_box(covered)
        height, width = y1 - y0, x1 - x0
        home = device if _fits(7 * len(ids) * height * width, device) else torch.device("cpu")
        shape = len(ids), height, width, 3
        frame, background = (
            torch.empty(shape, dtype=torch.uint8, device=home)
            if home.type == "cuda"
            else torch.from_numpy(_allocate(*shape))
            for _ in range(2)
        )

        def images_of(row: int) -> None:
            i = int(ids[row])
            frame[row] = torch.from_numpy(data.frame(i)[y0:y1, x0:x1].copy())
            background[row] = torch.from_numpy(data.background(i)[y0:y1, x0:x1].copy())

        fill(images_of, "training images")
    K = data.K.copy()
    K[:2, 2] -= (x0, y0)
    expression = expression_targets(data.expression[ids], data.eye[ids])
    opening = mouth_opening(data.landmarks[ids])
    silence = np.empty(0, np.float32) if data.silence is None else data.silence
    components = data.speech.shape[-1]
    scale = np.ones(components, np.float32) if data.speech_scale is None else data.speech_scale
    return TrainingSet(
        frame=frame,
        background=background,
        mask=torch.from_numpy(masks)[:, y0:y1, x0:x1].to(home),
        regions=put(region_boxes(data.landmarks[ids] - (x0, y0), height, width)),
        viewmats=put(data.viewmats[ids]),
        K=put(K),
        eye=put(data.eye[ids]),
        windows=put(data.speech),
        ids=put(ids),
        expression=expression.to(device),
        opening=put(opening),
        rest=rest_expression(expression, opening).to(device),
        silence=put(silence),
        speech_scale=put(scale),
    )


def _allocate(*shape: int) -> np.ndarray:
    """Return an array uint8, in a temporary file if it is large and the disk has room for it.

    The file has no name, so nothing is left if the process is killed.
    """
    size = math.prod(shape)
    if size > IN_MEMORY:
        with suppress(OSError, AttributeError), tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    return np.empty(shape, np.uint8)


def _fits(size: int, device: torch.device) -> bool:
    """Return whether `size` bytes can stay in the device's memory during training."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size + WORKING_MEMORY <= free
