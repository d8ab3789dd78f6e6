"""GPU slots: every job that needs a GPU takes one for itself, with no server and no bookkeeping.

A slot is a file lock, so a job that dies frees its slot at once. A job to which somebody assigned
one GPU already (Slurm, or `CUDA_VISIBLE_DEVICES=1 talker train ...`) keeps that one.
"""

import fcntl
import itertools
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from talker.errors import UserError

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
JOBS_PER_GPU = "TALKER_JOBS_PER_GPU"
SECONDS_BETWEEN_TRIES = 0.2


def devices() -> list[str]:
    """GPUs to choose from, by the names that CUDA_VISIBLE_DEVICES takes.

    Those of CUDA_VISIBLE_DEVICES, else those that the driver lists.
    """
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return [str(i) for i in range(listed.stdout.count("UUID:"))]


def jobs_per_gpu() -> int:
    """How many jobs may share a GPU: the environment's TALKER_JOBS_PER_GPU, else one.

    Raises:
        UserError: it is no positive integer.
    """
    text = os.environ.get(JOBS_PER_GPU, "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{JOBS_PER_GPU}: expected a positive integer, found '{text}'")
    return int(text)


@contextmanager
def gpu_slot(folder: Path | None = None) -> Iterator[str | None]:
    """Hold a slot of a GPU and make it the only one CUDA sees; waits while all are taken.

    Emptier GPUs come first. Takes nothing where there is no GPU or CUDA_VISIBLE_DEVICES names one.
    Enter it before the first use of CUDA: later it has no effect.

    Args:
        folder: where the locks are; the same for all jobs of a machine.

    Yields:
        the GPU's name, or None where nothing was taken.
    """
    choice = devices()
    if not choice or (VISIBLE in os.environ and len(choice) == 1):
        if choice:
            logger.info("GPU %s of %s, assigned", choice[0], socket.gethostname())
        yield None
        return
    folder = folder or Path(tempfile.gettempdir(), "talker-gpus")
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)  # the users of a machine share its GPUs
    slots = list(itertools.product(range(jobs_per_gpu()), choice))
    with ExitStack() as stack:
        device = _take(folder, slots, stack)
        if device is None:
            logger.info("all %d GPU slots are taken, waiting", len(slots))
        while device is None:
            time.sleep(SECONDS_BETWEEN_TRIES)
            device = _take(folder, slots, stack)
        before = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = device
        logger.info("GPU %s of %s", device, socket.gethostname())
        try:
            yield device
        finally:
            if before is None:
                del os.environ[VISIBLE]
            else:
                os.environ[VISIBLE] = before


def _take(folder: Path, slots: list[tuple[int, str]], stack: ExitStack) -> str | None:
    for number, device in slots:
        slot = folder / f"{device}.{number}"
        if not slot.exists():  # opening another user's file to create it is refused in /tmp
            slot.touch(0o644)
        descriptor = os.open(slot, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        stack.callback(os.close, descriptor)
        return device
    return None
