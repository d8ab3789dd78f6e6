"""Speech features of any encoder: steps of 20 ms, reduced by PCA, a window of 16 for each frame.

The audio is encoded piece by piece, so that an hour takes no more memory than a minute. New speech
is brought to the loudness of the training speech. The features of long pauses are replaced by one
fixed vector, so that an avatar can learn to close its mouth there. `talker.clip` defines time steps
and windows.
"""

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, Real
from numpy.lib.stride_tricks import sliding_window_view

from talker.clip import (
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    SLOT,
    SLOT_RATE,
    SLOTS_PER_FRAME,
    WINDOW,
    check_regular,
    load_arrays,
)
from talker.encoders import Choice, Encoder
from talker.encoders.loudness import gain_between, pauses, slot_levels, speech_level
from talker.errors import UserError
from talker.media.audio import Waveform

CHUNK = 10 * SLOT_RATE
"""Time steps per piece of audio; all pieces have the same length, because some encoders average
over it."""
CONTEXT = 2 * SLOT_RATE
"""Number of additional time steps that the encoder receives on each side of a piece."""
MAX_LOOK_AHEAD = WINDOW // 2
"""Largest number of time steps by which the center of a window may be later than its frame."""
QUIETEST = 0.05
"""Fraction of the time steps of the training audio, the quietest ones, that define the features of
silence."""


@dataclass(frozen=True)
class FeatureStats:
    """Statistics that convert features of an encoder to inputs of an avatar, from its training
    frames."""

    encoder: str
    """name of the encoder"""
    model: str
    """weights of the encoder, as in `Choice`"""
    layer: int
    """layer of the encoder, as in `Choice`"""
    sha256: str
    """hash that identifies the encoder's weights"""
    look_ahead: int
    """number of time steps by which the center of a window is later than its frame"""
    level: float
    """loudness of the training speech in dBFS; nan if unknown"""
    pause: float
    """shortest pause, in seconds, that gets the features of silence"""
    mean: np.ndarray
    """[D], mean of the encoder's features"""
    components: np.ndarray
    """[C, D], orthonormal principal components"""
    scale: np.ndarray
    """[C], standard deviations of the components"""
    silence: np.ndarray
    """[C], features of silence"""

    @property
    def choice(self) -> Choice:
        """The encoder with its weights and layer."""
        return Choice(self.encoder, self.model, self.layer)

    def reduce(self, slots: Float[np.ndarray, "K D"]) -> Float[np.ndarray, "K C"]:
        """Map encoder features [K, D] to whitened components float32 [K, C]."""
        return ((slots - self.mean) @ self.components.T / self.scale).astype(np.float32)

    @classmethod
    def load(cls, path: Path | zipfile.Path) -> "FeatureStats":
        """Read the statistics of an encoder's features from an .npz file.

        Raises:
            UserError: the file is missing or damaged, or its arrays do not fit together.
        """
        try:
            arrays = load_arrays(path)
            stats = cls(
                encoder=str(arrays["encoder"]),
                model=str(arrays["model"]),
                layer=int(arrays["layer"]),
                sha256=str(arrays["sha256"]),
                look_ahead=int(arrays["look_ahead"]),
                level=float(arrays["level"]),
                pause=float(arrays["pause"]),
                mean=arrays["mean"],
                components=arrays["components"],
                scale=arrays["scale"],
                silence=arrays["silence"],
            )
            stats._check()
        except (UserError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} does not contain the statistics that `talker speech --clip` "
                f"writes ({error})."
            ) from error
        return stats

    def _check(self) -> None:
        count, dims = self.components.shape
        shapes = {"mean": (dims,), "scale": (count,), "silence": (count,)}
        for name, shape in {**shapes, "components": (count, dims)}.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
                raise ValueError(
                    f"{name} has the shape {list(array.shape)}, but it must have finite "
                    f"values of shape {list(shape)}"
                )
        if not (
            0 <= self.look_ahead <= MAX_LOOK_AHEAD and self.pause >= 0 and self.scale.min() > 0
        ):
            raise ValueError("`look_ahead`, `pause` or `scale` is out of range")

    def save(self, path: Path | BinaryIO) -> None:
        """Write the statistics as an .npz file, given by its path or open for writing."""
        np.savez(path, **vars(self))


def extract(encoder: Encoder, sound: Waveform, gain: float = 1.0) -> Iterator[np.ndarray]:
    """Extract features at the centers of the steps, by linear interpolation of the encoder's rows.

    The audio is continued by its mirror image before its start and after its end.

    Args:
        encoder: the speech encoder.
        sound: int16 [640 T] at 16 kHz.
        gain: factor by which the samples are multiplied.

    Yields:
        float32 [<= 500, D], 2 T rows in all.

    Raises:
        RuntimeError: the number of rows that the encoder returned does not fit its rate.
    """
    slots = len(sound) // SLOT
    for start in range(0, slots, CHUNK):
        first = (start - CONTEXT) * SLOT
        piece = gain * mirrored(sound, first, first + (CHUNK + 2 * CONTEXT) * SLOT)
        rows = encoder.extract(piece, first)
        expected = len(piece) / SAMPLE_RATE * encoder.rate
        if abs(len(rows) - expected) > 2 * encoder.rate / 25:
            raise RuntimeError(
                f"{encoder.name} returned {len(rows)} rows instead of {expected:.0f}."
            )
        count = min(CHUNK, slots - start)
        centers = (CONTEXT + np.arange(count) + 0.5) / SLOT_RATE
        yield rows_at(rows, encoder, centers)


