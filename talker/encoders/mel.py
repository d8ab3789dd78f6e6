"""Log-mel spectrogram (librosa), the baseline for the other encoders.

It uses 25 ms Hann windows every 10 ms and 80 triangles on Slaney's mel scale.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from librosa.feature import melspectrogram

from talker.clip import SAMPLE_RATE
from talker.encoders import Choice, Encoder

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


def log_mel(sound: Float[np.ndarray, "S"]) -> Float[np.ndarray, "N 80"]:
    """Map audio [S] to float32 [1 + S // 160, 80]; row k is centered on sample 160 * k."""
    power = melspectrogram(y=sound, sr=SAMPLE_RATE, n_fft=WINDOW, hop_length=HOP, n_mels=BANDS)
    return np.log(np.maximum(power.T, FLOOR))
