"""Run stages under faults of the machine, and compare their outputs after a second run.

`python scripts/faults.py` makes a small subject and runs every stage with a full or slow disk, with
a read-only folder, without file locks, with too little memory, twice at once, and killed at random
moments. The stage must succeed, end with one sentence, or be killed; in the last two cases it must
leave no visible file. A second run without the fault must give the same bytes as an undisturbed
run. Mounting needs root. The exit status is 1 if a case fails.
"""

import argparse
import errno
import fcntl
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import mediapipe.python.solutions.selfie_segmentation  # noqa: F401 - once, before the forks
import torch
from fuzz_files import STAGES
from fuzzing import OUTCOMES, Case, Run, run_limited

from talker.core.boundary import allocate_blas_buffers, watch_for_crashes

WRITING = (
    *(
        "audio",
        "speech",
        "landmarks",
        "parsing",
        "blink",
        "shots",
        "fit",
        "track",
        "overlay",
        "background",
    ),
    *(
        "layers",
        "verify",
        "lipsync",
        "check",
        "train",
        "render",
        "evaluate",
        "report",
        "pack",
        "bundle",
        "adopt",
    ),
)
"""Stages that write files, by their names in `fuzz_files.STAGES`."""
DATED = ("pack", "bundle")
"""Stages whose output holds the time at which it was written, so that its bytes differ."""
TINY_DISK, SMALL_DISK = "16k", "120k"
"""Sizes of the file systems that are full before or while an output is written."""
MEMORY_STEP = 256 << 20
"""Bytes that a stage may allocate in the cases with little memory, in addition to the buffers of
OpenBLAS."""


DELAY = 0.01
"""Delay of each access to a slow disk in seconds."""
FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.listdir", "os.scandir", "os.chmod"}
"""Audit events of Python that access a file system."""


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a temporary file system at an empty folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def visible(folder: Path) -> dict[str, str]:
    """Return the hash of every visible file below a folder, except for the log with its times."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name != "log.jsonl"
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def end_of(stage: str, subject: Path, out: Path) -> str:
    """Run a stage and return how it ended: accepted, refused, or the name of a fault."""
    run = Run(stage, partial(STAGES[stage], subject), leaves_nothing=False)
    return run_limited(Case("fault", 0, subject), run, out).outcome


def full_disk(size: str, stage: str, subject: Path, out: Path, rng: random.Random) -> str:
    with mounted(out, f"size={size}"):
        return end_of(stage, subject, out)


def read_only(stage: str, subject: Path, out: Path, rng: random.Random) -> str:
    with mounted(out, "ro,size=1m"):
        return end_of(stage, subject, out)


def little_memory(stage: str, subject: Path, out: Path, rng: random.Random) -> str:
    def limited(folder: Path) -> None:
        allocate_blas_buffers()  # as the command does
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        limit = pages * resource.getpagesize() + MEMORY_STEP
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        watch_for_crashes(stage)  # as the command does
        STAGES[stage](subject, folder)

    run = Run(stage, limited, leaves_nothing=False)
    outcome = run_limited(Case("fault", 0, subject), run, out).outcome
    return "refused" if outcome == "memory" else outcome


def killed(stage: str, subject: Path, out: Path, rng: random.Random) -> str:
    """Kill the stage at a random moment, without a chance to clean up."""
    moment = 10 ** rng.uniform(-2, 0.3)

    def timed(folder: Path) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, moment)
        STAGES[stage](subject, folder)

    run = Run(stage, timed, leaves_nothing=False)
    outcome = run_limited(Case("fault", 0, subject), run, out).outcome
    return "killed" if outcome == "crash" else outcome


def slow_disk(stage: str, subject: Path, out: Path, rng: random.Random) -> str:
    """Delay everything that Python asks of the file system."""

    def delayed(folder: Path) -> None:
        sys.addaudithook(lambda event, _: time.sleep(DELAY) if event in FILE_EVENTS else None)
        STAGES[stage](subject, folder)

    run = Run(stage, delayed, leaves_nothing=False)
    return run_limited(Case("fault", 0, subject), run, out).outcome


def no_locks(stage: str, subject: Path, out: Path, rng: random.Random) -> str:
    """Run the stage on a file system that refuses locks, as some network file systems do."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def unlocked(folder: Path) -> None:
        fcntl.flock = refuse
        STAGES[stage](subject, folder)

    run = Run(stage, unlocked, leaves_nothing=False)
    return run_limited(Case("fault", 0, subject), run, out).outcome


