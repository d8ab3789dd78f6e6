"""clip.json and the per-frame arrays follow the contract, and errors say what breaks it."""

import dataclasses
import json

import numpy as np
import pytest

from talker.clip import (
    Clip,
    Crop,
    Source,
    load_array,
    load_arrays,
    load_per_frame,
    save_per_frame,
)
from talker.errors import UserError

SOURCE = Source(
    name="me.mp4",
    width=640,
    height=480,
    fps=29.97,
    variable_rate=False,
    rotation=0,
    duration=4.4,
    video_start=0.0,
    audio_start=0.02,
    codec="h264",
)
CLIP = Clip(frames=110, height=256, width=256, source=SOURCE, crop=Crop(x=10, y=0, size=480))


@pytest.mark.parametrize("clip", [CLIP, dataclasses.replace(CLIP, crop=None)])
def test_a_clip_is_read_as_it_was_written(tmp_path, clip):
    clip.save(tmp_path / "clip.json")
    assert Clip.load(tmp_path / "clip.json") == clip


@pytest.mark.parametrize(
    ("frames", "train", "published"),
    [
        *((75, 68, 68), (109, 99, 99), (249, 226, 226)),
        *((250, 175, 227), (824, 749, 749), (825, 750, 750), (1129, 1026, 1026)),
    ],
)
def test_a_clip_of_ten_seconds_holds_out_at_least_three(frames, train, published):
    clip = dataclasses.replace(CLIP, frames=frames)
    assert clip.train_frames == train
    assert clip.samples == 640 * frames
    assert dataclasses.replace(clip, adopted=True).train_frames == published


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(version=0), "reads version 1"),
        (lambda values: values.update(frames="110"), "frames"),
        (lambda values: values.update(colour="red"), "colour"),
        (lambda values: values.pop("source"), "source"),
        (lambda values: values["crop"].pop("size"), "size"),
    ],
)
def test_a_damaged_clip_is_refused_by_name(tmp_path, change, message):
    values = dataclasses.asdict(CLIP)
    change(values)
    (tmp_path / "clip.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"clip\.json:? .*{message}"):
        Clip.load(tmp_path / "clip.json")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_what_is_no_clip_is_refused(tmp_path, text):
    (tmp_path / "clip.json").write_text(text)
    with pytest.raises(UserError, match=r"clip\.json"):
        Clip.load(tmp_path / "clip.json")
    with pytest.raises(UserError, match=r"absent\.json cannot be read"):
        Clip.load(tmp_path / "absent.json")


def test_per_frame_arrays_are_read_as_they_were_written(tmp_path):
    valid = np.array([1, 0, 1])
    points = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    for name in ("a.npz", "b.npz"):
        save_per_frame(tmp_path / name, valid, points=points)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    arrays = load_per_frame(tmp_path / "a.npz", frames=3)
    assert arrays["valid"].dtype == bool
    assert arrays["valid"].tolist() == [True, False, True]
    np.testing.assert_array_equal(arrays["points"], points)
    assert arrays["points"].dtype == np.float32


def test_a_row_for_every_frame(tmp_path):
    with pytest.raises(ValueError, match="points has 2 rows, but the array 'valid' has 3"):
        save_per_frame(tmp_path / "a.npz", np.ones(3), points=np.zeros((2, 2)))
    save_per_frame(tmp_path / "a.npz", np.ones(3), points=np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"has 3 rows .* one for each of the 4 frames"):
        load_per_frame(tmp_path / "a.npz", frames=4)


def test_an_archive_of_another_kind_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", points=np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"has no array 'valid'. Its arrays are: points"):
        load_per_frame(tmp_path / "a.npz", frames=3)
    (tmp_path / "b.npz").write_text("not an archive")
    for name in ("b.npz", "absent.npz"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            load_per_frame(tmp_path / name, frames=3)


def npy(path):
    np.save(path.with_suffix(".npy"), np.zeros(3))
    return path.with_suffix(".npy").read_bytes()


def npz(path):
    np.savez(path.with_suffix(".npz"), valid=np.ones(3), points=np.zeros((3, 400)))
    return path.with_suffix(".npz").read_bytes()


def spoilt(path):
    content = bytearray(npz(path))
    content[len(content) // 2] ^= 255
    return bytes(content)


@pytest.mark.parametrize(
    ("read", "content"),
    [
        *((load_array, make) for make in (lambda _: b"", npz, lambda path: npy(path)[:-1])),
        *((load_arrays, make) for make in (lambda _: b"", npy, spoilt)),
        (load_arrays, lambda path: npz(path)[:-40]),
    ],
)
def test_damaged_or_mixed_up_arrays_are_refused_by_name(tmp_path, read, content):
    (tmp_path / "a.b").write_bytes(content(tmp_path / "made"))
    with pytest.raises(UserError, match=r"a\.b cannot be read as \.np"):
        read(tmp_path / "a.b")


def test_a_missing_array_is_named(tmp_path):
    save_per_frame(tmp_path / "a.npz", np.ones(3))
    with pytest.raises(UserError, match=r"has no array 'points'. Its arrays are: valid"):
        load_per_frame(tmp_path / "a.npz", 3, "points")
