"""The time and memory of tracking."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_an_hour_of_cpu_and_a_server_of_memory_are_not_needed(dataset: Path):
    """6,000 frames: at most 20 ms of CPU a frame and 3 GB."""
    command = [sys.executable, "-m", "talker.head.bench", str(dataset), "--frames", "6000"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    milliseconds, gigabytes = (
        float(value) for value in re.findall(r"(?:all|memory) +([0-9.]+)", output)
    )
    assert milliseconds <= 20.0, output
    assert gigabytes <= 3.0, output