def two_at_once(stage: str, subject: Path, out: Path, rng: random.Random) -> str:
    """Run the stage twice at the same time, with the same outputs."""
    other = os.fork()
    if other == 0:
        os._exit(OUTCOMES.index(end_of(stage, subject, out)))
    ended = end_of(stage, subject, out)
    also = OUTCOMES[os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])]
    return ended if ended == also else f"{ended} and {also}"


Fault = Callable[[str, Path, Path, random.Random], str]
FAULTS: dict[str, Fault] = {
    "disk of 16 kB": partial(full_disk, TINY_DISK),
    "disk of 120 kB": partial(full_disk, SMALL_DISK),
    "read-only folder": read_only,
    "slow disk": slow_disk,
    "no locks": no_locks,
    "two runs at once": two_at_once,
    "256 MiB of memory": little_memory,
    "killed": killed,
}


def run_case(fault: str, stage: str, subject: Path, work: Path, rng: random.Random) -> str:
    """Run a stage with a fault, and again without it; return what happened."""
    reference, out = work / "reference" / stage, work / "out"
    if not reference.exists():
        reference.mkdir(parents=True)
        if (ended := end_of(stage, subject, reference)) != "accepted":
            return f"{ended} without a fault"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    ended = FAULTS[fault](stage, subject, out, rng)
    if ended not in ("accepted", "refused", "killed"):
        return ended
    whole = visible(reference) if stage not in DATED else {}
    if ended != "accepted" and not visible(out).items() <= whole.items():
        return "half-written"
    for path in out.iterdir():  # the user repeats the command
        if path.name.startswith((".images", ".checkpoints")):
            shutil.rmtree(path)
    if end_of(stage, subject, out) != "accepted":
        return "rerun failed"
    actual, expected = visible(out), visible(reference)
    same = actual.keys() == expected.keys() if stage in DATED else actual == expected
    return ended if same else "other bytes"


def main() -> None:
    """Run all cases and print a table with a row for each stage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--repeat", type=int, default=5, help="Number of times that each stage is killed."
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of the random times at which stages are killed."
    )
    parser.add_argument("--stages", nargs="*", default=WRITING, help="Stages to run.")
    parser.add_argument("--subject", type=Path, help="Dataset folder of an existing subject.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rng = random.Random(args.seed)
    failed = False
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        subject = args.subject or Path(name) / "subject"
        if args.subject is None:
            subject.mkdir()
            code = "import sys, pathlib, fuzz_files as f; f.make_subject(pathlib.Path(sys.argv[1]))"
            command = [sys.executable, "-c", code, str(subject)]
            subprocess.run(command, cwd=Path(__file__).parent, check=True)
        print(f"| stage | {' | '.join(FAULTS)} |\n|---|{'---|' * len(FAULTS)}")
        for stage in args.stages:
            cells = []
            for fault in FAULTS:
                count = args.repeat if fault == "killed" else 1
                ends = Counter(
                    run_case(fault, stage, subject, Path(name), rng) for _ in range(count)
                )
                failed |= bool(set(ends) - {"accepted", "refused", "killed"})
                cells.append(", ".join(f"{end} {n}" if n > 1 else end for end, n in ends.items()))
            print(f"| {stage} | {' | '.join(cells)} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
