"""Render how much the head attends to each condition token, as videos and stills.

As in the figures of GaussianTalker (ACM MM 2024), the attention weights of the Gaussians take the
place of their colors.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from talker.avatar.bundle import disclosure_of
from talker.avatar.model import Avatar
from talker.avatar.rasterize import rasterize
from talker.avatar.renderer import BATCH, Drive, head_inputs, render_frames
from talker.core.progress import progress
from talker.dataset import Dataset
from talker.media.images import write_image
from talker.media.signature import Signature
from talker.media.video_writer import video_writer

TOKENS = ("speech", "eye", "pose", "null")
"""The condition tokens, in the order of `Avatar.tokens`."""
STILLS = 4
"""Number of stills, evenly spaced over the video."""
RANGE = (1, 99)
"""Percentiles of a token's weights, over all stills, at which its color scale begins and ends."""
MIN_SPAN = 0.02
"""Smallest span of a color scale, so that a constant weight does not become noise."""
HEADER = 24
"""Height in pixels of the line of text above a still."""
BACKDROP = 32
"""Gray level around the head."""


@dataclass(frozen=True)
class AttentionMap:
    """The attention weights of a rendered frame."""

    weights: Float32[np.ndarray, "H W 4"]
    """float32 [H, W, 4], weights of the tokens, which sum to 1 on the head"""
    alpha: Float32[np.ndarray, "H W"]
    """float32 [H, W], how much of each pixel the head covers"""


def attention_maps(
    avatar: Avatar, dataset: Dataset, drive: Drive, rows: Int64[np.ndarray, "N"], batch: int
) -> Iterator[AttentionMap]:
    """Render the attention weights of some output frames of a drive.

    Args:
        avatar: avatar of the subject.
        dataset: dataset of the same subject.
        drive: what the avatar does.
        rows: numbers of the output frames.
        batch: number of frames rendered at once; 0 selects it by device.
    """
    avatar.eval()
    with torch.inference_mode():
        shared = avatar.shared()
    batch = batch or BATCH[avatar.device.type]
    for start in range(0, len(rows), batch):
        with torch.inference_mode():
            part = rows[start : start + batch]
            expression, eye, viewmats, Ks = head_inputs(avatar, dataset, drive, part)
            splats = avatar.deform(expression, eye, viewmats, shared)
            weights = avatar.attention(expression, eye, viewmats, shared)
            colors = weights[..., :3].contiguous()  # the four weights add up to 1
            rendered = rasterize(
                splats._replace(colors=colors), viewmats, Ks, dataset.width, dataset.height
            )
            three = rendered.rgb / rendered.alpha.clamp_min(1e-6)
            maps = torch.cat([three, 1 - three.sum(-1, keepdim=True)], -1).cpu().numpy()
            alpha = rendered.alpha[..., 0].cpu().numpy()
        yield from map(AttentionMap, maps, alpha)


