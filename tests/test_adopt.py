"""A folder of the published scripts is adopted untouched, and its faults are named one by one."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from talker import speech
from talker.adopt import inspect, main, recognize
from talker.check import Config as CheckConfig
from talker.check import check
from talker.clip import Clip
from talker.data.formats import read_track_params, read_transforms
from talker.dataset import Dataset
from talker.errors import UserError
from talker.head.camera import transform_matrices
from talker.media.audio import read_wav, write_wav

FRAMES = 100


@pytest.fixture
def folder(dataset: Path, tmp_path: Path) -> Path:
    """The dataset as the scripts of GaussianTalker leave it: one row too many, no own files."""
    folder = Path(shutil.copytree(dataset, tmp_path / "me"))
    for name in ("clip.json", "landmarks.npz", "aud_hama.npy"):
        (folder / name).unlink()
    np.save(folder / "aud_ds.npy", np.zeros((FRAMES + 1, 16, 29)))
    (folder / "au.csv").write_text(
        "frame,timestamp, AU45_r\n" + "".join(f"{i},{i / 25:.2f},0.1\n" for i in range(FRAMES + 1))
    )
    write_wav(folder / "aud.wav", np.pad(read_wav(folder / "aud.wav"), (0, 333)))
    edit_params(
        lambda p: [p.pop(k) for k in ("valid", "frame_ids", "faces", "model", "units", "exp_basis")]
    )(folder)
    return folder


def edit_params(edit: Callable[[dict], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        params = torch.load(folder / "track_params.pt", weights_only=True)
        edit(params)
        torch.save(params, folder / "track_params.pt")

    return change


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_published_folder_is_adopted_untouched(folder: Path):
    before = digests(folder)
    main(data=folder)
    after = digests(folder)
    assert after.pop("clip.json") and after == before
    assert Clip.load(folder / "clip.json").frames == FRAMES
    rows = inspect(folder)
    assert not [row for row in rows if row.status in ("missing", "inconsistent")], rows
    main(data=folder)
    assert {**digests(folder), "clip.json": ""} == {**before, "clip.json": ""}


def test_an_adopted_folder_passes_the_check_and_takes_any_encoder(folder: Path):
    main(data=folder)
    speech.main(
        wav=folder / "aud.wav",
        clip=folder / "clip.json",
        statistics=folder / "aud_mel.npz",
        features=folder / "aud_mel.npy",
        config=speech.Config(encoder="mel", components=8),
    )
    assert check(folder, CheckConfig())["frames"] == FRAMES
    assert Dataset.load(folder, 64, "mel").speech.shape == (FRAMES, 16, 8)
    assert Dataset.load(folder, 64, "deepspeech").speech.shape == (FRAMES, 16, 29)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("aud_ave.npy", "SyncTalk"),
        ("aud_hu.npy", "ER-NeRF"),
        ("aud_eo.npy", "RAD-NeRF"),
        ("teeth_mask", "TalkingGaussian"),
        ("HeadNeRF_config.txt", "AD-NeRF"),
        ("aud_ds.npy", "GaussianTalker"),
        ("other", "AD-NeRF family"),
    ],
)
def test_a_method_is_recognized_by_its_files(tmp_path: Path, name: str, family: str):
    (tmp_path / name).mkdir()
    assert recognize(tmp_path) == family


def remove_landmarks(folder: Path) -> None:
    for i in (3, 40, 41):
        (folder / "ori_imgs" / f"{i}.lms").unlink()


def skip_landmarks(folder: Path) -> None:
    remove_landmarks(folder)
    kept = [i for i in range(FRAMES) if i not in (3, 40, 41)]
    edit_params(lambda p: p.update({k: p[k][kept] for k in ("euler", "trans", "exp")}))(folder)


def start_at_one(folder: Path) -> None:
    for i in reversed(range(FRAMES)):
        (folder / "ori_imgs" / f"{i}.jpg").rename(folder / "ori_imgs" / f"{i + 1}.jpg")


def fast_blinks(folder: Path) -> None:
    rows = "".join(f"{i},{i / 30:.3f},0.1\n" for i in range(120))
    (folder / "au.csv").write_text("frame, timestamp, AU45_r\n" + rows)


def long_sound(folder: Path) -> None:
    write_wav(folder / "aud.wav", np.pad(read_wav(folder / "aud.wav"), (0, 5 * 16_000)))


def shift_poses(folder: Path) -> None:
    path = folder / "transforms_train.json"
    content = json.loads(path.read_text())
    matrices = [frame["transform_matrix"] for frame in content["frames"]]
    for frame, matrix in zip(content["frames"], [*matrices[1:], matrices[0]], strict=True):
        frame["transform_matrix"] = matrix
    path.write_text(json.dumps(content))


def nerf_scale(folder: Path) -> None:
    for name in ("transforms_train.json", "transforms_val.json"):
        content = json.loads((folder / name).read_text())
        for frame in content["frames"]:
            for row in frame["transform_matrix"][:3]:
                row[3] *= 10
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove_landmarks, ["ori_imgs/*.lms", "frames 3, 40, 41 missing"]),
        (skip_landmarks, ["ori_imgs/*.lms", "tracker skipped"]),
        (start_at_one, ["frame numbers", "start at 1"]),
        (fast_blinks, ["au.csv", "120 rows at 30", "25"]),
        (long_sound, ["aud.wav", "lasts 9.02 s", "the frames 4.00 s"]),
        (shift_poses, ["transforms_train.json", "shifted by 1"]),
        (edit_params(lambda p: p["trans"].add_(0.1)), ["transforms_val.json", "poses differ"]),
        (
            lambda folder: np.save(folder / "aud_ds.npy", np.zeros((130, 16, 29))),
            ["aud_ds.npy", "130 windows for 100 frames"],
        ),
    ],
)
def test_faults_are_explained(folder: Path, damage: Callable[[Path], object], words: list[str]):
    damage(folder)
    with pytest.raises(UserError) as caught:
        main(data=folder)
    faults = str(caught.value).splitlines()[1:]
    assert any(all(word in fault for word in words) for fault in faults), faults


def test_the_scale_of_the_transforms_is_named(folder: Path):
    nerf_scale(folder)
    texts = [row.text for row in inspect(folder) if row.name.startswith("transforms")]
    assert len(texts) == 2 and all("in dm" in text for text in texts)


def test_missing_parts_are_listed_with_the_command(folder: Path):
    edit_params(lambda p: p.pop("vertices"))(folder)
    (folder / "bc.jpg").unlink()
    shutil.rmtree(folder / "torso_imgs")
    rows = {row.name: row for row in inspect(folder)}
    for name, command in {
        "bc.jpg": "talker background",
        "torso_imgs/*.png": "talker layers",
        "track_params.pt: vertices": "talker track",
    }.items():
        assert rows[name].status == "missing" and command in rows[name].text


@pytest.mark.clips
def test_published_poses_are_read_exactly(clips: Path):
    """The published poses without `vertices`: transforms file and tracked poses agree."""
    reference = clips.parent / "reference"
    params = read_track_params(reference / "track_params.pt")
    assert params.vertices is None and len(params.euler) == 8000
    listed = read_transforms(reference / "transforms_val.json", 8000)
    matrices = transform_matrices(params.euler.astype(float), params.trans.astype(float))
    assert np.abs(matrices[listed.ids] - listed.matrices).max() < 1e-6
