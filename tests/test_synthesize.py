"""The synthetic subject: ground truth against images and detectors, and the stage `synthesize`."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
from conftest import DEMO
from pydantic import ValidationError

from talker.clip import FPS, SAMPLES_PER_FRAME
from talker.dataset import Dataset
from talker.errors import UserError
from talker.head.camera import intrinsics, project
from talker.head.landmarks68 import MESH_INDICES, eye_aspect_ratio
from talker.media.audio import read_wav
from talker.media.mediapipe import segment_person, track_meshes
from talker.media.video_reader import probe
from talker.synthetic.acting import LIP_LEAD, VISEME_PATHS, Phoneme, mouth_weights, read_timings
from talker.synthetic.subject import GroundTruth
from talker.tools.synthesize import Config, main

LIPS = [13, 14]


@pytest.fixture(scope="module")
def detected(synthetic) -> np.ndarray:
    """MediaPipe's landmarks [T, 478, 2]; exactly one face must be detected in every frame."""
    meshes = list(track_meshes(synthetic.images))
    assert [len(mesh) for mesh in meshes] == [1] * len(synthetic.images)
    return np.stack([mesh[0, :, :2] for mesh in meshes])


def test_detector_agrees_with_the_truth(synthetic, detected):
    truth = synthetic.truth
    face_width = np.ptp(truth.landmarks[..., 0], axis=1).mean()
    error = np.linalg.norm(detected - truth.landmarks, axis=2)
    assert np.median(error) < 0.02 * face_width
    assert np.percentile(error, 95) < 0.05 * face_width
    opening = np.linalg.norm(detected[:, LIPS[0]] - detected[:, LIPS[1]], axis=1)
    assert np.corrcoef(opening, truth.mouth_open)[0, 1] > 0.8
    ratio = eye_aspect_ratio(detected[:, MESH_INDICES])
    assert np.corrcoef(ratio, truth.blink)[0, 1] < -0.8


def test_person_mask_agrees_with_the_truth(synthetic):
    chosen = range(0, len(synthetic.images), 20)
    likely = segment_person(synthetic.images[i] for i in chosen)
    for i, person in zip(chosen, likely, strict=True):
        segmented, true = person > 0.5, synthetic.truth.masks[i] > 0
        assert (segmented & true).sum() > 0.93 * (segmented | true).sum()


def test_landmarks_are_projections(synthetic):
    truth = synthetic.truth
    height, width = truth.plate.shape[:2]
    pixels = project(truth.mesh, truth.viewmats, intrinsics(truth.focal, width, height))
    np.testing.assert_allclose(pixels, truth.landmarks, atol=1e-3)
    np.testing.assert_array_equal(truth.landmarks68, truth.landmarks[:, MESH_INDICES])
    rotation = truth.viewmats[:, :3, :3]
    identity = np.broadcast_to(np.eye(3), rotation.shape)
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), identity, atol=1e-9)


def test_head_moves_smoothly_in_front_of_a_still_torso(synthetic):
    truth = synthetic.truth
    nose = truth.landmarks[:, 1]
    face_width = np.ptp(truth.landmarks[..., 0], axis=1).mean()
    assert np.ptp(nose, axis=0).max() > 0.08 * face_width
    assert np.abs(np.diff(nose, 2, axis=0)).max() < 0.02 * face_width
    height = truth.masks.shape[1]
    shoulders = truth.masks[:, int(0.93 * height)] == 3
    assert np.ptp(shoulders.sum(1)) < 0.02 * truth.masks.shape[2]
    assert shoulders.mean() > 0.8


def test_masks_agree_with_the_image(synthetic):
    truth = synthetic.truth
    for i in range(0, len(truth.masks), 25):
        image, mask = synthetic.images[i], truth.masks[i]
        clear = cv2.dilate((mask > 0).astype(np.uint8), np.ones((5, 5))) == 0
        assert clear.sum() > 0.3 * clear.size
        strands = (image[clear] != truth.plate[clear]).any(-1)  # single hairs extend further
        assert strands.mean() < 1e-3
        for point, label in ((1, 1), (10, 1), (152, 1), (234, 1)):
            x, y = truth.landmarks[i, point] + (0, -2 if point == 152 else 0)
            assert mask[int(y), int(x)] == label
        assert set(np.unique(mask)) == {0, 1, 2, 3}
        chin_x, chin_y = truth.landmarks[i, 152]
        below = mask[int(chin_y) + 4 :, int(chin_x)]
        assert (np.diff(below.astype(int)) >= 0).all()  # neck, then torso


def test_blinks_close_the_eyes(synthetic):
    truth = synthetic.truth
    starts = np.flatnonzero((truth.blink[1:] > 0) & (truth.blink[:-1] == 0))
    assert len(starts) >= 2
    assert truth.blink.max() == 1
    lids = np.linalg.norm(truth.mesh[:, 159] - truth.mesh[:, 145], axis=1)
    assert lids[truth.blink == 1].max() < 0.35 * np.median(lids)


