"""Outputs appear whole or not at all: write beside the target, then rename, under a lock."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target` (a sibling file); waits while another process holds it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def replacing(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Yield one scratch path for each target; rename them all when the block ends well.

    A scratch path lies in a fresh folder beside its target and has the target's name, so suffixes
    survive; it may become a file or a folder. Nothing is left behind when the block raises.
    """
    folders: list[Path] = []
    with locked(targets[0]):
        try:
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
                folders.append(Path(tempfile.mkdtemp(prefix=".talker-", dir=target.parent)))
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
