"""Let one process at a time produce the outputs of a job, and keep a journal of the jobs."""

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from talker.core.files import file_lock, held
from talker.errors import UserError

logger = logging.getLogger(__name__)

TIMESTAMP_RESOLUTION = 0.02
"""Time in seconds by which the modification time of a file may lie before the time of writing."""


@contextmanager
def exclusive(outputs: Sequence[Path], work: str, inputs: Sequence[Path] = ()) -> Iterator[bool]:
    """Hold the lock of the first output while this process produces all of them.

    If Snakemake is killed, its jobs keep running, and the next run starts the same jobs again. The
    new jobs wait here, and find nothing left to do if the old ones finished the same work on the
    same inputs. The lock file is a journal with one line for the start and one for the end of every
    job: the time, host:pid, the event and `work`.

    Args:
        outputs: files and folders to produce; if there are none, nothing is locked.
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
            logger.info("Another process has already written %s.", outputs[0])
            yield False
            return
        _record(journal, "start", work)
        held.add(first)
        try:
            yield True
        except BaseException:
            with suppress(OSError):  # on a full disk, this entry is missing
                _record(journal, "failed", work)
            raise
        finally:
            held.remove(first)
        _record(journal, "done", work)


def _refuse_foreign(outputs: Sequence[Path]) -> None:
    """Raise UserError if an output would replace something that this program did not write."""
    for path in outputs:
        if path.is_dir() and any(path.iterdir()):
            raise UserError(
                f"{path} is a folder with files, and writing this output would delete them. "
                "Choose another folder, or remove this one."
            )
        if path.is_file() and not path.suffix:
            raise UserError(
                f"{path} is a file, but a folder with this name is needed. Choose another path."
            )


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
