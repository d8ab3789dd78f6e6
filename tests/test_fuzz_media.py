"""Damaged media files end in a clear message; the harness that proves it catches every fault."""

import subprocess
import sys
import time
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
    """In a process of its own: children of this one would share its memory limit with torch."""
    command = [sys.executable, fuzz_media.__file__, "--count=120", "--seed=1", "--jobs=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    total = next(line for line in done.stdout.splitlines() if line.startswith("| all |"))
    runs, accepted, refused = map(int, total.split("|")[2:5])
    assert runs == accepted + refused == 240
    assert min(accepted, refused) > 60
