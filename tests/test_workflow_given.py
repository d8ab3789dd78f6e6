"""Files that the user brought are used, and survive every run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_workflow import ROOT, WRITING_TALKER, Workflow

THEIRS = b"frame, AU45_r\n0, 1.5\n"
AFTER_TRAIN = {"render", "evaluate", "report"}


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A workflow in which the demo and a new speech are complete, written by real writers."""
    workflow = Workflow(tmp_path_factory.mktemp("given"), WRITING_TALKER)
    speech = workflow.folder / "data/demo/novel/hello.wav"
    speech.parent.mkdir(parents=True)
    speech.touch()
    workflow.run()
    assert workflow.planned() == set()
    return workflow


@pytest.fixture
def finished(complete: Workflow, tmp_path: Path) -> Workflow:
    """A copy of it, with other modification times, as `cp -r` makes it."""
    workflow = object.__new__(Workflow)
    workflow.folder = tmp_path / "copy"
    shutil.copytree(complete.folder, workflow.folder, copy_function=shutil.copy2, symlinks=True)
    for outer in ("data", "results"):
        for path in sorted((workflow.folder / outer).rglob("*")):
            if path.is_file() and path.suffix != ".lms":
                os.utime(path, ns=(path.stat().st_mtime_ns + 1000,) * 2)
    return workflow


def outputs(workflow: Workflow) -> list[str]:
    """Return all outputs of the rules, as paths relative to the folder."""
    summary = workflow.run("--summary").splitlines()
    rows = [line.split("\t")[0] for line in summary if line.startswith(("data/", "results/"))]
    assert len(rows) == 33
    return rows


def forced_runs(workflow: Workflow) -> Iterator[None]:
    """Do everything that makes Snakemake run jobs again, step by step."""
    workflow.snakemake()
    yield
    workflow.snakemake("--forceall")
    yield
    (workflow.folder / "data/demo/demo.mp4").write_bytes(b"another video")
    for path in (workflow.folder / "talker").glob("*.py"):
        path.write_text(path.read_text() + "\nEDITED = 1\n")
    workflow.snakemake()
    yield


def test_a_copied_project_is_still_complete(finished: Workflow) -> None:
    assert finished.planned() == set()
    assert "talker did not write" not in finished.run("-n")


def test_au_csv_of_openface_is_used_and_survives(finished: Workflow) -> None:
    """The published step: run OpenFace and put its csv into the folder."""
    file = finished.folder / "data/demo/au.csv"
    file.write_bytes(THEIRS)
    rest = {"verify", "lipsync", "check", "train", "render", "evaluate", "report"}
    rest |= {"render_novel", "evaluate_novel"}
    assert finished.planned() == rest
    message = "data/demo contains files that talker did not write and that are used as they are: au"
    assert message in finished.run()
    assert finished.planned() == set()
    for _ in forced_runs(finished):
        assert file.read_bytes() == THEIRS
    file.write_bytes(THEIRS + b"1, 0.5\n")
    assert "check" in finished.planned()
    file.unlink()
    assert {"blink", "verify", "check"} <= finished.planned()
    finished.run()
    assert finished.planned() == set()
    assert "au.csv" not in finished.run("-n")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_a_foreign_file_in_place_of_any_output_survives(finished: Workflow, part: int) -> None:
    """Every third output is replaced, folders as a whole, while the others are made again."""
    kept = []
    for name in outputs(finished)[part::3]:
        path = finished.folder / name
        if path.is_dir():
            shutil.rmtree(path)
            path.mkdir()
            path = path / "0.png"
        path.write_bytes(THEIRS)
        kept.append(path)
    finished.snakemake("--forceall")
    finished.snakemake("--forceall")
    assert [path for path in kept if path.read_bytes() != THEIRS] == []


