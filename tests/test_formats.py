"""The readers of the dataset's formats refuse what does not fit, by name and in little memory."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from talker.avatar.gaussians import load_ply
from talker.clip import Clip, Source, load_array, load_arrays, load_json
from talker.data.formats import (
    brow_units,
    eye_closure,
    read_au45,
    read_eye,
    read_track_params,
    read_transforms,
    write_action_units,
    write_transforms,
)
from talker.errors import UserError
from talker.head.landmarks68 import read_lms, write_lms
from talker.media.images import image_header, read_image, read_numbered, write_image

FRAMES = 12


def fields() -> dict:
    return {
        "id": torch.zeros(1, 100),
        "exp": torch.zeros(FRAMES, 79),
        "euler": torch.zeros(FRAMES, 3),
        "trans": torch.zeros(FRAMES, 3),
        "focal": torch.tensor([1200.0]),
        "vertices": torch.rand(1, 50, 3),
        "valid": torch.ones(FRAMES, dtype=torch.bool),
        "faces": torch.zeros(10, 3, dtype=torch.long),
    }


def test_poses_are_read_as_float32(tmp_path: Path):
    params = fields() | {"exp": torch.ones(FRAMES, 79, dtype=torch.bfloat16)}
    torch.save(params, tmp_path / "p.pt")
    found = read_track_params(tmp_path / "p.pt")
    assert found.euler.shape == (FRAMES, 3) and found.focal == 1200
    assert found.expression.dtype == np.float32 and (found.expression == 1).all()
    np.testing.assert_array_equal(found.vertices, params["vertices"][0].numpy())


def test_vertices_of_every_frame_are_averaged_also_where_they_are_stored_once(tmp_path: Path):
    points = torch.rand(1, 50, 3)
    for vertices in (points.repeat(FRAMES, 1, 1), points.expand(FRAMES, -1, -1)):
        torch.save(fields() | {"vertices": vertices}, tmp_path / "p.pt")
        found = read_track_params(tmp_path / "p.pt").vertices
        np.testing.assert_allclose(found, points[0].numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must contain a dictionary"),
        (torch.zeros(3), "must contain a dictionary"),
        ({"euler": "text"}, "euler is of type str, but it must be a tensor"),
        (fields() | {"euler": torch.zeros(FRAMES, 3).to_sparse()}, "euler is .* must be a dense"),
        (
            fields() | {"euler": torch.zeros(FRAMES, 3, device="meta")},
            "euler is .* must be a dense",
        ),
        (fields() | {"euler": torch.full((FRAMES, 3), torch.nan)}, "euler has values that are"),
        (fields() | {"trans": torch.full((FRAMES, 3), 1e30)}, "trans has values that are"),
        (
            fields() | {"trans": torch.zeros(FRAMES - 1, 3)},
            r"trans .*\[11, 3\], but it must be \[12, 3\]",
        ),
        (fields() | {"trans": torch.zeros(1, 1).expand(FRAMES, 3)}, "trans .* stores fewer"),
        (
            fields() | {"euler": torch.zeros(FRAMES, 3, dtype=torch.long)},
            "euler has the type torch.int64",
        ),
        (fields() | {"valid": torch.ones(FRAMES)}, "`valid` has the type torch.float32"),
        (
            fields() | {"valid": torch.ones(FRAMES + 1, dtype=torch.bool)},
            "`valid` has the type torch.bool",
        ),
        (fields() | {"faces": torch.full((10, 3), 50)}, "`faces` refers to the vertices 50 to 50"),
        (fields() | {"focal": torch.tensor([-1.0])}, "focal is -1"),
        (fields() | {"vertices": torch.full((1, 50, 3), torch.inf)}, "`vertices` has values"),
    ],
)
def test_wrong_poses_are_refused(tmp_path: Path, content: object, message: str):
    torch.save(content, tmp_path / "p.pt")
    with pytest.raises(UserError, match=rf"p\.pt:? (?s:.*){message}"):
        read_track_params(tmp_path / "p.pt")


def test_code_and_compressed_members_are_not_loaded(tmp_path: Path):
    torch.save({"euler": Path("/tmp")}, tmp_path / "p.pt")
    with pytest.raises(UserError, match=r"p\.pt cannot be read by torch\.load"):
        read_track_params(tmp_path / "p.pt")
    torch.save(fields(), tmp_path / "p.pt")
    with (
        zipfile.ZipFile(tmp_path / "p.pt") as stored,
        zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(UserError, match=r"c\.pt .*compressed"):
        read_track_params(tmp_path / "c.pt")


def test_transforms_are_read_as_written(tmp_path: Path):
    matrices = np.random.default_rng(0).normal(size=(FRAMES, 4, 4))
    write_transforms(tmp_path / "t.json", matrices, 1100.0, (200, 300), [2, 5])
    found = read_transforms(tmp_path / "t.json", FRAMES)
    assert (found.focal, found.center) == (1100.0, (150.0, 100.0))
    assert found.ids.tolist() == found.audio_ids.tolist() == [2, 5]
    np.testing.assert_array_equal(found.matrices, matrices[[2, 5]])


def test_transforms_in_another_order_are_sorted(tmp_path: Path):
    matrices = np.random.default_rng(0).normal(size=(FRAMES, 4, 4))
    write_transforms(tmp_path / "t.json", matrices, 1100.0, (200, 300), [5, 2])
    found = read_transforms(tmp_path / "t.json", FRAMES)
    assert found.ids.tolist() == found.audio_ids.tolist() == [2, 5]
    np.testing.assert_array_equal(found.matrices, matrices[[2, 5]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("frames"), "has no 'frames'"),
        (lambda c: c.pop("focal_len"), "has no 'focal_len'"),
        (lambda c: c.update(frames=None), "the type of `frames` is NoneType"),
        (lambda c: c.update(frames=[1]), "is not a valid transforms file"),
        (lambda c: c.update(focal_len=float("nan")), "focal_len is nan"),
        (lambda c: c["frames"][0].update(img_id=10**6), "img_id is 1000000"),
        (lambda c: c["frames"][0].update(img_id="0"), "img_id is 0"),
        (lambda c: c["frames"][0].update(img_id=True), "img_id is True"),
        (lambda c: c["frames"][0].update(transform_matrix=[1]), "is not a valid transforms file"),
        (lambda c: c["frames"][0]["transform_matrix"][0].__setitem__(0, 1e999), "not finite"),
    ],
)
def test_wrong_transforms_are_refused(
    tmp_path: Path, change: Callable[[dict], object], message: str
):
    write_transforms(tmp_path / "t.json", np.zeros((FRAMES, 4, 4)), 1100.0, (200, 300), [2, 5])
    content = json.loads((tmp_path / "t.json").read_text())
    change(content)
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"t\.json .*{message}"):
        read_transforms(tmp_path / "t.json", FRAMES)


def test_blinks_are_read_as_written(tmp_path: Path):
    au45 = np.linspace(0, 5, FRAMES)
    brows = np.linspace(-1, 1, FRAMES)
    path, every = tmp_path / "au.csv", np.ones(FRAMES, bool)
    write_action_units(path, {"AU45_r": au45} | brow_units(brows), every)
    assert read_au45(path) == pytest.approx(au45, abs=1e-3)
    eye = read_eye(path)
    assert eye[:, 0] == pytest.approx(eye_closure(au45), abs=1e-3)
    assert eye[:, 1] == pytest.approx(brows, abs=1e-3)
    write_action_units(path, {"AU45_r": au45}, every)
    assert (read_eye(path)[:, 1] == 0).all()
    write_action_units(path, {"AU45_r": au45, "AU02_r": au45}, every)
    assert read_eye(path)[:, 1] == pytest.approx(au45 / 10, abs=1e-3)
    assert eye_closure(np.array([0, 1, 2, 5.0])).tolist() == [0, 0.5, 1, 1]


@pytest.mark.parametrize("empty", ["", "nan"])
def test_empty_columns_of_the_brows_count_as_missing(tmp_path: Path, empty: str):
    (tmp_path / "au.csv").write_text(f"AU45_r, AU01_r, AU04_r\n1, {empty}, 1\n2, {empty}, 3\n")
    assert read_eye(tmp_path / "au.csv")[:, 1].tolist() == pytest.approx([-0.2, -0.6])
    (tmp_path / "au.csv").write_text(f"AU45_r, AU04_r\n1, {empty}\n2, {empty}\n")
    assert read_eye(tmp_path / "au.csv")[:, 1].tolist() == [0, 0]


@pytest.mark.parametrize("value", ["1e30", "nan", "inf", "-1", "x", ""])
def test_blinks_out_of_range_are_refused(tmp_path: Path, value: str):
    (tmp_path / "au.csv").write_text(f"frame, AU45_r\n1, 0.5\n2, {value}\n")
    with pytest.raises(UserError, match=r"au\.csv has the value .* in row 1 of the column AU45_r"):
        read_au45(tmp_path / "au.csv")
    (tmp_path / "au.csv").write_text(f"AU45_r, AU04_r\n1, 0.5\n2, {value}\n")
    with pytest.raises(UserError, match=r"au\.csv has the value .* in row 1 of the column AU04_r"):
        read_eye(tmp_path / "au.csv")


@pytest.mark.parametrize("value", ["1e30", "nan", "x"])
def test_landmarks_out_of_range_are_refused(tmp_path: Path, value: str):
    write_lms(tmp_path / "0.lms", np.ones((68, 2)))
    assert (read_lms(tmp_path / "0.lms") == 1).all()
    (tmp_path / "0.lms").write_text(f"{value} 1\n" * 68)
    with pytest.raises(UserError, match=r"0\.lms does not have 68 lines"):
        read_lms(tmp_path / "0.lms")


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(f"({10**13},)") + bytes(4), "needs 40000000000000 bytes"),
        (header("(-1,)") + bytes(4), "cannot be negative"),
        (header("(1,)", "'|O'") + bytes(8), "contains object"),
        (header("(1,)", "7") + bytes(4), "header is damaged"),
        (header("((((((") + bytes(4), "header is damaged"),
        (header("(1,)") + bytes(8), "needs 4 bytes"),
    ],
)
def test_arrays_that_claim_more_than_the_file_holds_are_refused(
    tmp_path: Path, content: bytes, message: str
):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.npy cannot be read as \.npy .*{message}"):
        load_array(tmp_path / "a.npy")


def test_a_zip_bomb_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points.npy", header("(25000000,)") + bytes(100_000_000))
    with pytest.raises(UserError, match=r"a\.npz .*points\.npy would expand .* to 95 MiB"):
        load_arrays(tmp_path / "a.npz")


def test_frames_with_an_alpha_channel_are_refused(tmp_path: Path):
    clip = Clip(1, 8, 8, Source("a", 8, 8, 25.0, False, 0, 1.0, 0.0, 0.0, "h264"))
    write_image(tmp_path / "0.png", np.zeros((8, 8, 4), np.uint8))
    with pytest.raises(UserError, match=r"0\.png has an alpha channel"):
        list(read_numbered(tmp_path, clip, ".png"))


@pytest.mark.parametrize(
    "read", [load_array, load_arrays, load_json, load_ply, read_lms, read_track_params]
)
def test_pipes_devices_and_folders_are_not_opened(tmp_path: Path, read: Callable[[Path], object]):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "zero"):
        with pytest.raises(UserError, match=rf"{name} is .*, not a regular file"):
            read(tmp_path / name)


def test_deep_and_wrong_json_is_refused(tmp_path: Path):
    for text, message in (
        ("[" * 100_000, "nested too deeply"),
        ("[]", "must contain a JSON object"),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match=rf"a\.json .*{message}"):
            load_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 10**6}, "frames"),
        ({"frames": 0}, "frames"),
        ({"fps": 30}, "fps"),
        ({"source": {"name": "../../etc"}}, "name"),
        ({"source": {"video_start": -1e9}}, "video_start"),
        ({"source": {"video_start": float("nan")}}, "video_start"),
    ],
)
def test_wrong_clips_are_refused(dataset: Path, tmp_path: Path, change: dict, message: str):
    content = json.loads((dataset / "clip.json").read_text())
    for key, value in change.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    (tmp_path / "clip.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"clip\.json: .*{message}"):
        Clip.load(tmp_path / "clip.json")


def png_header(width: int, height: int) -> bytes:
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + size + b"\x08\x02\0\0\0" + bytes(99)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_header(100_000, 100_000), "declares 100000x100000 pixels"),
        (b"\xff\xd8\xff\xc0\0\x11\x08\xff\xdc\xff\xdc\x03" + bytes(99), "declares 65500x65500"),
        (b"BM" + bytes(16) + b"\x50\xc3\0\0\x50\xc3\0\0" + bytes(99), "declares 50000x50000"),
        (b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff" * 6, "declares 16777216x16777216"),
        (png_header(2**31 - 1, 1), "declares 2147483647x1 pixels"),
        (b"P6 30000 30000 255\n", "not a PNG, JPEG, WebP or BMP image"),
        (b"", "not a PNG"),
    ],
)
def test_images_that_claim_too_much_are_not_decoded(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.png .*{message}"):
        read_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(content + b"IEND")
    with pytest.raises(UserError, match=r"a\.png "):
        image_header(tmp_path / "a.png")


def test_images_of_16_bits_are_refused_and_those_of_8_bits_are_read(tmp_path: Path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    cv2.imwrite(str(tmp_path / "a.png"), pixels.astype(np.uint16))
    with pytest.raises(UserError, match=r"uint16. It must have 8 bits"):
        read_image(tmp_path / "a.png")
    for suffix in (".png", ".bmp", ".webp"):
        path = tmp_path / f"b{suffix}"
        cv2.imwrite(str(path), pixels, [cv2.IMWRITE_WEBP_QUALITY, 101])
        np.testing.assert_array_equal(read_image(path), pixels[..., ::-1])


def test_text_is_read_in_the_memory_that_it_needs(tmp_path: Path):
    import tracemalloc

    write_lms(tmp_path / "0.lms", np.ones((68, 2)))
    tracemalloc.start()
    read_lms(tmp_path / "0.lms")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
