"""Exported folders, opened as the readers of the methods open them (our own reading of them)."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from published import scale_transforms

from talker.__main__ import _run
from talker.head.camera import transform_matrices
from talker.media.images import read_image
from talker.tools.export import METHODS, Config, MethodName, face_rectangle, main

FRAMES = 100
POINTS = 6_000


@pytest.fixture
def folder(dataset: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(dataset, tmp_path / "me"))
    rng = np.random.default_rng(0)
    for name, shape in (("ds", (16, 29)), ("eo", (16, 44)), ("hu", (2, 1024))):
        np.save(folder / f"aud_{name}.npy", rng.normal(size=(FRAMES + 1, *shape)))
    return folder


def exported(folder: Path, tmp_path: Path, method: MethodName) -> Path:
    out = tmp_path / method
    main(data=folder, method=method, out=out, config=Config(vertices=POINTS))
    return out


@pytest.mark.parametrize("method", METHODS)
def test_images_landmarks_and_masks_are_where_readers_look(
    folder: Path, tmp_path: Path, method: MethodName
):
    out = exported(folder, tmp_path, method)
    height, width = read_image(out / "bc.jpg").shape[:2]
    for split in ("train", "val"):
        content = json.loads((out / f"transforms_{split}.json").read_text())
        assert content["cx"] == width / 2 and content["cy"] == height / 2
        for frame in content["frames"]:
            i = frame["img_id"]
            assert frame["aud_id"] == i
            assert np.array(frame["transform_matrix"], np.float32).shape == (4, 4)
            for name, channels in (("gt_imgs", 3), ("ori_imgs", 3), ("torso_imgs", 4)):
                suffix = "png" if channels == 4 else "jpg"
                image = read_image(out / name / f"{i}.{suffix}")
                assert image.shape == (height, width, channels)
            mask = read_image(out / "parsing" / f"{i}.png")
            assert ((mask[..., 2] > 254) & (mask[..., 0] == 0) & (mask[..., 1] == 0)).any()
            landmarks = np.loadtxt(out / "ori_imgs" / f"{i}.lms")
            assert landmarks.shape == (68, 2)
            x, y, w, h = frame["face_rect"]
            assert x <= landmarks[:, 0].min() and landmarks[:, 1].max() <= y + h
            lips = frame["lips_rect"]
            assert x <= lips[0] and lips[0] + lips[2] <= x + w and lips[3] > 0


def test_gaussiantalker_starts_from_dense_points_of_every_frame(folder: Path, tmp_path: Path):
    out = exported(folder, tmp_path, "gaussiantalker")
    params = torch.load(out / "track_params.pt", weights_only=True)
    assert params["vertices"].shape == (FRAMES, POINTS, 3)
    assert params["vertices"].dtype == torch.float32
    assert params["euler"].shape == params["trans"].shape == (FRAMES, 3)
    assert params["focal"].shape == (1,) and params["id"].shape == (1, 100)
    own = torch.load(folder / "track_params.pt", weights_only=True)
    for name in ("euler", "trans", "focal"):
        assert torch.equal(params[name], own[name])
    assert (out / "track_params.pt").stat().st_size < 2**20
    low, high = own["vertices"][0].amin(0), own["vertices"][0].amax(0)
    points = params["vertices"].mean(0)
    assert (points >= low - 1e-4).all() and (points <= high + 1e-4).all()
    spread = (points.amax(0) - points.amin(0)) / (high - low)
    assert spread.min() > 0.9
    assert not (out / "fused.ply").exists()


def test_transforms_hold_the_poses_in_meters(folder: Path, tmp_path: Path):
    """Also those of an adopted folder whose transforms are in dm."""
    scale_transforms(folder, 10)
    out = exported(folder, tmp_path, "ernerf")
    params = torch.load(out / "track_params.pt", weights_only=True)
    expected = transform_matrices(params["euler"].numpy(), params["trans"].numpy())
    content = json.loads((out / "transforms_val.json").read_text())
    for frame in content["frames"]:
        np.testing.assert_allclose(frame["transform_matrix"], expected[frame["img_id"]], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_speech_features_have_a_row_for_each_frame(
    folder: Path, tmp_path: Path, method: MethodName
):
    out = exported(folder, tmp_path, method)
    for name, window in METHODS[method].speech.items():
        features = np.load(out / name)
        assert features.shape == (FRAMES, *window) and features.dtype == np.float32
    assert {path.name for path in out.glob("aud_*.npy")} == set(METHODS[method].speech)
    assert (out / "aud.wav").read_bytes() == (folder / "aud.wav").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_au45_is_under_the_name_with_a_blank(folder: Path, tmp_path: Path, method: MethodName):
    out = exported(folder, tmp_path, method)
    rows = list(csv.DictReader((out / "au.csv").read_text().splitlines()))
    assert len(rows) == FRAMES
    values = [float(row[" AU45_r"]) for row in rows]
    own = list(csv.DictReader((folder / "au.csv").read_text().splitlines()))
    assert values == pytest.approx([float(row[" AU45_r"]) for row in own], abs=1e-3)


def test_the_command_names_the_method(folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    _run("export", ["--data", str(folder), "--for", "radnerf", "--out", str(out)])
    assert {path.name for path in out.glob("aud_*.npy")} == {"aud_ds.npy", "aud_eo.npy"}


def test_face_rectangles_are_those_of_ad_nerf():
    """Known landmarks: 100 px wide around x = 150, the nose at y = 120, the chin at y = 180."""
    points = np.full((68, 2), [150.0, 120.0])
    points[0], points[16], points[8] = (100, 120), (200, 120), (150, 180)
    assert face_rectangle(points, 512, 512) == [75, 51, 150, 138]
    assert face_rectangle(points, 220, 180) == [75, 51, 144, 128]


def test_talkinggaussian_sees_the_open_mouth(folder: Path, tmp_path: Path):
    """Gray between the lips, where the masks of the other methods have the head."""
    masks = {name: exported(folder, tmp_path, name) / "parsing" for name in METHODS}
    opened = 0
    for i in range(FRAMES):
        mask = read_image(masks["talkinggaussian"] / f"{i}.png")
        other = read_image(masks["ernerf"] / f"{i}.png")
        gray = (mask == 100).all(axis=2)
        assert (mask[~gray] == other[~gray]).all()
        opened += gray.sum() > 20
    assert opened > FRAMES / 4


def test_what_is_missing_is_named_with_its_tool(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for name in ("ds", "eo", "hu"):
        (folder / f"aud_{name}.npy").unlink()
    exported(folder, tmp_path, "talkinggaussian")
    for words in ("aud_ds.npy [100, 16, 29]", "AU05_r, AU06_r", "OpenFace", "teeth_mask"):
        assert "The copy is not complete yet" in caplog.text and words in caplog.text
    caplog.clear()
    exported(folder, tmp_path, "radnerf")
    assert "aud_eo.npy [100, 16, 44] or aud_ds.npy [100, 16, 29]" in caplog.text
    caplog.clear()
    exported(folder, tmp_path, "synctalk")
    assert "bs.npy is missing. Run data_utils/blendshape_capture of SyncTalk" in caplog.text
