"""Every job gets its own GPU and releases it when it dies; an assigned GPU is kept."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from talker.core.gpu import SHARED_JOBS_PER_GPU, gpu_slot, visible_gpus
from talker.errors import UserError

JOB = """
import os, sys, time
from pathlib import Path
from talker.core.gpu import gpu_slot
folder, diary, seconds, shared = map(Path, sys.argv[1:])
with gpu_slot(folder, shared=shared.name == "True") as device, open(diary, "a") as file:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == device
    print(time.time(), "takes", device, file=file, flush=True)
    time.sleep(float(str(seconds)))
    print(time.time(), "frees", device, file=file, flush=True)
"""


def start(folder: Path, seconds: float, shared: bool = False) -> subprocess.Popen[bytes]:
    arguments = folder / "slots", folder / "diary", str(seconds), str(shared)
    command, gpus = [sys.executable, "-c", JOB, *arguments], "0,1"
    return subprocess.Popen(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": gpus})


def diary(folder: Path) -> list[tuple[float, str, str]]:
    path = folder / "diary"
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return sorted((float(when), what, device) for when, what, device in rows)


@pytest.mark.parametrize(("per_gpu", "most"), [("1", 1), ("2", 2)])
def test_never_more_jobs_on_a_gpu_than_it_has_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_gpu: str, most: int
) -> None:
    monkeypatch.setenv("TALKER_JOBS_PER_GPU", per_gpu)
    jobs = [start(tmp_path, 0.3) for _ in range(6)]
    assert [job.wait(60) for job in jobs] == [0] * 6
    running = {"0": 0, "1": 0}
    peak = {"0": 0, "1": 0}
    for _, what, device in diary(tmp_path):
        running[device] += 1 if what == "takes" else -1
        peak[device] = max(peak[device], running[device])
    assert max(peak.values()) <= most
    assert min(peak.values()) >= 1, "one GPU idled"


def test_a_killed_job_frees_its_slot_at_once(tmp_path: Path) -> None:
    jobs = [start(tmp_path, 60), start(tmp_path, 60)]
    try:
        while len(diary(tmp_path)) < 2:
            time.sleep(0.02)
        jobs.append(start(tmp_path, 0))
        time.sleep(1)
        assert len(diary(tmp_path)) == 2, "a third job on two slots"
        jobs[0].send_signal(signal.SIGKILL)
        killed = time.time()
        assert jobs[2].wait(20) == 0
        assert diary(tmp_path)[2][0] - killed < 1
    finally:
        for job in jobs:
            job.kill()
            job.wait()


def test_jobs_that_share_a_gpu_do_not_wait_for_a_training(tmp_path: Path) -> None:
    jobs = [start(tmp_path, 60), start(tmp_path, 60)]
    try:
        while len(diary(tmp_path)) < 2:
            time.sleep(0.02)
        jobs += [start(tmp_path, 60, shared=True) for _ in range(2 * SHARED_JOBS_PER_GPU)]
        while len(diary(tmp_path)) < len(jobs):
            assert all(job.poll() is None for job in jobs)
            time.sleep(0.02)
        devices = [device for _, _, device in diary(tmp_path)]
        assert devices.count("0") == devices.count("1") == 1 + SHARED_JOBS_PER_GPU
        jobs.append(start(tmp_path, 0, shared=True))
        time.sleep(1)
        assert len(diary(tmp_path)) < len(jobs), "more jobs than slots"
    finally:
        for job in jobs:
            job.kill()
            job.wait()


@pytest.mark.parametrize("visible", ["", "1", "GPU-5fd4f087"])
def test_an_assignment_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with gpu_slot(tmp_path) as device:
        assert device is None
        assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
    assert not list(tmp_path.iterdir())


def test_the_driver_lists_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        "#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-a)'\necho 'GPU 1: H100 (UUID: GPU-b)'\n"
    )
    driver.chmod(0o755)
    assert visible_gpus() == ["0", "1"]
    with gpu_slot(tmp_path / "slots") as device:
        assert device == os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_wrong_number_of_jobs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("TALKER_JOBS_PER_GPU", "0")
    with (
        pytest.raises(UserError, match=r"is '0'. It must be a positive integer"),
        gpu_slot(tmp_path),
    ):
        pass


def test_a_folder_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"does not support file locks.*TMPDIR"), gpu_slot(tmp_path):
        pass
