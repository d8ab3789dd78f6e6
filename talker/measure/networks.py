"""Metrics by networks whose weights are not ours to ship: LPIPS, FID, CSIM from a file of yours.

A file is a TorchScript module, named by path and sha256, so that nothing runs that was not meant:
`lpips(x, y) -> [B]` on images [B, 3, H, W] in -1..1, `inception(x) -> [B, D]` on
[B, 3, 299, 299] in 0..1, `identity(x) -> [B, D]` on aligned faces [B, 3, 112, 112] in -1..1
(`torch.jit.trace(network, examples).save(path)` writes one). These networks come in many shapes and
files; a traced one brings its own. SyncNet comes in one: talker/measure/syncnet.py.
"""

import hashlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import torch

from talker.errors import UserError

INCEPTION_SIZE = 299
IDENTITY_SIZE = 112
IDENTITY_POINTS = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)
"""Where ArcFace networks expect the eyes, the tip of the nose and the corners of the mouth, px."""
IDENTITY_PARTS = (slice(36, 42), slice(42, 48), slice(30, 31), slice(48, 49), slice(54, 55))
"""Whose means they are, among 68 landmarks."""


def verified(path: Path, sha256: str) -> bytes:
    """The content of a file.

    Raises:
        UserError: it is missing or is not the one of that sha256.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(f"{path}: expected the sha256 '{sha256}', found {found}")
    return content


def load_judge(path: Path, sha256: str) -> torch.jit.ScriptModule:
    """Read a TorchScript module.

    Raises:
        UserError: the file is missing, is not the one of that sha256, or no TorchScript.
    """
    content = BytesIO(verified(path, sha256))
    try:
        return torch.jit.load(content, map_location="cpu").eval()
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


@torch.inference_mode()
def identity_similarity(
    judge: torch.jit.ScriptModule,
    images: Iterable[np.ndarray],
    found: np.ndarray,
    truth: Iterable[np.ndarray],
    real: np.ndarray,
) -> float:
    """CSIM: mean cosine of the identities of uint8 [H, W, 3] images and their partners.

    Args:
        judge: a face recogniser (ArcFace: Deng et al., CVPR 2019).
        images, truth: the pictures.
        found, real: their landmarks [N, 68, 2]; a pair that lacks them (nan) does not count.
    """
    cosines = [
        float(torch.cosine_similarity(*(judge(2 * _tensor(face) - 1) for face in pair)))
        for pair in (
            (aligned_face(a, points), aligned_face(b, partners))
            for a, points, b, partners in zip(images, found, truth, real, strict=True)
            if np.isfinite(points).all() and np.isfinite(partners).all()
        )
    ]
    return float(np.mean(cosines)) if cosines else float("nan")


def aligned_face(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The face uint8 [112, 112, 3], turned and scaled so that five points lie where they should.

    The similarity is the least-squares one; in the plane it is a complex line, w = a z + b.
    """
    points = np.stack([landmarks[part].mean(0) for part in IDENTITY_PARTS])
    z, w = (xy[:, 0] + 1j * xy[:, 1] for xy in (points.astype(float), IDENTITY_POINTS))
    away = z - z.mean()
    a = (away.conj() * (w - w.mean())).sum() / (np.abs(away) ** 2).sum()
    b = w.mean() - a * z.mean()
    place = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
    return cv2.warpAffine(image, place, (IDENTITY_SIZE, IDENTITY_SIZE))


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
