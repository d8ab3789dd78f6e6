"""Metric networks are verified by hash, and correct where the result is known."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from talker.data.formats import load_torchscript
from talker.data.weights import WEIGHTS, location
from talker.errors import UserError
from talker.evaluate import Config
from talker.measure import second_detector
from talker.measure.networks import (
    IDENTITY_POINTS,
    aligned_face,
    frechet_distance,
    identity_similarity,
    load_networks,
    perceptual_distance,
)
from talker.measure.second_detector import second_detector_metrics


class Distance(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean(dim=[1, 2, 3])


class Features(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3])


def stored(module: nn.Module, path: Path) -> str:
    torch.jit.script(module).save(str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flat(values: np.ndarray) -> list[np.ndarray]:
    return [np.full((8, 8, 3), value, np.uint8) for value in values]


def test_lpips_is_the_mean_of_what_the_network_says(tmp_path: Path) -> None:
    path = tmp_path / "lpips.pt"
    network = load_torchscript(path, stored(Distance(), path))
    images, truth = flat(np.array([0, 51, 255])), flat(np.array([0, 0, 0]))
    assert perceptual_distance(network, images, images) == 0
    assert perceptual_distance(network, images, truth) == pytest.approx((0 + 0.4 + 2) / 3, abs=1e-5)


def test_fid_is_that_of_known_gaussians(tmp_path: Path) -> None:
    """Three equal features: means that differ by 51 / 255, deviations s and 2 s."""
    path = tmp_path / "inception.pt"
    network = load_torchscript(path, stored(Features(), path))
    away = np.random.default_rng(0).normal(size=60)
    away = (away - away.mean()) / away.std(ddof=1)
    one, other = flat(np.round(100 + 10 * away)), flat(np.round(151 + 20 * away))
    assert frechet_distance(network, one, one) == pytest.approx(0, abs=1e-6)
    expected = 3 * ((51 / 255) ** 2 + (10 / 255) ** 2)
    assert frechet_distance(network, one, other) == pytest.approx(expected, rel=0.03)


class Colour(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3])


def face_at(turn: float, scale: float, x: float, y: float) -> np.ndarray:
    """68 landmarks whose five points are those of ArcFace, turned, scaled and moved."""
    points = np.zeros((68, 2))
    for part, place in zip(
        (slice(36, 42), slice(42, 48), 30, 48, 54), IDENTITY_POINTS, strict=True
    ):
        points[part] = place
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    return points @ np.array([[c, s], [-s, c]]) + np.array([x, y])


def test_faces_are_brought_to_the_same_place() -> None:
    """A dot on the nose of a rotated, enlarged face is mapped to the nose of the template."""
    landmarks = face_at(0.3, 2.0, 150.0, 40.0)
    image = np.zeros((400, 400, 3), np.uint8)
    x, y = landmarks[30].round().astype(int)
    image[y - 3 : y + 4, x - 3 : x + 4] = 255
    found = np.argwhere(aligned_face(image, landmarks)[..., 0] > 128)[:, ::-1]
    np.testing.assert_allclose(found.mean(0), IDENTITY_POINTS[2], atol=1)


def test_csim_is_the_mean_cosine(tmp_path: Path) -> None:
    path = tmp_path / "identity.pt"
    network = load_torchscript(path, stored(Colour(), path))
    red, white = np.zeros((112, 112, 3), np.uint8), np.full((112, 112, 3), 255, np.uint8)
    red[..., 0] = 255
    there = np.stack([face_at(0, 1, 0, 0)] * 3)
    lost = there.copy()
    lost[2] = np.nan
    assert identity_similarity(network, [red] * 3, there, [red] * 3, there) == pytest.approx(1)
    found = identity_similarity(network, [red, white, red], lost, [red, red, white], there)
    apart = np.dot([1, -1, -1], [1, 1, 1]) / 3
    assert found == pytest.approx((1 + apart) / 2, abs=0.01), "the lost face does not count"
    assert np.isnan(identity_similarity(network, [red], lost[2:], [red], there[:1]))


def test_only_the_named_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "lpips.pt"
    sha256 = stored(Distance(), path)
    with pytest.raises(
        UserError,
        match=rf"lpips\.pt has the SHA-256 checksum {sha256}, but the configuration gives ''",
    ):
        load_torchscript(path, "")
    path.write_bytes(b"no module")
    with pytest.raises(UserError, match="is not a TorchScript module"):
        load_torchscript(path, hashlib.sha256(b"no module").hexdigest())
    with pytest.raises(UserError, match=r"none\.pt cannot be read"):
        load_torchscript(tmp_path / "none.pt", sha256)


class PublishedVgg(nn.Module):
    """Takes what NVIDIA's vgg16.pt takes; its features are the mean colors."""

    def forward(self, x: Tensor, resize_images: bool = True, return_lpips: bool = False) -> Tensor:
        assert return_lpips and not resize_images
        return x.mean(dim=[2, 3]) / 255


class PublishedInception(nn.Module):
    """Takes what NVIDIA's inception-2015-12-05.pt takes; its features are the mean colors."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        return x.mean(dim=[2, 3]) / 255


def test_published_networks_are_adapted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """White and black differ by 1 in each of three features; FID by the same squared distance."""
    monkeypatch.setenv("TALKER_WEIGHTS", str(tmp_path))
    config = Config(lpips="published", inception="published")
    with pytest.raises(
        UserError, match=r"vgg16\.pt does not exist. To obtain it, run `talker weights fetch lpips`"
    ):
        load_networks(config)
    for name, module in (("lpips", PublishedVgg()), ("inception", PublishedInception())):
        sha256 = stored(module, location(WEIGHTS[name]))
        file = dataclasses.replace(WEIGHTS[name].files[0], checksum=f"sha256:{sha256}")
        monkeypatch.setitem(WEIGHTS, name, dataclasses.replace(WEIGHTS[name], files=(file,)))
    networks = load_networks(config)
    white, black = flat(np.array([255, 255])), flat(np.array([0, 0]))
    assert perceptual_distance(networks["lpips"], white, black) == pytest.approx(3, abs=1e-5)
    assert frechet_distance(networks["inception"], white, black) == pytest.approx(3, abs=1e-5)


def test_the_second_detector_judges_with_the_boxes_of_the_real_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A detector that reads the mouth opening from the image; frame 2 has no face."""
    images = flat(np.array([0, 20, 40, 10]))
    points = np.zeros((4, 68, 2))
    points[:] = np.arange(68)[:, None]
    points[2] = np.nan
    boxes = np.array([[0.0, 0, 66, 66], [100, 100, 200, 200]])
    monkeypatch.setattr(second_detector, "detect_faces", lambda images: [boxes for _ in images])

    def predict(image: np.ndarray, box: np.ndarray) -> np.ndarray:
        assert np.array_equal(box, boxes[0])
        found = points[0].copy()
        found[57, 1] += float(image[0, 0, 0])
        found[66, 1] += float(image[0, 0, 0])
        return found

    row = second_detector_metrics(predict, images, images, points)
    assert row["lmd_mouth_second"] == 0 and row["mouth_correlation_second"] == pytest.approx(1)
    darker = flat(np.array([0, 10, 20, 5]))
    row = second_detector_metrics(predict, darker, images, points)
    assert row["lmd_mouth_second"] > 0
    assert row["mouth_correlation_second"] == pytest.approx(1, abs=1e-3)
