"""Log-mel spectrogram of audio: 25 ms Hann windows every 10 ms, 80 triangles on Slaney's mel scale.

Its values are those of librosa, whose import takes longer than this computation by a factor of 100.
"""

import numpy as np
from jaxtyping import Float

from talker.clip import SAMPLE_RATE

BANDS = 80
"""Number of mel bands."""
WINDOW = SAMPLE_RATE // 40
"""Samples of a window: 25 ms."""
HOP = SAMPLE_RATE // 100
"""Samples between windows: 10 ms."""
FLOOR = 1e-10
"""Power of a band below which it counts as silence."""


def log_mel(sound: Float[np.ndarray, "S"]) -> Float[np.ndarray, "N 80"]:
    """Map audio [S] to float32 [1 + S // 160, 80]; row k is centered on sample 160 * k."""
    padded = np.pad(sound, WINDOW // 2)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    amplitude = np.abs(np.fft.rfft(pieces * hann).astype(np.complex64))
    return np.log(np.maximum(amplitude**2 @ mel_filters().T, FLOOR))


def mel_filters() -> Float[np.ndarray, "80 F"]:
    """Return triangles of equal area, float32 [80, 201]: weights of frequencies from 0 to 8 kHz.

    Slaney, Auditory Toolbox, 1998: the mel scale is linear up to 1 kHz and logarithmic above.
    """
    linear, octaves = 15.0, np.log(6.4) / 27  # 15 mels up to 1 kHz, 27 from there to 6.4 kHz
    highest = linear + np.log(SAMPLE_RATE / 2 / 1000) / octaves
    mels = np.linspace(0, highest, BANDS + 2)
    edges = np.where(mels < linear, 200 / 3 * mels, 1000 * np.exp(octaves * (mels - linear)))
    distance = edges[:, None] - np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE)
    widths = np.diff(edges)[:, None]
    rising, falling = -distance[:-2] / widths[:-1], distance[2:] / widths[1:]
    triangles = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)
