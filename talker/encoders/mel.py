"""Log-mel spectrogram, the baseline for the other encoders.

It uses 25 ms Hann windows every 10 ms and 80 triangles on Slaney's mel scale. A test compares it
with values of librosa, which is not used because it would add 20 packages for 30 lines.
"""

from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from talker.clip import SAMPLE_RATE
from talker.encoders.base import Choice, Encoder

BANDS = 80
"""Number of mel bands."""
WINDOW = SAMPLE_RATE // 40
"""Samples of a window: 25 ms."""
HOP = SAMPLE_RATE // 100
"""Samples between windows: 10 ms."""
FLOOR = 1e-10
"""Power of a band below which it counts as silence."""


def load(choice: Choice, wav: Path | None) -> Encoder:
    """Return the encoder; it needs neither weights nor the file."""
    return Encoder(
        name="mel",
        dims=BANDS,
        rate=SAMPLE_RATE / HOP,
        first_center=0.0,
        sha256="",
        extract=lambda sound, start: log_mel(sound),
    )


def log_mel(sound: np.ndarray) -> np.ndarray:
    """Map sound, float32 [S], to float32 [1 + S // 160, 80]; row k is centered on sample 160 k."""
    padded = np.pad(sound, WINDOW // 2)
    frames = sliding_window_view(padded, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    return np.log(np.maximum(power @ filters().T, FLOOR)).astype(np.float32)


def filters() -> np.ndarray:
    """Return triangles of equal area between neighbors on the mel scale, 0 to 8 kHz: [80, 201]."""
    edges = _hertz(np.linspace(0, _mel(SAMPLE_RATE / 2), BANDS + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
    return np.maximum(triangles, 0) * 2 / (high - low)


LINEAR = 200 / 3
"""Hertz per mel below `KNEE`."""
KNEE = 1000.0
"""Frequency in Hz above which the mel scale is logarithmic."""
STEP = np.log(6.4) / 27
"""Natural logarithm of the frequency ratio of a mel above `KNEE`."""


def _mel(hertz: float) -> float:
    return hertz / LINEAR if hertz < KNEE else KNEE / LINEAR + np.log(hertz / KNEE) / STEP


def _hertz(mel: np.ndarray) -> np.ndarray:
    knee = KNEE / LINEAR
    return np.where(mel < knee, mel * LINEAR, KNEE * np.exp(STEP * (np.maximum(mel, knee) - knee)))