def used_files(workflow: Workflow) -> list[str]:
    """Return the lines that say which files of the user are used as they are."""
    lines = workflow.run("-n").splitlines()
    return [line for line in lines if "files that talker did not write" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ori_imgs", "parsing"])
def test_a_foreign_file_in_a_folder_stops_the_run_once(finished: Workflow, name: str) -> None:
    """Before anything is deleted. The second run uses the folder as it is."""
    file = finished.folder / "data/demo" / name / ("0.lms" if name == "ori_imgs" else "0.png")
    file.write_bytes(THEIRS)
    before = {path: path.stat().st_mtime_ns for path in finished.folder.glob("data/demo/**/[!.]*")}
    output = finished.refuse("--forceall")
    assert f"  data/demo/{name}: {file.name} (1)" in output
    assert "If talker should write these folders, move the files to another folder" in output
    assert "Traceback" not in output
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for _ in forced_runs(finished):
        assert file.read_bytes() == THEIRS
    assert any(name in line for line in used_files(finished))
    file.unlink()
    assert not any(name in line for line in used_files(finished))


def test_a_new_file_in_a_folder_stops_the_run_too(finished: Workflow) -> None:
    (finished.folder / "data/demo/ori_imgs/.DS_Store").touch()
    finished.run("--forcerun", "frames")
    file = finished.folder / "data/demo/ori_imgs/notes.txt"
    file.write_bytes(THEIRS)
    assert "data/demo/ori_imgs: notes.txt (1)" in finished.refuse("--forcerun", "frames")
    assert file.read_bytes() == THEIRS


def test_landmarks_of_another_program_survive(finished: Workflow) -> None:
    """Only `landmarks` runs again, and writes next to them."""
    file = finished.folder / "data/demo/ori_imgs/0.lms"
    file.write_bytes(THEIRS)
    finished.run("--forcerun", "landmarks")
    assert file.read_bytes() == THEIRS


@pytest.mark.slow
def test_foreign_files_survive_a_kill_at_any_moment(finished: Workflow) -> None:
    data = finished.folder / "data/demo"
    kept = [data / "au.csv", data / "bc.jpg", data / "aud.wav"]
    for path in kept:
        path.write_bytes(THEIRS)
    chance = random.Random(3)
    for _ in range(3):
        process = subprocess.Popen(
            finished.command("--forceall"),
            cwd=finished.folder,
            env=os.environ | finished.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(chance.uniform(2, 5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert [path.read_bytes() for path in kept] == [THEIRS] * 3
        finished.snakemake("--unlock")
    finished.run()
    assert [path.read_bytes() for path in kept] == [THEIRS] * 3
    assert finished.planned() == set()


def test_an_interrupted_write_leaves_no_foreign_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is written before the output appears."""
    from talker.core import ownership
    from talker.core.files import atomic_write

    target = tmp_path / "au.csv"

    def write(text: str) -> None:
        with atomic_write(target) as (scratch,):
            scratch.write_text(text)

    write("1")
    for function in ("os.replace", "talker.core.files.confirm"):
        with monkeypatch.context() as patch:
            patch.setattr(function, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                write("2")
        assert ownership.foreign_outputs([target]) == []
    target.write_text("3")
    assert ownership.foreign_outputs([target]) == [target]


def test_a_dataset_of_another_program_is_used_untouched(finished: Workflow) -> None:
    """Only files that are missing are made; nothing that was there changes."""
    made, guest = finished.folder / "data/demo", finished.folder / "data/guest"
    guest.mkdir()
    names = ["aud.wav", "au.csv", "track_params.pt", "bc.jpg"]
    for name in [*names, "transforms_train.json", "transforms_val.json"]:
        (guest / name).write_bytes(b"theirs" + (made / name).read_bytes())
    for name in ("ori_imgs", "parsing", "gt_imgs", "torso_imgs"):
        shutil.copytree(made / name, guest / name, ignore=shutil.ignore_patterns(".*"))
    (finished.folder / "guest.mp4").touch()
    (finished.folder / "config/subjects.tsv").write_text("subject\tvideo\nguest\tguest.mp4\n")
    before = {path: path.read_bytes() for path in guest.rglob("*") if path.is_file()}
    preparation = {"adopt", "landmarks", "overlay", "speech", "verify", "lipsync", "check"}
    assert finished.planned() == preparation | {"train", "render", "evaluate", "report"}
    finished.run()
    assert finished.planned() == set()
    finished.run("--forceall")
    assert before == {path: path.read_bytes() for path in before}


def test_another_video_under_the_same_name_is_refused(finished: Workflow) -> None:
    folder = finished.folder
    (folder / "me.mp4").write_bytes(b"first")
    finished.run("--config", "video=me.mp4")
    (folder / "other").mkdir()
    (folder / "other/me.mp4").write_bytes(b"other")
    output = finished.refuse("-n", "--config", "video=other/me.mp4")
    assert "subject 'me': data/me was made from me.mp4, but other/me.mp4 is another video" in output
    assert "Traceback" not in output
    (folder / "other/me.mp4").write_bytes(b"first")
    for same in (folder / "me.mp4", "./me.mp4", "other/me.mp4"):
        assert finished.planned("--config", f"video={same}") == set(), same
    (folder / "me.mp4").unlink()
    assert finished.planned("--config", "video=other/me.mp4") == set(), "a moved video"
    (folder / "data/me").rename(folder / "data/first")
    assert "frames" in finished.planned("--config", "video=other/me.mp4")
    (folder / "other/me.mp4").write_bytes(b"other")
    output = finished.refuse("-n", "--config", "video=other/me.mp4")
    assert (
        "subject 'me': results/me was made from me.mp4, but other/me.mp4 is another video. Give "
        "the new video another name (rename the file, or add a row to config/subjects.tsv), or "
        "move data/me and results/me to another folder."
    ) in output
    (folder / "results/me").rename(folder / "results/first")
    assert "frames" in finished.planned("--config", "video=other/me.mp4")


def test_make_clean_keeps_files_of_the_user(tmp_path: Path) -> None:
    from talker.core.files import atomic_write
    from talker.core.ownership import adding_to

    data, results = tmp_path / "data/demo", tmp_path / "results/demo"
    for target in (data / "ori_imgs", data / "aud.wav", data / "au.csv", results / "val.mp4"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as (path,):
            if target.suffix:
                path.write_text("ours")
            else:
                path.mkdir()
                (path / "0.jpg").write_text("ours")
    with adding_to(data / "ori_imgs") as folder:
        (folder / "0.lms").write_text("ours")
    (tmp_path / "logs/demo").mkdir(parents=True)
    (tmp_path / "logs/demo/frames.log").touch()
    (data / "source.txt").touch()
    (data / "au.csv").write_bytes(THEIRS)
    (data / "ori_imgs/notes.txt").write_bytes(THEIRS)
    (results / "best.mp4").write_bytes(THEIRS)
    command = [sys.executable, "-I", str(ROOT / "scripts/clean.py"), "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    kept = ["data/demo/au.csv", "data/demo/ori_imgs/notes.txt", "results/demo/best.mp4"]
    assert done.stdout == "".join(
        f"Kept {name}, because talker did not write it.\n" for name in kept
    )
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(tmp_path)) for path in left) == kept
    assert {path.read_bytes() for path in left} == {THEIRS}
    dry = subprocess.run(
        ["make", "--dry-run", "clean"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "scripts/clean.py demo" in dry.stdout and "data" not in dry.stdout
