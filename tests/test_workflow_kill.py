"""A kill of a job, of Snakemake or of the session, or a power failure, at any moment leads to the
same outputs."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_workflow import WRITING_TALKER, Workflow

MOMENTS = int(os.environ.get("TALKER_KILL_MOMENTS", "5"))
SUBJECTS = int(os.environ.get("TALKER_KILL_SUBJECTS", "3"))
RATE = float(os.environ.get("TALKER_KILL_RATE", "0.1"))
WAYS = "job", "snakemake", "session", "terminal", "power"


MORTAL_TALKER = WRITING_TALKER.replace(
    "import hashlib, os, sys, time\n",
    f"""import hashlib, os, random, signal, sys, time
if random.random() < {RATE}:
    open("kills", "a").write("x")
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.3))
""",
)
"""A stage that dies at a random moment with the probability `RATE`: SIGALRM ends a process."""


def start(workflow: Workflow) -> subprocess.Popen[bytes]:
    """Start Snakemake in a session of its own; it prints into the file `driver.log`."""
    with (workflow.folder / "driver.log").open("wb") as log:
        return subprocess.Popen(
            workflow.command(),
            cwd=workflow.folder,
            env=os.environ | workflow.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def jobs(workflow: Workflow) -> list[int]:
    """Return the running processes of the stand-in."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(workflow.folder / "bin/talker").encode() in words:
                found.append(int(entry.name))
    return found


def contents(workflow: Workflow) -> dict[str, bytes]:
    """Return the visible files in data/ and results/, without the pages that contain times."""
    return {
        str(path.relative_to(workflow.folder)): path.read_bytes()
        for outer in ("data", "results")
        for path in (workflow.folder / outer).rglob("*")
        if path.is_file()
        and not path.name.startswith(".")
        and path.name not in ("batch.tsv", "index.html")
    }


def lose_unflushed_files(workflow: Workflow) -> None:
    """Empty the files that a power failure would empty: those that were not flushed to the disk."""
    log = workflow.folder / "flushed"
    flushed = {int(line) for line in log.read_text().splitlines()} if log.exists() else set()
    for outer in ("data", "results", "logs", ".snakemake"):
        for path in (workflow.folder / outer).rglob("*"):
            if path.is_file() and path.stat().st_ino not in flushed:
                path.write_bytes(b"")


def recover(workflow: Workflow) -> None:
    """Do only what the messages tell the user to do."""
    again = workflow.snakemake()
    if "--unlock" in again.output:
        workflow.run("--unlock")
        again = workflow.snakemake()
    assert again.returncode == 0, again.output


def journal_is_sane(workflow: Workflow) -> None:
    """Check that no process recorded its end between the start and the end of another one."""
    for path in (workflow.folder).rglob(".*.lock"):
        running = None
        for line in path.read_text().splitlines():
            _, who, event, _ = line.split()
            assert event == "start" or who == running, (path, line)
            running = who if event == "start" else None


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    workflow = Workflow(tmp_path_factory.mktemp("kill"), WRITING_TALKER)
    sync = workflow.folder / "bin/sync"
    sync.write_text('#!/bin/sh\nstat -c %i "$@" >> flushed\n')
    sync.chmod(0o755)
    return workflow


@pytest.fixture(scope="module")
def whole(workflow: Workflow) -> dict[str, bytes]:
    """The files that an undisturbed run creates."""
    workflow.run()
    return contents(workflow)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_any_moment(workflow: Workflow, whole: dict[str, bytes]) -> None:
    chance = random.Random(6)
    ways = Counter()
    for moment in range(MOMENTS):
        for outer in ("data", "results", "logs", ".snakemake"):
            shutil.rmtree(workflow.folder / outer, ignore_errors=True)
        (workflow.folder / "flushed").unlink(missing_ok=True)
        driver = start(workflow)
        while not jobs(workflow):
            assert driver.poll() is None
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 1.2))
        way = WAYS[moment % len(WAYS)]
        while not (running := jobs(workflow)) and driver.poll() is None:
            time.sleep(0.005)
        ways[way, bool(running)] += 1
        if way == "job":
            for job in running[:1]:
                os.kill(job, signal.SIGKILL)
        elif way == "snakemake":
            driver.kill()
        else:
            os.killpg(driver.pid, signal.SIGHUP if way == "terminal" else signal.SIGKILL)
        driver.wait()
        if way == "power":
            lose_unflushed_files(workflow)
        recover(workflow)
        assert contents(workflow) == whole, (moment, way)
        assert not list(workflow.folder.rglob(".*.talker-*")), "scratch was left behind"
        journal_is_sane(workflow)
    assert sum(count for (_, running), count in ways.items() if running) > MOMENTS / 2, ways


def test_the_next_run_waits_for_an_orphan_and_uses_its_outputs(
    workflow: Workflow, whole: dict[str, bytes]
) -> None:
    """A training that outlives its Snakemake process does not run twice."""
    for outer in ("results", "logs", ".snakemake/locks", ".snakemake/incomplete"):
        shutil.rmtree(workflow.folder / outer, ignore_errors=True)
    driver = start(workflow)
    lock = workflow.folder / "results/demo/.avatar.lock"
    while not (lock.exists() and " start " in lock.read_text()):
        assert driver.poll() is None
        time.sleep(0.01)
    (orphan,) = [
        job for job in jobs(workflow) if b"train" in Path(f"/proc/{job}/cmdline").read_bytes()
    ]
    os.kill(orphan, signal.SIGSTOP)
    driver.kill()
    driver.wait()
    workflow.run("--unlock")
    successor = start(workflow)
    while len(jobs(workflow)) < 2:
        assert successor.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(orphan, signal.SIGCONT)
    assert successor.wait(60) == 0, (workflow.folder / "driver.log").read_text()
    assert contents(workflow) == whole
    assert re.findall(r" (start|done|failed) ", lock.read_text()) == ["start", "done"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_subjects_survive_random_kills_of_their_jobs(tmp_path: Path) -> None:
    """All subjects have the same video, so their files must be those of an undisturbed subject."""
    workflow = Workflow(tmp_path, WRITING_TALKER)
    (tmp_path / "me.mp4").write_bytes(b"video")
    table = tmp_path / "config/subjects.tsv"
    table.write_text("subject\tvideo\ns0\tme.mp4\n")
    workflow.run()
    whole = {name: content for name, content in contents(workflow).items() if "/s0/" in name}
    assert whole
    (tmp_path / "bin/talker").write_text(MORTAL_TALKER)
    names = [f"s{i}" for i in range(SUBJECTS + 1)]
    table.write_text("\n".join(["subject\tvideo", *(f"{name}\tme.mp4" for name in names)]) + "\n")
    for _ in range(20):
        if workflow.snakemake("--keep-going").returncode == 0:
            break
    assert (tmp_path / "kills").exists(), "no job was killed"
    found = contents(workflow)
    for name in names:
        for path, content in whole.items():
            assert found.pop(path.replace("/s0/", f"/{name}/")) == content, (name, path)
    assert not found
    assert not list(tmp_path.rglob(".*.talker-*")), "temporary files were left behind"
    assert workflow.planned() == set()
