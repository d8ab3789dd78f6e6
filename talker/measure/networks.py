"""Metrics computed by networks that the user provides: LPIPS, FID, CSIM, Sync-C and Sync-D.

The weights of these networks cannot be shipped. A file is a TorchScript module, named by path and
SHA-256, so that only the intended code runs: `lpips(x, y) -> [B]` on images [B, 3, H, W] in -1..1,
`inception(x) -> [B, D]` on [B, 3, 299, 299] in 0..1, `identity(x) -> [B, D]` on aligned faces
[B, 3, 112, 112] in -1..1. `torch.jit.trace(network, examples).save(path)` writes such a file.
SyncNet is the exception: it is built in talker/measure/syncnet.py and takes the published weights.

The option value `published` selects the file that `talker weights fetch` downloads. NVIDIA's
published LPIPS and Inception networks have other inputs and outputs and are adapted here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Integer, Real, UInt8

from talker.clip import SAMPLES_PER_FRAME
from talker.data.formats import load_torchscript
from talker.data.weights import WEIGHTS, published
from talker.measure.metrics import finite, mouth_box
from talker.measure.second_detector import load_second_detector, second_detector_metrics
from talker.measure.stlpips import MIN_SIZE, load_stlpips
from talker.measure.syncnet import load_syncnet, sync_distances
from talker.media.audio import Waveform

INCEPTION_SIZE = 299
"""Width and height in pixels of the images that Inception takes."""
IDENTITY_SIZE = 112
"""Width and height in pixels of the aligned faces that ArcFace networks take."""
IDENTITY_POINTS = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)
"""Positions in pixels where ArcFace networks expect the eyes, the tip of the nose and the corners
of the mouth."""
IDENTITY_PARTS = (slice(36, 42), slice(42, 48), slice(30, 31), slice(48, 49), slice(54, 55))
"""Groups among the 68 landmarks whose means are aligned with `IDENTITY_POINTS`."""


PUBLISHED = "published"
"""Option value that selects the file that `talker weights fetch` downloads."""

Network = Callable[..., torch.Tensor]


def load_networks(config: Any) -> dict[str, Any]:
    """Load the metric networks that the options of `talker evaluate` name, by option.

    Raises:
        UserError: a file is missing, has another checksum, or is not such a network.
    """
    loaders = {
        "lpips": _load_lpips,
        "inception": _load_inception,
        "identity": load_torchscript,
        "syncnet": load_syncnet,
        "stlpips": load_stlpips,
    }
    networks = {}
    for option, load in loaders.items():
        path, sha256 = getattr(config, option), getattr(config, f"{option}_sha256")
        if path == PUBLISHED:
            path, sha256 = published(option)
        if path:
            networks[option] = load(Path(path), sha256)
    if config.second_detector != "none":
        networks["second_detector"] = load_second_detector(
            config.second_detector, config.second_detector_weights or None
        )
    return networks


def _load_lpips(path: Path, sha256: str) -> Network:
    """Load a TorchScript module as `lpips(x, y) -> [B]` on images [B, 3, H, W] in -1..1."""
    module = load_torchscript(path, sha256)
    if sha256 != WEIGHTS["lpips"].sha256:
        return module

    def features(images: torch.Tensor) -> torch.Tensor:
        """Return features [B, D] of images in 0..255 whose squared distance is LPIPS."""
        return module(127.5 * (images + 1), resize_images=False, return_lpips=True)

    return lambda x, y: (features(x) - features(y)).square().sum(1)


def _load_inception(path: Path, sha256: str) -> Network:
    """Load a TorchScript module as `inception(x) -> [B, D]` on [B, 3, 299, 299] in 0..1."""
    module = load_torchscript(path, sha256)
    if sha256 != WEIGHTS["inception"].sha256:
        return module
    return lambda images: module(255 * images, return_features=True)


def frame_metrics(
    networks: Mapping[str, Any],
    rendered: UInt8[np.ndarray, "N H W 3"],
    landmarks: Float[np.ndarray, "N 68 2"],
    targets: UInt8[np.ndarray, "N H W 3"],
    real: UInt8[np.ndarray, "N H W 3"],
    real_landmarks: Float[np.ndarray, "N 68 2"],
) -> dict[str, float]:
    """Compute LPIPS, FID, CSIM and the second detector's metrics, if their networks are given.

    Args:
        networks: metric networks by option.
        rendered: frames uint8 [N, H, W, 3].
        landmarks: landmarks detected in `rendered` [N, 68, 2], nan without a face.
        targets: real heads over torso and background, uint8 [N, H, W, 3].
        real: unmodified real frames, uint8 [N, H, W, 3].
        real_landmarks: landmarks detected in `real` [N, 68, 2].
    """
    row = {}
    if network := networks.get("lpips"):
        row["LPIPS"] = perceptual_distance(network, rendered, targets)
    if network := networks.get("stlpips"):
        row["ST-LPIPS"] = perceptual_distance(network, rendered, targets)
        mouths = _mouth_crops(rendered, real, real_landmarks)
        row["ST-LPIPS_mouth"] = finite([perceptual_distance(network, *pair) for pair in mouths])
    if network := networks.get("inception"):
        row["FID"] = frechet_distance(network, rendered, targets)
    if network := networks.get("identity"):
        row["CSIM"] = identity_similarity(network, rendered, landmarks, real, real_landmarks)
    if predict := networks.get("second_detector"):
        row |= second_detector_metrics(predict, rendered, real, real_landmarks)
    return row


def stretch_metrics(
    networks: Mapping[str, Any],
    images: UInt8[np.ndarray, "N H W 3"],
    landmarks: Float[np.ndarray, "N 68 2"],
    ids: Integer[np.ndarray, "N"],
    sound: Waveform,
) -> dict[str, float]:
    """Compute Sync-C and Sync-D on the longest stretch of consecutive frames among `ids` [N].

    Args:
        images: frames uint8 [N, H, W, 3].
        landmarks: landmarks detected in `images` [N, 68, 2], nan without a face.
        sound: audio of the whole clip, int16 [640 T] at 16 kHz.
    """
    if "syncnet" not in networks:
        return {}
    pieces = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(ids) != 1) + 1)
    part = max(pieces, key=len)
    start, stop = int(ids[part[0]]), int(ids[part[-1]]) + 1
    samples = sound[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME]
    return sync_distances(networks["syncnet"], images[part], landmarks[part], samples)


@torch.inference_mode()
def perceptual_distance(
    network: Network, images: Iterable[np.ndarray], targets: Iterable[np.ndarray]
) -> float:
    """Return the mean distance of images uint8 [H, W, 3] to targets, by LPIPS or a similar network.

    LPIPS: Zhang et al., CVPR 2018.
    """
    distances = [
        float(network(2 * _tensor(a) - 1, 2 * _tensor(b) - 1))
        for a, b in zip(images, targets, strict=True)
    ]
    return float(np.mean(distances))


def _mouth_crops(
    rendered: np.ndarray, real: np.ndarray, landmarks: np.ndarray
) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Yield the mouth box of each rendered and real frame, where a face was detected."""
    height, width = real.shape[1:3]
    for image, partner, points in zip(rendered, real, landmarks, strict=True):
        if np.isfinite(points).all():
            x0, y0, x1, y1 = mouth_box(points, height, width)
            scale = max(1.0, MIN_SIZE / min(x1 - x0, y1 - y0))
            image, partner = (
                cv2.resize(one[y0:y1, x0:x1], None, fx=scale, fy=scale) for one in (image, partner)
            )
            yield [image], [partner]


