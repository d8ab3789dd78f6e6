"""Folders of the published scripts are adopted unchanged, and each fault is reported."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gated import gate
from published import (
    FEATURES,
    FRAMES,
    blinks,
    edit_params,
    publish,
    scale_transforms,
)

from talker import speech
from talker.clip import Clip, train_length
from talker.data import layout
from talker.data.formats import read_track_params, read_transforms
from talker.dataset import Dataset
from talker.errors import UserError
from talker.head.camera import transform_matrices
from talker.measure.faults import split_of_transforms
from talker.media.audio import read_wav, write_wav
from talker.media.images import write_image
from talker.tools.adopt import inspect, main, recognize

TRACK_AGAIN = (
    "Move track_params.pt, transforms_train.json and transforms_val.json to another folder; "
    "`talker track` then estimates the poses"
)


@pytest.fixture
def folder(dataset: Path, tmp_path: Path) -> Path:
    """The dataset as the scripts of GaussianTalker leave it."""
    return publish(dataset, tmp_path / "me")


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def statuses(folder: Path) -> dict[str, str]:
    return {row.name: row.status for row in inspect(folder)}


def test_a_published_folder_is_adopted_untouched(folder: Path):
    before = digests(folder)
    main(data=folder)
    after = digests(folder)
    assert after.pop("clip.json") and after == before
    assert Clip.load(folder / "clip.json").frames == FRAMES
    assert set(statuses(folder).values()) == {"present", "derived"}
    main(data=folder)
    assert {**digests(folder), "clip.json": ""} == {**before, "clip.json": ""}


def test_an_adopted_folder_passes_the_check_and_takes_any_encoder(folder: Path, dataset: Path):
    shutil.copy(dataset / "landmarks.npz", folder)
    main(data=folder)
    speech.main(
        wav=folder / "aud.wav",
        clip=folder / "clip.json",
        statistics=folder / "aud_mel.npz",
        features=folder / "aud_mel.npy",
        config=speech.Config(encoder="mel", components=8),
    )
    assert gate(folder)["frames"] == FRAMES
    assert Dataset.load(folder, 64, "mel").speech.shape == (FRAMES, 16, 8)
    assert Dataset.load(folder, 64, "deepspeech").speech.shape == (FRAMES, 16, 29)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("bs.npy", "SyncTalk"),
        ("aud_hu.npy", "ER-NeRF"),
        ("aud_eo.npy", "RAD-NeRF"),
        ("teeth_mask", "TalkingGaussian"),
        ("HeadNeRF_config.txt", "AD-NeRF"),
        ("aud_ds.npy", "GaussianTalker"),
        ("other", "the AD-NeRF family"),
    ],
)
def test_a_method_is_recognized_by_its_files(tmp_path: Path, name: str, family: str):
    (tmp_path / name).mkdir()
    assert recognize(tmp_path) == family


@pytest.mark.parametrize("method", FEATURES)
def test_the_folder_of_each_method_is_adopted(dataset: Path, tmp_path: Path, method: str):
    folder = publish(dataset, tmp_path / "me", method)
    assert recognize(folder) == method
    main(data=folder)
    missing = {name for name, status in statuses(folder).items() if status == "missing"}
    expected: dict[str, set[str]] = {
        "AD-NeRF": {"gt_imgs/*.jpg", "torso_imgs/*.png", "au.csv"},
        "SyncTalk": {"au.csv"},
    }
    assert missing == expected.get(method, set())
    texts = {row.name: row.text for row in inspect(folder)}
    unit = "dm, as in track_params.pt" if method in ("AD-NeRF", "SyncTalk") else "m"
    assert texts["transforms_val.json"] == f"10 frames, translations in {unit}"


def remove_landmarks(folder: Path) -> None:
    for i in (3, 40, 41):
        (folder / "ori_imgs" / f"{i}.lms").unlink()


def skip_landmarks(folder: Path) -> None:
    """The published tracker omits frames without landmarks, which shifts the later poses."""
    remove_landmarks(folder)
    kept = [i for i in range(FRAMES) if i not in (3, 40, 41)]
    edit_params(
        folder, lambda p: p.update({k: p[k][kept] for k in ("euler", "trans", "exp", "vertices")})
    )


def start_at_one(folder: Path) -> None:
    for i in reversed(range(FRAMES)):
        (folder / "ori_imgs" / f"{i}.jpg").rename(folder / "ori_imgs" / f"{i + 1}.jpg")


def change_length(seconds: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        samples = read_wav(folder / "aud.wav")
        wanted = round((FRAMES / 25 + seconds) * 16_000)
        write_wav(folder / "aud.wav", np.pad(samples, (0, 80_000))[:wanted])

    return change


def shift_poses(step: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "transforms_train.json"
        content = json.loads(path.read_text())
        matrices = [frame["transform_matrix"] for frame in content["frames"]]
        matrices = matrices[step:] + matrices[:step]
        for frame, matrix in zip(content["frames"], matrices, strict=True):
            frame["transform_matrix"] = matrix
        path.write_text(json.dumps(content))

    return change


def shift_ids(folder: Path) -> None:
    path = folder / "transforms_train.json"
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        frame["img_id"] = frame["aud_id"] = frame["img_id"] + 1
    path.write_text(json.dumps(content))


def save_windows(count: int) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "aud_ds.npy", np.zeros((count, 16, 29)))


def unlink(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


FAULTS = {
    "landmarks skipped": (
        skip_landmarks,
        "track_params.pt: 97 poses for 100 frames, and frames 3, 40, 41 have no landmarks: the "
        "tracker skipped them, so every later pose belongs to another frame. " + TRACK_AGAIN,
    ),
    "frames from 1": (
        start_at_one,
        "frame numbers: the frames start at 1, so the pose and the audio of frame i belong to "
        "image i + 1. Rename the images so that they start at 0",
    ),
    "frames missing": (
        unlink("ori_imgs/7.jpg", "ori_imgs/8.jpg"),
        "ori_imgs/*.jpg: frames 7, 8 are missing. Restore them from another copy of the dataset",
    ),
    "masks missing": (
        unlink(*(f"parsing/{i}.png" for i in range(20, 30))),
        "parsing/*.png: frames 20, 21, 22, 23, 24 and 5 more are missing. Restore them from "
        "another copy of the dataset, or move parsing to another folder; `talker parsing` then "
        "writes it",
    ),
    "blinks at 30 fps": (
        lambda folder: blinks(folder, 120, 30),
        "au.csv: it has 120 rows at 30 frames per second, but must have 100 rows at 25. Rename it, "
        "for example to openface.csv, and set `blink: {backend: openface, table: FILE}`, so that "
        "`talker blink` resamples the rows",
    ),
    "blinks of another clip": (
        lambda folder: blinks(folder, 80, 25),
        "au.csv: it has 80 rows for 100 frames. Run OpenFace on the frames in ori_imgs, or move "
        "the file to another folder, so that `talker blink` writes it",
    ),
    "no blinks in the table": (
        lambda folder: (folder / "au.csv").write_text("frame, AU12_r\n1, 0.5\n"),
        "au.csv: it has no column AU45_r. Its columns are: frame, AU12_r. Run `talker blink`, or "
        "use a table that OpenFace wrote.",
    ),
    "sound too long": (
        change_length(3),
        "aud.wav: it lasts 7.00 s, but the 100 frames last 4.00 s. Replace it with the audio of "
        "the part of the video that the frames show, or move the file to another folder, so that "
        "`talker audio` extracts it from the video",
    ),
    "sound too short": (
        change_length(-2),
        "aud.wav: it lasts 2.00 s, but the 100 frames last 4.00 s. Replace it with the audio of "
        "the part of the video that the frames show, or move the file to another folder, so that "
        "`talker audio` extracts it from the video",
    ),
    "windows too long": (
        save_windows(130),
        "aud_ds.npy: it has 130 windows for 100 frames. Extract them from aud.wav again, or move "
        "the file to another folder, so that talker extracts the features that it needs",
    ),
    "poses shifted": (
        shift_poses(1),
        "transforms_train.json: the frame numbers are shifted: the pose of frame i is that of "
        "frame i+1 in track_params.pt. " + TRACK_AGAIN,
    ),
    "poses shifted back": (
        shift_poses(-1),
        "transforms_train.json: the frame numbers are shifted: the pose of frame i is that of "
        "frame i-1 in track_params.pt. " + TRACK_AGAIN,
    ),
    "ids shifted": (
        shift_ids,
        "transforms_train.json: it lists frame 90, but must list only frames 0 to 89. "
        + TRACK_AGAIN,
    ),
    "poses moved": (
        lambda folder: edit_params(folder, lambda p: p["trans"][95:].add_(0.1)),
        "transforms_val.json: the poses differ from those in track_params.pt. " + TRACK_AGAIN,
    ),
    "no vertices": (
        lambda folder: edit_params(folder, lambda p: p.pop("vertices")),
        "track_params.pt: vertices: the head mesh, from which training starts, is missing. "
        + TRACK_AGAIN
        + " and the mesh",
    ),
}
"""Damage of a published folder, and the line of the message about it."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_explained(folder: Path, name: str):
    damage, explanation = FAULTS[name]
    damage(folder)
    before = digests(folder)
    with pytest.raises(UserError) as caught:
        main(data=folder)
    assert str(caught.value) == f"{folder} has 1 fault. No file was changed.\n  {explanation}"
    assert digests(folder) == before


