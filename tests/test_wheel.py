"""The wheel: it contains the workflow, which runs in any folder without a checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

PARTS = ["Snakefile", "config", "demo", "envs", "profiles", "rules", "workflow"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run([sys.executable, "-m", *build], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_workflow_is_in_the_wheel(wheel: Path):
    expected = {
        path.relative_to(ROOT)
        for part in PARTS
        for path in [ROOT / part, *(ROOT / part).rglob("*")]
        if path.is_file()
    }
    shipped = wheel / "talker" / "workflow"
    assert {path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file()} == expected


def test_the_wheel_plans_the_demo_in_an_empty_folder(wheel: Path, tmp_path: Path):
    for args, text in (
        (["run", "--help"], "usage: talker run"),
        (["demo", "--dry-run"], "would run: demo: training the avatar\n"),
        (["demo", "--dry-run", "--out", "other"], "would run: demo: training the avatar\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "talker", *args],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(wheel)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert text in done.stdout
    assert not (tmp_path / "data").exists()
