"""An avatar as one file: it renders and speaks as it does with its dataset folder."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_avatar import save_untrained_avatar

import talker
from talker import render as render_stage
from talker.avatar.bundle import BUNDLE_VERSION, MANIFEST, REPLAY, read_bundle
from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, render_frames
from talker.clip import SAMPLES_PER_FRAME
from talker.dataset import Dataset
from talker.errors import UserError
from talker.media.audio import native_format, write_wav
from talker.tools.bundle import Config, main

SIZE = 64


@pytest.fixture(scope="module")
def data(mel_only: Path) -> Dataset:
    return Dataset.load(mel_only, SIZE, "mel")


@pytest.fixture(scope="module")
def avatar(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An avatar folder as `talker train` writes it, of the encoder mel."""
    folder = tmp_path_factory.mktemp("avatar")
    save_untrained_avatar(folder, data)
    return folder


@pytest.fixture(scope="module")
def file(avatar: Path, mel_only: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported avatar, without its dataset folder."""
    path = tmp_path_factory.mktemp("export") / "me.avatar"
    config = Config(license="for tests only", consent="synthetic person")
    main(avatar=avatar, data=mel_only, file=path, config=config)
    return path


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """A second of speech-like noise."""
    noise = np.random.default_rng(0).normal(0, 3000, 25 * SAMPLES_PER_FRAME)
    write_wav(tmp_path / "hello.wav", noise.astype(np.int16))
    return tmp_path / "hello.wav"


def test_it_renders_as_with_the_dataset(file: Path, data: Dataset) -> None:
    avatar, replay = read_bundle(file)
    ids = np.array([3, 40, 77])
    drive = Drive(ids, data.speech, ids)
    expected = np.stack(list(render_frames(avatar, data, drive, 2)))
    found = np.stack(list(render_frames(avatar, replay, drive, 2)))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 1.5
    assert np.array_equal(replay.cuts, data.cuts)
    assert replay.frames == data.frames


def test_it_says_something_without_the_dataset(file: Path, wav: Path, tmp_path: Path) -> None:
    me = talker.load(file)
    video = me.say(wav, tmp_path / "hello.mp4")
    assert native_format(video).rate == 16_000
    frames = list(me.render(wav))
    assert len(frames) == 25
    assert frames[0].shape == (SIZE, SIZE, 3)
    streaming = me.stream()
    live = list(streaming.push_audio(np.zeros(3 * SAMPLES_PER_FRAME, np.int16)))
    assert len(live + list(streaming.finish())) == 3


def test_the_sound_keeps_its_own_rate(file: Path, tmp_path: Path) -> None:
    import wave

    with wave.open(str(tmp_path / "studio.wav"), "wb") as studio:
        studio.setparams((1, 2, 48_000, 0, "NONE", ""))
        studio.writeframes(np.zeros(48_000, "<i2").tobytes())
    video = talker.load(file).say(tmp_path / "studio.wav", tmp_path / "studio.mp4")
    assert native_format(video).rate == 48_000


def test_the_commands_take_the_file(file: Path, wav: Path, data: Dataset, tmp_path: Path) -> None:
    np.save(tmp_path / "hello.npy", data.speech[:25])
    render_stage.main(
        avatar=file, video=tmp_path / "out.mp4", speech=tmp_path / "hello.npy", wav=wav
    )
    assert (tmp_path / "out.mp4").stat().st_size > 0
    with pytest.raises(UserError, match="--split also needs `--data`"):
        render_stage.main(avatar=file, video=tmp_path / "val.mp4", split="val")


def test_the_scales_are_those_of_the_command(
    file: Path, wav: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python interface drives an avatar as `talker render` does, with every factor."""
    drives = []

    def record(avatar: Avatar, dataset: Dataset, drive: Drive, *_: object) -> Iterator[np.ndarray]:
        drives.append(drive)
        return iter(np.zeros((len(drive), SIZE, SIZE, 3), np.uint8))

    np.save(tmp_path / "hello.npy", data.speech[:25])
    speech = {"speech": tmp_path / "hello.npy", "wav": wav}
    video = tmp_path / "out.mp4"
    monkeypatch.setattr(render_stage, "render_frames", record)
    for name in ("blink_scale", "brow_scale", "pose_scale", "expression_scale"):
        drives.clear()
        config = render_stage.Config(**{name: 0.5})
        render_stage.main(avatar=file, video=video, **speech, config=config)
        me = talker.load(file)
        me.say(wav, video, config)
        list(me.render(wav, config))
        expected, *found = drives
        assert len(found) == 2
        for drive in found:
            assert np.array_equal(drive.eye, expected.eye)
            assert drive.expression_scale == expected.expression_scale
            if name == "pose_scale":
                assert np.array_equal(drive.viewmats, expected.viewmats)


def test_rendered_frames_have_the_background_and_the_label(
    file: Path, wav: Path, tmp_path: Path
) -> None:
    me = talker.load(file)
    plain = next(me.render(wav))
    labeled = next(me.render(wav, render_stage.Config(label="Synthetic")))
    changed = np.flatnonzero((plain != labeled).any(axis=(1, 2)))
    assert len(changed) and changed.min() > SIZE // 2  # in the lower part of the frame
    transparent = next(me.render(wav, render_stage.Config(background="transparent")))
    assert transparent.shape == (SIZE, SIZE, 4) and transparent[..., 3].min() == 0
    missing = render_stage.Config(background=str(tmp_path / "missing.png"))
    with pytest.raises(UserError, match=r"missing\.png"):
        next(me.render(wav, missing))


def test_it_carries_license_consent_and_provenance(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        manifest = json.loads(archive.read(MANIFEST))
    assert manifest["license"] == "for tests only"
    assert manifest["consent"] == "synthetic person"
    assert manifest["talker_version"] == talker.__version__
    assert manifest["bundle_version"] == BUNDLE_VERSION


def test_another_format_version_is_refused(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.avatar"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == MANIFEST:
                content = json.dumps({**json.loads(content), "bundle_version": 99}).encode()
            new.writestr(name, content)
    with pytest.raises(UserError, match=r"other\.avatar has format version 99"):
        talker.load(other)


def with_replay(file: Path, other: Path, **changed: np.ndarray | None) -> Path:
    """Copy an avatar file, with some arrays of its recording replaced, or removed if None."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == REPLAY:
                arrays = dict(np.load(io.BytesIO(content))) | changed
                written = io.BytesIO()
                np.savez(written, **{k: array for k, array in arrays.items() if array is not None})
                content = written.getvalue()
            new.writestr(name, content)
    return other


def test_a_file_without_brows_is_read(file: Path, data: Dataset, tmp_path: Path) -> None:
    """Older versions of talker stored only the eye closure."""
    other = with_replay(file, tmp_path / "older.avatar", eye=data.eye[:, 0])
    eye = talker.load(other).dataset.eye
    assert np.array_equal(eye[:, 0], data.eye[:, 0])
    assert eye.shape == data.eye.shape and not eye[:, 1].any()


def nan(array: np.ndarray) -> np.ndarray:
    damaged = array.copy()
    damaged.flat[0] = np.nan
    return damaged


def test_a_damaged_recording_is_refused(file: Path, data: Dataset, tmp_path: Path) -> None:
    """The message names the file and the array, whatever is wrong with it."""
    expression = read_bundle(file)[1].train_expression
    floats = {"eye": data.eye, "viewmats": data.viewmats, "K": data.K}
    floats |= {"train_expression": expression}
    whole = {"train_ids": data.train_ids, "val_ids": data.val_ids, "cuts": np.array([30])}
    damaged = [("eye", data.eye[:, :0]), ("eye", 2 * np.ones_like(data.eye))]
    damaged += [("K", 0 * data.K), ("viewmats", 0 * data.viewmats), ("viewmats", -data.viewmats)]
    damaged += [("valid", data.valid[:, None]), ("valid", data.valid.astype(float))]
    damaged += [(name, array[..., None]) for name, array in (floats | whole).items()]
    damaged += [(name, array.astype(str)) for name, array in (floats | whole).items()]
    damaged += [(name, nan(array)) for name, array in floats.items()]
    damaged += [(name, array[:-1]) for name, array in floats.items()]
    damaged += [(name, array + 1.5) for name, array in whole.items()]
    damaged += [(name, array + sign * 1000) for name, array in whole.items() for sign in (-1, 1)]
    damaged += [(name, None) for name in ("valid", *floats, *whole) if name != "train_expression"]
    for name, array in damaged:
        other = with_replay(file, tmp_path / "damaged.avatar", **{name: array})
        with pytest.raises(UserError, match=rf"damaged\.avatar/replay\.npz .*'{name}'"):
            talker.load(other)


def test_what_is_no_avatar_is_refused(avatar: Path, mel_only: Path, tmp_path: Path) -> None:
    (tmp_path / "text.avatar").write_text("no archive")
    with pytest.raises(UserError, match="cannot be read as an avatar"):
        talker.load(tmp_path / "text.avatar")
    with zipfile.ZipFile(tmp_path / "empty.avatar", "w"):
        pass
    with pytest.raises(UserError, match="cannot be read as an avatar"):
        talker.load(tmp_path / "empty.avatar")
    with pytest.raises(UserError, match="with `--data`"):
        talker.load(avatar)
    shutil.copytree(avatar, tmp_path / "half")
    (tmp_path / "half" / "speech.npz").unlink()
    with pytest.raises(UserError, match=r"has no speech\.npz"):
        main(avatar=tmp_path / "half", data=mel_only, file=tmp_path / "me.avatar")
    os.mkfifo(tmp_path / "half" / "speech.npz")
    with pytest.raises(UserError, match=r"speech\.npz is a pipe"):
        main(avatar=tmp_path / "half", data=mel_only, file=tmp_path / "me.avatar")
    (tmp_path / "half" / "speech.npz").unlink()
    (tmp_path / "half" / "speech.npz").write_bytes((avatar / "speech.npz").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"speech\.npz"):
        main(avatar=tmp_path / "half", data=mel_only, file=tmp_path / "me.avatar")
    assert not (tmp_path / "me.avatar").exists()


def test_importing_talker_imports_nothing_heavy() -> None:
    code = (
        "import sys, talker; assert not {'torch', 'numpy', 'talker.tools.api'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="wings"):
        talker.wings  # type: ignore[attr-defined]  # noqa: B018
