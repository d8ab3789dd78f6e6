"""Outputs are complete or absent, have one writer at a time, and get the umask's permissions."""

import errno
import fcntl
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from talker.core.exclusive import exclusive
from talker.core.files import atomic_write, file_lock
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


def _produce(target, taken, release, work, source):
    with exclusive([target], work, [source]) as needed:
        assert needed
        taken.set()
        assert release.wait(20)
        target.write_text(work)


@pytest.mark.parametrize(
    ("work", "touched", "needed"),
    [("same", None, False), ("other", None, True), ("same", "a.txt", True), ("same", ".b", False)],
)
def test_work_that_was_done_while_waiting_is_not_done_again(tmp_path, work, touched, needed):
    """The work is repeated only if an input changed after the other process had started."""
    context = multiprocessing.get_context("spawn")
    taken, release = context.Event(), context.Event()
    target, source = tmp_path / "a.json", tmp_path / "data"
    source.mkdir()
    (source / "a.txt").touch()
    holder = context.Process(target=_produce, args=(target, taken, release, "same", source))
    holder.start()
    assert taken.wait(20)
    if touched:
        (source / touched).write_text("new")
    threading.Timer(0.5, release.set).start()  # after this process has begun to wait
    with exclusive([target], work, [source]) as wanted:
        assert wanted is needed
    holder.join()
    events = [line.split()[2:] for line in (tmp_path / ".a.json.lock").read_text().splitlines()]
    assert events[:2] == [["start", "same"], ["done", "same"]]
    assert events[2:] == ([["start", work], ["done", work]] if needed else [])
    with exclusive([target], work) as wanted:
        assert wanted, "a process that did not have to wait always works"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_outputs_have_the_permissions_of_the_umask(tmp_path, umask):
    file, folder = tmp_path / "weights.bin", tmp_path / "avatar"
    before = os.umask(umask)
    try:
        with atomic_write(file, folder) as (scratch, scratch_folder):
            os.close(os.open(scratch, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
            scratch_folder.mkdir(mode=0o700)
            os.close(os.open(scratch_folder / "0.bin", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (file, folder, folder / "0.bin")]
    assert modes == [0o666 & ~umask, 0o777 & ~umask, 0o666 & ~umask]


@pytest.mark.parametrize(("folder_mode", "lock_mode"), [(0o2775, 0o664), (0o755, 0o644)])
def test_everyone_who_may_write_to_a_folder_may_lock_in_it(tmp_path, folder_mode, lock_mode):
    tmp_path.chmod(folder_mode)
    with atomic_write(tmp_path / "a.json") as (scratch,):
        scratch.touch()
    assert (tmp_path / ".a.json.lock").stat().st_mode & 0o777 == lock_mode


def test_a_lock_file_that_is_not_writable_is_named(tmp_path, monkeypatch):
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / ".a.json.lock").touch()
    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(UserError, match=r"\.a\.json\.lock .*another user.*chmod g\+w"):
        file_lock(tmp_path / "a.json").__enter__()
    with pytest.raises(PermissionError):  # the folder is the problem
        file_lock(tmp_path / "b.json").__enter__()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with exclusive([tmp_path / "a.json"], "work") as needed:
        assert needed
        with atomic_write(tmp_path / "a.json") as (scratch,):
            scratch.write_text("whole")
    assert (tmp_path / "a.json").read_text() == "whole"
    assert f"The file system of {tmp_path} does not support file locks" in caplog.text
    number = errno.EBADF
    with pytest.raises(OSError, match="Bad file"), file_lock(tmp_path / "a.json"):
        pass


def test_a_folder_of_somebody_else_is_not_lost(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "wedding.mp4").touch()
    for _ in range(2):
        refused = pytest.raises(UserError, match="videos is a folder with files")
        with refused, exclusive([tmp_path / "a.json", videos], "work"):
            pass
    refused = pytest.raises(UserError, match="is a file, but a folder")
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
