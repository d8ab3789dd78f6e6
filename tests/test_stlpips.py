"""ST-LPIPS on images whose features are known, and what its file must hold."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from talker.errors import UserError
from talker.measure.networks import frame_metrics
from talker.measure.stlpips import MEAN, MIN_SIZE, STD, ShiftTolerantLpips, load_stlpips

SHAPES = {(1, 0): (64, 3, 11, 11), (2, 5): (192, 64, 5, 5), (3, 9): (384, 192, 3, 3)}
SHAPES |= {(4, 11): (256, 384, 3, 3), (5, 13): (256, 256, 3, 3)}
BLURS = {(1, 1): 64, (2, 4): 64, (3, 8): 192}


def published() -> dict[str, Tensor]:
    """A state dict with the published names and shapes: the first layer copies the image."""
    state = {"scaling_layer.shift": torch.tensor(MEAN), "scaling_layer.scale": torch.tensor(STD)}
    for (part, number), shape in SHAPES.items():
        state[f"net.slice{part}.{number}.weight"] = torch.zeros(shape)
        state[f"net.slice{part}.{number}.bias"] = torch.zeros(shape[0])
        state[f"lin{part - 1}.model.1.weight"] = torch.full((1, shape[0], 1, 1), float(part == 1))
    for color in range(3):
        state["net.slice1.0.weight"][color, color, 5, 5] = 1
    blur = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    for (part, number), channels in BLURS.items():
        state[f"net.slice{part}.{number}.filt"] = blur.repeat(channels, 1, 1, 1)
    return state


def stored(state: object, path: Path) -> str:
    torch.save(state, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def network(tmp_path: Path) -> ShiftTolerantLpips:
    path = tmp_path / "alex_shift_tolerant.pth"
    return load_stlpips(path, stored(published(), path))


def test_the_distance_of_plain_colors_is_that_of_their_directions(
    network: ShiftTolerantLpips,
) -> None:
    white, red = torch.ones(1, 3, 40, 48), torch.full((1, 3, 40, 48), -1.0)
    red[:, 0] = 1
    direction = (1 - np.array(MEAN)) / STD
    direction /= np.linalg.norm(direction)
    expected = np.square(direction - (1, 0, 0)).sum()
    assert network(white, white).item() == 0
    assert network(white, red).item() == pytest.approx(expected, abs=1e-5)
    assert network(red, white).item() == pytest.approx(expected, abs=1e-5)


def test_a_checkerboard_moved_by_a_pixel_stays_close(network: ShiftTolerantLpips) -> None:
    board = (torch.arange(40)[:, None] + torch.arange(40)) % 2 * 2.0 - 1
    board = board.expand(1, 3, 40, 40)
    plain = torch.full_like(board, -1.0)
    assert network(board, board.roll(1, -1)).item() < 1e-6 < network(board, plain).item()


def test_rows_of_the_whole_image_and_of_the_mouth(network: ShiftTolerantLpips) -> None:
    real = np.full((2, 64, 64, 3), 255, np.uint8)
    rendered = real.copy()
    rendered[:, 40:56, 20:44] = (255, 0, 0)
    landmarks = np.full((2, 68, 2), (32, 20), np.float32)
    landmarks[:, 48:68] = np.linspace((28, 46), (36, 50), 20)
    landmarks[1] = np.nan
    row = frame_metrics({"stlpips": network}, rendered, landmarks, real, real, landmarks)
    assert row["ST-LPIPS_mouth"] > 2 * row["ST-LPIPS"] > 0
    assert min(56 - 40, 44 - 20) < MIN_SIZE, "the box of the mouth is enlarged"


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    for state in (
        {"weight": torch.zeros(1)},
        {**published(), "lin0.model.1.weight": torch.ones(2)},
    ):
        with pytest.raises(UserError, match=r"is not the file alex_shift_tolerant\.pth"):
            load_stlpips(path, stored(state, path))
    path.write_bytes(b"none")
    with pytest.raises(UserError, match=r"is not the file alex_shift_tolerant\.pth"):
        load_stlpips(path, hashlib.sha256(b"none").hexdigest())
    with pytest.raises(UserError, match="checksum"):
        load_stlpips(path, "")
