"""Record which outputs talker wrote, so that no file of the user is replaced or deleted.

Every output has a manifest next to it, `.NAME.made`, with a line for each file: the hash of its
content, its size in bytes, its modification time in nanoseconds and its name. An output without a
manifest, or with different content, is the user's: it was copied there, edited, or written by
another program. The workflow reads the manifests at every start, so this module imports nothing
heavy.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

Entry = tuple[str, int, int]
"""Hash, size in bytes and modification time in nanoseconds of a file."""


def record(made: Path, target: Path) -> None:
    """Write the manifest of an output that is about to be renamed from `made` to `target`.

    The previous manifest stays valid until `confirm` is called, so that after an interruption there
    is a valid manifest for the old or the new output.
    """
    _write(_pending(target), _lines(_files(made)))


def confirm(target: Path) -> None:
    """Replace the previous manifest, after the output was renamed."""
    os.replace(_pending(target), _manifest(target))
    _mark(target).unlink(missing_ok=True)


@contextlib.contextmanager
def adding_to(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; add its files to `folder` when the block ends without an error.

    The files are listed in a second manifest of the folder. Files of the user are kept.
    """
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}.talker-", dir=folder.parent
    ) as scratch:
        yield Path(scratch)
        files = dict(_files(Path(scratch)))
        known = _entries(folder)
        earlier_version = not known and (folder.parent / f".{folder.name}.lock").exists()
        kept = {
            name
            for name in files
            if (folder / name).exists()
            and not earlier_version
            and not _matches(folder / name, known[name])
        }
        _write(_added(folder), _lines(files.items()))
        for name in files.keys() - kept:
            os.replace(files[name], folder / name)
    if kept:
        logger.info("%s: kept %d files that talker did not write", folder, len(kept))


def foreign_outputs(outputs: Sequence[Path]) -> list[Path]:
    """Return those existing outputs of a job that talker did not write.

    A folder with a manifest counts as written by talker. Comparing all its files takes too long
    here, so that is left to `foreign_files`, which marks the folder if some files do not match. In
    projects of earlier versions, where no output has a manifest, the journal of the job decides.
    """
    existing = [path for path in outputs if path.exists()]
    if not existing:
        return []
    if not any(_manifests(path) for path in outputs):
        return [] if any(_was_finished(path) for path in outputs) else existing
    return [path for path in existing if not _is_own(path)]


def foreign_files(folder: Path) -> list[str]:
    """Return the names of the files in a folder that differ from what talker wrote.

    If there are any, the folder is marked, so that `foreign_outputs` compares its files from then
    on. Hidden files are ignored. A folder without a manifest has no foreign files.
    """
    known = _entries(folder) if _manifests(folder) else None
    names = [
        name
        for name, path in _files(folder)
        if known is not None and not _matches(path, known[name])
    ]
    if names:
        _mark(folder).touch()
    return names


def content_of(path: Path) -> str:
    """Return a string that changes with the content of a file or the file list of a folder."""
    return str(path.stat().st_mtime_ns) if path.is_dir() else _hash(path)


def _is_own(path: Path) -> bool:
    manifests = _manifests(path)
    if not manifests or path.is_symlink():
        return False
    if path.is_dir():
        return not (_mark(path).exists() and foreign_files(path))
    entries = _entries(path)[path.name]
    if not _matches(path, entries):
        return False
    if path.stat().st_mtime_ns not in {time for *_, time in entries}:
        _append(manifests[0], _lines([(path.name, path)]))  # compare the content only once
    return True


def _matches(path: Path, entries: Sequence[Entry]) -> bool:
    status = path.stat()
    same_size = [entry for entry in entries if entry[1] == status.st_size]
    if any(time == status.st_mtime_ns for *_, time in same_size):
        return True
    return bool(same_size) and _hash(path) in {digest for digest, *_ in same_size}


def _manifest(output: Path, part: str = "") -> Path:
    return output.parent / f".{output.name}.made{part}"


def _pending(output: Path) -> Path:
    return _manifest(output, ".new")


def _added(folder: Path) -> Path:
    return _manifest(folder, ".added")


def _mark(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.changed"


def _manifests(output: Path) -> list[Path]:
    """Return the existing manifests of an output as it was written."""
    return [file for file in (_manifest(output), _pending(output)) if file.exists()]


def _was_finished(output: Path) -> bool:
    """Return whether the journal of an output records the end of a job."""
    with contextlib.suppress(OSError):
        return " done " in (output.parent / f".{output.name}.lock").read_text(encoding="utf-8")
    return False


def _entries(output: Path) -> defaultdict[str, list[Entry]]:
    """Return {name: entries} of all files that talker wrote as `output` or added to it."""
    entries: defaultdict[str, list[Entry]] = defaultdict(list)
    for manifest in [*_manifests(output), _added(output)]:
        text = (
            manifest.read_text(encoding="utf-8", errors="surrogateescape")
            if manifest.exists()
            else ""
        )
        for line in text.split("\n"):
            if line:
                digest, size, time, name = line.split(" ", 3)
                entries[name].append((digest, int(size), int(time)))
    return entries


def _lines(files: Iterable[tuple[str, Path]]) -> str:
    lines = []
    for name, path in files:
        status = path.stat()
        lines.append(f"{_hash(path)} {status.st_size} {status.st_mtime_ns} {name}\n")
    return "".join(lines)


def _write(manifest: Path, text: str) -> None:
    manifest.unlink(missing_ok=True)  # it may belong to another user of a shared folder
    manifest.write_text(text, encoding="utf-8", errors="surrogateescape")


def _append(manifest: Path, text: str) -> None:
    with contextlib.suppress(OSError), open(manifest, "a", encoding="utf-8") as file:
        file.write(text)


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _files(output: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and path of an output file, or of all visible files in an output folder."""
    if not output.is_dir():
        yield output.name, output
        return
    for folder, _, names in os.walk(output):
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(folder, name)
                yield path.relative_to(output).as_posix(), path
