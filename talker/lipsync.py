"""Measure how well the mouth moves with the audio, and verify that the speech features are its own.

The correlation of audio and mouth is compared with a null distribution from the same clip, so that
a short clip is not refused only because it is too short for a reliable result. `talker check`
judges the measurements.

    talker lipsync --data data/me --lipsync data/me/lipsync.json
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Real

from talker.clip import FPS, IN_SYNC, LipSync, Verified, load_array
from talker.core.config import validated
from talker.core.files import Output
from talker.core.pca import pca
from talker.core.ridge import fit_ridge, stretches
from talker.data import layout
from talker.encoders import Choice, load_encoder
from talker.encoders.features import FeatureStats, extract, extract_clip, mute, windows
from talker.encoders.loudness import pauses, slot_levels
from talker.errors import UserError, counted
from talker.media.audio import clip_sound, read_wav

logger = logging.getLogger(__name__)

LAGS = np.arange(-12, 13)
"""Lags of the audio behind the image, in frames, at which the two are compared."""
LEAD = 0.5
"""Natural lag of the audio behind the lips in frames, as measured on clips that are in sync."""
SLOTS = 4
"""Number of time steps of 20 ms around a frame from which its mouth opening is predicted."""
COMPONENTS = 48
"""Largest number of principal components of these time steps."""
DAMPING = 0.01
"""Ridge strength, relative to the number of frames and the largest variance of a component."""
FOLDS, GAP = 5, 12
"""Number of stretches in the cross-validation, and number of frames left out around each of
them."""
MIN_SYNC_FRAMES = 3 * FPS
"""Number of tracked frames below which audio and mouth are not compared."""
NULL_MARGIN = FPS
"""Number of frames by which the circular shifts of the null distribution exceed the largest lag."""
NULL_SHIFTS = 60
"""Largest number of circular shifts of the null distribution."""
QUICK_ENCODERS = ("hama", "mel")
"""Encoders that are fast enough to compute the speech features again."""
SPEECH_TOLERANCE = 0.1
"""Largest accepted difference of a speech feature in standard deviations; most windows must meet
it."""


@validated
class Config:
    """Options of `talker lipsync`; it has none, so that its results are comparable."""


def main(*, data: Path, lipsync: Output, config: Config = Config()) -> None:
    """Measure how well the mouth moves with the audio.

    Args:
        data: Dataset folder that `talker verify` has verified.
        lipsync: JSON file to write: by how many dB the level of the audio varies, the correlation
            between the mouth opening and its prediction from the audio, and the number of frames by
            which the audio lags behind the video.
        config: Options.
    """
    verified = Verified.load(data / layout.VERIFIED)
    faults = []
    for check in (sound_faults, speech_faults) if verified.own else ():
        try:
            faults.extend(check(data))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError(
            "\n  ".join(
                [f"{data} is not a consistent dataset ({counted(len(faults), 'fault')})", *faults]
            )
        )
    measured = measure(data, verified)
    measured.save(lipsync)
    if measured.sync_correlation is None:
        logger.info("The clip is too short to compare the mouth with the audio.")
    else:
        logger.info(
            "The correlation of the mouth opening and its prediction from the audio is %.3f at a "
            "lag of %.1f frames.",
            measured.sync_correlation,
            measured.sync_lag_frames,
        )


def sound_faults(folder: Path) -> Iterator[str]:
    """Check that the two parts of the audio are parts of the whole, in a folder of talker."""
    whole = read_wav(folder / layout.SOUND)
    split = len(read_wav(folder / layout.TRAIN_SOUND))
    for name, part in ((layout.TRAIN_SOUND, whole[:split]), (layout.NOVEL_SOUND, whole[split:])):
        if not np.array_equal(read_wav(folder / name), part):
            yield (
                f"{folder / name} differs from the same part of {layout.SOUND}. "
                "Run `talker audio` again."
            )


def speech_faults(folder: Path) -> Iterator[str]:
    """Compute speech features again, where the encoder is fast, and compare them."""
    for encoder in QUICK_ENCODERS:
        path = layout.speech_file(folder, encoder)
        statistics = folder / layout.speech_statistics(encoder)
        if not path.exists() or not statistics.exists():
            continue
        stats = FeatureStats.load(statistics)
        sound = read_wav(folder / layout.SOUND)
        slots = stats.reduce(np.concatenate(list(extract(load_encoder(stats.choice), sound))))
        slots = mute(slots, pauses(slot_levels(sound), stats.pause), stats)
        expected = np.concatenate(list(windows([slots], stats.look_ahead)))
        stored = load_array(path)
        if stored.shape != expected.shape or not (
            np.median(np.abs(stored - expected)) <= SPEECH_TOLERANCE
        ):
            yield (
                f"{path} differs from the features that talker computes from {layout.SOUND} with "
                f"{statistics.name}. One of these files belongs to another clip. Run "
                "`talker speech` again."
            )


def measure(folder: Path, verified: Verified) -> LipSync:
    """Measure the level of the audio and the lip sync of a dataset folder.

    The default encoder is used for all avatars, so that the limits remain comparable.
    """
    sound = clip_sound(folder / layout.SOUND, verified.frames)
    choice = Choice()
    statistics, slots = extract_clip(load_encoder(choice), choice, sound, verified.train_frames)
    speech = np.concatenate(list(windows([slots], statistics.look_ahead)))
    quiet, loud = np.percentile(slot_levels(sound), [5, 95])
    opening, valid = verified.array("mouth_opening"), np.array(verified.valid)
    return LipSync(level_range_db=float(loud - quiet), **sync_facts(speech, opening, valid))


def sync_facts(
    speech: Real[np.ndarray, "T 16 C"],
    opening: Float[np.ndarray, "T"],
    valid: Bool[np.ndarray, "T"],
) -> dict[str, Any]:
    """Measure how well the audio predicts the mouth opening, compared with chance.

    Args:
        speech: speech windows [T, 16, C].
        opening: mouth opening [T].
        valid: whether the frame is tracked, bool [T].

    Returns:
        `sync_correlation` at the best lag, `sync_lag_frames` (positive: the audio is late),
        `sync_frames` (number of frames compared), `sync_z` (standard deviations above the mean of
        the null distribution) and `sync_lag_z` (standard deviations by which the best lag exceeds
        the lags of clips in sync).
        All are None if the clip is too short.
    """
    names = ("correlation", "lag_frames", "z", "frames", "lag_z")
    facts: dict[str, Any] = {f"sync_{name}": None for name in names}
    features = _components(speech)
    curve = _lag_curve(features, opening, valid)
    if not np.isfinite(curve).any():
        return facts
    lag, peak = peak_lag(curve)
    facts |= {
        "sync_correlation": peak,
        "sync_lag_frames": lag,
        "sync_frames": int(valid.sum()),
    }
    null = null_correlations(features, opening, valid)
    if len(null) >= 10 and null.std() > 0:
        in_sync = np.nanmax(curve[np.abs(LAGS - LEAD) <= IN_SYNC])
        facts |= {
            "sync_z": float((peak - null.mean()) / null.std()),
            "sync_lag_z": float((peak - in_sync) / null.std()),
        }
    return facts


def sync_curve(
    speech: Real[np.ndarray, "T 16 C"],
    opening: Float[np.ndarray, "T"],
    valid: Bool[np.ndarray, "T"],
) -> Float[np.ndarray, "L"]:
    """Correlate the mouth opening with its prediction from the audio, at each lag in `LAGS`.

    The prediction is a ridge regression evaluated on stretches of the clip that it was not fitted
    to. Arguments as in `sync_facts`; nan where too few frames are left.
    """
    return _lag_curve(_components(speech), opening, valid)


def null_correlations(
    features: Float[np.ndarray, "T C"],
    opening: Float[np.ndarray, "T"],
    valid: Bool[np.ndarray, "T"],
) -> Float[np.ndarray, "S"]:
    """Return the correlations after circular audio shifts that exceed the largest lag by 1 s."""
    frames = len(opening)
    first = LAGS[-1] + NULL_MARGIN
    shifts = np.unique(np.linspace(first, frames - first, NULL_SHIFTS).astype(int))
    if frames < 2 * first + 2 or int(valid.sum()) < MIN_SYNC_FRAMES:
        return np.empty(0)
    return np.array(
        [_held_out_correlation(np.roll(features, s, axis=0)[valid], opening[valid]) for s in shifts]
    )


def peak_lag(curve: Float[np.ndarray, "L"]) -> tuple[float, float]:
    """Return the lag of the audio in frames, and the correlation there, of a `sync_curve`.

    The lag is the center of the upper half of the peak, minus the natural lag of audio.
    """
    best = int(np.nanargmax(curve))
    floor = curve[best] - 0.5 * (curve[best] - np.nanmedian(curve))
    above = np.nan_to_num(curve - floor, nan=-1.0) > 0
    first = best - int(np.argmin(np.append(above[best::-1], False))) + 1
    last = best + int(np.argmin(np.append(above[best:], False)))
    peak = slice(first, last)
    height = curve[peak] - floor
    center = (height * LAGS[peak]).sum() / height.sum() if height.any() else LAGS[best]
    return float(center - LEAD), float(curve[best])


def _components(speech: np.ndarray) -> np.ndarray:
    """Return principal components [T, F] of the steps around the center of each window."""
    middle = speech.shape[1] // 2
    slots = speech[:, middle - SLOTS // 2 : middle + SLOTS // 2].reshape(len(speech), -1)
    slots = slots.astype(float) - slots.mean(axis=0)
    return pca(slots, COMPONENTS)[0]


def _lag_curve(features: np.ndarray, opening: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the correlation at each lag in `LAGS`; see `sync_curve`."""
    return np.array([_shifted_correlation(features, opening, valid, lag) for lag in LAGS.tolist()])


def _shifted_correlation(
    features: np.ndarray, opening: np.ndarray, valid: np.ndarray, lag: int
) -> float:
    frames = np.arange(len(opening))
    audio = frames + lag
    both = valid & (audio >= 0) & (audio < len(frames))
    if both.sum() < MIN_SYNC_FRAMES:
        return float("nan")
    return _held_out_correlation(features[audio[both]], opening[both])


def _held_out_correlation(features: np.ndarray, target: np.ndarray) -> float:
    """Correlate a target [N] with its cross-validated regression on features [N, F]."""
    pairs = []
    for test, train in stretches(len(target), FOLDS, GAP):
        x, y = features[train], target[train, None]
        strength = DAMPING * len(x) * x.var(axis=0).max()
        predicted = fit_ridge(x, y, strength).predict(features[test])[:, 0]
        true = target[test]
        pairs.append((predicted - predicted.mean(), true - true.mean()))
    predicted, true = (np.concatenate(part) for part in zip(*pairs, strict=True))
    scale = np.linalg.norm(predicted) * np.linalg.norm(true)
    return float(predicted @ true / scale) if scale > 0 else 0.0
