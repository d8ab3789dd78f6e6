"""Compile numba kernels and run them in parallel as work(task, n_tasks, *arrays).

Kernels run in Python threads that release the GIL, not in numba's parallel loops. This halves the
compile time, and it also works in a forked child process and with several calling threads.

Every function that a kernel calls must be `inlined`. Otherwise it would exist twice: as a linked
function, and as a copy that LLVM optimizes again inside its caller and that rounds differently. The
process that compiles the kernel would run one of them, and processes that load the kernel from
numba's cache the other.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from numba import njit

from talker.core.parallel import usable_cores

# "arcp" and "afn" are left out to keep divisions exact. The error model "numpy" is chosen because
# Python's checks of divisions would prevent vectorization.
FASTMATH = {"reassoc", "nsz", "contract", "nnan", "ninf"}
kernel = njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
inlined = njit(error_model="numpy", fastmath=FASTMATH, forceinline=True)


@cache
def _helpers(pid: int) -> ThreadPoolExecutor:
    """Return the threads of this process; a forked child does not inherit its parent's threads."""
    return ThreadPoolExecutor(usable_cores())


def run(work: Callable[..., None], *arguments: object, tasks: int | None = None) -> None:
    """Call work(task, n_tasks, *arguments) for all tasks in parallel, and wait for them.

    There are as many tasks as torch has threads, but at most `tasks`. The results of `work` must
    not depend on the number of tasks.
    """
    n_tasks = min(torch.get_num_threads(), tasks or torch.get_num_threads())
    submit = _helpers(os.getpid()).submit
    others = [submit(work, task, n_tasks, *arguments) for task in range(1, n_tasks)]
    work(0, n_tasks, *arguments)
    for other in others:
        other.result()