def write_attention(
    folder: Path,
    avatar: Avatar,
    dataset: Dataset,
    drive: Drive,
    sound: Path,
    batch: int = 0,
    crf: int = 18,
    signature: Signature | None = None,
) -> None:
    """Write a video for each token, stills, and the mean weights into `folder`.

    The files are speech.mp4, eye.mp4, pose.mp4 and null.mp4, still_N.png with the rendered frame N
    next to its four maps, and attention.json with the mean weight of each token over the head and
    the weights at both ends of its color scale.

    Args:
        folder: existing folder to write to.
        avatar: avatar of the subject.
        dataset: dataset of the same subject.
        drive: drive of N frames.
        sound: file whose audio the videos have.
        batch: number of frames rendered at once; 0 selects it by device.
        crf: constant rate factor of the videos.
        signature: certificate that the videos are signed with.
    """
    disclosure = disclosure_of(avatar, dataset, signature=signature)
    chosen = np.unique((np.arange(STILLS) * 2 + 1) * len(drive) // (2 * STILLS))
    samples = list(attention_maps(avatar, dataset, drive, chosen, batch))
    scales = color_scales(samples)
    rendered = render_frames(avatar, dataset, _rows(drive, chosen), batch)
    for i, image, sample in zip(chosen.tolist(), rendered, samples, strict=True):
        sheet = contact_sheet(image, colored(sample, scales), scales)
        write_image(folder / f"still_{i:05d}.png", sheet)
        disclosure.insert_chunk(folder / f"still_{i:05d}.png")
    every = np.arange(len(drive))
    maps = attention_maps(avatar, dataset, drive, every, batch)
    total, covered = np.zeros(len(TOKENS)), 0.0
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                video_writer(folder / f"{name}.mp4", sound, crf, disclosure=disclosure)
            )
            for name in TOKENS
        ]
        for one in progress(maps, "attention", len(drive)):
            for write, image in zip(writers, colored(one, scales), strict=True):
                write(image)
            total += (one.weights * one.alpha[..., None]).sum((0, 1), dtype=float)
            covered += float(one.alpha.sum(dtype=float))
    facts = {
        name: {
            "mean_weight": round(total[k] / max(covered, 1e-9), 4),
            "color_scale": [round(float(end), 4) for end in scales[k]],
        }
        for k, name in enumerate(TOKENS)
    }
    text = json.dumps({"frames": len(drive), "tokens": facts}, indent=1)
    (folder / "attention.json").write_text(text + "\n", encoding="utf-8")


def color_scales(samples: Sequence[AttentionMap]) -> Float32[np.ndarray, "4 2"]:
    """Return the weights of each token that get the first and the last color, float32 [4, 2]."""
    pixels = np.concatenate([one.weights[one.alpha > 0.5] for one in samples])
    if not len(pixels):
        return np.tile(np.array([0, 1], np.float32), (len(TOKENS), 1))
    ends = np.percentile(pixels, RANGE, axis=0).T
    center, span = ends.mean(1), np.maximum(np.diff(ends, axis=1)[:, 0], MIN_SPAN)
    return np.stack([center - span / 2, center + span / 2], axis=1).astype(np.float32)


def colored(
    one: AttentionMap, scales: Float32[np.ndarray, "4 2"]
) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Return one image for each token: low weights are blue, high ones red, the rest gray."""
    images = []
    opacity = one.alpha[..., None]
    for k, (low, high) in enumerate(scales):
        levels = np.clip((one.weights[..., k] - low) / (high - low), 0, 1)
        table = cv2.applyColorMap(np.round(255 * levels).astype(np.uint8), cv2.COLORMAP_TURBO)
        colors = cv2.cvtColor(table, cv2.COLOR_BGR2RGB)
        images.append(np.round(opacity * colors + (1 - opacity) * BACKDROP).astype(np.uint8))
    return images


def contact_sheet(
    image: UInt8[np.ndarray, "H W 3"],
    maps: Sequence[UInt8[np.ndarray, "H W 3"]],
    scales: Float32[np.ndarray, "4 2"],
) -> np.ndarray:
    """Put a rendered frame and its attention maps side by side, with names and scales above."""
    titles = [
        f"{name} {low:.2f}-{high:.2f}" for name, (low, high) in zip(TOKENS, scales, strict=True)
    ]
    sheet = []
    for title, picture in zip(["avatar", *titles], [image, *maps], strict=True):
        header = np.zeros((HEADER, picture.shape[1], 3), np.uint8)
        position = (4, HEADER - 8)
        cv2.putText(header, title, position, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
        sheet.append(np.vstack([header, picture]))
    return np.hstack(sheet)


def _rows(drive: Drive, rows: np.ndarray) -> Drive:
    """Return a drive of only some of the output frames."""
    names = ("background_frame_ids", "window_ids", "eye", "viewmats", "expression")
    values = {name: getattr(drive, name) for name in names}
    return replace(drive, **{k: v[rows] for k, v in values.items() if v is not None})
