from pathlib import Path

import av
import numpy as np
import pytest

from talker.backends.blink_ear import measure
from talker.blink import Config, main
from talker.clip import Clip, Source, save_per_frame
from talker.data.formats import read_au45
from talker.head.landmarks68 import LEFT_EYE, MESH_INDICES, RIGHT_EYE
from talker.media.mediapipe import track_meshes

FRAMES = 200
BLINKS = (30, 90, 150)
SOURCE = Source("me.mp4", 64, 64, 25.0, False, 0, FRAMES / 25, 0.0, 0.0, "h264")


def meshes(openness: np.ndarray, size: float = 60.0) -> np.ndarray:
    """Return meshes [T, 478, 3] whose eyes have the aspect ratio `openness` [T]; the rest is
    zero."""
    corners = np.array([[-1.0, 0], [-0.4, -1], [0.4, -1], [1, 0], [0.4, 1], [-0.4, 1]])
    points = np.zeros((len(openness), 478, 3))
    for eye, x in ((RIGHT_EYE, 3.0), (LEFT_EYE, 7.0)):
        for k, index in enumerate(MESH_INDICES[eye]):
            points[:, index, 0] = (x + corners[k, 0]) * size
            points[:, index, 1] = (4 + corners[k, 1] * openness) * size
    return points


def peaks(closure: np.ndarray, level: float = 1.0) -> np.ndarray:
    """Return the frame of the greatest closure in each run of frames above `level`."""
    above = np.flatnonzero(closure > level)
    stretches = np.split(above, np.flatnonzero(np.diff(above) > 1) + 1)
    return np.array([stretch[closure[stretch].argmax()] for stretch in stretches if len(stretch)])


def au45(points: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Measure the eye closure with the default options."""
    clip = Clip(len(points), 64, 64, SOURCE)
    return measure(clip, None, points, valid, Config())["AU45_r"]


@pytest.fixture
def blinking() -> np.ndarray:
    openness = np.full(FRAMES, 0.3) + np.random.default_rng(0).normal(0, 0.01, FRAMES)
    for blink in BLINKS:
        openness[blink - 1 : blink + 2] = 0.12, 0.03, 0.15
    return openness


def test_blinks_are_full_and_open_eyes_are_open(blinking: np.ndarray):
    closure = au45(meshes(blinking), np.ones(FRAMES, bool))
    assert tuple(peaks(closure)) == BLINKS
    assert closure.max() == 2
    assert closure.min() == 0
    assert np.median(closure) < 0.3


def test_scale_place_and_angle_do_not_matter(blinking: np.ndarray):
    valid = np.ones(FRAMES, bool)
    points = meshes(blinking)
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    moved = 0.3 * points @ turn + [50, -20, 3]
    assert au45(moved, valid) == pytest.approx(au45(points, valid), abs=1e-9)


def test_another_persons_eyes_give_the_same(blinking: np.ndarray):
    valid = np.ones(FRAMES, bool)
    narrow = au45(meshes(0.7 * blinking), valid)
    assert narrow == pytest.approx(au45(meshes(blinking), valid), abs=1e-9)


def test_noise_without_a_blink_is_not_stretched():
    openness = 0.3 + np.random.default_rng(0).normal(0, 0.015, FRAMES)
    closure = au45(meshes(openness), np.ones(FRAMES, bool))
    assert closure.max() < 0.6


def test_lost_frames_lie_between_their_neighbours(blinking: np.ndarray):
    valid = np.ones(FRAMES, bool)
    valid[60:63] = False
    points = meshes(blinking)
    points[60:63] = 0
    points[60:63, :, 0] = np.arange(478)
    closure = au45(points, valid)
    line = np.linspace(blinking[59], blinking[63], 5)
    opened = np.percentile(blinking[valid], Config().open_percentile)
    closed = min(np.percentile(blinking[valid], 0.5), 0.25 * opened)
    expected = 2 * np.clip((opened - line) / (opened - closed), 0, 1)
    assert closure[59:64] == pytest.approx(expected, abs=1e-9)


def test_csv_is_openfaces(blinking: np.ndarray, tmp_path: Path):
    Clip(FRAMES, 64, 64, SOURCE).save(tmp_path / "clip.json")
    valid = np.ones(FRAMES, bool)
    valid[7] = False
    points = meshes(blinking)
    save_per_frame(tmp_path / "landmarks.npz", valid, points=points)

    def run() -> bytes:
        main(
            clip=tmp_path / "clip.json",
            landmarks=tmp_path / "landmarks.npz",
            au=tmp_path / "au.csv",
        )
        return (tmp_path / "au.csv").read_bytes()

    assert run() == run()
    header, *rows = (tmp_path / "au.csv").read_text().splitlines()
    assert header.split(",")[-4:] == [" AU45_r", " AU01_r", " AU02_r", " AU04_r"]
    assert len(rows) == FRAMES
    assert [float(cell) for cell in rows[7].split(",")[:4]] == [8, 0.28, 0, 0]
    written = read_au45(tmp_path / "au.csv")
    assert written == pytest.approx(au45(points, valid), abs=1e-3)


def test_blinks_of_the_synthetic_clip(synthetic):
    found = np.concatenate(list(track_meshes(synthetic.images)))
    closure = au45(found, np.ones(len(found), bool))
    truth = 2 * synthetic.truth.blink
    real = peaks(truth)
    assert len(real) >= 2
    assert len(peaks(closure)) == len(real)
    assert abs(peaks(closure) - real).max() <= 1
    assert np.corrcoef(closure, truth)[0, 1] > 0.9


@pytest.mark.clips
def test_blinks_of_a_real_clip(clips: Path):
    with av.open(clips / "presenter_45s.mp4") as video:
        images = (frame.to_ndarray(format="rgb24") for frame in video.decode(video=0))
        found = np.concatenate(list(track_meshes(images)))
    assert len(found) == 1129
    assert len(peaks(au45(found, np.ones(1129, bool)))) == pytest.approx(31, abs=1)