def rows_at(
    rows: Float[np.ndarray, "N D"], encoder: Encoder, seconds: Float[np.ndarray, "K"]
) -> Float[np.ndarray, "K D"]:
    """Interpolate the encoder's rows [N, D] of a piece at times [K] in seconds: [K, D].

    Times before the first and after the last row get the first and the last row.
    """
    position = ((seconds - encoder.first_center) * encoder.rate).clip(0, len(rows) - 1)
    before = np.floor(position + 1e-6).astype(int)
    after = np.minimum(before + 1, len(rows) - 1)
    weight = (position - before)[:, None].astype(np.float32)
    return rows[before] * (1 - weight) + rows[after] * weight


def extract_clip(
    encoder: Encoder,
    choice: Choice,
    sound: Waveform,
    train_frames: int,
    components: int = 32,
    look_ahead: int = 2,
    pause: float = 0.3,
) -> tuple[FeatureStats, np.ndarray]:
    """Extract the features of a clip, with statistics of its first `train_frames` frames.

    Args:
        encoder: the speech encoder.
        choice: its name, weights and layer, to be stored.
        sound: int16 [640 T] at 16 kHz, the audio of the clip.
        train_frames: number of training frames.
        components: number of principal components; encoders with fewer dimensions keep all of them.
        look_ahead: steps by which the center of a window is later than its frame.
        pause: shortest pause, in seconds, that gets the features of silence.

    Returns:
        The statistics, and the features of the whole clip [2 T, C].
    """
    slots = np.concatenate(list(extract(encoder, sound)))
    levels = slot_levels(sound)
    train = SLOTS_PER_FRAME * train_frames
    stats = fit_stats(
        *(slots[:train], levels[:train], encoder, choice),
        *(min(components, encoder.dims), look_ahead, pause),
    )
    return stats, mute(stats.reduce(slots), pauses(levels, pause), stats)


def fit_stats(
    slots: Float[np.ndarray, "K D"],
    levels: Float[np.ndarray, "K"],
    encoder: Encoder,
    choice: Choice,
    components: int,
    look_ahead: int,
    pause: float,
) -> FeatureStats:
    """Compute the principal components of training features and the features of silence.

    The largest entry of each component is positive, so that the same audio gives the same signs.
    The features of silence have the direction of the mean of the quietest steps and twice the usual
    length, so that they differ from those of any speech sound.

    Args:
        slots: features of the training frames, [K, D], as `extract` yields them.
        levels: loudness of the same steps, [K], dBFS.
        encoder: the speech encoder.
        choice: its name, weights and layer, to be stored.
        components: number of principal components.
        look_ahead: steps by which the center of a window is later than its frame, to be stored.
        pause: shortest pause, in seconds, that gets the features of silence.

    Raises:
        UserError: `components` is larger than the number of dimensions of the features.
    """
    most = min(encoder.dims, len(slots) - 1)
    if not 0 < components <= most:
        raise UserError(
            f"The option `components` is {components}. With the encoder {encoder.name} and "
            f"{len(slots) / SLOT_RATE:.2f} s of training audio, it must be from 1 to {most}."
        )
    exact = slots.astype(np.float64)
    mean = exact.mean(axis=0)
    variances, vectors = np.linalg.eigh(np.cov(exact.T, bias=True))
    kept = np.argsort(variances)[::-1][:components]
    rows = vectors[:, kept].T
    peaks = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    rows = rows * np.sign(peaks)
    scale = np.sqrt(np.maximum(variances[kept], 1e-6 * variances.max()))
    quiet = levels <= np.quantile(levels, QUIETEST)
    away = (exact[quiet].mean(axis=0) - mean) @ rows.T / scale
    silence = 2 * np.sqrt(components) * away / max(np.linalg.norm(away), 1e-9)
    return FeatureStats(
        encoder=encoder.name,
        model=choice.model,
        layer=choice.layer,
        sha256=encoder.sha256,
        look_ahead=look_ahead,
        level=speech_level(levels),
        pause=pause,
        mean=mean.astype(np.float32),
        components=rows.astype(np.float32),
        scale=scale.astype(np.float32),
        silence=silence.astype(np.float32),
    )