def test_all_faults_are_explained_together(folder: Path):
    chosen = ("masks missing", "blinks at 30 fps", "windows too long", "ids shifted")
    for name in chosen:
        FAULTS[name][0](folder)
    with pytest.raises(UserError) as caught:
        main(data=folder)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{folder} has 4 faults. No file was changed."
    assert sorted(lines) == sorted(f"  {FAULTS[name][1]}" for name in chosen)


@pytest.mark.parametrize(
    ("repair", "row"),
    [
        (
            remove_landmarks,
            "ori_imgs/*.lms missing frames 3, 40, 41 have no landmarks; `talker landmarks` writes "
            "them",
        ),
        (
            lambda folder: shutil.copy(folder / "ori_imgs/99.jpg", folder / "ori_imgs/100.jpg"),
            "frame numbers present frame 100 has no pose and will not be used",
        ),
        (lambda folder: blinks(folder, FRAMES, 30), "au.csv present 100 rows"),
        (change_length(0.4), "aud.wav present 4.40 s"),
        (
            lambda folder: scale_transforms(folder, 10),
            "transforms_val.json present 10 frames, translations in dm, as in track_params.pt",
        ),
        (unlink("bc.jpg"), "bc.jpg missing `talker background` writes it"),
        (unlink("aud.wav"), "aud.wav missing `talker audio` extracts it from the video"),
        (
            lambda folder: shutil.rmtree(folder / "torso_imgs"),
            "torso_imgs/*.png missing `talker layers` writes them",
        ),
    ],
)
def test_what_can_be_repaired_is_no_fault(folder: Path, repair: Callable[[Path], object], row: str):
    repair(folder)
    main(data=folder)
    assert row in {f"{row.name} {row.status} {row.text}" for row in inspect(folder)}


