"""Perfect, late, frozen and faceless avatars get the expected metrics."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_avatar import FakeAvatar, untrained_avatar
from pydantic import ValidationError
from test_networks import Colour, Distance, stored
from test_syncnet import syncnet_weights

from talker import evaluate as stage
from talker.dataset import Dataset
from talker.errors import UserError
from talker.evaluate import Config, table
from talker.head.landmarks68 import eye_aspect_ratio
from talker.measure.definitions import DEFINITIONS
from talker.measure.detection import detect_landmarks
from talker.measure.heldout import (
    RealFrames,
    compare,
    compare_together,
    evaluate_held_out,
    evaluated_ids,
)
from talker.measure.networks import load_networks
from talker.measure.new_speech import silence_row
from talker.measure.responses import measure_responses
from talker.media.audio import read_wav, write_wav
from talker.media.video_writer import video_writer


@pytest.fixture(scope="module")
def data(dataset: Path) -> Dataset:
    """128 px, with the last 60 frames held out, of which 44 are measured."""
    whole = Dataset.load(dataset, 128)
    return dataclasses.replace(whole, train_ids=np.arange(40), val_ids=np.arange(40, 100))


@pytest.fixture(scope="module")
def truth(data: Dataset) -> RealFrames:
    return RealFrames.load(data, data.val_ids)


@pytest.fixture(scope="module")
def results(data: Dataset) -> dict[str, Any]:
    return evaluate_held_out(FakeAvatar(data), data, {}, "hama", batch=16, shuffles=2)


def test_the_detector_finds_the_known_mouth(data: Dataset, truth: RealFrames) -> None:
    """Frames are enlarged for the detector, but measured in their own pixels."""
    assert np.isfinite(truth.detected).all()
    apart = np.linalg.norm(truth.detected - data.landmarks[data.val_ids], axis=-1)
    assert np.median(apart) < 3


def test_a_perfect_avatar(results: dict[str, Any]) -> None:
    row = results["held_out"]
    assert row["psnr"] > 50
    assert row["ssim"] > 0.999
    assert row["mouth_correlation"] > 0.95
    assert row["mouth_std_ratio"] == pytest.approx(1, abs=0.1)
    assert row["best_lag_frames"] == 0
    assert row["eye_correlation"] > 0.9
    assert row["eye_std_ratio"] == pytest.approx(1, abs=0.1)
    assert row["frames"] == 44
    assert row["faces_lost"] == 0
    assert row["head_shake"] < 0.05


def test_shaking_poses_are_told(truth: RealFrames) -> None:
    """Shift every second frame by a pixel, which adds a pixel of motion from frame to frame."""
    images = truth.frames.copy()
    images[1::2] = np.roll(images[1::2], 1, axis=2)
    assert compare(images, truth).row["head_shake"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_renderings_are_compared_together_as_alone(
    data: Dataset, truth: RealFrames, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderings = [truth.frames, truth.targets, np.roll(truth.frames, 1, axis=2), truth.frames // 2]
    alone = [compare(images, truth) for images in renderings]
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr("talker.core.parallel.usable_cores", lambda: 4)
    together = compare_together(zip(*renderings, strict=True), truth, len(renderings))
    for one, other in zip(together, alone, strict=True):
        assert one.row == other.row
        assert np.array_equal(one.detected, other.detected, equal_nan=True)
    again = RealFrames.load(data, data.val_ids)
    assert np.array_equal(again.detected, truth.detected)


def test_a_stare_is_told(truth: RealFrames) -> None:
    """Around the eyes, every frame shows the frame with the widest open eyes."""
    widest = truth.frames[eye_aspect_ratio(truth.detected).argmax()]
    images = truth.frames.copy()
    for image, points in zip(images, truth.landmarks[:, 36:48], strict=True):
        (left, top), (right, bottom) = points.min(0).astype(int) - 4, points.max(0).astype(int) + 4
        image[top:bottom, left:right] = widest[top:bottom, left:right]
    row = compare(images, truth).row
    assert row["eye_std_ratio"] < 0.6
    assert row["eye_correlation"] < 0.7
    assert row["mouth_correlation"] > 0.9


def test_controls_show_a_dead_and_a_deaf_mouth(results: dict[str, Any]) -> None:
    true = results["held_out"]
    frozen, shuffled = (results["controls"][name] for name in ("frozen_mouth", "shuffled_audio"))
    for control in (frozen, shuffled):
        assert control["psnr_mouth"] < true["psnr_mouth"] - 3
        assert control["ssim_mouth"] < true["ssim_mouth"]
        assert control["lmd_mouth"] > true["lmd_mouth"]
    assert frozen["mouth_std_ratio"] < 0.3
    assert shuffled["mouth_std_ratio"] > 0.5
    assert abs(shuffled["mouth_correlation"]) < 0.5
    mouth = results["curves"]["mouth_opening"]
    two = [np.corrcoef(one, mouth["real"])[0, 1] for one in mouth["shuffled_audio"]]
    assert shuffled["mouth_correlation_sd"] == pytest.approx(np.std(two), abs=1e-3)


def test_the_curves_are_those_of_the_numbers(results: dict[str, Any]) -> None:
    curves = results["curves"]
    mouth = curves["mouth_opening"]
    assert curves["frames"] == list(range(56, 100))
    r = np.corrcoef(mouth["real"], mouth["avatar"])[0, 1]
    assert r == pytest.approx(results["held_out"]["mouth_correlation"])
    assert len(mouth["shuffled_audio"]) == 2
    assert all(len(mouth[name]) == 44 for name in ("real", "avatar", "frozen_mouth"))
    assert len(curves["eye_opening"]["avatar"]) == 44


def test_measured_frames_share_no_sound_with_training(data: Dataset, results) -> None:
    """16 frames are skipped if 25 frames remain."""
    assert results["settings"]["frames"] == [56, 100]
    assert results["settings"]["gap"].startswith("The evaluation skipped 16 held-out frames")
    for end, first in ((81, 56), (80, 40)):
        some = dataclasses.replace(data, val_ids=np.arange(40, end))
        assert evaluated_ids(some)[0] == first


def test_the_table_shows_every_metric_of_every_rendering(results: dict[str, Any]) -> None:
    lines = table(results).splitlines()
    assert len(lines) == 1 + len(DEFINITIONS)
    assert len({len(line) for line in lines}) == 1
    assert "frozen mouth" in lines[0]
    assert lines[1].split()[0] == "psnr"


@pytest.mark.parametrize("late", [-2, 3])
def test_a_late_mouth_has_its_lag(data: Dataset, truth: RealFrames, late: int) -> None:
    ids = (data.val_ids - late).clip(0, data.frames - 1)
    measured = compare((data.frame(i) for i in ids), truth)
    assert measured.row["best_lag_frames"] == late
    assert measured.row["mouth_correlation"] < 0.9


def test_lost_faces_are_counted_and_leave_gaps(truth: RealFrames) -> None:
    images = truth.frames.copy()
    images[20:50] = 0
    measured = compare(images, truth)
    assert 25 <= measured.row["faces_lost"] <= 35
    assert np.isnan(measured.mouth).sum() == measured.row["faces_lost"]
    assert measured.row["mouth_correlation"] > 0.9


def test_no_face_at_all_is_no_number(truth: RealFrames) -> None:
    row = compare(np.zeros_like(truth.frames), truth).row
    assert row["faces_lost"] == 60
    assert np.isfinite(row["psnr"])
    unknown = "lmd_mouth", "mouth_correlation", "mouth_std_ratio", "head_shake"
    assert all(np.isnan(row[name]) for name in unknown)


def test_frames_that_are_not_held_out_leave_gaps(data: Dataset) -> None:
    some = dataclasses.replace(data, val_ids=np.array([80, 81, 85, 86]))
    results = evaluate_held_out(FakeAvatar(some), some, {}, "hama", shuffles=1)
    real = results["curves"]["mouth_opening"]["real"]
    assert np.isfinite(real).tolist() == [True, True, False, False, False, True, True]
    row = results["held_out"]
    assert np.isfinite(row["head_shake"])
    assert np.isnan(row["head_shake_5"])


def test_the_detector_sees_the_same_at_any_size(truth: RealFrames) -> None:
    double = truth.frames[:3].repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(detect_landmarks(double) / 2, truth.detected[:3], atol=2)


def test_nothing_held_out_is_refused(data: Dataset) -> None:
    empty = dataclasses.replace(data, val_ids=np.empty(0, np.int64))
    with pytest.raises(UserError, match=r"transforms_val\.json"):
        evaluate_held_out(FakeAvatar(empty), empty, {}, "hama")


def test_no_control_is_refused(data: Dataset) -> None:
    with pytest.raises(ValidationError, match="shuffles"):
        Config(shuffles=0)


def test_the_file_is_plain_json_and_repeatable(
    data: Dataset, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "load_avatar", lambda folder: FakeAvatar(data))
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path in paths:
        stage.main(data=dataset, avatar=tmp_path, metrics=path, config=Config(shuffles=1))
    assert paths[0].read_bytes() == paths[1].read_bytes()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    content = json.loads(paths[0].read_text(), parse_constant=refuse)
    parts = {"held_out", "controls", "detector_floor", "sync", "network_metrics", "not_computed"}
    parts |= {"verdict", "settings", "curves", "responses"}
    assert parts == set(content)
    assert content["sync"]["features"] == "mel"
    assert set(content["controls"]) == {"frozen_mouth", "shuffled_audio"}
    second = {"lmd_mouth_second", "mouth_correlation_second"}
    perceptual = {"ST-LPIPS", "ST-LPIPS_mouth"}
    judges = {"LPIPS", *perceptual, "FID", "Sync-C", "Sync-D", "CSIM", *second}
    assert judges | {"null distribution of the sync score"} == set(content["not_computed"])
    assert set(DEFINITIONS) < set(content["held_out"])


def test_given_networks_judge(data: Dataset, tmp_path: Path) -> None:
    """SyncNet measures the first seven frames, because the other two are not consecutive."""
    weights = {}
    for option, network in (("lpips", Distance()), ("inception", Colour()), ("identity", Colour())):
        weights[option] = str(tmp_path / f"{option}.pt")
        weights[f"{option}_sha256"] = stored(network, Path(weights[option]))
    weights["syncnet"] = str(tmp_path / "syncnet.model")
    torch.save(syncnet_weights(), weights["syncnet"])
    content = Path(weights["syncnet"]).read_bytes()
    weights["syncnet_sha256"] = hashlib.sha256(content).hexdigest()
    some = dataclasses.replace(data, val_ids=np.array([*range(60, 67), 70, 71]))
    networks = load_networks(Config(**weights))
    results = evaluate_held_out(FakeAvatar(some), some, networks, "hama", shuffles=1)
    second = {"lmd_mouth_second", "mouth_correlation_second"}
    missing = {"null distribution of the sync score", "ST-LPIPS", "ST-LPIPS_mouth", *second}
    assert set(results["not_computed"]) == missing
    avatar, real = results["network_metrics"]["avatar"], results["network_metrics"]["real"]
    assert set(avatar) == {"LPIPS", "FID", "CSIM", "Sync-C", "Sync-D", "Sync offset"}
    assert avatar["LPIPS"] < 0.01
    assert avatar["CSIM"] == pytest.approx(1, abs=0.01)
    assert avatar["Sync-D"] == pytest.approx(real["Sync-D"], rel=0.2), "nearly the same picture"


def test_an_untrained_avatar_is_measured(dataset: Path, tmp_path: Path) -> None:
    """From files to a file; whether a face is found in its grey blobs or not."""
    untrained_avatar(Dataset.load(dataset, 64)).save(tmp_path / "avatar")
    stage.main(
        data=dataset,
        avatar=tmp_path / "avatar",
        metrics=tmp_path / "metrics.json",
        config=Config(shuffles=1),
    )
    row = json.loads((tmp_path / "metrics.json").read_text())["held_out"]
    assert row["frames"] == 10
    assert 5 < row["psnr"] < 40


def test_one_face_in_speech_is_no_measure_of_its_motion(data: Dataset) -> None:
    sound = np.zeros(60 * 640, np.int16)
    sound[: 30 * 640] = np.random.default_rng(0).normal(0, 8000, 30 * 640)
    opening = np.linspace(0, 0.1, 60)
    opening[1:30] = np.nan
    row = silence_row(sound, opening, data)
    assert row["silent_frames"] > 0 and np.isnan(row["chatter"])


def test_a_video_of_new_speech_is_judged(
    dataset: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real video with its middle second muted: 100 frames, all with a face."""
    sound = read_wav(dataset / "aud.wav")
    sound[40 * 640 : 65 * 640] = 0
    write_wav(tmp_path / "sound.wav", sound)
    video = tmp_path / "hello.mp4"
    with video_writer(video, tmp_path / "sound.wav") as write:
        for i in range(100):
            write(data.frame(i))
    monkeypatch.setattr(stage, "load_avatar", lambda folder: FakeAvatar(data))
    stage.main(data=dataset, avatar=tmp_path, metrics=tmp_path / "m.json", video=video)
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["frames"] == 100
    assert found["seconds_of_sound"] == 4
    assert found["sync"]["avatar"]["frames"] > 60
    assert found["sync"]["real"]["frames"] == 10
    assert found["sync"]["real"]["correlation"] is None, "the video is too short"
    assert 5 <= found["silence"]["silent_frames"] <= 20
    assert found["silence"]["opening_closed"] < found["silence"]["opening_mean"]
    with pytest.raises(UserError, match=r"nowhere\.mp4"):
        stage.main(
            data=dataset,
            avatar=tmp_path,
            metrics=tmp_path / "m.json",
            video=tmp_path / "nowhere.mp4",
        )


