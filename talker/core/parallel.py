"""Run one function over many frames in threads, in order and a few frames ahead of use.

OpenCV, numpy and the image codecs release the interpreter's lock, so threads fill the cores.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = 2
) -> Iterator[Result]:
    """Yield function(item) for each item in order; at most 2 `threads` results wait in memory."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute in the calling thread alone, also in the threads that start meanwhile.

    Its sums come out the same however many cores there are, and threads of one's own do not wait
    for each other at every small operation.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
