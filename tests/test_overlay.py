"""The video of the tracked head: the head where it is, red where its pose is interpolated."""

from pathlib import Path

import numpy as np
import pytest
from conftest import read_mask

from talker.core import parallel
from talker.data.formats import write_track_params
from talker.data.layout import FRAMES, HEAD, MASKS
from talker.errors import UserError
from talker.media.images import read_image
from talker.media.video_reader import probe, read_frames
from talker.overlay import LANDMARK_COLOR, MESH_COLOR, REJECTED_COLOR, main

FRAME = 40


def drawn(dataset: Path, video: Path, params: Path) -> list[np.ndarray]:
    """Run the stage on a dataset and return the frames of its video."""
    main(
        clip=dataset / "clip.json",
        images=dataset / "ori_imgs",
        landmarks=dataset / "landmarks.npz",
        params=params,
        video=video,
    )
    return list(read_frames(video, probe(video)))


def change(dataset: Path, image: np.ndarray) -> np.ndarray:
    """Return how a drawn frame differs from the frame of the dataset, [H, W, 3]."""
    return image.astype(int) - read_image(FRAMES.path(dataset, FRAME))


def params_of(dataset: Path, **changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the arrays of a track_params.pt, with changes; None removes an array."""
    import torch

    stored = torch.load(dataset / "track_params.pt", weights_only=True)
    arrays = {name: value.numpy() for name, value in stored.items() if hasattr(value, "numpy")}
    arrays.pop("frame_ids")
    return {name: value for name, value in {**arrays, **changes}.items() if value is not None}


def test_the_head_and_the_landmarks_are_drawn_where_they_are(dataset: Path, tmp_path: Path):
    frames = drawn(dataset, tmp_path / "o.mp4", dataset / "track_params.pt")
    assert len(frames) == 100
    changed = np.abs(change(dataset, frames[FRAME])).sum(-1) > 60
    head = read_mask(MASKS.path(dataset, FRAME)) == HEAD
    assert changed[head].mean() > 0.2 and changed[~head].mean() < 0.1
    points = np.load(dataset / "landmarks.npz")["points"][FRAME, :, :2]
    x, y = np.floor(points).astype(int).T
    distance = np.abs(frames[FRAME][y, x].astype(int) - LANDMARK_COLOR).sum(-1)
    assert np.median(distance) < 120


def test_the_color_shows_whether_the_pose_was_estimated(dataset: Path, tmp_path: Path):
    """In the same frame, with the same poses."""
    assert np.argmax(REJECTED_COLOR) == 0 and np.argmax(MESH_COLOR) == 2
    red = []
    for valid in (True, False):
        arrays = params_of(dataset, valid=np.full(100, valid))
        write_track_params(tmp_path / "p.pt", arrays, "anny")
        frame = drawn(dataset, tmp_path / "o.mp4", tmp_path / "p.pt")[FRAME]
        moved = change(dataset, frame)
        red.append(float((moved[..., 0] - moved[..., 2]).mean()))
    assert red[0] < 0 < red[1]


def test_a_published_head_without_triangles_is_drawn_as_points(dataset: Path, tmp_path: Path):
    import torch

    stored = torch.load(dataset / "track_params.pt", weights_only=True)
    del stored["faces"]
    torch.save(stored, tmp_path / "p.pt")
    changed = change(dataset, drawn(dataset, tmp_path / "o.mp4", tmp_path / "p.pt")[FRAME])
    head = read_mask(MASKS.path(dataset, FRAME)) == HEAD
    changed = np.abs(changed).sum(-1) > 60
    assert changed[head].mean() > 0.05 and changed[~head].mean() < 0.1


def test_any_number_of_threads_gives_the_same_video(dataset: Path, tmp_path: Path, monkeypatch):
    videos = []
    for threads in (1, 5):
        monkeypatch.setattr(parallel, "job_threads", lambda threads=threads: threads)
        drawn(dataset, tmp_path / f"{threads}.mp4", dataset / "track_params.pt")
        videos.append((tmp_path / f"{threads}.mp4").read_bytes())
    assert videos[0] == videos[1]


def test_poses_of_another_clip_are_refused(dataset: Path, tmp_path: Path):
    arrays = params_of(dataset)
    arrays |= {name: arrays[name][:60] for name in ("euler", "trans", "exp", "valid")}
    write_track_params(tmp_path / "p.pt", arrays, "anny")
    with pytest.raises(UserError, match=r"60 poses, but .* describes 100 frames"):
        drawn(dataset, tmp_path / "o.mp4", tmp_path / "p.pt")
    assert not (tmp_path / "o.mp4").exists()
