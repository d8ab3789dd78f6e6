"""Distinguish files that talker wrote from those of the user, which are never replaced or deleted.

An output without a manifest (`talker.core.files`), or with different content, belongs to
the user, who copied, edited or wrote it with another program. The workflow reads the manifests at
every start, so this module only imports modules that load fast.
"""

import contextlib
import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from talker.core.files import (
    changed_mark,
    content_hash,
    files_of,
    flush,
    manifest_lines,
    manifest_of,
    pending_manifest,
    write_manifest,
)
from talker.errors import counted

logger = logging.getLogger(__name__)

Entry = tuple[str, int, int]
"""Hash, size in bytes and modification time in nanoseconds of a file."""


@contextlib.contextmanager
def adding_to(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; add its files to `folder` when the block ends without an error.

    The files are listed in a second manifest of the folder. Files of the user are kept.
    """
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}.talker-", dir=folder.parent
    ) as scratch:
        yield Path(scratch)
        files = dict(files_of(Path(scratch)))
        known = _entries(folder)
        earlier_version = not known and (folder.parent / f".{folder.name}.lock").exists()
        kept = {
            name
            for name in files
            if (folder / name).exists()
            and not earlier_version
            and not _matches(folder / name, known[name])
        }
        flush(Path(scratch))
        write_manifest(_added(folder), manifest_lines(files.items()))
        for name in files.keys() - kept:
            os.replace(files[name], folder / name)
    if kept:
        logger.info("Kept %s (not written by talker) in %s.", counted(len(kept), "file"), folder)


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
    names = differing_files(folder)
    if names:
        changed_mark(folder).touch()
    return names


def remove_own(folder: Path) -> list[Path]:
    """Delete the outputs below a folder, the records about them, and folders that are then empty.

    Returns:
        The files that remain because talker did not write them.
    """
    for manifest in sorted(folder.rglob(".*.made*")):
        output = manifest.with_name(manifest.name[1:].rpartition(".made")[0])
        if output.exists() and not output.is_symlink():
            known = _entries(output)
            for name, path in files_of(output):
                if not path.is_symlink() and _matches(path, known[name]):
                    path.unlink()
    for pattern in (".*.made*", ".*.lock", ".*.changed", ".snakemake_timestamp"):
        for path in folder.rglob(pattern):
            path.unlink()
    for parent in sorted([folder, *folder.rglob("*")], reverse=True):
        with contextlib.suppress(OSError):  # it is a file, or not empty
            parent.rmdir()
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def differing_files(output: Path) -> list[str]:
    """Return the names of the files of an output that differ from what talker wrote.

    Hidden files are ignored. An output without a manifest has no such files.
    """
    if not _manifests(output):
        return []
    known = _entries(output)
    return [name for name, path in files_of(output) if not _matches(path, known[name])]


def content_of(path: Path) -> str:
    """Return a string that changes with the content of a file or with the user's files in a folder.

    Files that talker added to the folder do not count. Files in a folder are compared by their
    size and modification time.
    """
    if not path.is_dir():
        return content_hash(path)
    known = _entries(path)
    states = [
        f"{name} {file.stat().st_size} {file.stat().st_mtime_ns}"
        for name, file in files_of(path)
        if not _matches(file, known[name])
    ]
    return "\n".join(sorted(states))


def _is_own(path: Path) -> bool:
    manifests = _manifests(path)
    if not manifests or path.is_symlink():
        return False
    if path.is_dir():
        return not (changed_mark(path).exists() and foreign_files(path))
    entries = _entries(path)[path.name]
    if not _matches(path, entries):
        return False
    if path.stat().st_mtime_ns not in {time for *_, time in entries}:
        _append(manifests[0], manifest_lines([(path.name, path)]))  # compare the content only once
    return True


def _matches(path: Path, entries: Sequence[Entry]) -> bool:
    status = path.stat()
    same_size = [entry for entry in entries if entry[1] == status.st_size]
    if any(time == status.st_mtime_ns for *_, time in same_size):
        return True
    return bool(same_size) and content_hash(path) in {digest for digest, *_ in same_size}


def _added(folder: Path) -> Path:
    return manifest_of(folder, ".added")


def _manifests(output: Path) -> list[Path]:
    """Return the existing manifests of an output, complete or pending."""
    return [file for file in (manifest_of(output), pending_manifest(output)) if file.exists()]


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


def _append(manifest: Path, text: str) -> None:
    with contextlib.suppress(OSError), open(manifest, "a", encoding="utf-8") as file:
        file.write(text)
