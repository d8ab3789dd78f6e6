"""The training frames of a clip, cropped to where the head ever is and kept where training is fast.

They lie on the GPU as bytes where they fit, else in host memory, from where a thread brings the
next batch through pinned memory while the GPU works on this one.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from talker.avatar.speech_prior import expression_targets, rest_expression
from talker.core.progress import progress
from talker.dataset import Dataset
from talker.errors import UserError
from talker.head.landmarks68 import OUTER_LIPS, mouth_opening

CROP_MARGIN = 0.08
CROP_MULTIPLE = 16
WORKING_MEMORY = 12 * 2**30
"""bytes of a GPU that training itself may need; images get the rest"""


class Targets(NamedTuple):
    """What B rendered crops are compared with."""

    frame: Tensor
    """uint8 [B, H, W, 3]"""
    background: Tensor
    """uint8 [B, H, W, 3]"""
    mask: Tensor
    """uint8 [B, H, W], how much of a pixel is head"""
    lips: Tensor
    """int64 [B, 4], the box x0, y0, x1, y1 of the lips"""


@dataclass(frozen=True)
class TrainingSet:
    """The training split, cropped; everything but the images is on the device of `ids`."""

    frame: Tensor
    """uint8 [N, H, W, 3]"""
    background: Tensor
    """uint8 [N, H, W, 3]"""
    mask: Tensor
    """uint8 [N, H, W]"""
    lips: Tensor
    """int64 [N, 4], the box x0, y0, x1, y1 of the lips in the crop"""
    viewmats: Tensor
    """[N, 4, 4]"""
    K: Tensor
    """[3, 3] of the crop"""
    eye: Tensor
    """[N]"""
    windows: Tensor
    """all speech windows [T, 16, C]"""
    ids: Tensor
    """int64 [N], frame numbers"""
    expression: Tensor
    """[N, 10], what the speech is to tell"""
    rest: Tensor
    """[10], the expression of a closed mouth"""
    silence: Tensor
    """[C], the speech features of a pause; none where they are not known"""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the crop."""
        return self.frame.shape[1], self.frame.shape[2]

    def targets(self, rows: Tensor) -> Targets:
        """The images of `rows`, int64 [B] on any device, on the device of `ids`."""
        device, picked = self.ids.device, []
        there = rows.to(device, non_blocking=True)
        for images in (self.frame, self.background, self.mask):
            if images.device == device:
                picked.append(images[there])
                continue
            batch = torch.empty((len(rows), *images.shape[1:]), dtype=torch.uint8, pin_memory=True)
            torch.index_select(images, 0, rows.cpu(), out=batch)
            picked.append(batch.to(device, non_blocking=True))
        frame, background, mask = picked
        return Targets(frame, background, mask, self.lips[there])


class Prefetch:
    """Hands out the targets of one step after the other, those in host memory ahead of use."""

    def __init__(self, subset: TrainingSet, rows: Callable[[int], Tensor]) -> None:
        """`rows` tells the rows of a step."""
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


def crop_box(ever: np.ndarray) -> tuple[int, int, int, int]:
    """The box x0, y0, x1, y1 around the true pixels of [H, W], with a margin."""
    height, width = ever.shape
    spans = []
    for covered, limit in ((ever.any(0), width), (ever.any(1), height)):
        inside = np.flatnonzero(covered)
        margin = math.ceil(CROP_MARGIN * (inside[-1] - inside[0]))
        low = max(inside[0] - margin, 0)
        wanted = math.ceil((inside[-1] + 1 + margin - low) / CROP_MULTIPLE) * CROP_MULTIPLE
        low = max(min(low, limit - wanted), 0)
        spans.append((int(low), int(min(low + wanted, limit))))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def lip_boxes(landmarks: np.ndarray, height: int, width: int) -> np.ndarray:
    """The square around the outer lips (GaussianTalker): [N, 68, 2] -> int64 [N, 4]."""
    lips = landmarks[:, OUTER_LIPS]
    low, high = lips.min(1), lips.max(1)
    centre, half = (low + high) / 2, ((high - low).max(-1, keepdims=True) / 2)
    box = np.concatenate([centre - half, centre + half], axis=1).round().astype(np.int64)
    limit = np.array([width, height, width, height])
    box = box.clip(0, limit)
    box[:, 2:] = np.maximum(box[:, 2:], np.minimum(box[:, :2] + 1, limit[2:]))
    return box


def training_set(data: Dataset, device: torch.device) -> TrainingSet:
    """Decode the training split on all cores, one frame after the other onto the device.

    Raises:
        UserError: no training frame shows a head.
    """
    ids = data.train_ids
    masks = np.empty((len(ids), data.height, data.width), np.uint8)

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    with ThreadPoolExecutor() as pool:

        def fill(job: Callable[[int], None], name: str) -> None:
            for _ in progress(pool.map(job, range(len(ids))), name, total=len(ids)):
                pass

        def mask_of(row: int) -> None:
            masks[row] = data.head_mask(int(ids[row]))

        fill(mask_of, "head masks")
        ever = masks.any(0)
        if not ever.any():
            raise UserError(f"{data.folder}: no training frame has head pixels in parsing/*.png")
        x0, y0, x1, y1 = crop_box(ever)
        height, width = y1 - y0, x1 - x0
        home = device if _fits(7 * len(ids) * height * width, device) else torch.device("cpu")
        frame, background = (
            torch.empty(len(ids), height, width, 3, dtype=torch.uint8, device=home)
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
    silence = np.empty(0, np.float32) if data.silence is None else data.silence
    return TrainingSet(
        frame=frame,
        background=background,
        mask=torch.from_numpy(masks[:, y0:y1, x0:x1].copy()).to(home),
        lips=put(lip_boxes(data.landmarks[ids] - (x0, y0), height, width)),
        viewmats=put(data.viewmats[ids]),
        K=put(K),
        eye=put(data.eye[ids]),
        windows=put(data.speech),
        ids=put(ids),
        expression=expression.to(device),
        rest=rest_expression(expression, mouth_opening(data.landmarks[ids])).to(device),
        silence=put(silence),
    )


def _fits(size: int, device: torch.device) -> bool:
    """Whether bytes can stay on the device for the whole training."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size + WORKING_MEMORY <= free
