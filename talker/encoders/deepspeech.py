"""Letter scores of DeepSpeech, as the scripts of the AD-NeRF family compute them.

They are read from `aud_ds.npy` in the folder of the wav if it exists, and otherwise computed with
the published network.
"""

import logging
from pathlib import Path

import numpy as np

from talker.clip import SLOT, SLOT_RATE, WINDOW, load_array
from talker.data.layout import DEEPSPEECH_FEATURES
from talker.data.weights import WEIGHTS, location
from talker.encoders import Choice, Encoder
from talker.errors import UserError
from talker.media.audio import WavFile

logger = logging.getLogger(__name__)

DIMS = 29
"""Number of letters of DeepSpeech: a to z, space, apostrophe, and the CTC blank."""
SPARE = 4
"""Largest difference in time steps between the lengths of the scores and of the audio: 2 frames."""


def load(choice: Choice, wav: Path | None) -> Encoder:
    """Read the scores of the audio `wav` from `aud_ds.npy` in its folder, or compute them.

    Raises:
        UserError: the file does not contain the DeepSpeech scores of that audio, or there is
            neither the file nor the network.
    """
    if wav is None:
        raise UserError(
            "The encoder deepspeech needs the whole audio at once, so it cannot encode live "
            "speech. Choose another encoder."
        )
    path = wav.with_name(DEEPSPEECH_FEATURES)
    network = Path(choice.model) if choice.model else location(WEIGHTS["deepspeech"])
    if path.exists() or not network.is_file():
        logits = read(path)
    else:
        from talker.encoders.deepspeech_network import predict

        logger.info("Computing the letter scores of DeepSpeech with %s", network)
        logits = predict(network, WavFile(wav)[:])
    slots = len(WavFile(wav)) // SLOT
    if abs(len(logits) - slots) > SPARE:
        raise UserError(
            f"{path} has {len(logits)} scores, but {wav} lasts {slots / SLOT_RATE:.1f} s and "
            f"needs {slots} scores, at 50 per second. Compute the scores again from {wav}."
        )

    def extract(sound: np.ndarray, start: int) -> np.ndarray:
        slots = np.arange(start // SLOT, (start + len(sound)) // SLOT)
        return logits[slots.clip(0, len(logits) - 1)]

    return Encoder("deepspeech", DIMS, SLOT_RATE, 0.0, "", extract)


def read(path: Path) -> np.ndarray:
    """Read scores float32 [2 N, 29] at 50 Hz, from stored scores or stored windows [N, 16, 29].

    Window i contains the scores 2 i - 8 to 2 i + 7, so that neighboring windows share 14 scores.

    Raises:
        UserError: the file is missing or has another shape, or its windows do not overlap that way.
    """
    try:
        stored = load_array(path)
    except UserError as error:
        raise UserError(
            f"{error} The encoder deepspeech needs the scores of DeepSpeech 0.1 in this "
            "file (floating-point numbers of shape [N, 16, 29], or [2 N, 29] at 50 Hz), or the "
            f"network itself. To obtain the network, {WEIGHTS['deepspeech'].hint()}."
        ) from error
    if stored.dtype.kind != "f":
        raise UserError(
            f"{path} contains {stored.dtype} values. It must contain floating-point numbers."
        )
    if not np.isfinite(stored).all():
        raise UserError(f"{path} contains values that are NaN or infinite.")
    if stored.ndim == 2 and stored.shape[1:] == (DIMS,) and len(stored) > 1:
        return stored.astype(np.float32)
    if stored.shape[1:] != (WINDOW, DIMS) or len(stored) == 0:
        raise UserError(
            f"{path} has the shape {stored.shape}. It must be [N, 16, 29] or [2 N, 29]."
        )
    if not np.array_equal(stored[1:, :-2], stored[:-1, 2:]):
        raise UserError(
            f"{path} contains windows that do not overlap as expected. At 25 fps, each window "
            "must start 40 ms (2 steps of 20 ms) after the previous one, and steps that are in "
            "both windows must have equal values. Compute the windows again."
        )
    middle = WINDOW // 2
    return stored[:, middle : middle + 2].reshape(-1, DIMS).astype(np.float32)
