"""Streaming renderer: an avatar, a dataset and a drive become frames, a few batches at a time.

Only the head is 3D: it is composited over the torso of the dataset frame that it replays, and that
over the plate, or over whatever else stands behind the person.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from talker.avatar.model import Avatar
from talker.avatar.speech_encoder import CONTEXT, speech_context
from talker.core.parallel import one_thread, ordered_map
from talker.dataset import Dataset
from talker.errors import UserError

Draw = Callable[[Tensor, Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor]]
"""speech, eye, viewmats, Ks, height, width -> rgb, alpha: those of `Avatar.forward`"""

BATCH = {"cuda": 32, "cpu": 8}
GPU_WORKERS = 2
"""One batch is drawn while the last one comes back from the GPU."""
MAX_WORKERS = 8


class Windows(Protocol):
    """float32 [M, 16, C], an array or a file: len(windows), windows[i:j]."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Drive:
    """What drives each of N output frames."""

    frames: np.ndarray
    """int64 [N], the dataset frame whose torso and plate are shown"""
    windows: Windows
    """float32 [M, 16, C], the driving speech"""
    heard: np.ndarray
    """int64 [N], the window that belongs to the output frame; its neighbours give the context"""
    eye: np.ndarray | None = None
    """float32 [N], 0 open .. 1 closed; None: those of the dataset's frames"""
    viewmats: np.ndarray | None = None
    """float32 [N, 4, 4]; None: those of the dataset's frames"""
    expression: np.ndarray | None = None
    """float32 [N, 10] instead of what the speech tells"""
    expression_scale: float = 1.0

    def __len__(self) -> int:
        return len(self.frames)


def load_avatar(folder: Path) -> Avatar:
    """Read an avatar, onto the GPU if there is one; UserError if `folder` holds none."""
    return Avatar.load(folder, "cuda" if torch.cuda.is_available() else "cpu")


def avatar_dataset(folder: Path, avatar: Avatar) -> Dataset:
    """Read the dataset that an avatar is shown on.

    Raises:
        UserError: something of it is missing, or its speech features are not the avatar's.
    """
    config = avatar.config
    dataset = Dataset.load(folder, config.image_size, config.encoder)
    if (found := dataset.speech.shape[-1]) != config.speech_features:
        raise UserError(
            f"{folder}: expected speech features ({config.encoder}) of {config.speech_features} "
            f"channels, as the avatar was trained on, found {found}; make them with the options "
            "of then, or train anew"
        )
    return dataset


def render_frames(
    avatar: Avatar,
    dataset: Dataset,
    drive: Drive,
    batch: int,
    plates: Iterator[np.ndarray] | None = None,
    transparent: bool = False,
    live: Draw | None = None,
) -> Iterator[np.ndarray]:
    """Render a drive, a few batches ahead of use.

    Args:
        avatar: that of the subject.
        dataset: of the subject.
        drive: of N frames.
        batch: frames rendered at once; 0 takes `BATCH`.
        plates: what stands behind the person in each frame, uint8 [H, W, 3]; None: the plate.
        transparent: nothing stands there.
        live: of `live_avatar`, for drives of a few frames; it takes no expressions.

    Yields:
        RGB uint8 [H, W, 3], or RGBA uint8 [H, W, 4] (not premultiplied) if transparent.
    """
    avatar.eval()
    device = next(avatar.parameters()).device
    batch = batch or BATCH[device.type]
    with torch.inference_mode():
        shared = avatar.shared() if live is None else None

    def behind(job: tuple[int, np.ndarray | None]) -> np.ndarray:
        """Premultiplied colours, and alpha if transparent, uint8 [H, W, 3 or 4]."""
        i, plate = job
        if transparent:
            return dataset.torso(i)
        return dataset.background(i) if plate is None else _over(dataset.torso(i), plate)

    @torch.inference_mode()
    def render(job: tuple[slice, list[np.ndarray]]) -> np.ndarray:
        part, layers = job
        ids = drive.frames[part]
        eye = dataset.eye[ids] if drive.eye is None else drive.eye[part]
        viewmats = dataset.viewmats[ids] if drive.viewmats is None else drive.viewmats[part]
        conditions = (
            torch.from_numpy(eye).to(device),
            torch.from_numpy(viewmats).to(device),
            torch.from_numpy(dataset.K).to(device).expand(len(ids), 3, 3),
            dataset.height,
            dataset.width,
        )
        speech = _context(drive.windows, drive.heard[part]).to(device)
        if live is not None:
            rgb, alpha = live(speech, *conditions)
        elif drive.expression is not None:
            told = torch.from_numpy(drive.expression[part]).to(device)
            rgb, alpha = avatar.animate(drive.expression_scale * told, *conditions, shared)
        elif drive.expression_scale != 1:
            told = avatar.speech_encoder(speech)
            rgb, alpha = avatar.animate(drive.expression_scale * told, *conditions, shared)
        else:
            rgb, alpha = avatar(speech, *conditions, shared)
        head = torch.cat([rgb, alpha], -1) if transparent else rgb
        behind_it = torch.from_numpy(np.stack(layers)).to(device).float().div(255)
        colours = head + (1 - alpha) * behind_it
        if transparent:
            colours[..., :3] /= colours[..., 3:].clamp_min(1e-6)
        return colours.clamp(0, 1).mul(255).round().byte().cpu().numpy()

    def jobs() -> Iterator[tuple[slice, list[np.ndarray]]]:
        ids = map(int, drive.frames)
        layers = ordered_map(behind, zip(ids, plates or repeat(None), strict=False), decoders)
        for start in range(0, len(drive), batch):
            part = slice(start, min(start + batch, len(drive)))
            yield part, list(islice(layers, part.stop - start))

    decoders = min(torch.get_num_threads(), MAX_WORKERS)
    workers = decoders if device.type != "cuda" else GPU_WORKERS if live is None else 1
    # Whole batches in threads of their own: torch's threads wait for each other at every one of
    # the many small operations (measured: three times the CPU time).
    with one_thread():
        for frames in ordered_map(render, jobs(), workers):
            yield from frames


def _over(torso: np.ndarray, plate: np.ndarray) -> np.ndarray:
    """Premultiplied RGBA over RGB, uint8."""
    rest = cv2.cvtColor(255 - cv2.extractChannel(torso, 3), cv2.COLOR_GRAY2RGB)
    return torso[..., :3] + cv2.multiply(plate, rest, scale=1 / 255)


def _context(windows: Windows, heard: np.ndarray) -> Tensor:
    """`speech_context`, reading only the windows it needs (they may be on disk)."""
    first = max(int(heard.min()) - CONTEXT // 2, 0)
    last = int(heard.max()) + CONTEXT // 2
    near = np.array(windows[first:last], np.float32)
    return speech_context(torch.from_numpy(near), torch.from_numpy(heard - first))
