"""Log-mel spectrogram, the baseline for the other encoders."""

from pathlib import Path

from talker.clip import SAMPLE_RATE
from talker.encoders import Choice, Encoder
from talker.encoders.spectrogram import BANDS, HOP, log_mel


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
