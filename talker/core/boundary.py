"""Turn every exception of a command into one sentence and an exit status.

Bad input, a full disk, missing permissions, running out of memory or an interruption are explained
without a traceback. The traceback of any other exception goes to a file, for a bug report.
"""

import errno
import mmap
import os
import platform
import re
import resource
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from talker import __version__
from talker.errors import UserError

ERRNO_TEXTS = {
    errno.ENOSPC: "no space is left on the disk. Free some space, or write to another disk",
    errno.EDQUOT: "the disk quota is exceeded. Free some space, or write to another disk",
    errno.EFBIG: (
        "the file is larger than this file system or `ulimit -f` allows. Write to another disk, or "
        "run `ulimit -f unlimited`"
    ),
    errno.EROFS: "this file system is read-only. Choose a folder that you may write to",
    errno.EACCES: "permission denied. Change the permissions, or choose another path",
    errno.EPERM: "permission denied. Change the permissions, or choose another path",
    errno.EMFILE: "too many files are open. Raise the limit, for example with `ulimit -n 4096`",
    errno.ENFILE: "too many files are open on this machine. Stop other programs",
    errno.EIO: "the disk reported an input/output error. Check the disk and the cables",
    errno.ENOENT: "this file or folder does not exist. Check the path",
    errno.EEXIST: "a file exists where a folder is needed. Remove it, or choose another path",
    errno.ENOTDIR: "a file exists where a folder is needed. Remove it, or choose another path",
    errno.EISDIR: "this is a folder, but a file was expected. Choose another path",
    errno.ELOOP: "this symbolic link refers to itself. Remove it",
    errno.ESTALE: "this file was replaced on the file server. Run the command again",
}
"""What an error number of the operating system means to the user, and how to solve the problem."""

OUT_OF_MEMORY = (
    "this machine has run out of memory. Stop other programs, run fewer jobs at once "
    "(`--cores 1`), or use a shorter video"
)
OUT_OF_GPU_MEMORY = (
    "the GPU has run out of memory. Stop other programs that use it (see `nvidia-smi`), run fewer "
    "jobs at once (`jobs_per_gpu: 1`, or a smaller `--cores`), or reduce {options}"
)
GPU_MEMORY_OPTIONS = {"render": "`--batch`", "evaluate": "`--batch`"}
"""Options that reduce the GPU memory of a stage; other stages need a smaller avatar instead."""
WRITING_FAILED = (
    "a file could not be written completely. Check the free space of the disk with `df -h`"
)

EXTRAS = {
    "c2pa": "'.[c2pa]'",
    "gsplat": "'.[cuda]'",
    "fastapi": "'.[serve]'",
    "ffmpeg": "'.[ffmpeg]'",
    "imageio_ffmpeg": "'.[ffmpeg]'",
    "jsonschema": "'.[workflow]'",
    "mediapipe": "'.[prepare]'",
    "rich": "'.[workflow]'",
    "snakemake": "'.[workflow]'",
    "transformers": "'.[transformers]'",
    "uvicorn": "'.[serve]'",
    "viser": "'.[view]'",
    "websockets": "'.[view]'",
}
"""What to pass to `pip install` for an optional package, in the folder of the project."""
PACKAGES = {"cv2": "opencv-contrib-python==4.11.0.86", "yaml": "pyyaml"}
"""Names of packages whose modules have a different name."""

BLAS_MEMORY = 256 << 20
"""Address space in bytes for NumPy, SciPy and the buffers of OpenBLAS, which need about 210 MiB."""

CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP}
"""Signals that end a process because of a fault in its own code."""

_ERRNO_IN_TEXT = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_GPU_MEMORY_TEXT = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|"
    r"CUBLAS_STATUS_ALLOC_FAILED"
)
_MEMORY_TEXT = re.compile(
    r"can't allocate memory|[Cc]annot allocate memory|bad_alloc|Insufficient memory|"
    r"can't start new thread|failed to map segment|unable to allocate|out of memory",
)
_WRITE_TEXT = re.compile(r"file write failed|failed writing file|\d+ requested and \d+ written")


class Terminated(BaseException):
    """Raised in the main thread when the process receives SIGTERM."""


