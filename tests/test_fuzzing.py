"""The harness that runs stages on mutated files recognizes each outcome."""

import time
from pathlib import Path

import fuzzing
import numpy as np
import pytest
from fuzzing import Case, Run

from talker.errors import UserError

CASE = Case("canary", 0, Path("a.mp4"))


def accept(out: Path) -> None:
    (out / "result").touch()


def refuse(out: Path) -> None:
    raise UserError("clear")


def fail(out: Path) -> None:
    raise IndexError("bug")


def crash(out: Path) -> None:
    import ctypes

    ctypes.string_at(0)


def hang(out: Path) -> None:
    time.sleep(60)


def compute(out: Path) -> None:
    while True:
        pass


def allocate(out: Path) -> None:
    np.ones(1 << 29)  # 4 GiB


def leave(out: Path) -> None:
    (out / "half").touch()
    raise UserError("clear")


@pytest.mark.parametrize(
    ("run", "outcome"),
    [
        (Run("frames", accept), "accepted"),
        (Run("frames", refuse), "refused"),
        (Run("frames", refuse, must_refuse=True), "refused"),
        (Run("frames", accept, must_refuse=True), "silent"),
        (Run("frames", fail), "traceback"),
        (Run("frames", crash), "crash"),
        (Run("frames", hang), "hang"),
        (Run("frames", compute), "hang"),
        (Run("frames", allocate), "memory"),
        (Run("frames", leave), "leftover"),
        (Run("frames", leave, leaves_nothing=False), "refused"),
    ],
)
def test_the_harness_recognizes_each_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, outcome: str
):
    if outcome == "hang":
        monkeypatch.setattr(fuzzing, "SECONDS", 1)
    (tmp_path / "out").mkdir()
    assert fuzzing.run_limited(CASE, run, tmp_path / "out").outcome == outcome
