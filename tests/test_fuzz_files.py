"""Damaged files of a dataset or an avatar end in a clear message, and foreign ones are found."""

import subprocess
import sys

import fuzz_files
import pytest


@pytest.mark.timeout(900)
def test_damaged_files_are_accepted_or_refused_with_a_message():
    """In a process of its own: children of this one would share its memory limit with torch."""
    command = [sys.executable, fuzz_files.__file__, "--count=62", "--seed=1", "--jobs=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stdout + done.stderr
    total = next(line for line in done.stdout.splitlines() if line.startswith("| all |"))
    runs, accepted, refused = map(int, total.split("|")[2:5])
    assert runs == accepted + refused > 62
    assert min(accepted, refused) > 20


def test_every_kind_of_mutation_and_every_file_is_used(tmp_path):
    drawn = list(fuzz_files.cases(tmp_path, 14 * len(fuzz_files.TARGETS)))
    assert {case.kind for case in drawn} == set(fuzz_files.MUTATIONS)
    assert {case.seed for case in drawn} == {
        tmp_path / "me" / target.file for target in fuzz_files.TARGETS
    }
