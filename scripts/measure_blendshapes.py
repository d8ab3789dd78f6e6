"""Measure what blendshapes lose on the held-out frames, by their number.

    python scripts/measure_blendshapes.py --data data/me --avatar results/me/avatar

For the network and each number of blendshapes, it prints the metrics of `talker evaluate` for the
head, the mouth and the eyes, the PSNR of the head against the network, and the CPU time for
deforming one frame.
"""

import time
from pathlib import Path

import numpy as np
import torch
import tyro

from talker.avatar.bake import Conditions
from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, avatar_dataset, head_inputs, load_avatar, render_frames
from talker.measure.heldout import RealFrames, compare, evaluated_ids
from talker.measure.metrics import head_box, psnr
from talker.tools.player import blendshapes_of

METRICS = (
    *("psnr_head", "psnr_mouth", "mouth_correlation", "mouth_std_ratio"),
    *("eye_correlation", "eye_std_ratio"),
)
"""Metrics of `talker evaluate` that are printed."""
RUNS = 20
"""Number of timed runs; the fastest counts."""


def milliseconds(avatar: Avatar, conditions: Conditions) -> float:
    """Return the shortest CPU time for deforming one frame, in ms."""
    shared, times = avatar.shared(), []
    for _ in range(RUNS):
        start = time.process_time()
        avatar.deform(*conditions, shared)
        times.append(time.process_time() - start)
    return 1000 * min(times)


@torch.no_grad()
def main(data: Path, avatar: Path, components: tuple[int, ...] = (64, 48, 32, 24, 16, 8)) -> None:
    """Print one line for the network and one for each number of blendshapes, the largest first."""
    torch.set_num_threads(1)
    model = load_avatar(avatar)
    dataset = avatar_dataset(data, model)
    ids = evaluated_ids(dataset)
    real = RealFrames.load(dataset, ids)
    drive = Drive(ids, dataset.speech, ids)
    boxes = [head_box(marks, dataset.height, dataset.width) for marks in dataset.landmarks[ids]]
    conditions = Conditions(*head_inputs(model, dataset, drive, slice(0, 1))[:3])
    exact: list[np.ndarray] = []
    print("blendshapes", *METRICS, "psnr_against_network", "deform_ms")
    for count in (0, *components):
        model.blendshapes = blendshapes_of(model, dataset, count) if count else None
        frames = list(render_frames(model, dataset, drive, 0))
        exact = exact or frames
        row = compare(frames, real).row
        same = [psnr(a, b, box) for a, b, box in zip(frames, exact, boxes, strict=True)]
        print(
            count,
            *(f"{row[name]:.3f}" for name in METRICS),
            f"{np.mean(same):.1f} {milliseconds(model, conditions):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    tyro.cli(main)