class Blinker(FakeAvatar):
    """Shows the real head, with its eyes closed as far as the condition says."""

    def render_from_expression(
        self,
        expression: torch.Tensor,
        eye: torch.Tensor,
        viewmats: torch.Tensor,
        Ks: torch.Tensor,
        height: int,
        width: int,
        shared: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        recorded = torch.from_numpy(self.dataset.eye)[:, 0]
        nearest = (recorded - eye[:, :1]).abs().argmin(1, keepdim=True).float()
        return super().render_from_expression(nearest, eye, viewmats, Ks, height, width, shared)


def test_eyes_that_follow_the_closure(data: Dataset, truth: RealFrames) -> None:
    row = measure_responses(Blinker(data), data, data.val_ids, truth.detected, truth.detected)
    assert row["blink_rank_correlation"] > 0.9
    assert 0.7 < row["blink_closing"] < 1.3
    assert abs(row["pose_mouth_correlation"]) < 0.9


class Raiser(FakeAvatar):
    """Shows the real head with open eyes, and its brows raised as far as the condition says."""

    def render_from_expression(
        self,
        expression: torch.Tensor,
        eye: torch.Tensor,
        viewmats: torch.Tensor,
        Ks: torch.Tensor,
        height: int,
        width: int,
        shared: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        closure, recorded = torch.from_numpy(self.dataset.eye).T
        open_eyes = torch.where(closure < 0.1, 0.0, 1.0)
        nearest = ((recorded - eye[:, 1:]).abs() + open_eyes).argmin(1, keepdim=True).float()
        return super().render_from_expression(nearest, eye, viewmats, Ks, height, width, shared)


def test_brows_that_follow_the_input(data: Dataset, truth: RealFrames) -> None:
    row = measure_responses(Raiser(data), data, data.val_ids, truth.detected, truth.detected)
    assert row["brow_rank_correlation"] > 0.6  # the frames also differ in their pose
    assert 0.5 < row["brow_lifting"] < 1.5
    still = dataclasses.replace(data, eye=data.eye * np.float32([1, 0]))
    row = measure_responses(Raiser(still), still, data.val_ids, truth.detected, truth.detected)
    assert np.isnan(row["brow_rank_correlation"]) and np.isnan(row["brow_lifting"])


def test_eyes_that_do_not_blink(results: dict[str, Any]) -> None:
    """This avatar shows the real head of the speech, so neither eyes nor poses have an effect."""
    row = results["responses"]
    assert row["pose_mouth_correlation"] > 0.9
    assert 0.8 < row["pose_mouth_std_ratio"] < 1.2
    assert not abs(row["blink_closing"]) > 0.2
    assert not abs(row["brow_lifting"]) > 0.4
