"""A head moves without jumps, blinks, and follows given motion."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from talker.avatar.drive import (
    blink_track,
    brow_track,
    close_gaps,
    followed_path,
    head_speed,
    natural_blinks,
    pose_track,
    read_track,
    recorded_path,
    scaled_poses,
)
from talker.data.formats import read_au45
from talker.dataset import Dataset
from talker.errors import UserError
from talker.head.camera import pose_from_viewmats


@pytest.fixture(scope="module")
def data(dataset: Path) -> Dataset:
    return Dataset.load(dataset, 64)


def swaying(frames: int = 400) -> np.ndarray:
    """A head that turns back and forth, and is still at frames 50 and 350."""
    viewmats = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    angle = 0.2 * np.cos(2 * np.pi * (np.arange(frames) - 50) / 150)
    viewmats[:, :3, :3] = Rotation.from_euler("y", angle[:, None]).as_matrix()
    viewmats[:, 2, 3] = 8
    return viewmats


def with_poses(data: Dataset, viewmats: np.ndarray, valid: np.ndarray | None = None) -> Dataset:
    return dataclasses.replace(
        data,
        viewmats=viewmats,
        valid=np.ones(len(viewmats), bool) if valid is None else valid,
        eye=np.zeros((len(viewmats), 2), np.float32),
    )


def test_speed_is_that_of_the_head() -> None:
    viewmats = swaying()
    speed = head_speed(viewmats)
    assert speed.argmin() in range(45, 56) or speed.argmin() in range(120, 131)
    moved = viewmats.copy()
    moved[:, 0, 3] += 0.1 * np.arange(400)
    assert head_speed(moved)[100:300].mean() > 0.09


def test_the_path_turns_where_the_head_is_still(data: Dataset) -> None:
    moving = with_poses(data, swaying())
    path = recorded_path(moving, 3000)
    speed = head_speed(moving.viewmats)
    turns = np.flatnonzero(np.diff(path, 2)) + 1
    assert len(turns) > 5
    assert speed[path[turns]].max() < 0.1 * speed.max()
    assert np.abs(np.diff(path)).max() == 1
    assert np.ptp(path) > 200


def test_the_path_stays_within_a_shot(data: Dataset, tmp_path: Path) -> None:
    """The second shot, from frame 150 on, shows the head 2 dm to the side."""
    viewmats = swaying()
    viewmats[150:, 0, 3] += 2
    (tmp_path / "track_report.json").write_text('{"segments": [{"first": 0}, {"first": 150}]}')
    valid = np.ones(400, bool)
    valid[[149, 250]] = False
    path = recorded_path(
        dataclasses.replace(with_poses(data, viewmats, valid), folder=tmp_path), 2000
    )
    assert path.min() >= 150 and np.ptp(path) > 100
    assert np.abs(np.diff(viewmats[path, 0, 3])).max() < 0.1


def test_small_gaps_are_close_gaps_and_never_shown(data: Dataset) -> None:
    valid = np.ones(400, bool)
    valid[[100, 200, 201, 300]] = False
    path = recorded_path(with_poses(data, swaying(), valid), 2000)
    assert np.ptp(path) > 200
    assert valid[path].all()
    assert np.abs(np.diff(path)).max() <= 3


@pytest.mark.parametrize(
    ("valid", "expected"),
    [("1011", "1111"), ("10011", "11111"), ("100011", "100011"), ("0110", "0110"), ("000", "000")],
)
def test_gaps_between_valid_frames_are_close_gaps(valid: str, expected: str) -> None:
    found = close_gaps(np.array([c == "1" for c in valid]), 2)
    assert "".join(str(int(v)) for v in found) == expected


def blinking(interval: int, frames: int = 1000) -> np.ndarray:
    eye = np.full(frames, 0.1, np.float32)
    for at in range(20, frames - 10, interval):
        eye[at - 3 : at + 4] = [0.3, 0.6, 0.9, 1, 0.8, 0.5, 0.2]
    return eye


@pytest.mark.parametrize("interval", [40, 100])
def test_blinks_come_as_often_as_the_subject_s(interval: int) -> None:
    eye = blinking(interval)
    made = natural_blinks(eye, 20_000, seed=0)
    assert made.shape == (20_000,)
    assert made.dtype == np.float32
    starts = np.flatnonzero((made[1:] > 0.5) & (made[:-1] <= 0.5))
    assert len(starts) == pytest.approx(20_000 / interval, rel=0.1)
    assert np.std(np.diff(starts)) > 1
    assert made.max() > 0.95
    assert np.median(made) == pytest.approx(0.1, abs=0.01)
    assert np.diff(starts).min() > 10


@pytest.mark.parametrize("length", [1, 3, 20])
def test_blinks_of_any_length(length: int) -> None:
    made = natural_blinks(blinking(30), length, seed=3)
    assert made.shape == (length,)
    assert made.min() >= 0 and made.max() <= 1


def test_one_who_never_blinked_blinks_as_people_do() -> None:
    made = natural_blinks(np.zeros(500, np.float32), 25 * 60 * 10, seed=0)
    blinks = np.flatnonzero((made[1:] > 0.5) & (made[:-1] <= 0.5))
    assert 100 < len(blinks) < 250
    assert made.max() == 1


def test_scaled_poses_keep_the_mean_and_scale_the_way_from_it() -> None:
    viewmats = swaying(300)
    half, still, same = (scaled_poses(viewmats, factor) for factor in (0.5, 0.0, 1.0))
    np.testing.assert_allclose(same, viewmats, atol=1e-5)
    assert np.abs(still - still[0]).max() < 1e-6
    angles = [Rotation.from_matrix(x[:, :3, :3]).as_euler("yxz")[:, 0] for x in (viewmats, half)]
    assert np.ptp(angles[1]) == pytest.approx(np.ptp(angles[0]) / 2, rel=1e-3)


def test_the_torso_follows_a_given_pose(data: Dataset) -> None:
    moving = with_poses(data, swaying())
    wanted = moving.viewmats[100:220]
    path = followed_path(moving, wanted)
    away = np.abs(moving.viewmats[path] - wanted).max()
    assert away < 0.04
    assert (np.abs(np.diff(path)) > 12).sum() <= 2


def test_pose_tracks_are_frames_or_poses(data: Dataset, tmp_path: Path) -> None:
    frames = tmp_path / "frames.csv"
    frames.write_text("frame\n" + "\n".join(map(str, range(30, 60))))
    ids, viewmats = pose_track(frames, 25, data)
    assert ids.tolist() == list(range(30, 55)) and viewmats is None
    euler, trans = pose_from_viewmats(data.viewmats[30:60].astype(float))
    names = ("rx", "ry", "rz", "tx", "ty", "tz")
    values = np.concatenate([euler, trans], 1)
    np.savez(tmp_path / "pose.npz", **dict(zip(names, values.T, strict=True)))
    ids, viewmats = pose_track(tmp_path / "pose.npz", 30, data)
    assert viewmats is not None
    np.testing.assert_allclose(viewmats, data.viewmats[30:60], atol=1e-4)
    assert np.abs(data.viewmats[ids] - viewmats).max() < 0.02


def test_blink_tracks_are_closure_or_au45(tmp_path: Path) -> None:
    path = tmp_path / "blink.csv"
    path.write_text("frame, blink\n0, 0.2\n1, 1.5\n")
    assert blink_track(path, 2).tolist() == pytest.approx([0.2, 1])
    path.write_text("AU45_r\n0\n1\n5\n")
    assert blink_track(path, 3).tolist() == [0, 0.5, 1]


def test_brow_tracks_are_raise_or_action_units(tmp_path: Path) -> None:
    path = tmp_path / "brows.csv"
    path.write_text("frame, brows\n0, -0.2\n1, 1.5\n")
    assert brow_track(path, 2, 0.0).tolist() == pytest.approx([-0.2, 1])
    assert brow_track(path, 2, 0.3).tolist() == pytest.approx([0.1, 1])
    path.write_text("AU01_r, AU02_r, AU04_r\n0, 0, 5\n5, 5, 0\n2, 0, 0\n")
    assert brow_track(path, 3, 0.3).tolist() == pytest.approx([-1, 1, 0.2])
    path.write_text("AU45_r\n0\n1\n")
    with pytest.raises(
        UserError, match=r"must have a column 'brows', or .* AU01_r, AU02_r, AU04_r"
    ):
        brow_track(path, 2, 0.0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        (
            "blink\n0\n",
            "number for each of the 2 frames in the column 'blink', but the column has only 1",
        ),
        ("blink\n0\nx\n", "cannot be read as a table of numbers"),
        ("blink\n0\nnan\n", "but the column has only 1"),
        ('"blink\n' + "0\n" * 100_000, "cannot be read as a table of numbers"),
        ("blink,other\n0\n1\n", "cannot be read"),
        ("eye\n0\n1\n", "has the columns eye. It must have a column 'blink' or 'AU45_r'"),
    ],
)
def test_a_wrong_track_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "track.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        blink_track(path, 2)


def test_a_track_that_never_ends_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "track.csv")
    with pytest.raises(UserError, match="is a pipe, socket or device"):
        blink_track(tmp_path / "track.csv", 2)


def test_wrong_poses_are_refused(data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "pose.csv"
    path.write_text("frame\n5\n100\n")
    with pytest.raises(UserError, match=r"the value 100 .* whole numbers from 0 to 99"):
        pose_track(path, 2, data)
    path.write_text("rx,ry\n5,4\n")
    with pytest.raises(UserError, match="must have a column 'frame', or the columns rx ry rz"):
        pose_track(path, 1, data)
    path.write_text("frame\n5\n1.5\n")
    with pytest.raises(UserError, match=r"the value 1\.5 .*whole numbers"):
        pose_track(path, 2, data)
    with pytest.raises(UserError, match=r"none\.npz cannot be read"):
        read_track(tmp_path / "none.npz", 1)
    (tmp_path / "none.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"none\.npz cannot be read"):
        read_track(tmp_path / "none.npz", 1)
    np.savez(tmp_path / "wave.npz", frame=np.array([0, 1j]))
    with pytest.raises(UserError, match=r"wave\.npz cannot be read"):
        read_track(tmp_path / "wave.npz", 2)


def test_tables_of_excel_are_read(data: Dataset, tmp_path: Path) -> None:
    """They begin with a byte order mark."""
    (tmp_path / "pose.csv").write_text("frame\n7\n8\n", encoding="utf-8-sig")
    assert pose_track(tmp_path / "pose.csv", 2, data)[0].tolist() == [7, 8]
    (tmp_path / "au.csv").write_text("AU45_r\n1\n2\n", encoding="utf-8-sig")
    assert read_au45(tmp_path / "au.csv").tolist() == [1, 2]
