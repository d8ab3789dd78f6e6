"""Metrics by given networks: checked by hash, and right where the answer is known."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from talker.errors import UserError
from talker.judges import frechet_distance, load_judge, perceptual_distance


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
    judge = load_judge(path, stored(Distance(), path))
    images, truth = flat(np.array([0, 51, 255])), flat(np.array([0, 0, 0]))
    assert perceptual_distance(judge, images, images) == 0
    assert perceptual_distance(judge, images, truth) == pytest.approx((0 + 0.4 + 2) / 3, abs=1e-5)


def test_fid_is_that_of_known_gaussians(tmp_path: Path) -> None:
    """Features that are one number thrice: means apart by 51 / 255, deviations s and 2 s."""
    path = tmp_path / "inception.pt"
    judge = load_judge(path, stored(Features(), path))
    away = np.random.default_rng(0).normal(size=60)
    away = (away - away.mean()) / away.std(ddof=1)
    one, other = flat(np.round(100 + 10 * away)), flat(np.round(151 + 20 * away))
    assert frechet_distance(judge, one, one) == pytest.approx(0, abs=1e-6)
    expected = 3 * ((51 / 255) ** 2 + (10 / 255) ** 2)
    assert frechet_distance(judge, one, other) == pytest.approx(expected, rel=0.03)


def test_only_the_named_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "lpips.pt"
    sha256 = stored(Distance(), path)
    with pytest.raises(UserError, match=rf"lpips\.pt: expected the sha256 '', found {sha256}"):
        load_judge(path, "")
    path.write_bytes(b"no module")
    with pytest.raises(UserError, match="is no TorchScript module"):
        load_judge(path, hashlib.sha256(b"no module").hexdigest())
    with pytest.raises(UserError, match=r"none\.pt: cannot be read"):
        load_judge(tmp_path / "none.pt", sha256)
