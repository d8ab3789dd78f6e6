"""Damaged media files end in a clear message; the harness that proves it catches every fault."""

import subprocess
import sys

import fuzz_media


def test_damaged_media_files_are_accepted_or_refused_with_a_message():
    """In a process of its own: children of this one would share its memory limit with torch."""
    command = [sys.executable, fuzz_media.__file__, "--count=120", "--seed=1", "--jobs=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    total = next(line for line in done.stdout.splitlines() if line.startswith("| all |"))
    runs, accepted, refused = map(int, total.split("|")[2:5])
    assert runs == accepted + refused == 240
    assert min(accepted, refused) > 60
