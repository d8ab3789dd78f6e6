import threading
import time

import pytest

from talker.core.parallel import ordered_map


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
