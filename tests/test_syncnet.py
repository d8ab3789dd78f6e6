"""Sync-C and Sync-D: layout of the published file, MFCCs, face crop, and known shifts."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from talker.errors import UserError
from talker.measure.syncnet import (
    MAX_SHIFT,
    SyncNet,
    face_crops,
    load_syncnet,
    mfcc,
    shift_distances,
    sync_distances,
)

AUDIO = {0: (64, 1, 3, 3), 4: (192, 64, 3, 3), 8: (384, 192, 3, 3), 11: (256, 384, 3, 3)}
AUDIO |= {14: (256, 256, 3, 3), 18: (512, 256, 5, 4)}
LIPS = {0: (96, 3, 5, 7, 7), 4: (256, 96, 1, 5, 5), 8: (256, 256, 1, 3, 3)}
LIPS |= {11: (256, 256, 1, 3, 3), 14: (256, 256, 1, 3, 3), 18: (512, 256, 1, 6, 6)}


def syncnet_weights() -> dict[str, torch.Tensor]:
    """Random weights under the names and in the shapes of syncnet_v2.model."""
    torch.manual_seed(0)
    state = {}

    def add(name: str, shape: tuple[int, ...], norm: str | None) -> None:
        fan = np.prod(shape[1:])
        state[f"{name}.weight"] = torch.randn(shape) / float(np.sqrt(fan))
        state[f"{name}.bias"] = torch.zeros(shape[0])
        if norm:
            for part, value in (("weight", 1), ("bias", 0), ("running_mean", 0)):
                state[f"{norm}.{part}"] = torch.full(shape[:1], float(value))
            state[f"{norm}.running_var"] = torch.ones(shape[0])

    for tower, shapes in (("netcnnaud", AUDIO), ("netcnnlip", LIPS)):
        for k, shape in shapes.items():
            add(f"{tower}.{k}", shape, f"{tower}.{k + 1}")
    for tower in ("netfcaud", "netfclip"):
        add(f"{tower}.0", (512, 512), f"{tower}.1")
        add(f"{tower}.3", (1024, 512), None)
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("weights") / "syncnet_v2.model"
    torch.save(syncnet_weights(), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def network(weights: tuple[Path, str]) -> SyncNet:
    return load_syncnet(*weights)


def face(frames: int, x: float, y: float) -> np.ndarray:
    """68 points in a box 90 wide and 90 high with its middle at (x, y)."""
    points = np.random.default_rng(0).uniform(-45, 45, (68, 2))
    points[:2] = (-45, -45), (45, 45)
    return np.tile(points + np.array([x, y]), (frames, 1, 1))


def test_the_published_layout_is_taken(network: SyncNet) -> None:
    assert network.embed_faces(torch.zeros(2, 3, 5, 224, 224)).shape == (2, 1024)
    assert network.embed_sound(torch.zeros(2, 1, 13, 20)).shape == (2, 1024)
    expected = syncnet_weights()["netcnnlip.18.weight"]
    torch.testing.assert_close(network.netcnnlip[18].weight.detach(), expected)


def test_only_the_named_weights_are_taken(weights: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = weights
    with pytest.raises(
        UserError, match=r"syncnet_v2\.model has the SHA-256 checksum .* gives 'no'"
    ):
        load_syncnet(path, "no")
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(3)}, other)
    with pytest.raises(UserError, match="does not contain the weights of SyncNet"):
        load_syncnet(other, hashlib.sha256(other.read_bytes()).hexdigest())
    other.write_bytes(b"no weights")
    with pytest.raises(UserError, match="does not contain the weights of SyncNet"):
        load_syncnet(other, hashlib.sha256(b"no weights").hexdigest())


def test_mfccs_are_those_of_python_speech_features() -> None:
    """Frames 0, 5 and 10 of a chirp as version 0.6 of that package gives them."""
    chirp = 8000 * np.sin(np.cumsum(0.02 + 0.3 * np.linspace(0, 1, 2000) ** 2))
    found = mfcc(np.round(chirp).astype(np.int16))
    assert found.shape == (11, 13)
    expected = [
        *(16.097, 22.65, 16.39, 15.106, 14.901, 14.144, 13.423, 11.692, 9.995, 7.926, 7.055),
        *(5.647, 4.584),
        *(18.0, 27.184, 17.587, 8.783, -1.105, -11.1, -18.118, -22.721, -23.217, -21.175),
        *(-16.367, -11.441, -6.834),
        *(19.915, 27.124, -5.918, -31.74, -34.558, -14.87, 11.99, 25.444, 20.15, 3.911, -8.466),
        *(-11.3, -6.55),
    ]
    np.testing.assert_allclose(found[[0, 5, 10]].ravel(), expected, atol=2e-3)
    silence = mfcc(np.zeros(640 * 6, np.int16))
    assert silence.shape == (23, 13)
    np.testing.assert_allclose(silence[:, 0], np.log(np.finfo(float).eps), rtol=1e-6)


def test_the_crop_holds_the_face_and_grey_beyond_the_picture() -> None:
    """A box 90 wide and 120 high around (160, 85): 168 px from its upper edge, 25, down."""
    image = np.zeros((300, 320, 3), np.uint8)
    image[..., 0] = 200
    image[25 + 82 : 25 + 86, 160 - 2 : 160 + 2] = 0, 255, 0
    (crop,) = face_crops([image], face(1, 160, 100))
    assert crop.shape == (224, 224, 3)
    green = np.argwhere(crop[..., 1] > 128)
    np.testing.assert_allclose(green.mean(0), (112, 112), atol=1.5)
    assert tuple(crop[200, 10]) == (200, 0, 0), "RGB"
    (beyond,) = face_crops([image], face(1, 10, 100))
    assert tuple(beyond[112, 5]) == (110, 110, 110)


def test_a_lost_face_is_where_it_was(network: SyncNet) -> None:
    image = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    points = face(9, 100, 110)
    points[4] = np.nan
    crops = list(face_crops([image] * 9, points))
    np.testing.assert_array_equal(crops[4], crops[3])


@pytest.mark.parametrize("late", [-6, 0, 3])
def test_a_late_mouth_has_its_offset(late: int) -> None:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(160, 64, generator=generator)
    noise = 0.1 * torch.randn(100, 64, generator=generator)
    found = shift_distances(both[30 - late : 130 - late] + noise, both[30:130])
    assert found["Sync offset"] == late
    expected = 0.1 * 8 * (100 - abs(late)) / 100 + 8 * abs(late) / 100
    assert found["Sync-D"] == pytest.approx(expected, rel=0.05)
    assert found["Sync-C"] == pytest.approx(8 * 2**0.5 - expected, rel=0.1)


def test_a_video_is_scored(network: SyncNet) -> None:
    random = np.random.default_rng(0)
    frames = random.integers(0, 255, (16, 120, 120, 3), np.uint8)
    sound = random.normal(0, 3000, 16 * 640).astype(np.int16)
    found = sync_distances(network, frames, face(16, 60, 70), sound)
    assert found == sync_distances(network, frames, face(16, 60, 70), sound)
    assert 0 <= found["Sync-C"] < np.inf
    assert 0 < found["Sync-D"] < np.inf
    assert abs(found["Sync offset"]) <= MAX_SHIFT


def test_what_cannot_be_told_is_no_number(network: SyncNet) -> None:
    frames = np.zeros((8, 64, 64, 3), np.uint8)
    nowhere = np.full((8, 68, 2), np.nan)
    sound = np.zeros(8 * 640, np.int16)
    assert np.isnan(list(sync_distances(network, frames, nowhere, sound).values())).all()
    few = sync_distances(network, frames[:5], face(5, 32, 32), sound[: 5 * 640])
    assert np.isnan(list(few.values())).all()