def test_mouth_follows_the_phonemes(synthetic):
    phonemes = read_timings(DEMO / "timings.json")
    opening = synthetic.truth.mouth_open

    def at(names: str, least: float = 0.0) -> np.ndarray:
        frames = [
            round(((s.start + s.end) / 2 - LIP_LEAD) * FPS)
            for s in phonemes
            if s.name in names.split() and s.end - s.start > least
        ]
        return opening[[i for i in frames if 0 <= i < len(opening)]]

    closed = np.concatenate([at("p b m"), at("_ _:", least=0.2)])
    assert len(closed) > 5
    assert closed.max() < at("oU aI eI aU E V").mean()
    assert closed.mean() < 0.5 * np.percentile(opening, 90)


def test_silence_rests():
    units = ["jawOpen", "mouthPucker"]
    phonemes = [Phoneme("aa", 1.0, 1.2), Phoneme("_:", 1.2, 1.8), Phoneme("u:", 1.8, 2.0)]
    weights = mouth_weights(phonemes, 3 * FPS, units)

    def frame(second: float) -> int:
        return round((second - LIP_LEAD) * FPS)

    assert weights[: frame(0.8)].max() < 0.01
    assert weights[frame(2.3) :].max() < 0.01
    assert weights[frame(1.5)].max() < 0.02
    assert weights[frame(1.1), 0] > 0.3
    assert weights[frame(1.9), 1] > 0.5


def test_every_demo_phoneme_has_a_viseme():
    phonemes = read_timings(DEMO / "timings.json")
    assert {phoneme.name for phoneme in phonemes} <= VISEME_PATHS.keys()
    assert len({VISEME_PATHS[phoneme.name][0] for phoneme in phonemes}) >= 13
    assert all(a.end <= b.start + 1e-3 for a, b in pairwise(phonemes))
    duration = len(read_wav(DEMO / "speech.wav")) / SAMPLES_PER_FRAME / FPS
    assert duration - 0.5 < phonemes[-1].end <= duration


def test_dataset_folder_holds_the_truth(synthetic, dataset):
    truth = synthetic.truth
    data = Dataset.load(dataset, truth.plate.shape[0])
    np.testing.assert_allclose(data.viewmats, truth.viewmats, atol=1e-4)
    np.testing.assert_allclose(data.landmarks, truth.landmarks68, atol=1e-4)
    np.testing.assert_allclose(data.eye[:, 0], truth.blink, atol=1e-3)
    np.testing.assert_array_equal(data.speech[1:, :-2], data.speech[:-1, 2:])
    assert data.frames == len(truth.masks)
    behind = data.background(0)[truth.masks[0] == 3].astype(int)
    np.testing.assert_allclose(behind, synthetic.images[0][truth.masks[0] == 3], atol=60)


def synthesize(folder, **options):
    folder.mkdir()
    files = {"video": folder / "demo.mp4", "truth": folder / "truth.npz"}
    speech = {"speech": DEMO / "speech.wav", "timings": DEMO / "timings.json"}
    main(**speech, **files, config=Config(**options))
    return files


def test_stage_makes_the_same_files_twice(tmp_path):
    first, second = (synthesize(tmp_path / name, size=64, frames=5) for name in ("a", "b"))
    for role, path in first.items():
        assert path.read_bytes() == second[role].read_bytes()
    other = synthesize(tmp_path / "c", size=64, frames=5, seed=1)
    assert other["video"].read_bytes() != first["video"].read_bytes()
    source = probe(first["video"])
    assert (source.width, source.height, source.fps) == (64, 64, FPS)
    assert source.duration == pytest.approx(5 / FPS, abs=0.01)
    truth = GroundTruth.load(first["truth"])
    assert truth.masks.shape == (5, 64, 64)
    assert truth.weights.shape == (5, len(truth.units))


def test_stage_refuses_what_it_cannot_render(tmp_path):
    with pytest.raises(UserError, match=r"speech\.wav lasts 16\.00 s"):
        synthesize(tmp_path / "long", frames=1000)
    with pytest.raises(ValidationError, match="size"):
        synthesize(tmp_path / "odd", size=65)
    timings = tmp_path / "timings.json"
    for content, message in (
        ('{"phonemes": [{"phoneme": "xx", "start": 0, "end": 1}]}', "xx"),
        ('{"phonemes": []}', "no phonemes"),
        ('{"words": []}', "It must contain"),
        ("nothing", "It must contain"),
    ):
        timings.write_text(content)
        with pytest.raises(UserError, match=message):
            read_timings(timings)
    with pytest.raises(UserError, match=r"truth\.npz"):
        GroundTruth.load(tmp_path / "truth.npz")
