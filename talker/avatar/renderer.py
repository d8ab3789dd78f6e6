"""Streaming renderer: an avatar, a dataset and a drive become frames, a few batches at a time.

Only the head is 3D: it is composited over the torso and plate of the dataset frame it replays.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from talker.avatar.model import Avatar
from talker.avatar.speech_encoder import CONTEXT, speech_context
from talker.dataset import Dataset
from talker.parallel import ordered_map

GPU_WORKERS = 2
"""One batch is drawn while the next one's images are decoded."""
MAX_WORKERS = 8


@dataclass(frozen=True)
class Drive:
    """What drives each of N output frames."""

    frames: np.ndarray
    """int64 [N], the dataset frame whose pose, eyes, torso and plate are shown"""
    windows: np.ndarray
    """float32 [M, 16, C], the driving speech"""
    heard: np.ndarray
    """int64 [N], the window that belongs to the output frame; its neighbours give the context"""

    def __len__(self) -> int:
        return len(self.frames)


def load_avatar(folder: Path) -> Avatar:
    """Read an avatar, onto the GPU if there is one; UserError if `folder` holds none."""
    return Avatar.load(folder, "cuda" if torch.cuda.is_available() else "cpu")


def ping_pong(length: int, period: int) -> np.ndarray:
    """Walk 0 .. period-1 and back again, without standing still at the ends, `length` steps long.

    Returns:
        int64 [length], neighbours differ by exactly 1 (or are all 0 where period is 1).
    """
    steps = np.arange(length) % max(2 * period - 2, 1)
    return np.minimum(steps, 2 * period - 2 - steps)


def longest_run(valid: np.ndarray) -> np.ndarray:
    """The longest stretch of consecutive true entries of bool [T]: int64 ids, maybe none."""
    edges = np.diff(np.concatenate([[0], valid.astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    if len(starts) == 0:
        return np.empty(0, np.int64)
    best = int(np.argmax(ends - starts))
    return np.arange(starts[best], ends[best])


def nearest_valid(frames: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Replace each frame id that is not valid by the nearest one that is (the earlier of two)."""
    good = np.flatnonzero(valid)
    right = np.searchsorted(good, frames).clip(0, len(good) - 1)
    left = (right - 1).clip(0)
    takes_left = np.abs(frames - good[left]) <= np.abs(good[right] - frames)
    return np.where(takes_left, good[left], good[right])


def render_frames(
    avatar: Avatar, dataset: Dataset, drive: Drive, batch: int
) -> Iterator[np.ndarray]:
    """Render a drive, a few batches ahead of use: RGB uint8 [H, W, 3], frame by frame."""
    avatar.eval()
    device = next(avatar.parameters()).device
    with torch.inference_mode():
        shared = avatar.shared()

    @torch.inference_mode()
    def render(start: int) -> np.ndarray:
        ids = drive.frames[start : start + batch]
        backgrounds = torch.from_numpy(np.stack([dataset.background(int(i)) for i in ids]))
        rgb, alpha = avatar(
            _context(drive.windows, drive.heard[start : start + batch]).to(device),
            torch.from_numpy(dataset.eye[ids]).to(device),
            torch.from_numpy(dataset.viewmats[ids]).to(device),
            torch.from_numpy(dataset.K).to(device).expand(len(ids), 3, 3),
            dataset.height,
            dataset.width,
            shared,
        )
        colours = rgb + (1 - alpha) * backgrounds.to(device).float().div(255)
        return colours.clamp(0, 1).mul(255).round().byte().cpu().numpy()

    threads = torch.get_num_threads()
    workers = GPU_WORKERS if device.type == "cuda" else min(threads, MAX_WORKERS)
    # Whole batches in threads of their own: torch's threads wait for each other at every one of
    # the many small operations (measured: three times the CPU time).
    torch.set_num_threads(1)
    try:
        for frames in ordered_map(render, range(0, len(drive), batch), workers):
            yield from frames
    finally:
        torch.set_num_threads(threads)


def _context(windows: np.ndarray, heard: np.ndarray) -> Tensor:
    """`speech_context`, reading only the windows it needs (the array may be on disk)."""
    first = max(int(heard.min()) - CONTEXT // 2, 0)
    last = int(heard.max()) + CONTEXT // 2
    near = np.array(windows[first:last], np.float32)
    return speech_context(torch.from_numpy(near), torch.from_numpy(heard - first))
