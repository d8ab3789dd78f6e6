"""Damaged media files end in a clear message; the harness that proves it catches every fault."""

import time
from collections import Counter
from pathlib import Path

import fuzz_media
import numpy as np
import pytest
from fuzz_media import Case

from talker.errors import UserError


def refuse() -> None:
    raise UserError("clear")


def fail() -> None:
    raise IndexError("bug")


def crash() -> None:
    import ctypes

    ctypes.string_at(0)


def hang() -> None:
    time.sleep(60)


def allocate() -> None:
    np.ones(1 << 29)  # 4 GiB


@pytest.mark.parametrize(
    ("work", "outcome"),
    [
        (lambda: None, "accepted"),
        (refuse, "refused"),
        (fail, "traceback"),
        (crash, "crash"),
        (hang, "hang"),
        (allocate, "memory"),
    ],
    ids=fuzz_media.OUTCOMES[:6],
)
def test_the_harness_tells_each_outcome(tmp_path, monkeypatch, work, outcome):
    monkeypatch.setattr(fuzz_media, "SECONDS", 2)
    case = Case("canary", 0, Path("a.mp4"))
    (tmp_path / "out").mkdir()
    result = fuzz_media.run_limited(case, "frames", work, tmp_path / "out")
    assert result.outcome == outcome


def test_the_harness_tells_files_that_a_refusal_leaves(tmp_path):
    def leave() -> None:
        (tmp_path / "out" / "half").touch()
        refuse()

    (tmp_path / "out").mkdir()
    case = Case("canary", 0, Path("a.mp4"))
    assert fuzz_media.run_limited(case, "frames", leave, tmp_path / "out").outcome == "leftover"


def test_damaged_media_files_are_accepted_or_refused_with_a_message():
    results = fuzz_media.fuzz(count=120, seed=1, jobs=2)
    faults = [result for result in results if result.outcome in fuzz_media.FAULTS]
    outcomes = Counter(result.outcome for result in results)
    assert not faults, fuzz_media.report(results)
    assert min(outcomes["accepted"], outcomes["refused"]) > 60
