"""Sync-C and Sync-D of SyncNet, with the published weights from a file that the user provides.

Network and metrics follow Chung and Zisserman, "Out of time: automated lip sync in the wild" (ACCV
workshops 2016), and the evaluation of its authors: five frames of a face of 224 pixels against 20
steps of 13 MFCCs, compared over shifts of up to 15 frames. One thing differs: the face is cropped
by landmarks instead of their detector, so compare only numbers computed in the same way.
"""

import pickle
from collections import deque
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Real
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import dct
from scipy.ndimage import median_filter
from torch import Tensor, nn
from torch.nn import functional as F

from talker.clip import SAMPLE_RATE
from talker.data.formats import read_verified
from talker.errors import UserError

FACE_SIZE = 224
"""Width and height of the face crops in pixels."""
FOREHEAD = 1 / 3
"""Distance from the brows to the upper edge of a face detector's box, as a fraction of the height
of the landmarks."""
SIDE_MARGIN, BOTTOM_MARGIN = 0.4, 0.8
"""Margins of the crop beyond the box, in half box sizes."""
SMOOTHING = 13
"""Length in frames of the median filter over the boxes."""
BORDER_GRAY = (110, 110, 110)
"""Color of the crop beyond the image."""
FRAMES, STEPS, STEPS_PER_FRAME = 5, 20, 4
"""Frames and MFCC steps in one sample, and MFCC steps in a frame."""
MAX_SHIFT = 15
"""Largest shift in frames."""
BATCH = 8
"""Number of samples embedded at once."""

MFCC_WINDOW, MFCC_HOP, FFT = SAMPLE_RATE // 40, SAMPLE_RATE // 100, 512
BANDS, COEFFICIENTS, LIFTER, EMPHASIS = 26, 13, 22, 0.97


class SyncNet(nn.Module):
    """Two networks that map matching mouths and speech to nearby embeddings."""

    def __init__(self, dims: int = 1024) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_layers(2, 1, 64, 3, padding=1, pool=nn.MaxPool2d(1, 1)),
            *_layers(2, 64, 192, 3, padding=1, pool=nn.MaxPool2d(3, (1, 2))),
            *_layers(2, 192, 384, 3, padding=1),
            *_layers(2, 384, 256, 3, padding=1),
            *_layers(2, 256, 256, 3, padding=1, pool=nn.MaxPool2d(3, 2)),
            *_layers(2, 256, 512, (5, 4)),
        )
        step = (1, 2, 2)
        self.netcnnlip = nn.Sequential(
            *_layers(3, 3, 96, (5, 7, 7), step, pool=nn.MaxPool3d((1, 3, 3), step)),
            *_layers(
                *(3, 96, 256, (1, 5, 5), step, (0, 1, 1)),
                pool=nn.MaxPool3d((1, 3, 3), step, (0, 1, 1)),
            ),
            *_layers(3, 256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_layers(3, 256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_layers(*(3, 256, 256, (1, 3, 3), 1, (0, 1, 1)), pool=nn.MaxPool3d((1, 3, 3), step)),
            *_layers(3, 256, 512, (1, 6, 6)),
        )
        self.netfcaud, self.netfclip = (
            nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, dims))
            for _ in range(2)
        )

    def embed_sound(self, mfcc: Tensor) -> Tensor:
        """Map MFCCs [B, 1, 13, 20] to embeddings [B, 1024]."""
        return self.netfcaud(self.netcnnaud(mfcc).flatten(1))

    def embed_faces(self, faces: Tensor) -> Tensor:
        """Map RGB faces in 0..255 [B, 3, 5, 224, 224] to embeddings [B, 1024].

        The published network was trained on BGR, the channel order of OpenCV.
        """
        return self.netfclip(self.netcnnlip(faces.flip(1)).flatten(1))


Size = int | tuple[int, ...]


def _layers(
    axes: int,
    inward: int,
    outward: int,
    kernel: Size,
    stride: Size = 1,
    padding: Size = 0,
    pool: nn.Module | None = None,
) -> list[nn.Module]:
    conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[axes]
    layers = [conv(inward, outward, kernel, stride, padding), norm(outward), nn.ReLU()]
    return [*layers, pool] if pool is not None else layers


def load_syncnet(path: Path, sha256: str) -> SyncNet:
    """Load the published weights (`syncnet_v2.model`).

    Raises:
        UserError: the file is missing, has another checksum, or contains other weights.
    """
    content = read_verified(path, sha256)
    network = SyncNet()
    try:
        network.load_state_dict(torch.load(BytesIO(content), "cpu", weights_only=True))
    except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} does not contain the weights of SyncNet ({error}). Download them with `talker "
            "weights fetch syncnet`."
        ) from error
    return network.eval()


