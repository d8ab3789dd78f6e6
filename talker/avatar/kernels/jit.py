"""How numba kernels are compiled here, and run in parallel: work(task, n_tasks, *arrays).

Python threads that drop the GIL rather than numba's parallel loops: half the compile time, and
neither a forked child nor a second calling thread breaks them.

What a kernel calls is `inlined`, always. A function that is linked instead exists twice, by itself
and as a copy that LLVM optimised once more within its caller, and rounds differently: the process
that compiles would run the one, those that load the caller from numba's cache the other.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from numba import njit

# no "arcp" and "afn": divisions stay exact. Python's division checks would stop vectorisation.
FASTMATH = {"reassoc", "nsz", "contract", "nnan", "ninf"}
kernel = njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
inlined = njit(error_model="numpy", fastmath=FASTMATH, forceinline=True)


@cache
def _helpers(pid: int) -> ThreadPoolExecutor:
    """Threads of this process: a forked child has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count())


def run(work: Callable[..., None], *arguments: object, tasks: int | None = None) -> None:
    """Call work(task, n_tasks, *arguments) for every task at once, and wait.

    There are as many tasks as torch has threads, `tasks` at most. What it writes must not
    depend on their number.
    """
    n_tasks = min(torch.get_num_threads(), tasks or torch.get_num_threads())
    submit = _helpers(os.getpid()).submit
    others = [submit(work, task, n_tasks, *arguments) for task in range(1, n_tasks)]
    work(0, n_tasks, *arguments)
    for other in others:
        other.result()
