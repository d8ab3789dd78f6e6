"""Write outputs atomically, and let one process at a time produce them.

An output is written to a temporary path next to its target and renamed when it is complete. A lock
on a file next to the target keeps other processes out. The kernel releases the lock of a process
that dies, so no stale lock ever has to be removed by hand.
"""

import errno
import fcntl
import glob
import logging
import os
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, TextIO

from talker.core import ownership
from talker.errors import UserError

logger = logging.getLogger(__name__)

OUTPUT = "output"
Output = Annotated[Path, OUTPUT]
"""Type of a stage's argument that names an output."""
Changed = Annotated[Path, "changed"]
"""Type of a stage's argument that names a file which the stage reads and extends.

Its modification time does not show whether the outputs are up to date.
"""

TIMESTAMP_RESOLUTION = 0.02
"""Time in seconds by which the modification time of a file may lie before the time of writing."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""Error numbers of `flock` on a file system that does not support locks."""
FULL_DISK_BYTES = 1 << 20
"""Free space in bytes below which a failed write is attributed to a full disk."""

_held: set[Path] = set()
"""Targets whose lock `exclusive` holds in this process."""


@contextmanager
def file_lock(target: Path) -> Iterator[tuple[TextIO, bool]]:
    """Hold the lock of `target`, and wait while another process holds it.

    The lock is on the file `.{name}.lock` next to the target. All users who may write to the folder
    may use it. On a file system without locks this logs a warning and continues without the lock.

    Yields:
        The lock file, open for reading and appending, and whether this process had to wait.

    Raises:
        UserError: the lock file belongs to another user and is not writable.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.parent / f".{target.name}.lock"
    _create_shared(path)
    with open(path, "a+", encoding="utf-8") as handle:
        waited = False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            logger.info("%s: waiting for another process that is writing it", target)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning(
                "%s: this file system does not support file locks (%s). Continuing without a lock: "
                "do not start two runs of the same subject at once.",
                target.parent,
                error.strerror,
            )
        yield handle, waited


def _create_shared(path: Path) -> None:
    """Create a lock file that everyone who may write to its folder may write to."""
    try:
        path.touch()
    except PermissionError as error:
        if not path.exists():
            raise
        raise UserError(
            f"{path}: this lock file belongs to another user and is not writable. Ask its owner to "
            "run `chmod g+w` on it, or delete it while no job is running."
        ) from error
    with suppress(PermissionError):  # only its owner may change the mode
        path.chmod(path.parent.stat().st_mode & 0o666)


@contextmanager
def exclusive(outputs: Sequence[Path], work: str, inputs: Sequence[Path] = ()) -> Iterator[bool]:
    """Hold the lock of the first output while this process produces all of them.

    If Snakemake is killed, its jobs keep running, and the next run starts the same jobs again. The
    new jobs wait here, and find nothing left to do if the old ones finished the same work on the
    same inputs. The lock file is a journal with one line for the start and one for the end of every
    job: the time, host:pid, the event and `work`.

    Args:
        outputs: files and folders to produce; without any there is no lock.
        work: identifies the work, such as a hash of code and options; without spaces.
        inputs: files, or folders of which only the direct files are considered. Outputs older than
            an input are out of date.

    Yields:
        Whether the outputs have to be produced.

    Raises:
        UserError: these outputs were never produced here before, and one of them is a folder that
            contains files, or a file where a folder is expected.
    """
    if not outputs:
        yield True
        return
    first = outputs[0].resolve()
    with file_lock(first) as (journal, waited):
        journal.seek(0)
        *_, started, ended = ["", "", *journal.read().splitlines()]
        if not ended:
            _refuse_foreign(outputs)
        if (
            waited
            and ended.endswith(f" done {work}")
            and all(path.exists() for path in outputs)
            and _newest(inputs) + TIMESTAMP_RESOLUTION <= float(started.split()[0])
        ):
            logger.info("%s: already written by the other process", outputs[0])
            yield False
            return
        _record(journal, "start", work)
        _held.add(first)
        try:
            yield True
        except BaseException:
            with suppress(OSError):  # on a full disk the journal ends with the start
                _record(journal, "failed", work)
            raise
        finally:
            _held.remove(first)
        _record(journal, "done", work)


def _refuse_foreign(outputs: Sequence[Path]) -> None:
    """Raise UserError if an output would replace something that this program did not write."""
    for path in outputs:
        if path.is_dir() and any(path.iterdir()):
            raise UserError(
                f"{path}: this folder contains files, which would be lost. Choose another folder, "
                "or remove this one."
            )
        if path.is_file() and not path.suffix:
            raise UserError(f"{path}: expected the path of a folder to create, found a file")


def _newest(inputs: Sequence[Path]) -> float:
    """Return the latest modification time of files and of the direct, visible files of folders."""
    files = (file for path in inputs for file in (path.iterdir() if path.is_dir() else [path]))
    visible = (file for file in files if file.is_file() and not file.name.startswith("."))
    return max((file.stat().st_mtime for file in visible), default=0.0)


def _record(journal: TextIO, event: str, work: str) -> None:
    try:
        journal.write(f"{time.time():.3f} {socket.gethostname()}:{os.getpid()} {event} {work}\n")
        journal.flush()
    except OSError as error:
        error.filename = journal.name
        raise


@contextmanager
def atomic_write(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path for each target; rename all of them when the block succeeds.

    A temporary path is inside a new folder next to its target and has the target's name, so
    suffixes are kept. It may become a file or a folder, with the permissions that the umask
    allows. If the block raises, nothing remains. Temporary folders of a killed process are removed
    by the next call.

    Raises:
        FileNotFoundError: the block did not write one of the paths; no target is replaced.
        OSError: the block failed while the disk was full (errno ENOSPC).
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
            folder = target.parent / f"{prefix}{uuid.uuid4().hex[:8]}"
            folder.mkdir()
            folders.append(folder)
        scratch = tuple(
            folder / target.name for folder, target in zip(folders, targets, strict=True)
        )
        yield scratch
        for path in scratch:
            _apply_umask(path)  # raises if the path was not written
        for path, target in zip(scratch, targets, strict=True):
            ownership.record(path, target)
        for path, target in zip(scratch, targets, strict=True):
            if target.is_dir():
                target.rename(path.parent / "replaced")
            os.replace(path, target)
            ownership.confirm(target)
    except UserError:
        raise
    except Exception as error:
        if shutil.disk_usage(targets[0].parent).free < FULL_DISK_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(targets[0])) from error
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(targets[0])
        raise
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _apply_umask(path: Path) -> None:
    """Grant the permissions that the umask allows; some libraries write files with mode 0600."""
    allowed = stat.S_IMODE(path.parent.stat().st_mode)  # mkdir applied the umask
    mode = stat.S_IMODE(path.stat().st_mode)
    wider = mode | (allowed & (0o777 if path.is_dir() else 0o666))
    if wider != mode:
        path.chmod(wider)
    if path.is_dir():
        for child in path.iterdir():
            if not child.is_symlink():
                _apply_umask(child)
