"""Render the frames of an avatar that follows a drive, a few batches ahead of their use.

Only the head is 3D. It is composited over the torso of a recorded frame, and both over the
background plate or over any other background.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from talker.avatar.model import Avatar
from talker.core.parallel import one_thread, ordered_map
from talker.dataset import Dataset
from talker.errors import UserError

HeadRenderer = Callable[[Tensor, Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor]]
"""Maps expression, eye, viewmats, Ks, height and width to rgb and alpha, as
`Avatar.render_from_expression` does."""

BATCH = {"cuda": 32, "cpu": 8}
"""Default number of frames rendered at once, by device."""
GPU_WORKERS = 2
"""Number of batches in progress on a GPU: one is rendered while the previous one is copied from the
GPU."""
MAX_WORKERS = 8
"""Largest number of threads that decode layers or render on a CPU."""


@runtime_checkable
class Windows(Protocol):
    """Speech windows float32 [M, 16, C], an array or a file, of which slices are read."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Drive:
    """The inputs that determine each of N output frames."""

    background_frame_ids: Int64[np.ndarray, "N"]
    """int64 [N], recorded frames whose torso and background are shown."""
    windows: Windows
    """float32 [M, 16, C], speech windows."""
    window_ids: Int64[np.ndarray, "N"]
    """int64 [N], index of the speech window of each output frame."""
    eye: Float32[np.ndarray, "N 2"] | None = None
    """float32 [N, 2], eye closure (0 open .. 1 closed) and raise of the brows (-1 .. 1), or None
    for those of the background frames."""
    viewmats: Float32[np.ndarray, "N 4 4"] | None = None
    """float32 [N, 4, 4], or None for the recorded poses of the background frames."""
    expression: Float32[np.ndarray, "N 10"] | None = None
    """float32 [N, 10], or None to predict it from the speech."""
    expression_scale: float = 1.0
    """Factor by which the expression is multiplied."""

    def __len__(self) -> int:
        return len(self.background_frame_ids)


def load_avatar(folder: Path) -> Avatar:
    """Read an avatar, onto the GPU if there is one; UserError if `folder` contains no avatar."""
    return Avatar.load(folder, "cuda" if torch.cuda.is_available() else "cpu")


def avatar_dataset(folder: Path, avatar: Avatar) -> Dataset:
    """Read the dataset of an avatar.

    Raises:
        UserError: a file is missing, or the speech features are not those of the avatar.
    """
    config = avatar.config
    dataset = Dataset.load(folder, config.image_size, config.encoder)
    if (channels := dataset.speech.shape[-1]) != config.speech_features:
        raise UserError(
            f"The avatar was trained on speech features ({config.encoder}) with "
            f"{config.speech_features} channels, but {folder} has {channels}. Run `talker "
            "speech` with the options used for training, or train the avatar again."
        )
    return dataset


def render_frames(
    avatar: Avatar,
    dataset: Dataset,
    drive: Drive,
    batch: int,
    backgrounds: Iterator[np.ndarray] | None = None,
    transparent: bool = False,
    render_head: HeadRenderer | None = None,
) -> Iterator[np.ndarray]:
    """Render the frames of a drive, a few batches ahead of use.

    Args:
        avatar: avatar of the subject.
        dataset: dataset of the same subject.
        drive: drive of N frames.
        batch: number of frames rendered at once; 0 selects `BATCH`.
        backgrounds: images behind the person, uint8 [H, W, 3], one for each frame; None shows the
            background plate.
        transparent: show nothing behind the person.
        render_head: output of `live_avatar`, for drives of a few frames; None renders with the
            avatar itself.

    Yields:
        RGB uint8 [H, W, 3], or RGBA uint8 [H, W, 4] (not premultiplied) if transparent.
    """
    for (image,) in render_together(
        avatar, dataset, [drive], batch, backgrounds, transparent, render_head
    ):
        yield image


