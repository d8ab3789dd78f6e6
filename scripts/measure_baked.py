"""Measure what the baked deformation loses on the held-out frames, by number of blendshapes.

    python scripts/measure_baked.py --data data/me --avatar results/me/avatar

For each number of blendshapes, it prints the PSNR of the head against the recording and against the
unbaked avatar, the PSNR of the mouth, the correlation of the mouth opening, and the time for
deforming a frame.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro

from talker.avatar.baked import BakedAvatar, training_conditions
from talker.avatar.renderer import Drive, avatar_dataset, head_inputs, load_avatar, render_frames
from talker.measure.heldout import RealFrames, compare, evaluated_ids
from talker.measure.metrics import head_box, psnr


def seconds_per_frame(deform: Callable[..., object], inputs: tuple) -> float:
    """Return the fastest of three times for deforming a batch, divided by its size, in seconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        deform(*inputs[:3])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times) / len(inputs[0])


@torch.inference_mode()
def main(data: Path, avatar: Path, components: tuple[int, ...] = (4, 8, 16, 24, 32, 48)) -> None:
    """Print one line for the unbaked avatar and one for each number of blendshapes."""
    model = load_avatar(avatar)
    dataset = avatar_dataset(data, model)
    ids = evaluated_ids(dataset)
    real = RealFrames.load(dataset, ids)
    drive = Drive(ids, dataset.speech, ids)
    boxes = [head_box(marks, dataset.height, dataset.width) for marks in dataset.landmarks[ids]]
    inputs = head_inputs(model, dataset, drive, slice(0, 8))
    shared = model.shared()
    unbaked = list(render_frames(model, dataset, drive, 0))
    row = compare(unbaked, real).row
    spent = seconds_per_frame(partial(model.deform, shared=shared), inputs)
    print("components psnr_head psnr_mouth mouth_correlation head_vs_unbaked deform_ms bake_s")
    print(
        f"unbaked {row['psnr_head']:.3f} {row['psnr_mouth']:.3f} {row['mouth_correlation']:.4f} "
        f"inf {1000 * spent:.2f} 0"
    )
    conditions = training_conditions(model, dataset)
    for count in components:
        start = time.perf_counter()
        baked = BakedAvatar(model, conditions, count)
        bake = time.perf_counter() - start
        head = baked.render_from_expression
        frames = list(render_frames(model, dataset, drive, 0, render_head=head))
        row = compare(frames, real).row
        same = [psnr(a, b, box) for a, b, box in zip(frames, unbaked, boxes, strict=True)]
        spent = seconds_per_frame(baked.deform, inputs)
        print(
            f"{count} {row['psnr_head']:.3f} {row['psnr_mouth']:.3f} "
            f"{row['mouth_correlation']:.4f} {np.mean(same):.2f} {1000 * spent:.2f} {bake:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    tyro.cli(main)
