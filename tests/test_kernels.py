"""Kernels round equally in the process that compiles them and in processes that load them.

`python test_kernels.py` renders and prints what came out, what was compiled and what was linked.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent


def run(cache: Path) -> dict[str, Any]:
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, __file__]
    done = subprocess.run(
        command, env=os.environ | environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def test_the_process_that_compiles_rounds_like_those_that_load(tmp_path: Path) -> None:
    compiled, loaded = run(tmp_path), run(tmp_path)
    assert compiled["compiled"] and not loaded["compiled"]
    assert compiled["hashes"] == loaded["hashes"]
    assert compiled["linked"] == []


def train() -> list[np.ndarray]:
    """An image, its loss and the gradients of a scene."""
    import torch
    from test_rasterize import HEIGHT, WIDTH, make_scene

    from talker.avatar.kernels.rasterize_cpu import rasterize_cpu
    from talker.avatar.losses import LossWeights, compute_loss
    from talker.avatar.training_set import Targets

    scene = make_scene().leaves()
    rgb, alpha, *_ = rasterize_cpu(*scene, WIDTH, HEIGHT)
    target = (255 * torch.rand(rgb.shape, generator=torch.Generator().manual_seed(0))).byte()
    boxes = torch.tensor([5, 5, 20, 30]).expand(len(rgb), 5, 4)
    targets = Targets(target, target.flip(0), target[..., 0], boxes)
    loss, _ = compute_loss(rgb, alpha, targets, LossWeights())
    gradients = torch.autograd.grad(loss, scene[:5])
    return [x.detach().numpy() for x in (rgb, alpha, loss, *gradients)]


def film() -> list[np.ndarray]:
    from talker.synthetic.acting import read_timings
    from talker.synthetic.subject import SyntheticSubject

    subject = SyntheticSubject.create(read_timings(ROOT / "demo/timings.json"), 1, 64)
    return list(next(subject.render()))


def kernels() -> list[Any]:
    from talker.avatar.kernels import losses_cpu, rasterize_cpu
    from talker.head import zbuffer
    from talker.synthetic import shading

    modules: list[ModuleType] = [rasterize_cpu, losses_cpu, zbuffer, shading]
    found = [item for module in modules for item in vars(module).values()]
    return [item for item in found if getattr(item, "signatures", None)]


if __name__ == "__main__":
    results = train() + film()
    compiled = [kernel for kernel in kernels() if sum(kernel.stats.cache_misses.values())]
    code = [text for kernel in compiled for text in kernel.inspect_asm().values()]
    said = {
        "hashes": [hashlib.sha256(result.tobytes()).hexdigest() for result in results],
        "compiled": [kernel.__name__ for kernel in compiled],
        "linked": [name for text in code for name in re.findall(r"\.weak\s+(_ZN6talker\w+)", text)],
    }
    print(json.dumps(said))