@pytest.mark.clips
def test_published_poses_are_read_exactly(clips: Path):
    """The published poses without `vertices`: transforms file and tracked poses agree."""
    reference = clips.parent / "reference"
    params = read_track_params(reference / "track_params.pt")
    assert params.vertices is None and len(params.euler) == 8000
    listed = read_transforms(reference / "transforms_val.json", 8000)
    matrices = transform_matrices(params.euler.astype(float), params.trans.astype(float))
    assert np.abs(matrices[listed.ids] - listed.matrices).max() < 1e-6


@pytest.mark.clips
def test_a_folder_of_the_published_files_lacks_only_what_was_removed(clips: Path, tmp_path: Path):
    for name in ("track_params.pt", "transforms_val.json"):
        shutil.copy(clips.parent / "reference" / name, tmp_path)
    (tmp_path / "ori_imgs").mkdir()
    write_image(tmp_path / "ori_imgs/0.jpg", np.zeros((450, 450, 3), np.uint8))
    rows = {row.name: row for row in inspect(tmp_path)}
    assert rows["track_params.pt"].text == "8000 poses, focal length 1200.0 px"
    assert rows["track_params.pt: vertices"].status == "inconsistent"
    assert rows["transforms_val.json"].text.endswith("frames, translations in m")
    assert rows["transforms_train.json"].status == "missing"


@pytest.mark.parametrize(("listed", "split"), [(325, 325), (320, 325), (363, 363), (350, 363)])
def test_the_split_is_that_of_the_transforms_files(tmp_path: Path, listed: int, split: int):
    """Talker holds out 75 of 400 frames, and the published split 37."""
    frames = [
        {"img_id": i, "aud_id": i, "transform_matrix": np.eye(4).tolist()} for i in range(listed)
    ]
    content = {"focal_len": 500.0, "cx": 64.0, "cy": 64.0, "frames": frames}
    (tmp_path / layout.TRANSFORMS_TRAIN).write_text(json.dumps(content), encoding="utf-8")
    assert split_of_transforms(tmp_path, 400, train_length(400)) == split
