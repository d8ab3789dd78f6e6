"""Assign a GPU to every job that needs one, with file locks instead of a server.

The kernel releases the lock of a job that dies, so its GPU is free at once. A job that was assigned
one GPU already (by Slurm, or with `CUDA_VISIBLE_DEVICES=1 talker train ...`) keeps it.

A training uses all of a GPU. Other jobs use little of it, because they read, measure and write
files most of the time, so some of them share a GPU with each other and with a training.
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

from talker.core.compiler import require_gsplat
from talker.errors import UserError, counted

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable that lists the GPUs which CUDA may use; an empty value hides all."""
JOBS_PER_GPU = "TALKER_JOBS_PER_GPU"
"""Environment variable with the number of trainings that may share a GPU; 1 by default."""
SHARED_JOBS_PER_GPU = 4
"""Number of other jobs that may share a GPU. Each takes about 1 to 2 GB of its memory."""
SECONDS_BETWEEN_TRIES = 0.2
"""Time in seconds between two attempts to lock a GPU while all of them are taken."""


def visible_gpus() -> list[str]:
    """Return the names of the GPUs to choose from, as CUDA_VISIBLE_DEVICES spells them.

    They are listed by CUDA_VISIBLE_DEVICES if it is set, else by the driver.
    """
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    except OSError:  # not executable
        return []
    return [str(i) for i in range(listed.stdout.count("UUID:"))]


def require_usable_gpu() -> None:
    """Check that torch and gsplat can use the GPUs of a machine that has some.

    Without this check, a job would run on the CPU for days because of an old driver, or fail after
    all preparation because a compiler is missing.

    Raises:
        UserError: the driver lists GPUs, but torch or gsplat cannot use them.
    """
    gpus = visible_gpus() if shutil.which("nvidia-smi") else []
    if not gpus:
        return
    import torch  # takes seconds

    if torch.cuda.is_available():
        require_gsplat()
        return
    if torch.version.cuda is None:
        reason = f"The installed torch {torch.__version__} was built without CUDA."
        remedy = "Install a build of torch with CUDA (https://pytorch.org/get-started)"
    else:
        reason = (
            f"The installed torch {torch.__version__} needs an NVIDIA driver that supports "
            f"CUDA {torch.version.cuda}."
        )
        remedy = "Update the NVIDIA driver"
    raise UserError(
        f"This machine has {counted(len(gpus), 'NVIDIA GPU')}, but torch cannot "
        f"use {'it' if len(gpus) == 1 else 'them'}. {reason} {remedy}. To compute on the CPU "
        f"instead, set the environment variable `{VISIBLE}=` (empty), and use the preset `draft`."
    )


def jobs_per_gpu() -> int:
    """Return the number of trainings that may share a GPU: TALKER_JOBS_PER_GPU, or 1.

    Raises:
        UserError: the variable is not a positive integer.
    """
    text = os.environ.get(JOBS_PER_GPU, "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(
            f"The environment variable {JOBS_PER_GPU} is '{text}'. It must be a positive integer."
        )
    return int(text)


@contextmanager
def gpu_slot(folder: Path | None = None, shared: bool = False) -> Iterator[str | None]:
    """Take a slot of a GPU and hide the other GPUs from CUDA; wait while all slots are taken.

    The GPU with the fewest jobs of the same kind comes first. On a machine without a GPU, and if
    CUDA_VISIBLE_DEVICES names a single GPU, no slot is taken. Enter the block before CUDA is used
    for the first time; later it has no effect.

    Args:
        folder: folder of the lock files, the same for all jobs of a machine.
        shared: take one of the slots for jobs that use little of a GPU, instead of the training's.

    Yields:
        The name of the GPU, or None if no slot was taken.

    Raises:
        UserError: the folder of the lock files does not support locks.
    """
    gpus = visible_gpus()
    if not gpus or (VISIBLE in os.environ and len(gpus) == 1):
        if gpus:
            logger.info(
                "Using GPU %s on %s, as set by CUDA_VISIBLE_DEVICES.", gpus[0], socket.gethostname()
            )
        yield None
        return
    folder = folder or Path(tempfile.gettempdir(), "talker-gpus")
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)  # all users of the machine share its GPUs
    if shared:
        numbers = [f"shared.{i}" for i in range(SHARED_JOBS_PER_GPU)]
    else:
        numbers = [str(i) for i in range(jobs_per_gpu())]
    slots = list(itertools.product(numbers, gpus))
    with ExitStack() as stack:
        gpu = _take(folder, slots, stack)
        if gpu is None:
            logger.info(
                "Waiting for a GPU: the available GPUs already run %s, which is the limit.",
                counted(len(slots), "job"),
            )
        while gpu is None:
            time.sleep(SECONDS_BETWEEN_TRIES)
            gpu = _take(folder, slots, stack)
        before = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = gpu
        logger.info("Using GPU %s on %s.", gpu, socket.gethostname())
        try:
            yield gpu
        finally:
            if before is None:
                del os.environ[VISIBLE]
            else:
                os.environ[VISIBLE] = before


def _take(folder: Path, slots: list[tuple[str, str]], stack: ExitStack) -> str | None:
    """Lock the first free slot until `stack` closes; return its GPU, or None if none is free."""
    for number, gpu in slots:
        slot = folder / f"{gpu}.{number}"
        if not slot.exists():  # in /tmp, opening another user's file for writing is refused
            slot.touch(0o644)
        descriptor = os.open(slot, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"The file system of {folder} does not support file locks "
                f"({error.strerror}). Set TMPDIR to a folder on a local disk, or "
                f"{VISIBLE} to a single GPU."
            ) from error
        stack.callback(os.close, descriptor)
        return gpu
    return None
