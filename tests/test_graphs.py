"""The state of `rasterize_cuda.Graphs`, with a fake of CUDA graphs that works without a GPU."""

import contextlib
import importlib
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

MODULE = "talker.avatar.kernels.rasterize_cuda"


class FakeGraph:
    """Runs the work while it is captured, and nothing when it is replayed."""

    capturing = 0
    most_at_once = 0
    begun = 0

    def __init__(self) -> None:
        self.active = False

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "") -> None:
        assert not torch.is_inference_mode_enabled()
        self.active = True
        kind = type(self)
        kind.begun, kind.capturing = kind.begun + 1, kind.capturing + 1
        kind.most_at_once = max(kind.most_at_once, kind.capturing)

    def capture_end(self) -> None:
        if not self.active:
            raise RuntimeError("no capture")
        self.active = False
        type(self).capturing -= 1

    def replay(self) -> None:
        assert not self.active

    def pool(self) -> int:
        return 0


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setitem(sys.modules, "cuda.core", MagicMock())
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    FakeGraph.capturing = FakeGraph.most_at_once = FakeGraph.begun = 0
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


def twice(module: ModuleType, event: Callable[[], object] = lambda: None) -> Callable[..., Any]:
    """Return a function that doubles a length of lists, and calls `event` after the lists."""

    def work(length: Tensor) -> list[Tensor]:
        module._reserve.get()(length)
        event()
        return [2 * length]

    return work


def test_an_error_leaves_no_capture_behind(module: ModuleType) -> None:
    errors: list[Exception] = [torch.OutOfMemoryError("first call")]

    def fail() -> None:
        if errors:
            raise errors.pop()

    graphs = module.Graphs(twice(module, fail))
    with pytest.raises(torch.OutOfMemoryError, match="first call"):
        graphs(torch.tensor(3))
    assert graphs(torch.tensor(3)) == [6]
    assert FakeGraph.begun == 0, "the kernels were not compiled before the capture"
    errors.append(torch.OutOfMemoryError("capture"))
    with pytest.raises(torch.OutOfMemoryError, match="capture"):
        graphs(torch.tensor(3))
    assert FakeGraph.capturing == 0
    assert graphs(torch.tensor(4)) == [8]
    assert (FakeGraph.begun, FakeGraph.capturing) == (4, 0)


def test_an_error_at_the_end_of_the_capture_leaves_no_graph(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second graph may not fit the memory, too."""
    graphs = module.Graphs(twice(module))
    graphs(torch.tensor(3))
    end = FakeGraph.capture_end

    def no_memory(self: FakeGraph) -> None:
        end(self)
        if FakeGraph.begun == 2:
            raise RuntimeError("CUDA error: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(FakeGraph, "capture_end", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            graphs(torch.tensor(3))
    assert graphs(torch.tensor(4)) == [8]


def test_old_results_are_released_before_another_capture(module: ModuleType) -> None:
    results: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    graphs = module.Graphs(
        twice(module, lambda: alive.append(any(ref() is not None for ref in results)))
    )
    for length in (3, 3, 300):
        results.append(weakref.ref(graphs(torch.tensor(length))[0]))
    assert FakeGraph.begun == 4, "the longer lists were not captured"
    assert alive == [False] * 3


def test_graphs_of_several_threads_are_captured_one_by_one(module: ModuleType) -> None:
    work = twice(module, lambda: time.sleep(0.02))
    start = threading.Barrier(3)

    def session() -> None:
        graphs = module.Graphs(work)
        start.wait()
        with torch.inference_mode():
            for _ in range(2):
                graphs(torch.tensor(3))

    threads = [threading.Thread(target=session) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (FakeGraph.begun, FakeGraph.most_at_once) == (6, 1)
