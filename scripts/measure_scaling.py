"""Measure the overhead of the workflow for many subjects, as reported in docs/scaling.md.

python scripts/measure_scaling.py 1 10 100 --dry 1000     with stages that do nothing
python scripts/measure_scaling.py --real 100              with real stages on two seconds of video
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = ("Snakefile", "rules", "config", "workflow", "profiles", "envs", "demo", "talker")
STAGE = """#!/bin/sh
for path in "$@"; do
    case $path in
        */*.*) [ -e "$path" ] || : > "$path" ;;
        */*) mkdir -p "$path" ;;
    esac
done
"""


def workflow(folder: Path, subjects: int) -> None:
    """Copy the workflow and write a table of `subjects` subjects with an empty video each."""
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    names = [f"s{i}" for i in range(subjects)]
    for name in names:
        (folder / f"{name}.mp4").touch()
    rows = [f"{name}\t{name}.mp4\n" for name in names]
    (folder / "config/subjects.tsv").write_text(
        "subject\tvideo\n" + "".join(rows), encoding="utf-8"
    )


def empty_stages(folder: Path) -> None:
    """Write a `talker` command that only creates its outputs."""
    stage = folder / "bin/talker"
    stage.parent.mkdir()
    stage.write_text(STAGE, encoding="utf-8")
    stage.chmod(0o755)


def snakemake(folder: Path, *args: str) -> tuple[float, float, float]:
    """Run snakemake; return wall time and CPU time with its jobs in seconds, peak memory in MB."""
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "2", *args],
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, args
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure(folder: Path, subjects: int, runs: dict[str, list[str]]) -> None:
    """Run snakemake for each entry of `runs` (name: arguments) and print a row of the table."""
    for name, args in runs.items():
        wall, cpu, memory = snakemake(folder, *args)
        print(f"{subjects:8}  {name:16}{wall:8.1f}{cpu:8.1f}{memory:11.0f}", flush=True)


def real_subjects(folder: Path, subjects: int) -> None:
    """Give every subject the same synthetic video of two seconds."""
    shutil.copy(ROOT / "tests/smallest.yaml", folder / "config/config.yaml")
    shutil.move(folder / "config/subjects.tsv", folder / "subjects.tsv")
    clip = folder / "clip.mp4"
    command = [
        *(sys.executable, "-m", "talker", "synthesize", "--video", clip, "--size", "240"),
        *("--speech", ROOT / "demo/speech.wav", "--timings", ROOT / "demo/timings.json"),
        *("--truth", folder / "truth.npz", "--frames", "50"),
    ]
    subprocess.run(command, check=True, cwd=ROOT)
    for i in range(subjects):
        shutil.copy(clip, folder / f"s{i}.mp4")


def main(empty: list[int], dry: list[int], real: list[int]) -> None:
    print("subjects  run               wall s   CPU s  memory MB")
    plan, everything = {"dry run": ["--dry-run"]}, {"all jobs": [], "nothing to do": []}
    for subjects in sorted({*empty, *dry}):
        with tempfile.TemporaryDirectory() as folder:
            workflow(Path(folder), subjects)
            empty_stages(Path(folder))
            measure(Path(folder), subjects, plan | (everything if subjects in empty else {}))
    for subjects in real:
        with tempfile.TemporaryDirectory() as folder:
            workflow(Path(folder), subjects)
            real_subjects(Path(folder), subjects)
            measure(Path(folder), subjects, {"real stages": [], "nothing to do": []})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "subjects",
        type=int,
        nargs="*",
        help="How many subjects to run; several values give several runs. When a run "
        "has written its outputs, it is repeated, to measure a run with nothing to do.",
    )
    parser.add_argument(
        "--dry",
        type=int,
        nargs="*",
        default=[],
        help="Number of subjects for which the jobs are planned but not run.",
    )
    parser.add_argument(
        "--real",
        type=int,
        nargs="*",
        default=[],
        help="How many subjects to run the real stages for.",
    )
    given = parser.parse_args()
    main(given.subjects, given.dry, given.real)