@torch.inference_mode()
def sync_distances(
    network: SyncNet,
    images: Iterable[np.ndarray],
    landmarks: Real[np.ndarray, "T 68 2"],
    sound: np.ndarray,
) -> dict[str, float]:
    """Compute Sync-C and Sync-D of a video and its audio.

    Args:
        network: loaded by `load_syncnet`.
        images: T frames, RGB uint8 [H, W, 3].
        landmarks: [T, 68, 2] in pixels, nan without a face.
        sound: int16 [640 T] at 16 kHz.

    Returns:
        `Sync-C`, `Sync-D`, and `Sync offset` in frames (positive: the mouth is late); nan with
        fewer than 6 frames or without any face.
    """
    count = len(landmarks) - FRAMES
    if count < 1 or not np.isfinite(landmarks).all((1, 2)).any():
        return dict.fromkeys(("Sync-C", "Sync-D", "Sync offset"), float("nan"))
    faces = islice(_samples(face_crops(images, landmarks)), count)
    steps = sliding_window_view(mfcc(sound), STEPS, axis=0)[::STEPS_PER_FRAME, None]
    face_embeddings = [
        network.embed_faces(_tensor(batch))
        for batch in iter(lambda: list(islice(faces, BATCH)), [])
    ]
    parts = np.split(steps[:count], range(BATCH, count, BATCH))
    sound_embeddings = [network.embed_sound(_tensor(batch)) for batch in parts]
    return shift_distances(torch.cat(face_embeddings), torch.cat(sound_embeddings))


def shift_distances(faces: Tensor, sounds: Tensor) -> dict[str, float]:
    """Compare embeddings [N, D] of faces and audio over shifts; see `sync_distances`.

    Sync-D is the smallest mean distance over all shifts. Sync-C is the median of these distances
    minus Sync-D. Beyond the ends of the audio, its embedding is zero, as in the published
    evaluation.
    """
    padded = F.pad(sounds, (0, 0, MAX_SHIFT, MAX_SHIFT))
    distances = torch.stack(
        [
            F.pairwise_distance(faces, padded[shift : shift + len(faces)]).mean()
            for shift in range(2 * MAX_SHIFT + 1)
        ]
    )
    best = int(distances.argmin())
    return {
        "Sync-C": float(distances.median() - distances[best]),
        "Sync-D": float(distances[best]),
        "Sync offset": float(MAX_SHIFT - best),
    }


def face_crops(
    images: Iterable[np.ndarray], landmarks: Real[np.ndarray, "T 68 2"]
) -> Iterator[np.ndarray]:
    """Crop the face of each frame to RGB uint8 [224, 224, 3]; gray beyond the image.

    The square is 1.4 times as wide as the face's box and starts at the upper edge of the box.
    """
    low, high = landmarks.min(1), landmarks.max(1)
    low[:, 1] -= FOREHEAD * (high - low)[:, 1]
    boxes = np.concatenate([(low + high) / 2, (high - low).max(1, keepdims=True) / 2], axis=1)
    known = np.flatnonzero(np.isfinite(boxes).all(1))
    filled = [np.interp(np.arange(len(boxes)), known, column[known]) for column in boxes.T]
    smooth = [median_filter(column, SMOOTHING, mode="nearest") for column in filled]
    for image, x, y, half in zip(images, *smooth, strict=True):
        scale = FACE_SIZE / (half * (2 + BOTTOM_MARGIN))
        left, top = x - half * (1 + SIDE_MARGIN), y - half
        place = np.array([[scale, 0, -scale * left], [0, scale, -scale * top]])
        yield cv2.warpAffine(image, place, (FACE_SIZE, FACE_SIZE), borderValue=BORDER_GRAY)


def mfcc(sound: Real[np.ndarray, "S"]) -> Float[np.ndarray, "N 13"]:
    """Compute MFCCs float32 [1 + ceil((S - 400) / 160), 13] of int16 [S] as SyncNet's authors do.

    They use frames of 25 ms every 10 ms without a window function and 26 mel bands (O'Shaughnessy's
    scale), and are liftered; the first coefficient is the log energy. Samples are not scaled to
    -1..1.
    """
    wave = sound.astype(np.float64)
    wave = np.append(wave[:1], wave[1:] - EMPHASIS * wave[:-1])
    count = 1 + max(0, -(-(len(wave) - MFCC_WINDOW) // MFCC_HOP))
    wave = np.pad(wave, (0, max(0, (count - 1) * MFCC_HOP + MFCC_WINDOW - len(wave))))
    frames = sliding_window_view(wave, MFCC_WINDOW)[::MFCC_HOP][:count]
    power = np.abs(np.fft.rfft(frames, FFT)) ** 2 / FFT
    tiny = np.finfo(float).eps
    bands = np.log(np.maximum(power @ _filters().T, tiny))
    coefficients = np.asarray(dct(bands, axis=1, norm="ortho"))[:, :COEFFICIENTS]
    coefficients *= 1 + LIFTER / 2 * np.sin(np.pi * np.arange(COEFFICIENTS) / LIFTER)
    coefficients[:, 0] = np.log(np.maximum(power.sum(1), tiny))
    return coefficients.astype(np.float32)


def _filters() -> np.ndarray:
    """Return triangular mel filters between whole bins of the spectrum, 0 to 8 kHz: [26, 257]."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    edges = np.floor((FFT + 1) * hertz / SAMPLE_RATE)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.arange(FFT // 2 + 1)
    return np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, 1)


def _samples(faces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield every five consecutive faces as [3, 5, 224, 224]."""
    held: deque[np.ndarray] = deque(maxlen=FRAMES)
    for face in faces:
        held.append(face)
        if len(held) == FRAMES:
            yield np.stack(held).transpose(3, 0, 1, 2)


def _tensor(values: np.ndarray | list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32))
