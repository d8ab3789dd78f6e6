"""Measure what the workflow itself costs, with empty stages: the table of docs/scaling.md.

python scripts/measure_scaling.py 1 10 100 --dry 1000
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
    """Copy the workflow, with this many subjects and an empty `talker`."""
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    names = [f"s{i}" for i in range(subjects)]
    for name in names:
        (folder / f"{name}.mp4").touch()
    rows = [f"{name}\t{name}.mp4\n" for name in names]
    (folder / "config/subjects.tsv").write_text("subject\tvideo\n" + "".join(rows))
    stage = folder / "bin/talker"
    stage.parent.mkdir()
    stage.write_text(STAGE)
    stage.chmod(0o755)


def snakemake(folder: Path, *args: str) -> tuple[float, float, float]:
    """Run snakemake; return its wall and CPU seconds and its peak memory in MB."""
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


def main(real: list[int], dry: list[int]) -> None:
    print("subjects  what        wall s   CPU s  memory MB")
    for subjects in sorted({*real, *dry}):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            workflow(folder, subjects)
            runs = {"dry run": ["--dry-run"]}
            if subjects in real:
                runs |= {"everything": [], "no-op": []}
            for what, args in runs.items():
                wall, cpu, memory = snakemake(folder, *args)
                print(f"{subjects:8}  {what:10}{wall:8.1f}{cpu:8.1f}{memory:11.0f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("subjects", type=int, nargs="*", help="run them and then again")
    parser.add_argument("--dry", type=int, nargs="*", default=[], help="only plan these")
    given = parser.parse_args()
    main(given.subjects, given.dry)
