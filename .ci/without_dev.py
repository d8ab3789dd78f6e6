"""Check that the environment made by `make`, without the extra `dev`, does what the docs promise.

1. It contains neither jax nor packages for development.
2. Snakemake makes its report and loads the profile for Slurm.
3. Training, rendering and new speech import neither MediaPipe nor Snakemake.

Run it before anything installs the extra `dev`.
"""

import importlib.abc
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ABSENT = ("jax", "jaxlib", "pytest", "ruff", "beartype")
PREPARATION_ONLY = ("mediapipe", "snakemake", "jsonschema", "pygments", "matplotlib")
GIGABYTE = 1e9
LARGEST = 1.6
"""Size in gigabytes that the packages besides those of torch must not exceed."""
OF_TORCH = re.compile(r"torch|nvidia|triton|cuda|functorch")
FRAMES, SIZE = 50, 128


class Blocker(importlib.abc.MetaPathFinder):
    """Make the import of packages fail, as if they were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in PREPARATION_ONLY:
            raise ModuleNotFoundError(f"{name} must not be imported here", name=name)
        return None


def check_size() -> None:
    folder = Path(importlib.util.find_spec("numpy").origin).parents[1]
    size = {
        path: path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    parts = {
        torch: sum(
            bytes
            for path, bytes in size.items()
            if bool(OF_TORCH.match(path.relative_to(folder).parts[0])) == torch
        )
        for torch in (True, False)
    }
    print(f"torch: {parts[True] / GIGABYTE:.2f} GB; others: {parts[False] / GIGABYTE:.2f} GB")
    assert parts[False] < LARGEST * GIGABYTE


def check_workflow(folder: Path) -> None:
    """Run the workflow with a stand-in for `talker`, then make the report."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fake_workflow import Workflow

    workflow = Workflow(folder)
    environment = os.environ | workflow.environment
    for arguments in (
        [],
        ["--report", "report.zip"],
        ["--dry-run", "--forceall", "--workflow-profile", "profiles/slurm"],
    ):
        command = workflow.command(*arguments)
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    assert any(
        name.endswith("report.html") for name in zipfile.ZipFile(folder / "report.zip").namelist()
    )


def check_avatar(folder: Path) -> None:
    """Train, render and speak, with the packages blocked that only the preparation needs."""
    sys.meta_path.insert(0, Blocker())
    import numpy as np
    import yaml

    import talker
    from talker import render, speech, train
    from talker.core.config import from_mapping
    from talker.media.audio import read_wav, write_wav
    from talker.media.video_reader import probe
    from talker.synthetic.acting import read_timings
    from talker.synthetic.dataset import write_dataset
    from talker.synthetic.subject import SyntheticSubject

    subject = SyntheticSubject.create(read_timings(ROOT / "demo/timings.json"), FRAMES, SIZE)
    images, masks = map(np.stack, zip(*subject.render(), strict=True))
    samples = read_wav(ROOT / "demo/speech.wav")
    data, avatar = folder / "data", folder / "avatar"
    bodies = subject.render(body_only=True)
    write_dataset(data, subject.ground_truth(masks), images, bodies, samples[: FRAMES * 640])
    speech.main(
        wav=data / "aud.wav",
        clip=data / "clip.json",
        features=data / "aud_hama.npy",
        statistics=data / "aud_hama.npz",
    )
    options = yaml.safe_load((ROOT / "tests/smallest.yaml").read_text())["options"]["train"]
    train.main(data, avatar, folder / "checkpoints", from_mapping(train.Config, options, "options"))
    render.main(avatar=avatar, data=data, video=folder / "val.mp4", split="val")
    assert probe(folder / "val.mp4").duration > 0
    write_wav(folder / "hello.wav", samples[:16_000])
    print(talker.load(avatar, data).say(folder / "hello.wav", folder / "hello.mp4"))
    assert abs(probe(folder / "hello.mp4").duration - 1) < 0.05


if __name__ == "__main__":
    found = [name for name in ABSENT if importlib.util.find_spec(name)]
    assert not found, f"the environment contains {found}"
    check_size()
    with tempfile.TemporaryDirectory() as folder:
        for check in (check_workflow, check_avatar):
            part = Path(folder, check.__name__)
            part.mkdir()
            check(part)
            print(check.__name__, "passed", flush=True)