def avatar_features(
    encoder: Encoder, stats: FeatureStats, sound: Waveform, match_level: bool = True
) -> Iterator[np.ndarray]:
    """Extract the features of new speech for an avatar, with its pauses muted.

    Args:
        encoder: the speech encoder that `stats` names.
        stats: statistics of the avatar's training speech.
        sound: int16 [640 T] at 16 kHz.
        match_level: whether to bring the audio to the loudness of the training speech first.

    Yields:
        float32 [n, C], 2 T rows in all.
    """
    levels = slot_levels(sound)
    gain = gain_between(speech_level(levels), stats.level) if match_level else 1.0
    silent = pauses(levels, stats.pause)
    done = 0
    for rows in extract(encoder, sound, gain):
        yield mute(stats.reduce(rows), silent[done : done + len(rows)], stats)
        done += len(rows)


def mute(
    slots: Float[np.ndarray, "K C"], silent: Real[np.ndarray, "K"], stats: FeatureStats
) -> Float[np.ndarray, "K C"]:
    """Blend features [K, C] with those of silence; `silent` [K] is the weight of silence."""
    share = silent[:, None].astype(np.float32)
    return slots * (1 - share) + stats.silence * share


def windows(slots: Iterable[np.ndarray], look_ahead: int) -> Iterator[np.ndarray]:
    """Cut a window for each frame out of consecutive steps.

    Windows that reach beyond the audio are filled with its first or last step.

    Args:
        slots: blocks [n, C], 2 T rows in all.
        look_ahead: steps by which the center of a window is later than its frame.

    Yields:
        [n, 16, C], T in all; window i holds steps 2 i - 7 + `look_ahead` to 2 i + 8 + `look_ahead`.
    """
    lead = WINDOW // 2 - 1 - look_ahead
    waiting, received, yielded = None, 0, 0
    for block in slots:
        received += len(block)
        if waiting is None:
            waiting = block[np.arange(-lead, len(block)).clip(0, len(block) - 1)]
        else:
            waiting = np.concatenate([waiting, block])
        ready = max(0, (len(waiting) - WINDOW) // SLOTS_PER_FRAME + 1)
        if ready:
            yield _cut(waiting, ready)
            yielded += ready
            waiting = waiting[ready * SLOTS_PER_FRAME :]
    rest = received // SLOTS_PER_FRAME - yielded
    if waiting is not None and rest > 0:
        needed = WINDOW + (rest - 1) * SLOTS_PER_FRAME
        yield _cut(waiting[np.arange(needed).clip(0, len(waiting) - 1)], rest)


def save_windows(path: Path, blocks: Iterable[np.ndarray], frames: int) -> None:
    """Write windows [n, 16, C], `frames` in all, as an .npy file, block by block."""
    written = 0
    with open(path, "wb") as file:
        for block in blocks:
            if not written:
                header = {"descr": "<f4", "fortran_order": False}
                shape = (frames, *block.shape[1:])
                np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
            file.write(np.ascontiguousarray(block, "<f4").tobytes())
            written += len(block)
    if written != frames:
        raise RuntimeError(f"The audio has {frames} frames, but {written} windows were written.")


class WindowsFile:
    """Windows float32 [N, 16, C] of an .npy file, of which only the requested rows are in memory.

    Use it as file[i:j]. A memory map would keep every page in memory once it is read: 184 MB for an
    hour of speech.

    Raises:
        UserError: the file is missing, or is not such an array.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_regular(path)
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read as .npy ({error}).") from error
        if not isinstance(mapped, np.memmap) or mapped.ndim != 3 or mapped.dtype.kind != "f":
            raise UserError(
                f"{path} must contain an array of speech windows of shape [N, {WINDOW}, C]."
            )
        self.shape, self.dtype, self.start = mapped.shape, mapped.dtype, mapped.offset

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        size = int(np.prod(self.shape[1:]))
        count = max(0, stop - start) * size
        offset = self.start + start * size * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, count, offset=offset).reshape(-1, *self.shape[1:])


def whole_frames(sound: Waveform, path: Path) -> int:
    """Return the duration of audio in frames; UserError if it is not a positive whole number."""
    frames, left = divmod(len(sound), SAMPLES_PER_FRAME)
    if left or not frames:
        raise UserError(
            f"{path} has {len(sound)} samples, which is not a positive multiple of the "
            f"{SAMPLES_PER_FRAME} samples of a frame. Convert it with `talker audio`."
        )
    return frames


def _cut(slots: np.ndarray, count: int) -> np.ndarray:
    view = sliding_window_view(slots, WINDOW, axis=0)[::SLOTS_PER_FRAME][:count]
    return view.swapaxes(1, 2)


def mirrored(sound: Waveform, start: int, stop: int) -> Float[np.ndarray, "{stop-start}"]:
    """Return samples start..stop as float32 in -1..1; the audio is mirrored at both of its ends."""
    last = len(sound) - 1
    places = np.abs((np.arange(start, stop) + last) % max(2 * last, 1) - last)
    low = int(places.min())
    return sound[low : int(places.max()) + 1][places - low].astype(np.float32) / 32768
