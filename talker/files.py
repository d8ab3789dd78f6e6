"""Outputs appear whole or not at all, and one process at a time makes them.

They are written beside the target and renamed, under a lock; the kernel frees the lock of a process
that dies, so there is never one to clear away.
"""

import fcntl
import glob
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

logger = logging.getLogger(__name__)

OUTPUT = "output"
Output = Annotated[Path, OUTPUT]
"""The type of a stage's argument that names what it makes."""

_held: set[Path] = set()


@contextmanager
def locked(target: Path) -> Iterator[tuple[TextIO, bool]]:
    """Hold the lock of `target`, a sibling file; waits while another process holds it.

    Yields:
        the lock file, open for reading and appending, and whether another process had the lock.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "a+") as handle:
        waited = False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            logger.info("%s: another process is making it, waiting", target)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle, waited


@contextmanager
def making(outputs: Sequence[Path], work: str) -> Iterator[bool]:
    """Hold the lock of the first output while a process makes them all.

    After a kill of Snakemake its jobs live on, and the next run starts the same ones again: those
    wait here, and have nothing to do where the work was done meanwhile. The lock file is a journal:
    a line for every start and every end, with the time, host:pid and `work`.

    Args:
        outputs: what is made; without any there is no lock.
        work: tells equal work from other work, such as a hash of code and options; no spaces.

    Yields:
        whether there is something to do.
    """
    if not outputs:
        yield True
        return
    first = outputs[0].resolve()
    with locked(first) as (journal, waited):
        journal.seek(0)
        *_, last = ["", *journal.read().splitlines()]
        if waited and last.endswith(f" done {work}") and all(path.exists() for path in outputs):
            logger.info("%s: made by that process", outputs[0])
            yield False
            return
        _note(journal, "start", work)
        _held.add(first)
        try:
            yield True
        except BaseException:
            _note(journal, "failed", work)
            raise
        finally:
            _held.remove(first)
        _note(journal, "done", work)


def _note(journal: TextIO, event: str, work: str) -> None:
    journal.write(f"{time.time():.3f} {socket.gethostname()}:{os.getpid()} {event} {work}\n")
    journal.flush()


@contextmanager
def replacing(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Yield one scratch path for each target; rename them all when the block ends well.

    A scratch path lies in a fresh folder beside its target and has the target's name, so suffixes
    survive; it may become a file or a folder. Nothing is left behind when the block raises, and
    what a killed process left is removed by the next.
    """
    first = targets[0].resolve()
    if first in _held:
        with _scratch(targets) as paths:
            yield paths
    else:
        with locked(first), _scratch(targets) as paths:
            yield paths


@contextmanager
def _scratch(targets: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    folders: list[Path] = []
    try:
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            prefix = f".{target.name}.talker-"
            for left in target.parent.glob(f"{glob.escape(prefix)}*"):
                shutil.rmtree(left, ignore_errors=True)
            folders.append(Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent)))
        scratch = tuple(
            folder / target.name for folder, target in zip(folders, targets, strict=True)
        )
        yield scratch
        for made, target in zip(scratch, targets, strict=True):
            if target.is_dir():
                target.rename(made.parent / "replaced")
            os.replace(made, target)
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
