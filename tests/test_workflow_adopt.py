"""Folders of the published scripts go through the workflow, and stay as they were."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from fake_workflow import ROOT, WRITING_TALKER, Workflow
from published import FEATURES, publish

from talker.data.layout import FRAMES
from talker.media.images import read_image
from talker.media.video_reader import probe, read_frames

RESULTS = {"train", "render", "evaluate", "report"}
REAL_TALKER = f"#!{sys.executable}\nfrom talker.__main__ import main\n\nmain()\n"


def digests(folder: Path) -> dict[str, str]:
    """Return the hash of every file in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def list_subjects(workflow: Workflow, *rows: str) -> None:
    table = workflow.folder / "config/subjects.tsv"
    table.write_text("\n".join(["subject\tvideo", *rows]) + "\n")


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    return Workflow(tmp_path_factory.mktemp("adopt"), WRITING_TALKER)


@pytest.mark.parametrize("method", FEATURES)
def test_only_what_a_method_lacks_is_planned(workflow: Workflow, dataset: Path, method: str):
    """The table names the folder in place of a video."""
    name = method.replace("-", "").lower()
    publish(dataset, workflow.folder / "data" / name, method)
    list_subjects(workflow, f"{name}\tdata/{name}")
    missing = {"AD-NeRF": {"blink", "layers"}, "SyncTalk": {"blink"}}.get(method, set())
    always = {"adopt", "landmarks", "overlay", "speech", "verify", "lipsync", "check"}
    assert workflow.planned() == always | missing | RESULTS


def test_a_folder_needs_neither_its_video_nor_a_row(workflow: Workflow, dataset: Path):
    folder = publish(dataset, workflow.folder / "data/alone")
    (folder / "alone.mp4").unlink()
    assert "adopt" in workflow.planned("--config", "video=data/alone")
    assert "adopt" in workflow.planned("--config", f"video={folder}/")
    (folder / "aud.wav").unlink()
    output = workflow.refuse("-n", "--config", "video=data/alone")
    assert "alone: data/alone/alone.mp4 does not exist\n" in output


def test_a_folder_elsewhere_is_linked(workflow: Workflow, dataset: Path, tmp_path: Path):
    folder = publish(dataset, tmp_path / "elsewhere")
    output = workflow.refuse("-n", "--config", f"video={folder}")
    assert (
        f"subject 'elsewhere': {folder} is a folder. It must be a video, or the folder "
        "data/elsewhere. To use a dataset in another folder, "
        f"run `ln -s {folder} data/elsewhere`.\n"
    ) in output
    (workflow.folder / "data").mkdir(exist_ok=True)
    os.symlink(folder, workflow.folder / "data/elsewhere")
    before = digests(folder)
    workflow.run("--config", f"video={folder}")
    assert before.items() <= digests(folder).items()
    assert workflow.planned("--config", f"video={folder}") == set()


def test_a_changed_mask_reruns_the_check(workflow: Workflow, dataset: Path):
    """And landmarks that the workflow adds to the folder of frames rerun nothing."""
    folder = publish(dataset, workflow.folder / "data/masked")
    (folder / "ori_imgs/0.lms").unlink()
    list_subjects(workflow, "masked\tdata/masked")
    workflow.run()
    assert (folder / "ori_imgs/0.lms").exists()
    assert workflow.planned() == set()
    shutil.copy(folder / "parsing/4.png", folder / "parsing/5.png")
    assert workflow.planned() == {"verify", "lipsync", "check"} | RESULTS


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["GaussianTalker", "AD-NeRF"])
def test_a_published_folder_trains_untouched(dataset: Path, tmp_path: Path, method: str):
    """Three missing landmark files are added; every file that was there keeps its bytes."""
    workflow = Workflow(tmp_path, REAL_TALKER)
    folder = publish(dataset, tmp_path / "data/me", method)
    for i in (3, 40, 41):
        (folder / "ori_imgs" / f"{i}.lms").unlink()
    options = (ROOT / "tests/smallest.yaml").read_text()
    (tmp_path / "config/config.yaml").write_text(
        options.replace("subjects: subjects.tsv", "subjects: config/subjects.tsv\nencoder: mel")
    )
    list_subjects(workflow, "me\tdata/me")
    before = digests(folder)
    workflow.run()
    after = digests(folder)
    assert before.items() <= after.items()
    added = {name for name in after.keys() - before.keys() if "/." not in f"/{name}"}
    expected = {f"ori_imgs/{i}.lms" for i in (3, 40, 41)}
    expected |= {"clip.json", "landmarks.npz", "track_overlay.mp4"}
    expected |= {"verified.json", "lipsync.json", "quality.json"}
    expected |= {"aud_mel.npy", "aud_mel.npz"}
    if method == "AD-NeRF":
        expected |= {"au.csv"}
        expected |= {f"gt_imgs/{i}.jpg" for i in range(100)}
        expected |= {f"torso_imgs/{i}.png" for i in range(100)}
    assert added == expected
    assert workflow.planned() == set()
    path = tmp_path / "results/me/val.mp4"
    video = list(read_frames(path, probe(path)))
    assert len(video) == 10
    truth = read_image(FRAMES.path(folder, 95))
    size = video[0].shape[0]
    small = truth.reshape(size, truth.shape[0] // size, size, -1, 3).mean((1, 3))
    assert abs(video[5].astype(float) - small).mean() < 20