def render_together(
    avatar: Avatar,
    dataset: Dataset,
    drives: Sequence[Drive],
    batch: int,
    backgrounds: Iterator[np.ndarray] | None = None,
    transparent: bool = False,
    render_head: HeadRenderer | None = None,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Render several drives that show the same recorded frames, which are decoded once.

    Yields:
        One image of each drive, for every frame. `render_frames` describes them and the arguments.
    """
    avatar.eval()
    device = next(avatar.parameters()).device
    batch = batch or BATCH[device.type]
    workers = decoders = min(torch.get_num_threads(), MAX_WORKERS)
    if device.type == "cuda":
        workers = GPU_WORKERS if render_head is None else 1
    if render_head is None:
        with torch.inference_mode():
            render_head = partial(avatar.render_from_expression, shared=avatar.shared())

    def read_layer(job: tuple[int, np.ndarray | None]) -> np.ndarray:
        """Return premultiplied colors, and alpha if transparent, uint8 [H, W, 3 or 4]."""
        i, background = job
        if transparent:
            return dataset.torso(i)
        return dataset.background(i) if background is None else _over(dataset.torso(i), background)

    @torch.inference_mode()
    def render(job: tuple[Drive, slice, list[np.ndarray]]) -> np.ndarray:
        drive, part, layers = job
        inputs = head_inputs(avatar, dataset, drive, part)
        rgb, alpha = render_head(*inputs, dataset.height, dataset.width)
        head = torch.cat([rgb, alpha], -1) if transparent else rgb
        colors = head + (1 - alpha) * torch.from_numpy(np.stack(layers)).to(device).float().div(255)
        if transparent:
            colors[..., :3] /= colors[..., 3:].clamp_min(1e-6)
        return colors.clamp(0, 1).mul(255).round().byte().cpu().numpy()

    def jobs() -> Iterator[tuple[Drive, slice, list[np.ndarray]]]:
        ids = drives[0].background_frame_ids
        sources = zip(map(int, ids), backgrounds or repeat(None), strict=False)
        layers = ordered_map(read_layer, sources, decoders)
        for start in range(0, len(ids), batch):
            part = slice(start, min(start + batch, len(ids)))
            shared = list(islice(layers, part.stop - start))
            for drive in drives:
                yield drive, part, shared

    # Each batch is rendered in its own Python thread. torch's threads would wait for each other at
    # each of the many small operations and use three times the CPU time.
    with one_thread():
        rendered = ordered_map(render, jobs(), workers)
        while batches := list(islice(rendered, len(drives))):
            yield from zip(*batches, strict=True)


def head_inputs(
    avatar: Avatar, dataset: Dataset, drive: Drive, part: slice | Int64[np.ndarray, "B"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the inputs of the head renderer for some of the output frames, on the avatar's device.

    Returns:
        expression [B, 10], eye [B, 2], viewmats [B, 4, 4] and Ks [B, 3, 3], as in
        `Avatar.render_from_expression`.
    """
    device = next(avatar.parameters()).device
    ids = drive.background_frame_ids[part]
    eye = dataset.eye[ids] if drive.eye is None else drive.eye[part]
    viewmats = dataset.viewmats[ids] if drive.viewmats is None else drive.viewmats[part]
    if drive.expression is None:
        windows = _read_windows(drive.windows, drive.window_ids[part])
        expression = avatar.speech_to_expression(windows.to(device))
    else:
        expression = torch.from_numpy(drive.expression[part]).to(device)
    return (
        drive.expression_scale * expression,
        torch.from_numpy(eye).to(device),
        torch.from_numpy(viewmats).to(device),
        torch.from_numpy(dataset.K).to(device).expand(len(ids), 3, 3),
    )


def _over(
    torso: UInt8[np.ndarray, "H W 4"], background: UInt8[np.ndarray, "H W 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Composite premultiplied RGBA over RGB, uint8 [H, W, 3]."""
    rest = cv2.cvtColor(255 - cv2.extractChannel(torso, 3), cv2.COLOR_GRAY2RGB)
    return torso[..., :3] + cv2.multiply(background, rest, scale=1 / 255)


def _read_windows(windows: Windows, ids: Int64[np.ndarray, "B"]) -> Float32[Tensor, "B 16 C"]:
    """Return windows [B, 16, C] by their ids, reading only the slice that contains them."""
    first, last = int(ids.min()), int(ids.max())
    near = np.array(windows[first : last + 1], np.float32)
    return torch.from_numpy(near[ids - first])
