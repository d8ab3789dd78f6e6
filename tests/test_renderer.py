"""The streaming renderer drives each frame correctly for any batch size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_avatar import FakeAvatar, untrained_avatar
from torch import nn

from talker.avatar.drive import longest_run, nearest_valid, ping_pong
from talker.avatar.live import live_avatar
from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, load_avatar, render_frames, render_together
from talker.dataset import Dataset


@pytest.fixture(scope="module")
def data(dataset: Path) -> Dataset:
    return Dataset.load(dataset, 64)


class Recorder(Avatar):
    """Remembers its input; draws `color` with `alpha` everywhere."""

    def __init__(self, color: float, alpha: float) -> None:
        nn.Module.__init__(self)
        self.device_of = nn.Parameter(torch.zeros(1))
        self.color, self.alpha = color, alpha
        self.inputs: list[tuple[torch.Tensor, ...]] = []

    def shared(self):
        return self.device_of

    def speech_to_expression(self, windows):
        return windows.flatten(1)

    def render_from_expression(self, expression, eye, viewmats, Ks, height, width, shared):
        self.inputs.append((expression, eye, viewmats, Ks))
        shape = len(expression), height, width
        return torch.full((*shape, 3), self.color), torch.full((*shape, 1), self.alpha)


@pytest.mark.parametrize(
    ("length", "period"), [(1, 1), (9, 1), (9, 2), (23, 5), (3, 5), (400, 101)]
)
def test_ping_pong_walks_by_one_and_reaches_both_ends(length: int, period: int) -> None:
    path = ping_pong(length, period)
    assert len(path) == length
    assert path[0] == 0
    assert path.max() == min(length, period) - 1
    if period > 1:
        assert np.all(np.abs(np.diff(path)) == 1)
    if length > 2 * period:
        assert 0 in path[period:]


@pytest.mark.parametrize(
    ("valid", "expected"),
    [("", []), ("00", []), ("1", [0]), ("0110111", [4, 5, 6]), ("1101100", [0, 1])],
)
def test_longest_run(valid: str, expected: list[int]) -> None:
    assert longest_run(np.array([c == "1" for c in valid], bool)).tolist() == expected


def test_nearest_valid_keeps_valid_frames_and_looks_both_ways() -> None:
    valid = np.array([False, True, False, False, False, True, False])
    assert nearest_valid(np.arange(7), valid).tolist() == [1, 1, 1, 1, 5, 5, 5]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_live_frames_are_those_of_a_video(data: Dataset, device: str) -> None:
    """With five frames in batches of two, the last batch has one frame."""
    avatar = untrained_avatar(data).to(device)
    drive = Drive(np.arange(10, 15), data.speech, np.arange(10, 15))
    whole = np.stack(list(render_frames(avatar, data, drive, batch=5)))
    live = live_avatar(avatar, 2)
    few = np.stack(list(render_frames(avatar, data, drive, batch=2, render_head=live)))
    assert np.abs(whole.astype(int) - few).max() <= 1


def test_composites_over_the_layers_of_the_shown_frame(data: Dataset) -> None:
    drive = Drive(np.array([3, 40]), data.speech, np.array([0, 1]))
    clear = list(render_frames(Recorder(0.0, 0.0), data, drive, batch=2))
    for i, image in zip((3, 40), clear, strict=True):
        assert np.array_equal(image, data.background(i))
    half = next(render_frames(Recorder(0.5, 0.5), data, drive, batch=2))
    np.testing.assert_allclose(half, 127.5 + data.background(3) / 2, atol=0.5)


def test_pose_and_eyes_follow_the_shown_frame_and_speech_the_heard_one(data: Dataset) -> None:
    drive = Drive(np.array([7, 6, 5]), data.speech, np.array([50, 51, 99]))
    recorder = Recorder(0.0, 0.0)
    list(render_frames(recorder, data, drive, batch=8))
    speech, eye, viewmats, Ks = recorder.inputs[0]
    assert np.array_equal(speech, data.speech[drive.window_ids].reshape(3, -1))
    assert np.array_equal(eye, data.eye[drive.background_frame_ids])
    assert np.array_equal(viewmats, data.viewmats[drive.background_frame_ids])
    assert np.array_equal(Ks[2], data.K)


@pytest.mark.parametrize("length", [1, 6, 7, 8, 14])
def test_batches_do_not_show(data: Dataset, tmp_path: Path, length: int) -> None:
    """Any number of frames gives the same frames as a batch size of 1."""
    np.save(tmp_path / "speech.npy", data.speech)
    on_disk = np.load(tmp_path / "speech.npy", mmap_mode="r")
    frames, windows = ping_pong(length, 5), np.arange(length) + 20
    avatar = FakeAvatar(data)
    batched = list(render_frames(avatar, data, Drive(frames, on_disk, windows), batch=7))
    single = list(render_frames(avatar, data, Drive(frames, data.speech, windows), batch=1))
    assert len(batched) == length
    assert np.array_equal(batched, single)


def test_drives_are_rendered_together_as_alone(data: Dataset) -> None:
    """The last batch of each drive has one frame."""
    avatar, frames = untrained_avatar(data), np.arange(10, 15)
    drives = [Drive(frames, data.speech, frames + shift) for shift in (0, 30, 60)]
    together = list(render_together(avatar, data, drives, batch=2))
    for k, drive in enumerate(drives):
        alone = list(render_frames(avatar, data, drive, batch=2))
        assert np.array_equal([images[k] for images in together], alone)


def test_renders_only_a_few_batches_ahead(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    avatar = FakeAvatar(data)
    ids = np.arange(80)
    frames = render_frames(avatar, data, Drive(ids, data.speech, ids), batch=4)
    for _ in range(5):
        next(frames)
    assert 2 <= len(avatar.batches) <= 4
    frames.close()


def test_leaves_the_number_of_threads_as_it_was(data: Dataset) -> None:
    before = torch.get_num_threads()
    drive = Drive(np.arange(6), data.speech, np.arange(6))
    list(render_frames(FakeAvatar(data), data, drive, batch=2))
    next(frames := render_frames(FakeAvatar(data), data, drive, batch=2))
    frames.close()
    assert torch.get_num_threads() == before


def test_a_saved_avatar_covers_the_head(data: Dataset, tmp_path: Path) -> None:
    untrained_avatar(data).save(tmp_path / "avatar")
    ids = np.array([10, 60, 90])
    drive = Drive(ids, data.speech, ids)
    frames = list(render_frames(load_avatar(tmp_path / "avatar"), data, drive, batch=2))
    for i, image in zip(ids, frames, strict=True):
        changed = np.abs(image.astype(int) - data.background(i)).max(-1) > 8
        head = data.head_mask(i) > 127
        assert changed[head].mean() > 0.9
        assert changed[~head].mean() < 0.5


def test_expressions_are_predicted_or_given_and_scaled(data: Dataset) -> None:
    ids = np.arange(3)
    given = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    recorder = Recorder(0.0, 0.0)
    for drive in (
        Drive(ids, data.speech, ids, expression_scale=0.5),
        Drive(ids, data.speech, ids, expression=given, expression_scale=2.0),
    ):
        list(render_frames(recorder, data, drive, batch=8))
    predicted, scaled = (inputs[0] for inputs in recorder.inputs)
    assert np.array_equal(predicted, 0.5 * data.speech[:3].reshape(3, -1))
    assert np.array_equal(scaled, 2 * given)
