"""Metrics by networks whose weights are not ours to ship: LPIPS and FID from a file of yours.

A file is a TorchScript module, named by path and sha256, so that nothing runs that was not meant:
`lpips(x, y) -> [B]` on images [B, 3, H, W] in -1..1, `inception(x) -> [B, D]` on
[B, 3, 299, 299] in 0..1 (`torch.jit.trace(network, examples).save(path)` writes one).
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch

from talker.errors import UserError

INCEPTION_SIZE = 299


def load_judge(path: Path, sha256: str) -> torch.jit.ScriptModule:
    """Read a TorchScript module.

    Raises:
        UserError: the file is missing, is not the one of that sha256, or no TorchScript.
    """
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != sha256:
            raise UserError(f"{path}: expected the sha256 '{sha256}', found {found}")
        return torch.jit.load(str(path), map_location="cpu").eval()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except RuntimeError as error:
        raise UserError(f"{path}: is no TorchScript module ({error})") from error


@torch.inference_mode()
def perceptual_distance(
    judge: torch.jit.ScriptModule, images: Iterable[np.ndarray], truth: Iterable[np.ndarray]
) -> float:
    """Mean LPIPS (Zhang et al., CVPR 2018) of uint8 [H, W, 3] images and their partners."""
    distances = [
        float(judge(2 * _tensor(a) - 1, 2 * _tensor(b) - 1))
        for a, b in zip(images, truth, strict=True)
    ]
    return float(np.mean(distances))


@torch.inference_mode()
def frechet_distance(
    judge: torch.jit.ScriptModule, images: Iterable[np.ndarray], truth: Iterable[np.ndarray]
) -> float:
    """FID (Heusel et al., NeurIPS 2017) of two sets of uint8 [H, W, 3] images.

    With fewer images than features it is biased upward; compare equal numbers only.
    """
    (mean, cov), (real_mean, real_cov) = (_moments(judge, some) for some in (images, truth))
    # trace(sqrt(A B)) by the eigenvalues of sqrt(A) B sqrt(A), which is symmetric
    sizes, axes = np.linalg.eigh(cov)
    root = (axes * np.sqrt(np.clip(sizes, 0, None))) @ axes.T
    shared = np.linalg.eigvalsh(root @ real_cov @ root)
    spread = np.trace(cov) + np.trace(real_cov) - 2 * np.sqrt(np.clip(shared, 0, None)).sum()
    return float(np.square(mean - real_mean).sum() + spread)


def _moments(
    judge: torch.jit.ScriptModule, images: Iterable[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    features = np.stack(
        [judge(_tensor(cv2.resize(image, size)))[0].double().numpy() for image in images]
    )
    return features.mean(0), np.atleast_2d(np.cov(features.T))


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
