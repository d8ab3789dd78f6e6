"""The code hash changes with the code of a stage and of its imports, and with nothing else."""

import pytest

from talker.core.provenance import closure, code_of

TRACK = '''
from talker import clip
from talker.head import camera


def main():
    """What it does."""
    import talker.late

    return clip.FPS, camera, talker.late
'''


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "talker"
    (folder / "head").mkdir(parents=True)
    (folder / "__init__.py").write_text("'A package.'\n")
    (folder / "track.py").write_text(TRACK)
    (folder / "clip.py").write_text("FPS = 25  # a comment\n")
    (folder / "late.py").write_text("import os\nimport numpy.linalg\n")
    (folder / "report.py").write_text("from talker.clip import FPS\n")
    (folder / "head/__init__.py").write_text("")
    (folder / "head/camera.py").write_text("class Camera:\n    focal: float = 1.0\n    'in px'\n")
    (folder / "head/mean.txt").write_text("0 0 0")
    return folder


def test_closure_follows_imports_of_every_form(package):
    assert closure("talker.track", package) == [
        "talker.clip",
        "talker.head.camera",
        "talker.late",
        "talker.track",
    ]
    assert closure("talker.report", package) == ["talker.clip", "talker.report"]


def test_closure_refuses_a_module_that_is_not_there(package):
    with pytest.raises(ModuleNotFoundError, match=r"talker\.tracks"):
        closure("talker.tracks", package)


@pytest.mark.parametrize(
    ("file", "old", "new", "track_changes", "report_changes"),
    [
        ("track.py", "clip.FPS", "clip.FPS + 1", True, False),
        ("clip.py", "25", "30", True, True),
        ("late.py", "import os", "import sys", True, False),
        ("head/camera.py", "1.0", "2.0", True, False),
        ("head/__init__.py", "", "import os", True, False),
        ("__init__.py", "'A package.'", "import os", True, True),
        ("report.py", "FPS", "FPS as fps", False, True),
        ("clip.py", "# a comment", "# another", False, False),
        ("clip.py", "FPS = 25", "\n\nFPS  =  25", False, False),
        ("track.py", "What it does.", "What else it does.", False, False),
        ("head/camera.py", "'in px'", "'in pixels'", False, False),
        ("__init__.py", "A package", "The package", False, False),
        ("head/mean.txt", "0 0 0", "0 0 1", False, False),
    ],
)
def test_hash_changes_with_code_alone(package, file, old, new, track_changes, report_changes):
    before = [code_of(f"talker.{stage}", package=package) for stage in ("track", "report")]
    text = (package / file).read_text()
    assert old in text
    (package / file).write_text(text.replace(old, new, 1))
    after = [code_of(f"talker.{stage}", package=package) for stage in ("track", "report")]
    assert [a != b for a, b in zip(before, after, strict=True)] == [track_changes, report_changes]


def test_a_data_file_counts_with_the_module_that_names_it(package):
    def hashes():
        return [code_of(f"talker.{stage}", package=package) for stage in ("track", "report")]

    (package / "head/camera.py").write_text("MEAN = Path(__file__).with_name('mean.txt')\n")
    before = hashes()
    (package / "head/mean.txt").write_text("0 0 1")
    assert [a != b for a, b in zip(before, hashes(), strict=True)] == [True, False]


def test_hash_does_not_depend_on_the_place(package, tmp_path):
    here = code_of("talker.track", package=package)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = package.rename(tmp_path / "elsewhere" / "talker")
    assert code_of("talker.track", package=elsewhere) == here


@pytest.mark.parametrize(
    "stage",
    [
        *("frames", "audio", "speech", "landmarks", "parsing", "blink", "shots", "fit", "track"),
        *("overlay", "background", "layers", "verify", "lipsync", "check"),
    ],
)
def test_a_preparation_stage_imports_few_files(stage):
    """So that a reader sees all of its code, and few edits rerun it."""
    assert len(closure(f"talker.{stage}")) <= 15


def test_training_imports_few_files():
    assert len(closure("talker.train")) <= 36
