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

from talker.errors import UserError

logger = logging.getLogger(__name__)

OUTPUT = "output"
Output = Annotated[Path, OUTPUT]
"""The type of a stage's argument that names what it makes."""
Changed = Annotated[Path, "changed"]
"""The type of one that names what a stage reads and adds to: its age tells nothing."""

_held: set[Path] = set()


@contextmanager
def file_lock(target: Path) -> Iterator[tuple[TextIO, bool]]:
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
def exclusive(outputs: Sequence[Path], work: str, inputs: Sequence[Path] = ()) -> Iterator[bool]:
    """Hold the lock of the first output while a process makes them all.

    After a kill of Snakemake its jobs live on, and the next run starts the same ones again: those
    wait here, and have nothing to do where the work was done meanwhile, of the same inputs. The
    lock file is a journal: a line for every start and every end, with the time, host:pid and
    `work`.

    Args:
        outputs: what is made; without any there is no lock.
        work: tells equal work from other work, such as a hash of code and options; no spaces.
        inputs: files, and folders whose files count; what was made of older ones is made again.

    Yields:
        whether there is something to do.

    Raises:
        UserError: nothing was made there before, and an output is a folder with files in it, or a
            file where a folder belongs.
    """
    if not outputs:
        yield True
        return
    first = outputs[0].resolve()
    with file_lock(first) as (journal, waited):
        journal.seek(0)
        *_, started, ended = ["", "", *journal.read().splitlines()]
        for path in () if ended else outputs:
            if path.is_dir() and any(path.iterdir()):
                raise UserError(
                    f"{path}: is a folder with files in it, which would be lost; "
                    "name another one, or remove it"
                )
            if path.is_file() and not path.suffix:
                raise UserError(f"{path}: expected the path of a folder to make, found a file")
        if (
            waited
            and ended.endswith(f" done {work}")
            and all(path.exists() for path in outputs)
            and _newest(inputs) <= float(started.split()[0])
        ):
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


def _newest(inputs: Sequence[Path]) -> float:
    """When the last of these files was written; of a folder, the files that lie right in it."""
    files = (file for path in inputs for file in (path.iterdir() if path.is_dir() else [path]))
    shown = (file for file in files if file.is_file() and not file.name.startswith("."))
    return max((file.stat().st_mtime for file in shown), default=0.0)


def _note(journal: TextIO, event: str, work: str) -> None:
    journal.write(f"{time.time():.3f} {socket.gethostname()}:{os.getpid()} {event} {work}\n")
    journal.flush()


@contextmanager
def atomic_write(*targets: Path) -> Iterator[tuple[Path, ...]]:
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
        with file_lock(first), _scratch(targets) as paths:
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
        for made in scratch:
            made.stat()  # what was not made replaces nothing
        for made, target in zip(scratch, targets, strict=True):
            if target.is_dir():
                target.rename(made.parent / "replaced")
            os.replace(made, target)
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
