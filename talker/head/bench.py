"""Measure the time and memory of tracking on a long clip made by repeating a short one.

`python -m talker.head.bench DATA [--frames 6000]` prints CPU milliseconds per frame for each
part, and the peak memory; DATA is a folder with clip.json, landmarks.npz and ori_imgs.
"""

import argparse
import dataclasses
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from talker.clip import Clip, load_per_frame
from talker.core.pca import pca
from talker.data import layout
from talker.head.camera import project
from talker.head.fitting import fit_rigid
from talker.head.flow import follow_points
from talker.head.fusion import fuse
from talker.head.morphable import MorphableHead
from talker.head.poses import unproject
from talker.media.images import read_numbered


def measure(data: Path, frames: int, expressions: int = 32) -> dict[str, float]:
    """Measure each part of tracking a clip of `frames` that plays `data` forward and backward.

    Returns:
        {part: CPU seconds}, and under `peak_gb` the peak memory of the process in GB.
    """
    clip = Clip.load(data / layout.CLIP)
    bounce = np.concatenate([np.arange(clip.frames), np.arange(clip.frames)[-2:0:-1]])
    ids = np.resize(bounce, frames)
    faces = load_per_frame(data / layout.LANDMARKS, clip.frames, "points")
    points = faces["points"][ids].astype(float)
    clip = dataclasses.replace(clip, frames=frames)
    head = MorphableHead.load()
    side = max(clip.width, clip.height)
    times: dict[str, float] = {}

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        start = time.process_time()
        yield
        times[part] = time.process_time() - start

    with timed("poses from landmarks"):
        template = head.landmarks(head.vertices.astype(float))
        bounds = 0.8 * side, 6.0 * side
        rigid = fit_rigid(points, template, clip.width, clip.height, focal_range=bounds)
    with timed("expressions"):
        meshes = unproject(rigid.viewmats, points[..., :2], rigid.mesh, rigid.K)
        pca((meshes - rigid.mesh).reshape(frames, -1), expressions)
        del meshes
    stable = rigid.mesh[rigid.stable]
    followed = np.sort(np.argsort(-rigid.weights, kind="stable")[:160])
    with timed("frames and flow"), tempfile.TemporaryDirectory() as folder:
        for i, source in enumerate(ids):
            frame = layout.FRAMES.path(data.resolve(), source)
            (Path(folder) / layout.FRAMES.file_name(i)).symlink_to(frame)
        expected = project(stable[followed], rigid.viewmats, rigid.K)
        flows = follow_points(read_numbered(Path(folder), clip), expected, (1, 5))
    with timed("fusion"):
        fuse(
            rigid.viewmats,
            points[:, rigid.stable, :2] / rigid.unit,
            stable,
            np.tile(rigid.weights, (frames, 1)),
            rigid.K / [[rigid.unit], [rigid.unit], [1.0]],
            flows[1],
            followed,
            np.ones(frames - 1, bool),
            rigid.unit,
        )
    return times | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--frames", type=int, default=6000)
    arguments = parser.parse_args()
    times = measure(arguments.data, arguments.frames)
    peak = times.pop("peak_gb")
    times["all"] = sum(times.values())
    rows = [f"{part:<22}{1000 * s / arguments.frames:8.2f} ms/frame" for part, s in times.items()]
    sys.stdout.write("\n".join([*rows, f"{'peak memory':<22}{peak:8.2f} GB"]) + "\n")


if __name__ == "__main__":
    main()
