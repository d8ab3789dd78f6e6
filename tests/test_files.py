"""Outputs appear whole or not at all."""

import multiprocessing
import time

import pytest

from talker.core.files import atomic_write, exclusive, file_lock
from talker.errors import UserError


def test_files_and_folders_appear_together(tmp_path):
    file, folder = tmp_path / "new" / "a.json", tmp_path / "b"
    with atomic_write(file, folder) as (scratch_file, scratch_folder):
        assert scratch_file.suffix == ".json"
        scratch_file.write_text("{}")
        scratch_folder.mkdir()
        (scratch_folder / "0.png").write_text("0")
        assert not file.exists()
        assert not folder.exists()
    assert file.read_text() == "{}"
    assert [child.name for child in folder.iterdir()] == ["0.png"]


def test_an_old_folder_is_replaced_not_merged(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "old.jpg").write_text("old")
    with atomic_write(folder) as (scratch,):
        scratch.mkdir()
        (scratch / "new.jpg").write_text("new")
    assert [child.name for child in folder.iterdir()] == ["new.jpg"]


def test_an_error_leaves_the_old_outputs_and_nothing_else(tmp_path):
    file, folder = tmp_path / "a.json", tmp_path / "b"
    file.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(file, folder) as (scratch_file, scratch_folder):
        scratch_file.write_text("half")
        scratch_folder.mkdir()
        raise RuntimeError
    assert file.read_text() == "old"
    assert {child.name for child in tmp_path.iterdir()} <= {"a.json", ".a.json.lock"}


def test_a_missing_output_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.json"):
        pass
    assert not (tmp_path / "a.json").exists()


def _hold(target, taken, seconds):
    with file_lock(target):
        taken.set()
        time.sleep(seconds)


def test_a_second_process_waits_for_the_lock(tmp_path):
    context = multiprocessing.get_context("spawn")
    taken = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "a.json", taken, 0.5))
    holder.start()
    assert taken.wait(20)
    start = time.monotonic()
    with file_lock(tmp_path / "a.json"):
        waited = time.monotonic() - start
    holder.join()
    assert waited > 0.2


def _make(target, taken, work, source):
    with exclusive([target], work, [source]) as needed:
        taken.set()
        if needed:
            time.sleep(0.5)
            target.write_text(work)


@pytest.mark.parametrize(
    ("work", "touched", "needed"),
    [("same", None, False), ("other", None, True), ("same", "a.txt", True), ("same", ".b", False)],
)
def test_work_that_was_done_while_waiting_is_not_done_again(tmp_path, work, touched, needed):
    """But what was done of inputs that have changed since is."""
    context = multiprocessing.get_context("spawn")
    taken = context.Event()
    target, source = tmp_path / "a.json", tmp_path / "data"
    source.mkdir()
    (source / "a.txt").touch()
    holder = context.Process(target=_make, args=(target, taken, "same", source))
    holder.start()
    assert taken.wait(20)
    if touched:
        (source / touched).write_text("new")
    with exclusive([target], work, [source]) as wanted:
        assert wanted is needed
    holder.join()
    events = [line.split()[2:] for line in (tmp_path / ".a.json.lock").read_text().splitlines()]
    assert events[:2] == [["start", "same"], ["done", "same"]]
    assert events[2:] == ([["start", work], ["done", work]] if needed else [])
    with exclusive([target], work) as wanted:
        assert wanted, "without waiting there is always work"


def test_a_folder_of_somebody_else_is_not_lost(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "wedding.mp4").touch()
    for _ in range(2):
        refused = pytest.raises(UserError, match="videos: this folder contains files")
        with refused, exclusive([tmp_path / "a.json", videos], "work"):
            pass
    refused = pytest.raises(
        UserError, match="expected the path of a folder to create, found a file"
    )
    (tmp_path / "notes").touch()
    with refused, exclusive([tmp_path / "notes"], "work"):
        pass
    (videos / "wedding.mp4").unlink()
    for _ in range(2):  # its own is replaced
        with exclusive([videos], "work"), atomic_write(videos) as (scratch,):
            scratch.mkdir()
            (scratch / "0.png").touch()
    assert [file.name for file in videos.iterdir()] == ["0.png"]


def test_what_was_not_made_replaces_nothing(tmp_path):
    file, folder = tmp_path / "a.json", tmp_path / "b"
    file.write_text("old")
    folder.mkdir()
    with pytest.raises(FileNotFoundError), atomic_write(file, folder) as (scratch, _):
        scratch.write_text("new")
    assert file.read_text() == "old"
    assert folder.exists()


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / ".a.json.talker-x1y2z3w4"
    left.mkdir()
    (left / "a.json").write_text("half")
    other = tmp_path / ".b.json.talker-x1y2z3w4"
    other.mkdir()
    with atomic_write(tmp_path / "a.json") as (scratch,):
        scratch.write_text("whole")
    assert not left.exists()
    assert other.exists()