@torch.inference_mode()
def frechet_distance(
    network: Network, images: Iterable[np.ndarray], targets: Iterable[np.ndarray]
) -> float:
    """Return the FID (Heusel et al., NeurIPS 2017) of two sets of images uint8 [H, W, 3].

    It is biased upward if there are fewer images than features, and images are resized by OpenCV,
    so only compare numbers that this function computed from equally many frames.
    """
    (mean, cov), (real_mean, real_cov) = (_moments(network, one) for one in (images, targets))
    # trace(sqrt(A B)) from the eigenvalues of sqrt(A) B sqrt(A), which is symmetric
    sizes, axes = np.linalg.eigh(cov)
    root = (axes * np.sqrt(np.clip(sizes, 0, None))) @ axes.T
    shared = np.linalg.eigvalsh(root @ real_cov @ root)
    spread = np.trace(cov) + np.trace(real_cov) - 2 * np.sqrt(np.clip(shared, 0, None)).sum()
    return float(np.square(mean - real_mean).sum() + spread)


@torch.inference_mode()
def identity_similarity(
    network: Network,
    images: Iterable[np.ndarray],
    landmarks: Real[np.ndarray, "N 68 2"],
    real: Iterable[np.ndarray],
    real_landmarks: Real[np.ndarray, "N 68 2"],
) -> float:
    """Return CSIM: the mean cosine between identity embeddings of images and of real frames.

    Args:
        network: face recognition network (ArcFace: Deng et al., CVPR 2019).
        images: N rendered frames, RGB uint8 [H, W, 3].
        landmarks: [N, 68, 2], nan without a face; such a pair is skipped.
        real: the N real frames, RGB uint8 [H, W, 3].
        real_landmarks: the same for the real frames.
    """
    cosines = []
    for a, points, b, partners in zip(images, landmarks, real, real_landmarks, strict=True):
        if np.isfinite(points).all() and np.isfinite(partners).all():
            face, partner = (
                network(2 * _tensor(aligned_face(*pair)) - 1)
                for pair in ((a, points), (b, partners))
            )
            cosines.append(float(torch.cosine_similarity(face, partner)))
    return finite(cosines)


def aligned_face(
    image: UInt8[np.ndarray, "H W 3"], landmarks: Real[np.ndarray, "68 2"]
) -> UInt8[np.ndarray, "112 112 3"]:
    """Rotate and scale an image so that five points of the face lie at `IDENTITY_POINTS`.

    The similarity is the least-squares one, solved in the complex plane as w = a z + b.

    Args:
        image: RGB uint8 [H, W, 3].
        landmarks: [68, 2] in pixels.

    Returns:
        RGB uint8 [112, 112, 3].
    """
    points = np.stack([landmarks[part].mean(0) for part in IDENTITY_PARTS])
    z, w = (xy[:, 0] + 1j * xy[:, 1] for xy in (points.astype(float), IDENTITY_POINTS))
    centered = z - z.mean()
    a = (centered.conj() * (w - w.mean())).sum() / (np.abs(centered) ** 2).sum()
    b = w.mean() - a * z.mean()
    similarity = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
    return cv2.warpAffine(image, similarity, (IDENTITY_SIZE, IDENTITY_SIZE))


def _moments(network: Network, images: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean [D] and covariance [D, D] of the network's features."""
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    features = np.stack(
        [network(_tensor(cv2.resize(image, size)))[0].double().numpy() for image in images]
    )
    return features.mean(0), np.atleast_2d(np.cov(features.T))


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
