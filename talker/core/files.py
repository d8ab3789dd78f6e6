"""Write outputs atomically, and record in a manifest what was written.

An output is written to a temporary path next to its target, flushed to the disk, and renamed when
it is complete. A lock on a file next to the target keeps other processes out. The kernel releases
the lock of a process that dies, so no stale lock ever has to be removed by hand.

Every output has a manifest next to it, `.NAME.made`, with a line for each file: the hash of its
content, its size in bytes, its modification time in nanoseconds and its name.
`talker.core.ownership` reads the manifests to protect the files of the user.
"""

import ctypes
import errno
import fcntl
import glob
import hashlib
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, TextIO

from talker.errors import UserError

logger = logging.getLogger(__name__)

OUTPUT = "output"
Output = Annotated[Path, OUTPUT]
"""Type of a stage's argument that names an output."""
Changed = Annotated[Path, "changed"]
"""Type of a stage's argument that names a file which the stage reads and extends.

Its modification time does not show whether the outputs are up to date.
"""

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""Error numbers of `flock` on a file system that does not support locks."""
LIBC = ctypes.CDLL(None, use_errno=True)
"""The C library of Linux; Python's `os` has no `syncfs`."""
FULL_DISK_BYTES = 1 << 20
"""Free space in bytes below which a failed write is attributed to a full disk."""

held: set[Path] = set()
"""Targets whose lock this process holds (`talker.core.exclusive`); `atomic_write` takes no lock for
them."""


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
            logger.info("Waiting for another process that is writing %s.", target)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning(
                "The file system of %s does not support file locks (%s). Continuing "
                "without a lock: do not start two runs of the same subject at once.",
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
            f"{path} is a lock file that belongs to another user, and you may not write "
            "to it. Ask its owner to run `chmod g+w` on it, or delete it while no job is "
            "running."
        ) from error
    with suppress(PermissionError):  # only its owner may change the mode
        path.chmod(path.parent.stat().st_mode & 0o666)


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
    if first in held:
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
            flush(path)
        for path, target in zip(scratch, targets, strict=True):
            record(path, target)
        for path, target in zip(scratch, targets, strict=True):
            if target.is_dir():
                target.rename(path.parent / "replaced")
            os.replace(path, target)
            confirm(target)
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


def flush(path: Path) -> None:
    """Wait until a file, or a folder and its files, are on the disk.

    Without this, a power failure can leave an empty file under the name of a finished output.

    Raises:
        OSError: the disk is full or damaged.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if not path.is_dir():
            os.fsync(descriptor)
        elif LIBC.syncfs(descriptor):  # one call, because fsync of thousands of files is slow
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)


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


def record(made: Path, target: Path) -> None:
    """Write the manifest of an output that is about to be renamed from `made` to `target`.

    The previous manifest stays valid until `confirm` is called, so that after an interruption there
    is a valid manifest for the old or the new output.
    """
    write_manifest(pending_manifest(target), manifest_lines(files_of(made)))


def confirm(target: Path) -> None:
    """Replace the previous manifest, after the output was renamed."""
    os.replace(pending_manifest(target), manifest_of(target))
    changed_mark(target).unlink(missing_ok=True)


def manifest_of(output: Path, part: str = "") -> Path:
    """Return the path of the manifest of an output, or of a part of it such as ".added"."""
    return output.parent / f".{output.name}.made{part}"


def pending_manifest(output: Path) -> Path:
    """Return the path of the manifest of an output that is being renamed."""
    return manifest_of(output, ".new")


def changed_mark(folder: Path) -> Path:
    """Return the path of the empty file that marks a folder in which the user changed files."""
    return folder.parent / f".{folder.name}.changed"


def manifest_lines(files: Iterable[tuple[str, Path]]) -> str:
    """Return the lines of a manifest for files, given as pairs of name and path."""
    lines = []
    for name, path in files:
        status = path.stat()
        lines.append(f"{content_hash(path)} {status.st_size} {status.st_mtime_ns} {name}\n")
    return "".join(lines)


def write_manifest(manifest: Path, text: str) -> None:
    """Write a manifest, which replaces an earlier one."""
    manifest.unlink(missing_ok=True)  # it may belong to another user of a shared folder
    manifest.write_text(text, encoding="utf-8", errors="surrogateescape")
    flush(manifest)


def content_hash(path: Path) -> str:
    """Return the hash of the content of a file as 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def files_of(output: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and path of an output file, or of all visible files in an output folder."""
    if not output.is_dir():
        yield output.name, output
        return
    for folder, _, names in os.walk(output):
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(folder, name)
                yield path.relative_to(output).as_posix(), path
