"""Files of another frame, clip or sound are found, whichever file of the dataset is replaced."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gated import measure

from talker import check, layers, speech
from talker.core.files import atomic_write
from talker.data import layout
from talker.data.formats import read_au45, write_action_units
from talker.errors import UserError
from talker.measure.content import reprojection_errors
from talker.measure.faults import FolderSpec
from talker.measure.quality import edited_files
from talker.media.audio import read_wav, write_wav
from talker.media.images import read_image, write_image

FRAMES = 100


@pytest.fixture(scope="module")
def prepared(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose layers and speech features are those of the real stages."""
    folder = Path(shutil.copytree(dataset, tmp_path_factory.mktemp("content") / "me"))
    layers.main(
        clip=folder / "clip.json",
        images=folder / "ori_imgs",
        masks=folder / "parsing",
        plate=folder / "bc.jpg",
        truth=folder / "gt_imgs",
        torso=folder / "torso_imgs",
    )
    speech.main(
        wav=folder / "aud.wav",
        clip=folder / "clip.json",
        statistics=folder / "aud_hama.npz",
        features=folder / "aud_hama.npy",
    )
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "me"))


def swap(name: str, other: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copyfile(folder / other, folder / name)


def other_background(folder: Path) -> None:
    write_image(folder / "bc.jpg", 255 - read_image(folder / "bc.jpg"))


def other_head(folder: Path) -> None:
    """Mirror the mask, as if it showed another person."""
    path = layout.MASKS.path(folder, 7)
    write_image(path, np.ascontiguousarray(np.roll(read_image(path), 80, axis=1)))


def all_background(folder: Path) -> None:
    path = layout.MASKS.path(folder, 7)
    write_image(path, np.full_like(read_image(path), 255))


def edit_params(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        params = torch.load(folder / "track_params.pt")
        change(params)
        torch.save(params, folder / "track_params.pt")
        for name in ("transforms_train.json", "transforms_val.json"):
            (folder / name).unlink()
        write_cameras(folder, params)

    return edit


def write_cameras(folder: Path, params: dict) -> None:
    from talker.clip import train_length
    from talker.data.formats import write_transforms
    from talker.head.camera import transform_matrices

    matrices = transform_matrices(params["euler"].double().numpy(), params["trans"].numpy())
    size = read_image(folder / "bc.jpg").shape[:2]
    split = train_length(FRAMES)
    for part, ids in (("train", range(split)), ("val", range(split, FRAMES))):
        path = folder / f"transforms_{part}.json"
        write_transforms(path, matrices, float(params["focal"]), size, ids)


def shift_poses(params: dict) -> None:
    """Give every frame the pose that a head of another size and place would have."""
    params["trans"] = params["trans"] + torch.linspace(-2, 2, FRAMES)[:, None]


def one_pose(params: dict) -> None:
    params["euler"][40] += 0.5


def reverse_sound(folder: Path) -> None:
    write_wav(folder / "aud_train.wav", read_wav(folder / "aud_train.wav")[::-1])


def other_sound(folder: Path) -> None:
    """Replace the whole sound and its parts consistently; the features remain."""
    whole = read_wav(folder / "aud.wav")[::-1]
    split = len(read_wav(folder / "aud_train.wav"))
    for name, part in (("aud", whole), ("aud_train", whole[:split]), ("aud_novel", whole[split:])):
        write_wav(folder / f"{name}.wav", part)


def other_statistics(folder: Path) -> None:
    with np.load(folder / "aud_hama.npz") as archive:
        arrays = dict(archive)
    np.savez(folder / "aud_hama.npz", **arrays | {"mean": arrays["mean"][::-1]})


def other_report(folder: Path) -> None:
    report = {
        "frames": FRAMES,
        "valid": FRAMES,
        "focal": {"px": 123.0, "at_bound": False},
        "face_width_px": 90.0,
        "motion_px": {"final": {"c1": 0.1, "c5": 0.2}},
        "segments": [{"residual_px": 1.0}],
        "rejected": [],
        "residual": {"percent_of_face": 0.5},
        "degrees": {"yaw_low": -1.0, "yaw_high": 1.0},
    }
    (folder / "track_report.json").write_text(json.dumps(report))


def impossible_report(folder: Path) -> None:
    other_report(folder)
    path = folder / "track_report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"valid": 1e308}))


FAULTS = {
    "frame": (swap("ori_imgs/7.jpg", "ori_imgs/60.jpg"), ["gt_imgs", "frame 7", "another frame"]),
    "mask": (other_head, ["gt_imgs", "frame 7"]),
    "mask without a head": (all_background, ["parsing", "frame 7", "landmarks of the face"]),
    "composite": (swap("gt_imgs/7.jpg", "gt_imgs/60.jpg"), ["gt_imgs", "frame 7"]),
    "torso": (swap("torso_imgs/7.png", "torso_imgs/60.png"), ["torso_imgs", "frame 7"]),
    "plate": (other_background, ["gt_imgs", "frames 0, 1"]),
    "landmarks": (
        swap("ori_imgs/7.lms", "ori_imgs/60.lms"),
        [".lms files that differ from landmarks.npz, in frame 7"],
    ),
    "all poses": (edit_params(shift_poses), ["poses that differ from the landmarks by"]),
    "one pose": (edit_params(one_pose), ["poses that differ from the landmarks, in frame 40"]),
    "expression": (edit_params(lambda p: p["exp"].zero_()), ["the same expression in all frames"]),
    "report": (other_report, ["track_report.json", "focal length 123.0 px"]),
    "impossible report": (impossible_report, ["track_report.json", "cannot be tracked"]),
    "part of the sound": (reverse_sound, ["aud_train.wav", "differs from the same part"]),
    "sound": (
        other_sound,
        ["aud_hama.npy", "differs from the features that talker computes from aud.wav"],
    ),
    "statistics": (other_statistics, ["aud_hama.npy", "from aud.wav with aud_hama.npz"]),
}


def test_nothing_is_found_in_a_consistent_folder(folder: Path):
    measure(folder)


@pytest.mark.parametrize(("replace", "words"), FAULTS.values(), ids=FAULTS)
def test_a_file_of_something_else_is_found(
    folder: Path, replace: Callable[[Path], object], words: list[str]
):
    replace(folder)
    with pytest.raises(UserError, match="consistent") as caught:
        measure(folder)
    faults = str(caught.value).splitlines()[1:]
    assert any(all(word in fault for word in words) for fault in faults), faults


def test_blinks_of_another_clip_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch):
    from talker.measure import content

    monkeypatch.setattr(content, "BLINK_FRAMES", FRAMES)
    spec = FolderSpec.of(folder)
    assert not list(content.blink_faults(spec))
    path = folder / "au.csv"
    write_action_units(path, {"AU45_r": 5 - read_au45(path)}, np.ones(FRAMES, bool))
    (fault,) = content.blink_faults(spec)
    assert "au.csv" in fault and "landmarks of the eyes" in fault


def test_a_file_that_was_changed_by_hand_is_a_warning(folder: Path, tmp_path: Path):
    assert not list(edited_files(folder))
    path = layout.TORSOS.path(folder, 3)
    pixels = read_image(path)
    pixels[0, 0] = 7
    write_image(path, pixels)
    with atomic_write(folder / "au.csv") as (scratch,):
        scratch.write_text((folder / "au.csv").read_text())
    (folder / "au.csv").write_text((folder / "au.csv").read_text().replace("1.00", "0.99"))
    quality = tmp_path / "quality.json"
    measure(folder)
    check.main(data=folder, quality=quality, config=check.Config())
    warnings = json.loads(quality.read_text())["warnings"]
    assert any("au.csv was changed after talker wrote it" in text for text in warnings)
    assert any("after talker wrote" in text and "torso_imgs: 3.png." in text for text in warnings)


def test_reprojection_errors_are_those_of_the_noise():
    random = np.random.default_rng(0)
    from talker.data.formats import TrackParams
    from talker.head.camera import intrinsics, project, viewmats_from_pose

    count, focal = 50, 1000.0
    euler = random.normal(0, 0.1, (count, 3)).astype(np.float32)
    trans = (np.array([0, 0, -8]) + random.normal(0, 0.1, (count, 3))).astype(np.float32)
    points = random.uniform(-0.7, 0.7, (68, 3))
    seen = project(points, viewmats_from_pose(euler, trans), intrinsics(focal, 512, 512))
    params = TrackParams(
        euler, trans, focal, np.zeros((count, 1)), np.ones(count, bool), None, None
    )
    assert reprojection_errors(params, seen, (512, 512)).max() < 1e-4
    seen[3] += 20
    errors = reprojection_errors(params, seen, (512, 512))
    width = np.median(np.ptp(seen[..., 0], axis=1))
    assert errors[3] == pytest.approx(np.hypot(20, 20) / width, rel=0.1)
    assert np.delete(errors, 3).max() < 0.01
