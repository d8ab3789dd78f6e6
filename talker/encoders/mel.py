"""Log-mel spectrogram: the plain baseline that an encoder has to beat.

25 ms Hann windows every 10 ms, 80 triangles on Slaney's mel scale: librosa's figures, checked in
the tests, without librosa, whose 20 packages would be there for these 30 lines.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from talker.clip import SAMPLE_RATE
from talker.encoders.base import Encoder

BANDS = 80
WINDOW = SAMPLE_RATE // 40
HOP = SAMPLE_RATE // 100
FLOOR = 1e-10
"""power of a band that counts as silence"""


def load() -> Encoder:
    return Encoder(
        name="mel",
        dims=BANDS,
        rate=SAMPLE_RATE / HOP,
        first_centre=0.0,
        sha256="",
        describe=lambda sound, start: log_mel(sound),
    )


def log_mel(sound: np.ndarray) -> np.ndarray:
    """Map sound, float32 [S], to float32 [1 + S // 160, 80]; row k is centred on sample 160 k."""
    padded = np.pad(sound, WINDOW // 2)
    frames = sliding_window_view(padded, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    return np.log(np.maximum(power @ filters().T, FLOOR)).astype(np.float32)


def filters() -> np.ndarray:
    """Triangles of equal area between neighbours on the mel scale, 0 to 8 kHz: [80, 201]."""
    edges = _hertz(np.linspace(0, _mel(SAMPLE_RATE / 2), BANDS + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
    return np.maximum(triangles, 0) * 2 / (high - low)


LINEAR = 200 / 3  # Hz a mel, below 1 kHz
KNEE = 1000.0
STEP = np.log(6.4) / 27  # of the natural logarithm a mel, above


def _mel(hertz: float) -> float:
    return hertz / LINEAR if hertz < KNEE else KNEE / LINEAR + np.log(hertz / KNEE) / STEP


def _hertz(mel: np.ndarray) -> np.ndarray:
    knee = KNEE / LINEAR
    return np.where(mel < knee, mel * LINEAR, KNEE * np.exp(STEP * (np.maximum(mel, knee) - knee)))
