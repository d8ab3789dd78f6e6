"""Apply a function to many frames in threads, in order and a few frames ahead of their use.

OpenCV, NumPy and the image codecs release the global interpreter lock, so threads use all cores.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import Queue
from threading import Semaphore
from typing import Any, TypeVar

MAX_THREADS = 16
"""Largest number of threads that `ordered_map` uses by default, which bounds its memory."""
ROWS_AHEAD = 4
"""Number of items that may wait for a consumer in `consume_columns`."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use.

    A scheduler such as Slurm limits a job to some of the cores of a machine. Where the system has
    no such limit, as macOS, these are all cores.
    """
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def job_threads() -> int:
    """Return the number of threads that this job should use: OMP_NUM_THREADS, or all usable cores.

    Snakemake sets OMP_NUM_THREADS to the `threads` of the job's rule. Values that are not positive
    integers are ignored.
    """
    text = os.environ.get("OMP_NUM_THREADS", "")
    limit = int(text) if text.isdecimal() and int(text) > 0 else usable_cores()
    return min(limit, usable_cores())


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Generator[Result]:
    """Yield `function(item)` for each item, in order.

    At most `2 * threads` results are kept in memory.

    Args:
        function: what the threads compute.
        items: its arguments, which the thread of the caller takes one after another.
        threads: number of threads; by default, those of the job, but at most `MAX_THREADS`.
    """
    threads = threads or min(job_threads(), MAX_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def consume_columns(
    rows: Iterable[Sequence[Item]], consumers: Sequence[Callable[[Iterator[Item]], Any]]
) -> list[Any]:
    """Give each consumer an iterator over its own column of `rows`; return what they return.

    Each consumer has its own thread, of which only as many work at a time as the job has threads.
    At most `ROWS_AHEAD` items wait for a consumer. The first error of a consumer ends the iteration
    and is raised.
    """
    turns = Semaphore(job_threads())
    queues: list[Queue[Any]] = [Queue(ROWS_AHEAD) for _ in consumers]
    errors: list[Exception] = []
    end = object()

    def column(queue: Queue[Any]) -> Iterator[Item]:
        while (item := queue.get()) is not end:
            with turns:  # until the consumer asks for the next item
                yield item

    def run(consumer: Callable[[Iterator[Item]], Any], queue: Queue[Any]) -> Any:
        items = column(queue)
        try:
            return consumer(item for item in items)
        except Exception as error:
            errors.append(error)
        finally:
            for _ in items:  # so that nothing waits for the queue of a consumer that has failed
                pass

    with ThreadPoolExecutor(len(consumers)) as pool:
        results = [pool.submit(run, *pair) for pair in zip(consumers, queues, strict=True)]
        try:
            for row in rows:
                if errors:
                    break
                for queue, item in zip(queues, row, strict=True):
                    queue.put(item)
        finally:
            for queue in queues:
                queue.put(end)
    if errors:
        raise errors[0]
    return [result.result() for result in results]


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread inside the block, for all threads that start inside it.

    Sums are then the same for any number of cores. If the caller runs several threads of its own,
    they do not wait for each other at every small operation.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Limit OpenCV to one thread inside the block, which runs several threads of its own.

    OpenCV would otherwise use all cores for every operation, whatever the `threads` of the job, and
    its threads keep cores busy while they wait for work. Such blocks must not overlap in several
    threads, because the limit belongs to the process.
    """
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
