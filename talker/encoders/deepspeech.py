"""DeepSpeech's letter scores, as the scripts of the AD-NeRF family leave them; nothing is run here.

Its TensorFlow graph is not for today's Python. Whoever has `aud_ds.npy` puts it beside the wav.
"""

from pathlib import Path

import numpy as np

from talker.clip import SAMPLE_RATE, load_array
from talker.encoders.base import Encoder
from talker.errors import UserError
from talker.media.audio import WavFile

FILE = "aud_ds.npy"
DIMS = 29
WINDOW = 16
RATE = 50
HOP = SAMPLE_RATE // RATE
SPARE = 4
"""slots by which the scores may be longer or shorter than the sound: 2 frames"""


def load(wav: Path | None) -> Encoder:
    """The scores in `aud_ds.npy` beside the sound.

    Raises:
        UserError: there is no file, or it does not hold DeepSpeech's scores of that sound.
    """
    if wav is None:
        raise UserError("deepspeech: describes stored sound only, from its aud_ds.npy")
    logits = read(wav.with_name(FILE))

    slots = len(WavFile(wav)) // HOP
    if abs(len(logits) - slots) > SPARE:
        raise UserError(
            f"{wav.with_name(FILE)}: {len(logits)} scores, expected {slots} for the "
            f"{slots / RATE:.1f} s of {wav}; make them from that sound, at 50 Hz"
        )

    def describe(sound: np.ndarray, start: int) -> np.ndarray:
        wanted = np.arange(start // HOP, (start + len(sound)) // HOP)
        return logits[wanted.clip(0, len(logits) - 1)]

    return Encoder("deepspeech", DIMS, RATE, 0.0, "", describe)


def read(path: Path) -> np.ndarray:
    """Scores float32 [2 N, 29] at 50 Hz, of stored scores or of stored windows [N, 16, 29].

    Window i holds the scores 2 i - 8 to 2 i + 7, so that neighbours share 14 of them.

    Raises:
        UserError: the file is missing or of another shape, or its windows do not overlap so.
    """
    try:
        stored = load_array(path)
    except UserError as error:
        raise UserError(
            f"{error}; the encoder deepspeech takes the scores that DeepSpeech 0.1 made, float "
            "[N, 16, 29] or [2 N, 29] at 50 Hz"
        ) from error
    if stored.ndim == 2 and stored.shape[1:] == (DIMS,) and len(stored) > 1:
        return stored.astype(np.float32)
    if stored.shape[1:] != (WINDOW, DIMS) or len(stored) == 0:
        raise UserError(f"{path}: expected [N, 16, 29] or [2 N, 29], found {stored.shape}")
    if not np.array_equal(stored[1:, :-2], stored[:-1, 2:]):
        raise UserError(
            f"{path}: expected windows that move by 2 slots a frame (25 fps), but the slots that "
            "neighbours should share differ"
        )
    middle = WINDOW // 2
    return stored[:, middle : middle + 2].reshape(-1, DIMS).astype(np.float32)
