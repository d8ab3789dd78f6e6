"""Measure a video of new speech, which has no real counterpart: sync score and mouth in silence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.ndimage import binary_dilation, binary_erosion

from talker.clip import SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.core.progress import progress
from talker.data import layout
from talker.dataset import Dataset
from talker.encoders.features import SLOTS_PER_FRAME
from talker.encoders.loudness import pauses, slot_levels
from talker.head.landmarks68 import mouth_opening
from talker.measure import metrics as m
from talker.measure.definitions import SILENCE_DEFINITIONS, SYNC_DEFINITIONS
from talker.measure.detection import detect_landmarks
from talker.measure.heldout import Row, evaluated_ids, on_time_axis
from talker.measure.sync import Predictor, null_reason, sync_score
from talker.measure.syncnet import sync_distances
from talker.media.audio import Waveform, clip_sound, decode_audio
from talker.media.video_reader import frame_count, probe, read_frames

SILENCE_MARGIN = 5
"""Frames around speech that count neither as speech nor as silence."""
SHORTEST_PAUSE = 0.3
"""Shortest pause in seconds."""
CLOSED_SHARE = 0.1
"""Fraction of the training frames, those with the least open mouth, that count as closed."""


def evaluate_new_speech(
    video: Path, dataset: Dataset, predictor: Predictor, networks: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure how well the mouth in a video follows its audio, and what it does in silence.

    Args:
        predictor: predicts mouth shapes from audio (`talker.measure.sync.fit_predictor`).
        networks: metric networks by option; only SyncNet applies.

    Returns:
        The content of the JSON file of a new speech.

    Raises:
        UserError: the video cannot be read, or has no audio.
    """
    source = probe(video)
    images = progress(read_frames(video, source), video.name, frame_count(source))
    detected = detect_landmarks(images)
    sound = decode_audio(video, source.video_start)
    samples = len(detected) * SAMPLES_PER_FRAME
    sound = np.pad(sound[:samples], (0, max(0, samples - len(sound))))
    row: Row = {}
    if network := networks.get("syncnet"):
        row = sync_distances(network, read_frames(video, source), detected, sound)
    avatar_sync = sync_score(predictor.shapes(sound), detected)
    return {
        "frames": len(detected),
        "seconds_of_sound": len(sound) / SAMPLE_RATE,
        "faces_lost": int(np.isnan(detected[:, 0, 0]).sum()),
        "sync": {
            "features": predictor.features.name,
            "real": _real_sync(dataset, predictor),
            "avatar": avatar_sync,
        },
        "silence": silence_row(sound, mouth_opening(detected), dataset),
        "network_metrics": {"avatar": row},
        "not_computed": null_reason(avatar_sync),
        "settings": {"definitions": SYNC_DEFINITIONS | SILENCE_DEFINITIONS},
    }


def silence_row(sound: Waveform, opening: Float[np.ndarray, "T"], dataset: Dataset) -> Row:
    """Measure the mouth in the pauses of speech: the numbers of `SILENCE_DEFINITIONS`.

    Args:
        sound: int16 [640 T] at 16 kHz.
        opening: mouth opening [T], nan where no face was detected.
    """
    levels = pauses(slot_levels(sound), shortest=SHORTEST_PAUSE)
    silent = levels.reshape(-1, SLOTS_PER_FRAME).min(1) == 1
    window = np.ones(2 * SILENCE_MARGIN + 1, bool)
    in_silence = np.asarray(binary_erosion(silent, window, border_value=1), bool)
    in_speech = ~np.asarray(binary_dilation(silent, window), bool)
    recorded = mouth_opening(dataset.landmarks[dataset.train_ids])
    closed = dataset.train_ids[recorded <= np.quantile(recorded, CLOSED_SHARE)]
    detected = detect_landmarks(dataset.frame(int(i)) for i in closed)
    motion = m.finite(opening[in_speech], np.std)
    return {
        "silent_frames": int(in_silence.sum()),
        "opening_silent": m.finite(opening[in_silence]),
        "opening_closed": m.finite(mouth_opening(detected)),
        "opening_mean": float(recorded.mean()),
        "chatter": m.finite(opening[in_silence], np.std) / (motion or float("nan")),
    }


def _real_sync(dataset: Dataset, predictor: Predictor) -> Row:
    """Return the sync score of the real held-out frames, from the landmarks of the dataset."""
    ids = evaluated_ids(dataset)
    predicted = predictor.shapes(clip_sound(dataset.folder / layout.SOUND, dataset.frames))
    if len(ids) == 0:
        return sync_score(predicted[:0], np.empty((0, 68, 2)))
    landmarks = on_time_axis(dataset.landmarks[ids], ids)
    return sync_score(predicted[ids[0] : ids[-1] + 1], landmarks)
