"""Readers return what writers wrote, and refuse anything else with a message, for generated inputs.

`make fuzz` runs these tests with far more inputs (`--hypothesis-profile=fuzz`).
"""

import io
import json
import math
import struct
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from talker.avatar.drive import read_track
from talker.avatar.gaussians import load_ply
from talker.clip import (
    Clip,
    Color,
    Crop,
    Source,
    load_array,
    load_arrays,
    load_json,
    load_per_frame,
    save_per_frame,
)
from talker.data import layout
from talker.data.formats import (
    read_au45,
    read_table,
    read_track_params,
    read_transforms,
    write_action_units,
    write_track_params,
    write_transforms,
)
from talker.errors import UserError
from talker.head.landmarks68 import MAX_COORDINATE, read_lms, write_lms
from talker.media.audio import WavFile, decode_audio, native_format, read_wav, write_wav
from talker.media.images import image_header, read_image, write_image
from talker.media.video_reader import probe

FRAMES = 5

# ---- generated inputs ---------------------------------------------------------------------------

finite = st.floats(-1e3, 1e3, width=32)
texts = st.text(max_size=30)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from([10**400, 2**31, -1, 1e308, "../x", "\x00"])
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5)
)
cells = (
    texts
    | st.floats().map(str)
    | st.integers().map(str)
    | st.sampled_from(["1_0", " 1 ", "0x1", "\u0661", '"', '"1\n', "9" * 5000, "AU45_r", "frame"])
)
tables = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=8).map("\n".join)
dtypes = st.sampled_from(["<f4", ">f8", "<i8", "|u1", "|b1", "<f2", "<c8", "<U3", "|S2", "<M8[s]"])
arrays = dtypes.flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
)


