import os
import subprocess
import sys
import threading
import time

import cv2
import pytest

from talker.core import parallel
from talker.core.parallel import (
    MAX_THREADS,
    ROWS_AHEAD,
    consume_columns,
    job_threads,
    one_opencv_thread,
    ordered_map,
    usable_cores,
)
from talker.media.mediapipe import silence


def test_results_come_in_order_whatever_takes_long():
    def slow_first(i: int) -> int:
        time.sleep(0.02 if i % 4 == 0 else 0)
        return i * i

    assert list(ordered_map(slow_first, range(20))) == [i * i for i in range(20)]


def test_items_are_taken_only_a_few_ahead_of_use():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    results = ordered_map(abs, items(), threads=2)
    next(results)
    assert len(taken) <= 5


def test_work_is_spread_over_threads():
    both = threading.Barrier(2, timeout=5)
    assert list(ordered_map(lambda _: both.wait() >= 0, range(4), threads=2)) == [True] * 4


def test_an_error_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda i: 1 / (i - 3), range(6)))


def test_each_consumer_gets_its_column():
    rows = ((i, str(i)) for i in range(50))
    assert consume_columns(rows, [sum, "".join]) == [1225, "".join(map(str, range(50)))]


def test_rows_are_taken_only_a_few_ahead_of_the_slowest_consumer():
    taken, ahead = [], []

    def rows():
        for i in range(40):
            taken.append(i)
            yield i, i

    def slow(items):
        for i in items:
            time.sleep(0.002)
            ahead.append(len(taken) - i)

    consume_columns(rows(), [slow, sum])
    assert max(ahead) <= ROWS_AHEAD + 2


def test_the_error_of_a_consumer_ends_the_iteration_and_is_raised():
    taken = []

    def rows():
        for i in range(10_000):
            taken.append(i)
            yield i, i

    def fail(items):
        next(items)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume_columns(rows(), [list, fail])
    assert len(taken) < 10_000


def test_a_consumer_that_stops_early_does_not_block_the_others():
    rows = ((i, i) for i in range(100))
    assert consume_columns(rows, [next, sum]) == [0, 4950]


def test_only_as_many_consumers_work_as_the_job_has_threads(monkeypatch):
    monkeypatch.setattr(parallel, "job_threads", lambda: 2)
    working, most = [], []

    def work(items):
        for item in items:
            working.append(item)
            most.append(len(working))
            time.sleep(0.001)
            working.pop()

    consume_columns(((i,) * 5 for i in range(20)), [work] * 5)
    assert max(most) <= 2


def test_an_interrupted_iteration_stops_its_consumers():
    def rows():
        yield 1, 2
        raise KeyboardInterrupt

    finished = []
    with pytest.raises(KeyboardInterrupt):
        consume_columns(rows(), [lambda items: finished.append(list(items)), list])
    assert finished == [[1]]


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux binds processes to cores.")
def test_only_the_cores_of_the_job_count():
    core = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{core}])\n"
        "from talker.core.parallel import usable_cores\n"
        "print(usable_cores())"
    )
    bound = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert bound.stdout.split() == ["1"]


def test_all_cores_count_where_processes_are_not_bound(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("variable", "threads"),
    [("1", 1), ("2", 2), ("100", 3), ("0", 3), ("two", 3), ("", 3)],
)
def test_a_job_uses_the_threads_of_its_rule(variable, threads, monkeypatch):
    monkeypatch.setattr(parallel, "usable_cores", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert job_threads() == threads


@pytest.mark.parametrize(("threads", "ahead"), [(3, 6), (1000, 2 * MAX_THREADS)])
def test_the_threads_of_the_job_are_used_up_to_a_limit(threads, ahead, monkeypatch):
    monkeypatch.setattr(parallel, "job_threads", lambda: threads)
    taken = []
    next(ordered_map(taken.append, iter(range(100))))
    assert len(taken) <= ahead
    together = threading.Barrier(ahead // 2, timeout=5)
    assert all(ordered_map(lambda _: together.wait() >= 0, range(ahead)))


def test_opencv_uses_one_thread_inside_the_block_only():
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        with one_opencv_thread():
            assert cv2.getNumThreads() == 1
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_stderr_is_discarded_until_the_last_of_several_silent_blocks_ends(capfd):
    first, second = silence(), silence()
    first.__enter__()
    second.__enter__()
    os.write(2, b"discarded\n")
    first.__exit__(None, None, None)
    os.write(2, b"discarded too\n")
    second.__exit__(None, None, None)
    os.write(2, b"shown\n")
    with pytest.raises(ZeroDivisionError), silence():
        raise ZeroDivisionError
    os.write(2, b"shown again\n")
    assert capfd.readouterr().err == "shown\nshown again\n"