@contextmanager
def boundary(stage: str) -> Iterator[None]:
    """Exit with one message and the right status if the block raises.

    The status is 1 after an error, 130 after Ctrl-C, and 143 after SIGTERM. SIGTERM unwinds the
    block like Ctrl-C, so that temporary files are removed.

    Args:
        stage: name of the command, which begins the message.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt:
        _exit(f"talker {stage}: Interrupted by the user (SIGINT).", 130)
    except Terminated:
        _exit(f"talker {stage}: Terminated by another program (SIGTERM).", 143)
    except BrokenPipeError as error:
        # Python would fail again when it flushes the closed pipe at exit.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(
            f"talker {stage}: error: The program that reads "
            f"{error.filename or 'the standard output'} stopped before all output was written."
        )
    except Exception as error:
        sys.exit(f"talker {stage}: error: {explain(error, stage) or _report_bug(error, stage)}")
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _exit(message: str, status: int) -> None:
    """Print a message and exit; the message is lost if standard error is closed or full."""
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)
    raise SystemExit(status)


def explain(error: BaseException, stage: str = "") -> str | None:
    """Return what happened and what to do in one sentence or two, or None for a bug.

    The causes of `error` are explained as well, because a library may raise its own exception after
    a disk failure.
    """
    if isinstance(error, UserError):
        return str(error)
    link: BaseException | None = error
    while link is not None:
        if text := _explain_one(link, stage):
            return text
        link = link.__cause__
    return None


def _explain_one(error: BaseException, stage: str) -> str | None:
    message = str(error)
    if type(error).__name__ == "OutOfMemoryError" or _GPU_MEMORY_TEXT.search(message):
        return OUT_OF_GPU_MEMORY.format(
            options=GPU_MEMORY_OPTIONS.get(
                stage, "`gaussians`, `density.max_gaussians` or `image_size` of `train`"
            )
        )
    if isinstance(error, MemoryError) or _MEMORY_TEXT.search(message):
        return OUT_OF_MEMORY
    if isinstance(error, ImportError):
        return _explain_import(error)
    if message.startswith("Symlink loop from"):  # Python 3.12 and older raise a RuntimeError
        path = message.removeprefix("Symlink loop from ").strip("'")
        return f"{path}: {ERRNO_TEXTS[errno.ELOOP]}"
    if isinstance(error, OSError) and error.errno and error.errno in errno.errorcode:
        text = ERRNO_TEXTS.get(error.errno) or os.strerror(error.errno).lower()
        return f"{error.filename}: {text}" if error.filename else text
    if match := _ERRNO_IN_TEXT.search(message):
        number = int(match[1] or match[2])
        return ERRNO_TEXTS.get(number)
    if _WRITE_TEXT.search(message):
        return WRITING_FAILED
    return None


def _explain_import(error: ImportError) -> str | None:
    module = (error.name or "").partition(".")[0]
    if not module or module == "talker":
        return None
    package = EXTRAS.get(module) or PACKAGES.get(module, module)
    return (
        f"the Python package '{module}' cannot be imported ({error}). Install it with "
        f"`pip install {package}`"
    )


def _report_bug(error: Exception, stage: str) -> str:
    """Save the traceback of an unexpected exception; return what to tell the user.

    The file goes to the folder `logs` of the project, or to the folder for temporary files. If
    neither can be written, the traceback is printed.
    """
    first_line = (str(error).splitlines() or [""])[0]
    what = f"unexpected {type(error).__name__}: {first_line}".rstrip(": ")
    report = "\n".join(
        (
            f"command: {shlex.join(['talker', *sys.argv[1:]])}",
            f"talker {__version__}, Python {platform.python_version()}, {platform.platform()}",
            "".join(traceback.format_exception(error)),
        )
    )
    name = f"talker-{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in _report_folders():
        with suppress(OSError):
            path = folder / name
            path.write_text(report, encoding="utf-8", errors="backslashreplace")
            return (
                f"{what}. This is a bug in talker. Please report it with the file {path} and the "
                "output of `talker info`."
            )
    print(report, file=sys.stderr)
    return (
        f"{what}. This is a bug in talker. Please report it with the traceback above and the "
        "output of `talker info`."
    )


def _report_folders() -> Iterator[Path]:
    if Path("logs").is_dir():
        yield Path("logs").resolve()
    with suppress(OSError):
        yield Path(tempfile.gettempdir())


def use_writable_caches() -> None:
    """Use a private folder for compiled code if the home folder is not writable.

    Numba, Triton and torch write compiled code to the cache folder of the user. In containers it is
    often read-only or missing. Call this before these packages are imported.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if cache.is_absolute() and _is_writable(cache):
        return
    with suppress(OSError):  # if no folder is writable, writing the outputs will fail too
        private = _private_folder()
        os.environ["XDG_CACHE_HOME"] = str(private)
        os.environ.setdefault("TRITON_CACHE_DIR", str(private / "triton"))


def watch_for_crashes(stage: str) -> None:
    """Continue in a child process if the address space is limited, and report if it crashes.

    MediaPipe and torch end the process if they cannot allocate memory, without a Python exception.
    The parent then prints the reason. Otherwise, it exits with the status of the child. Call this
    before threads are started.

    Args:
        stage: name of the command, which begins the message.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return
    child = os.fork()
    if not child:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child as well
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if -status in CRASHES:
        _exit(
            f"talker {stage}: error: a library ended the process ({signal.Signals(-status).name}), "
            f"probably because `ulimit -v` limits the address space to {limit >> 20} MiB. Raise "
            "the limit, or remove it with `ulimit -v unlimited`.",
            1,
        )
    raise SystemExit(status if status >= 0 else 128 - status)


def allocate_blas_buffers() -> None:
    """Let OpenBLAS allocate its buffers if the address space is limited (`ulimit -v`).

    NumPy and SciPy each contain a copy of OpenBLAS, which allocates a buffer for every thread when
    it is first used. If the memory is exhausted then, it tries again forever. OpenBLAS is therefore
    limited to one thread. Call this before NumPy is imported, because the import uses OpenBLAS.

    Raises:
        OSError: there is not enough memory for the two packages and the buffers.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return
    mmap.mmap(-1, BLAS_MEMORY).close()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import numpy as np
    import scipy.linalg

    square = np.eye(64)
    np.dot(square, square)
    scipy.linalg.lstsq(square, square)


def _is_writable(folder: Path) -> bool:
    """Return whether a folder exists or can be created, and files can be created in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _private_folder() -> Path:
    """Return a folder for temporary files that no other user may write to.

    Caches hold code that is executed, so a folder of another user must not be used.
    """
    folder = Path(tempfile.gettempdir(), f"talker-cache-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix="talker-cache-"))
    return folder