def array_bytes(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


@st.composite
def damaged(draw: st.DrawFn, content: st.SearchStrategy[bytes]) -> bytes:
    """Content of which one part is replaced, inserted or missing."""
    whole = draw(content)
    start = draw(st.integers(0, len(whole)))
    end = draw(st.integers(start, min(len(whole), start + 8)) | st.just(len(whole)))
    return whole[:start] + draw(st.binary(max_size=8)) + whole[end:]


def zip_bytes(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


def wav_bytes(samples: np.ndarray, rate: int = 16_000) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return content.getvalue()


def edited_json(document: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A JSON object of which one or two values, at any depth, are replaced or missing."""

    def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        here = [(*path, key) for key in keys]
        inner = [at for at in here if isinstance(tree[at[-1]], dict | list)]
        return here + [place for at in inner for place in places(tree[at[-1]], at)]

    def edit(changes: list[tuple[tuple[Any, ...], Any]]) -> bytes:
        tree: Any = json.loads(json.dumps(document))
        for path, value in changes:
            container = tree
            try:
                for key in path[:-1]:
                    container = container[key]
                if value is DELETE:
                    del container[path[-1]]
                else:
                    container[path[-1]] = value
            except (KeyError, IndexError, TypeError):  # an earlier change removed this place
                continue
        return json.dumps(tree).encode("utf-8", "surrogatepass")

    change = st.tuples(st.sampled_from(places(document)), trees | st.just(DELETE))
    return st.lists(change, min_size=1, max_size=2).map(edit)


DELETE = object()
SOURCE = Source("a.mp4", 640, 480, 25.0, False, 0, 2.4, 0.0, 0.0, "h264", color=None)
TRANSFORMS = {
    "focal_len": 1100.0,
    "cx": 150.0,
    "cy": 100.0,
    "frames": [
        {"img_id": i, "aud_id": i, "transform_matrix": np.eye(4).tolist()} for i in range(2)
    ],
}
CLIP = {
    "frames": FRAMES,
    "height": 64,
    "width": 64,
    "source": {
        "name": "a.mp4",
        "width": 64,
        "height": 64,
        "fps": 25.0,
        "variable_rate": False,
        "rotation": 0,
        "duration": 2.4,
        "video_start": 0.0,
        "audio_start": 0.0,
        "codec": "h264",
    },
    "crop": {"x": 0, "y": 0, "size": 64},
    "version": 1,
}


# ---- what was written is read -------------------------------------------------------------------


@given(au45=hnp.arrays(float, st.integers(0, 20), elements=st.floats(0, 5)), valid=st.data())
def test_blinks_are_read_as_written(scratch: Path, au45: np.ndarray, valid: st.DataObject) -> None:
    ok = valid.draw(hnp.arrays(bool, len(au45)))
    write_action_units(scratch / "au.csv", {"AU45_r": au45}, ok)
    np.testing.assert_allclose(read_au45(scratch / "au.csv"), au45, atol=6e-4)
    success = read_table(scratch / "au.csv")["success"]
    assert [int(cell) for cell in success] == ok.astype(int).tolist()


@given(
    matrices=hnp.arrays(float, (FRAMES, 4, 4), elements=st.floats(-1e6, 1e6)),
    focal=st.floats(1, 9e5),
    size=st.tuples(st.integers(1, 32_768), st.integers(1, 32_768)),
    ids=st.lists(st.integers(0, FRAMES - 1)),
)
def test_transforms_are_read_as_written(
    scratch: Path, matrices: np.ndarray, focal: float, size: tuple[int, int], ids: list[int]
) -> None:
    write_transforms(scratch / "t.json", matrices, focal, size, ids)
    found = read_transforms(scratch / "t.json", FRAMES)
    assert (found.focal, found.center) == (focal, (size[1] / 2, size[0] / 2))
    assert found.ids.tolist() == found.audio_ids.tolist() == sorted(ids)
    np.testing.assert_array_equal(found.matrices, matrices[sorted(ids)].reshape(len(ids), 4, 4))


@given(
    pose=hnp.arrays(np.float32, (FRAMES, 6), elements=finite),
    expression=hnp.arrays(np.float32, (FRAMES, 3), elements=finite),
    focal=st.floats(1, 9e5, width=32),
    valid=hnp.arrays(bool, FRAMES),
    faces=hnp.arrays(
        np.int64, st.tuples(st.integers(0, 4), st.just(3)), elements=st.integers(0, 5)
    ),
)
def test_poses_are_read_as_written(
    scratch: Path,
    pose: np.ndarray,
    expression: np.ndarray,
    focal: float,
    valid: np.ndarray,
    faces: np.ndarray,
) -> None:
    vertices = np.arange(18, dtype=np.float32).reshape(1, 6, 3)
    written = {"euler": pose[:, :3], "trans": pose[:, 3:], "focal": np.array([focal])}
    written |= {"exp": expression, "vertices": vertices, "valid": valid, "faces": faces}
    write_track_params(scratch / "p.pt", written, "test")
    found = read_track_params(scratch / "p.pt")
    for name, expected in (
        *(("euler", pose[:, :3]), ("trans", pose[:, 3:]), ("expression", expression)),
        *(("valid", valid), ("faces", faces), ("vertices", vertices[0])),
    ):
        np.testing.assert_array_equal(getattr(found, name), expected)
    assert found.focal == np.float32(focal)


@given(hnp.arrays(float, (68, 2), elements=st.floats(-MAX_COORDINATE, MAX_COORDINATE)))
def test_landmarks_are_read_as_written(scratch: Path, landmarks: np.ndarray) -> None:
    write_lms(scratch / "0.lms", landmarks)
    np.testing.assert_allclose(read_lms(scratch / "0.lms"), landmarks, rtol=1e-6, atol=1e-6)


@given(
    st.builds(
        Clip,
        frames=st.integers(1, 500_000),
        height=st.integers(1, 32_768),
        width=st.integers(1, 32_768),
        source=st.builds(
            Source,
            name=st.text(st.characters(exclude_characters="/\\\x00", exclude_categories=["Cs"])),
            width=st.integers(1, 32_768),
            height=st.integers(1, 32_768),
            fps=st.floats(0.01, 1e3),
            duration=st.floats(0, 1e6),
            video_start=st.floats(-1e5, 1e5),
            audio_start=st.none() | st.floats(-1e5, 1e5),
            pixel_aspect=st.floats(0.01, 100),
            audio_tracks=st.integers(0, 99),
            color=st.none() | st.builds(Color),
        ),
        crop=st.none() | st.builds(Crop, size=st.integers(1, 32_768)),
        fps=st.just(25),
        version=st.just(1),
    )
)
def test_the_clip_is_read_as_written(scratch: Path, clip: Clip) -> None:
    clip.save(scratch / "clip.json")
    assert Clip.load(scratch / "clip.json") == clip
    assert 0 <= clip.train_frames <= clip.frames


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 3)))
def test_masks_are_read_as_written(scratch: Path, mask: np.ndarray) -> None:
    write_image(scratch / "0.png", layout.COLORS[mask])
    colors = read_image(scratch / "0.png")
    np.testing.assert_array_equal(layout.to_classes(colors, scratch), mask)
    assert image_header(scratch / "0.png") == (*mask.shape, 3)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([3, 4])),
    suffix=st.sampled_from([".png", ".webp", ".bmp", ".jpg"]),
)
def test_the_header_of_an_image_is_that_of_its_pixels(
    scratch: Path, shape: tuple[int, int, int], suffix: str
) -> None:
    if suffix in (".jpg", ".bmp"):
        shape = (*shape[:2], 3)
    write_image(scratch / f"a{suffix}", np.zeros(shape, np.uint8))
    assert read_image(scratch / f"a{suffix}").shape == shape
    if suffix in (".png", ".jpg"):
        assert image_header(scratch / f"a{suffix}") == shape


@given(hnp.arrays(np.int16, st.integers(1, 2000)))
def test_sound_is_read_as_written(scratch: Path, samples: np.ndarray) -> None:
    write_wav(scratch / "a.wav", samples)
    np.testing.assert_array_equal(read_wav(scratch / "a.wav"), samples)
    np.testing.assert_array_equal(decode_audio(scratch / "a.wav"), samples)


@given(hnp.arrays(np.int16, st.integers(1, 400)), st.integers(0, 400), st.integers(0, 400))
def test_a_slice_of_a_wav_file_is_that_of_its_samples(
    scratch: Path, samples: np.ndarray, start: int, stop: int
) -> None:
    write_wav(scratch / "a.wav", samples)
    np.testing.assert_array_equal(WavFile(scratch / "a.wav")[start:stop], samples[start:stop])


@given(
    valid=hnp.arrays(bool, FRAMES),
    values=hnp.arrays(np.float32, (FRAMES, 2), elements=finite),
)
def test_arrays_of_frames_are_read_as_written(
    scratch: Path, valid: np.ndarray, values: np.ndarray
) -> None:
    save_per_frame(scratch / "a.npz", valid, values=values)
    found = load_per_frame(scratch / "a.npz", FRAMES, "values")
    np.testing.assert_array_equal(found["valid"], valid)
    np.testing.assert_array_equal(found["values"], values)


@given(arrays)
def test_numpy_arrays_are_read_as_numpy_writes_them(scratch: Path, array: np.ndarray) -> None:
    (scratch / "a.npy").write_bytes(array_bytes(array))
    if array.dtype.kind in "cM":
        with pytest.raises(UserError, match="only numbers and text"):
            load_array(scratch / "a.npy")
    else:
        found = load_array(scratch / "a.npy")
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


# ---- anything else is refused -------------------------------------------------------------------


def accepted(read: Callable[[], Any]) -> Any:
    """Return what a reader returns, or None if it refuses the file in one sentence or a list."""
    try:
        return read()
    except UserError as error:
        assert str(error)
        return None


@given(tables.map(str.encode) | st.binary(max_size=200))
@example(b"AU45_r\n1_0\n")
@example(b"frame\n" + b"9" * 200_000)
def test_any_table_is_read_or_refused(scratch: Path, content: bytes) -> None:
    path = scratch / "a.csv"
    path.write_bytes(content)
    au45 = accepted(lambda: read_au45(path))
    if au45 is not None:
        assert ((au45 >= 0) & (au45 <= 5)).all()
    track = accepted(lambda: read_track(path, 1))
    if track is not None:
        assert all(np.isfinite(column).all() and len(column) == 1 for column in track.values())


@given(st.lists(cells, max_size=140).map(" ".join).map(str.encode) | st.binary(max_size=100))
def test_any_landmarks_are_read_or_refused(scratch: Path, content: bytes) -> None:
    (scratch / "0.lms").write_bytes(content)
    landmarks = accepted(lambda: read_lms(scratch / "0.lms"))
    if landmarks is not None:
        assert np.abs(landmarks).max() <= MAX_COORDINATE


@given(trees.map(json.dumps).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary())
def test_any_json_is_read_or_refused(scratch: Path, content: bytes) -> None:
    (scratch / "a.json").write_bytes(content)
    for read in (load_json, Clip.load, lambda path: read_transforms(path, FRAMES)):
        accepted(lambda read=read: read(scratch / "a.json"))


@given(edited_json(TRANSFORMS))
def test_any_transforms_are_read_or_refused(scratch: Path, content: bytes) -> None:
    (scratch / "t.json").write_bytes(content)
    found = accepted(lambda: read_transforms(scratch / "t.json", FRAMES))
    if found is not None:
        assert np.isfinite(found.matrices).all() and math.isfinite(found.focal)
        assert len(found.ids) == len(found.audio_ids) == len(found.matrices)
        assert ((found.ids >= 0) & (found.ids < FRAMES)).all()


@given(edited_json(CLIP))
def test_any_clip_is_read_or_refused(scratch: Path, content: bytes) -> None:
    (scratch / "clip.json").write_bytes(content)
    clip = accepted(lambda: Clip.load(scratch / "clip.json"))
    if clip is not None:
        assert 1 <= clip.frames <= 500_000 and "/" not in clip.source.name
        assert clip.fps == 25 and math.isfinite(clip.source.video_start)


@given(
    st.dictionaries(
        st.sampled_from(["euler", "trans", "focal", "exp", "vertices", "valid", "faces", "x"]),
        arrays.filter(lambda a: a.dtype.kind in "biufc" and a.dtype.isnative).map(torch.as_tensor)
        | scalars.filter(lambda value: not isinstance(value, str) or value.isprintable()),
    )
)
def test_any_poses_are_read_or_refused(scratch: Path, fields: dict[str, Any]) -> None:
    torch.save(fields, scratch / "p.pt")
    found = accepted(lambda: read_track_params(scratch / "p.pt"))
    if found is not None:
        assert found.euler.shape == found.trans.shape == (len(found.valid), 3)
        assert found.focal > 0


@given(damaged(arrays.map(array_bytes)) | st.binary(max_size=100))
def test_any_array_file_is_read_or_refused(scratch: Path, content: bytes) -> None:
    (scratch / "a.npy").write_bytes(content)
    array = accepted(lambda: load_array(scratch / "a.npy"))
    if array is not None:
        assert array.nbytes <= len(content)
    for packed in (zip_bytes({"valid.npy": content}), content):
        (scratch / "a.npz").write_bytes(packed)
        accepted(lambda: load_per_frame(scratch / "a.npz", FRAMES, "valid"))


@given(damaged(arrays.map(lambda array: zip_bytes({"a.npy": array_bytes(array)}))))
def test_any_archive_is_read_or_refused(scratch: Path, content: bytes) -> None:
    (scratch / "a.npz").write_bytes(content)
    accepted(lambda: load_arrays(scratch / "a.npz"))


@given(damaged(hnp.arrays(np.int16, st.integers(0, 200)).map(wav_bytes)))
@example(wav_bytes(np.ones(99, np.int16), 1))
@example(struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 99, b"WAVE", b"fmt ", 16, 1, 1, 0, 0, 0, 0))
def test_any_wav_file_is_read_or_refused(scratch: Path, content: bytes) -> None:
    path = scratch / "a.wav"
    path.write_bytes(content)
    samples = accepted(lambda: read_wav(path))
    if samples is not None:
        assert samples.nbytes <= len(content)
    accepted(lambda: native_format(path))
    accepted(lambda: probe(path))


@given(
    damaged(
        st.sampled_from([".png", ".jpg", ".webp", ".bmp"]).map(
            lambda suffix: image_bytes(np.full((8, 6, 3), 90, np.uint8), suffix)
        )
    )
)
@example(b"\x89PNG\r\n\x1a\n")
def test_any_image_is_read_or_refused(scratch: Path, content: bytes) -> None:
    (scratch / "a.png").write_bytes(content)
    pixels = accepted(lambda: read_image(scratch / "a.png"))
    if pixels is not None:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3
    accepted(lambda: image_header(scratch / "a.png"))


def image_bytes(pixels: np.ndarray, suffix: str) -> bytes:
    import cv2

    return cv2.imencode(suffix, pixels)[1].tobytes()


@given(
    damaged(
        st.integers(0, 3).map(
            lambda count: (
                (
                    f"ply\nformat binary_little_endian 1.0\nelement vertex {count}\n"
                    "property float x\nend_header\n"
                ).encode()
                + bytes(4 * count)
            )
        )
    )
)
def test_any_point_cloud_is_read_or_refused(scratch: Path, content: bytes) -> None:
    (scratch / "a.ply").write_bytes(content)
    accepted(lambda: load_ply(scratch / "a.ply"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all inputs share, because a new one for each takes longer than the test."""
    return tmp_path_factory.mktemp("properties")
