"""Outputs appear whole or not at all."""

import multiprocessing
import time

import pytest

from talker.files import locked, replacing


def test_files_and_folders_appear_together(tmp_path):
    file, folder = tmp_path / "new" / "a.json", tmp_path / "b"
    with replacing(file, folder) as (scratch_file, scratch_folder):
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
    with replacing(folder) as (scratch,):
        scratch.mkdir()
        (scratch / "new.jpg").write_text("new")
    assert [child.name for child in folder.iterdir()] == ["new.jpg"]


def test_an_error_leaves_the_old_outputs_and_nothing_else(tmp_path):
    file, folder = tmp_path / "a.json", tmp_path / "b"
    file.write_text("old")
    with pytest.raises(RuntimeError), replacing(file, folder) as (scratch_file, scratch_folder):
        scratch_file.write_text("half")
        scratch_folder.mkdir()
        raise RuntimeError
    assert file.read_text() == "old"
    assert {child.name for child in tmp_path.iterdir()} <= {"a.json", ".a.json.lock"}


def test_a_missing_output_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.json"):
        pass
    assert not (tmp_path / "a.json").exists()


def _hold(target, taken, seconds):
    with locked(target):
        taken.set()
        time.sleep(seconds)


def test_a_second_process_waits_for_the_lock(tmp_path):
    context = multiprocessing.get_context("spawn")
    taken = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "a.json", taken, 0.5))
    holder.start()
    assert taken.wait(20)
    start = time.monotonic()
    with locked(tmp_path / "a.json"):
        waited = time.monotonic() - start
    holder.join()
    assert waited > 0.2
