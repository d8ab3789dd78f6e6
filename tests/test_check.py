"""A complete folder passes the gate, and all faults of a folder are reported at once."""

import json
import shutil
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gated import gate, measure
from published import scale_transforms

from talker import verify
from talker.check import Config, main
from talker.errors import UserError
from talker.measure.faults import FolderSpec, pose_faults
from talker.measure.gate import Limits
from talker.media.images import read_image, write_image

FRAMES = 100
LONG = Limits(min_seconds=10.0)
"""Limits that refuse the test clip, which lasts 4 s."""


@pytest.fixture
def folder(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset that may be damaged."""
    return Path(shutil.copytree(dataset, tmp_path / "me"))


def faults_of(folder: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        measure(folder)
    return str(caught.value).splitlines()[1:]


def test_whole_folder_passes(folder: Path):
    facts = gate(folder)
    assert facts["frames"] == FRAMES and facts["seconds"] == FRAMES / 25
    assert facts["valid_percent"] == 100.0 and facts["longest_valid_seconds"] == FRAMES / 25
    assert facts["train_frames"] == 90
    assert 0.2 * facts["width"] < facts["face_width_px"] < 0.8 * facts["width"]
    assert facts["accepted"] and not facts["failures"]
    assert facts["mouth_range"] > 0.05 and facts["background_change_percent"] < 5


def test_poor_clip_is_refused_with_reasons_unless_forced(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    quality = tmp_path / "quality.json"
    measure(folder)
    with pytest.raises(UserError, match=r"(?s)--force.*Only 4\.0 s of the clip.*longer clip"):
        main(data=folder, quality=quality, config=Config(limits=LONG))
    facts = json.loads(quality.read_text())
    assert not facts["accepted"] and len(facts["failures"]) == 1
    main(data=folder, quality=quality, config=Config(limits=LONG, force=True))
    assert json.loads(quality.read_text())["accepted"]
    assert "be refused without --force): Only 4.0 s" in caplog.text


def test_blinks_are_counted(folder: Path):
    closed = np.zeros(FRAMES)
    closed[[0, 1, 20, 21, 22, 60]] = 4.0
    rows = [f"{i + 1}, {value:.3f}" for i, value in enumerate(closed)]
    (folder / "au.csv").write_text("\n".join(["frame, AU45_r", *rows]) + "\n")
    assert gate(folder)["blinks"] == 3


def replace_text(name: str, old: str, new: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return damage


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def remove_folder(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / name)


def cut_off(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def resize(name: str) -> Callable[[Path], object]:
    return lambda folder: write_image(folder / name, read_image(folder / name)[:-2])


def copy(name: str, to: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copy(folder / name, folder / to)


def edit_array(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    return lambda folder: np.save(folder / name, edit(np.load(folder / name)))


def edit_params(edit: Callable[[dict], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        params = torch.load(folder / "track_params.pt", weights_only=True)
        edit(params)
        torch.save(params, folder / "track_params.pt")

    return damage


def edit_transforms(edit: Callable[[list[dict]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / "transforms_train.json"
        content = json.loads(path.read_text())
        edit(content["frames"])
        path.write_text(json.dumps(content))

    return damage


def swap_ids(frames: list[dict]) -> None:
    for key in ("img_id", "aud_id"):
        frames[3][key], frames[7][key] = frames[7][key], frames[3][key]


def shorten_wav(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        with wave.open(str(folder / name)) as file:
            settings, content = file.getparams(), file.readframes(file.getnframes() - 1)
        with wave.open(str(folder / name), "wb") as file:
            file.setparams(settings)
            file.writeframes(content)

    return damage


def spoil(row: int) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        array[row] = np.nan
        return array

    return edit


def wrong_colour(folder: Path) -> None:
    path = folder / "parsing" / "0.png"
    pixels = read_image(path)
    pixels[0, 0] = (250, 255, 255)
    write_image(path, pixels)


def drop_rows(folder: Path) -> None:
    lines = (folder / "au.csv").read_text().splitlines()
    (folder / "au.csv").write_text("\n".join(lines[:-2]) + "\n")


def spoil_mesh(folder: Path) -> None:
    with np.load(folder / "landmarks.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["points"][5, 7] = np.nan
    np.savez(folder / "landmarks.npz", **arrays)


FAULTS = {
    "no clip": (remove("clip.json"), ["clip.json", "cannot be read"]),
    "no frame": (remove("ori_imgs/7.jpg"), ["ori_imgs", "frame 7", "is missing", "talker frames"]),
    "cut off frame": (cut_off("ori_imgs/8.jpg"), ["ori_imgs", "frame 8", "truncated"]),
    "cut off mask": (cut_off("parsing/8.png"), ["parsing", "frame 8", "truncated"]),
    "small frame": (resize("gt_imgs/9.jpg"), ["gt_imgs", "frame 9", "254", "must have 256x256"]),
    "torso without alpha": (copy("parsing/4.png", "torso_imgs/4.png"), ["torso_imgs", "channels"]),
    "frame too many": (copy("gt_imgs/4.jpg", "gt_imgs/100.jpg"), ["gt_imgs", "100.jpg"]),
    "no layers": (remove_folder("torso_imgs"), ["torso_imgs", "does not exist", "talker layers"]),
    "no plate": (remove("bc.jpg"), ["bc.jpg", "talker background"]),
    "wrong colour": (wrong_colour, ["parsing/0.png", "#faffff"]),
    "no landmarks": (remove("ori_imgs/3.lms"), [".lms", "frame 3"]),
    "67 landmarks": (replace_text("ori_imgs/2.lms", "\n", " 1.0\n"), [".lms", "frame 2", "68"]),
    "landmark nan": (replace_text("ori_imgs/2.lms", ".", "nan "), [".lms", "frame 2"]),
    "no mesh": (remove("landmarks.npz"), ["landmarks.npz", "cannot be read"]),
    "mesh nan": (spoil_mesh, ["landmarks.npz", "frame 5"]),
    "no sound": (remove("aud_novel.wav"), ["aud_novel.wav", "does not exist", "talker audio"]),
    "short sound": (shorten_wav("aud.wav"), ["aud.wav", "63999 samples", "must have 64000"]),
    "short part": (shorten_wav("aud_train.wav"), ["aud_train.wav", "must have 57600"]),
    "cut off sound": (cut_off("aud.wav"), ["aud.wav", "too short by"]),
    "short speech": (
        edit_array("aud_hama.npy", lambda x: x[:-1]),
        ["aud_hama.npy", "[99, 16, 32]"],
    ),
    "whole speech": (
        edit_array("aud_hama.npy", lambda x: x.astype(np.int32)),
        ["aud_hama.npy", "int32", "must be floating-point"],
    ),
    "empty speech": (
        lambda folder: (folder / "aud_hama.npy").write_bytes(b""),
        ["aud_hama.npy", "cannot be read as .npy"],
    ),
    "mesh without points": (
        lambda folder: np.savez(folder / "landmarks.npz", valid=np.ones(FRAMES, bool)),
        ["landmarks.npz", "no array 'points'"],
    ),
    "damaged blinks": (replace_text("au.csv", "AU45_r", '"AU45_r' + "0" * 200_000), ["au.csv"]),
    "speech of text": (
        edit_array("aud_hama.npy", lambda x: x.astype("U3")),
        ["aud_hama.npy", "must be floating-point"],
    ),
    "speech nan": (edit_array("aud_hama.npy", spoil(11)), ["aud_hama.npy", "frame 11"]),
    "short blinks": (drop_rows, ["au.csv", "98 rows"]),
    "no AU45": (replace_text("au.csv", "AU45_r", "AU46_r"), ["au.csv", "AU45_r"]),
    "no params": (remove("track_params.pt"), ["track_params.pt", "talker track"]),
    "params nan": (edit_params(lambda p: p["euler"][4].fill_(np.nan)), ["euler"]),
    "short params": (edit_params(lambda p: p.update(trans=p["trans"][:-1])), ["trans", "[99, 3]"]),
    "moved pose": (edit_params(lambda p: p["trans"][4].add_(1e-3)), ["_train", "frame 4", "pose"]),
    "swapped ids": (edit_transforms(swap_ids), ["transforms_train.json", "frames 3, 7", "pose"]),
    "dropped pose": (
        edit_transforms(lambda f: f.pop(5)),
        ["transforms_train.json", "does not list frame 5"],
    ),
    "double pose": (
        edit_transforms(lambda f: f.append(f[0])),
        ["transforms_train.json", "more than once"],
    ),
    "held-out pose": (
        edit_transforms(lambda f: f[0].update(img_id=95, aud_id=95)),
        ["transforms_train.json", "frame 95"],
    ),
    "invalid pose": (
        edit_params(lambda p: p["valid"].__setitem__(6, False)),
        ["transforms_train.json", "frame 6", "invalid"],
    ),
    "no val": (remove("transforms_val.json"), ["transforms_val.json", "cannot be read"]),
    "focal": (replace_text("transforms_val.json", '"cx": 1', '"cx": 2'), ["_val.json", "cx"]),
}


@pytest.mark.parametrize(("damage", "words"), FAULTS.values(), ids=FAULTS)
def test_fault_is_named(folder: Path, damage: Callable[[Path], object], words: list[str]):
    damage(folder)
    faults = faults_of(folder)
    assert any(all(word in fault for word in words) for fault in faults), faults


def test_all_faults_are_listed_at_once(folder: Path):
    for name in ("no frame", "short sound", "speech nan", "swapped ids", "no val"):
        FAULTS[name][0](folder)
    faults = faults_of(folder)
    for name in ("no frame", "short sound", "speech nan", "swapped ids", "no val"):
        assert any(all(word in fault for word in FAULTS[name][1]) for fault in faults), name
    assert len(faults) == 5


def test_many_frames_are_summed_up(folder: Path):
    for i in range(30):
        (folder / "gt_imgs" / f"{i}.jpg").unlink()
    (fault,) = faults_of(folder)
    assert "frames 0, 1, 2, 3, 4 and 25 more" in fault


def test_folder_of_the_published_scripts_passes(folder: Path):
    """DeepSpeech windows instead of talker's features, without files that only talker writes."""
    for name in ("clip.json", "landmarks.npz", "aud_hama.npy"):
        (folder / name).unlink()
    np.save(folder / "aud_ds.npy", np.zeros((FRAMES, 16, 29), np.float32))
    edit_params(
        lambda p: [p.pop(k) for k in ("valid", "frame_ids", "faces", "model", "units", "exp_basis")]
    )(folder)
    facts = gate(folder)
    assert facts["frames"] == FRAMES


def test_transforms_of_other_scripts_may_be_in_decimeters(folder: Path):
    scale_transforms(folder, 10)
    assert len(faults_of(folder)) == 2
    for name in ("clip.json", "landmarks.npz"):
        (folder / name).unlink()
    measure(folder)
    scale_transforms(folder, 1.1)
    assert len(faults_of(folder)) == 2


def test_transforms_of_other_scripts_may_have_their_split(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """In a clip of 10 to 33 s, talker holds out more frames than the published 1/11."""
    monkeypatch.setattr("talker.clip.MIN_HELD_OUT_CLIP", FRAMES)
    monkeypatch.setattr("talker.clip.MIN_HELD_OUT", 20)
    described = FolderSpec.of(folder)
    assert described.own and described.train_frames == 80
    assert not list(pose_faults(described)), "the files of the test clip have the published split"
    edit_transforms(lambda frames: frames.pop())(folder)
    assert [fault for fault in pose_faults(described) if "does not list frame 89" in fault]
    edit_transforms(lambda frames: frames.__delitem__(slice(80, None)))(folder)
    (fault,) = pose_faults(described)
    assert "transforms_val.json does not list frames 80, 81, 82, 83, 84 and 5 more" in fault


def test_the_verdict_does_not_depend_on_the_encoder(folder: Path):
    before = gate(folder)
    (folder / "aud_hama.npy").rename(folder / "aud_mel.npy")
    edit_array("aud_mel.npy", lambda x: x[..., :3] * 0)(folder)
    assert gate(folder) == before


def test_no_dataset_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"clip\.json"):
        measure(tmp_path)


def test_nothing_is_written_for_a_faulty_folder(folder: Path, tmp_path: Path):
    remove("bc.jpg")(folder)
    with pytest.raises(UserError):
        verify.main(data=folder, verified=tmp_path / "verified.json")
    assert not (tmp_path / "verified.json").exists()


@pytest.mark.parametrize(
    ("name", "stage", "key"),
    [("verified.json", "verify", "mouth_opening"), ("lipsync.json", "lipsync", "sync_correlation")],
)
def test_evidence_that_is_missing_or_damaged_is_refused(
    folder: Path, tmp_path: Path, name: str, stage: str, key: str
):
    measure(folder)
    values = json.loads((folder / name).read_text())
    for damaged in ({**values, key: "high"}, {**values, key: [1.0]}, {**values, "more": 1}, {}):
        (folder / name).write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=name):
            main(data=folder, quality=tmp_path / "quality.json")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} does not exist. Run `talker {stage}`"):
        main(data=folder, quality=tmp_path / "quality.json")
