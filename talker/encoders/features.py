"""Speech features of any encoder: slots of 20 ms, reduced by PCA, a window of 16 for each frame.

Sound is described piece by piece, so that an hour takes no more memory than a minute. New speech
is brought to the loudness of the training speech, and long pauses become one fixed feature vector,
whatever the noise in them, so that an avatar can learn to close its mouth there.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from talker.clip import SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.encoders.base import Choice, Encoder
from talker.encoders.loudness import (
    SLOT,
    SLOT_RATE,
    gain_between,
    pauses,
    slot_levels,
    speech_level,
)
from talker.encoders.statistics import Statistics
from talker.errors import UserError
from talker.media.audio import Waveform

SLOTS_PER_FRAME = 2  # slot k is centred on 10 + 20 k ms
WINDOW = 16
CHUNK = 10 * SLOT_RATE
"""slots described at once; networks that average over a piece want pieces of one length"""
CONTEXT = 2 * SLOT_RATE
"""slots heard, but not described, on both sides of them"""
QUIETEST = 0.05
"""part of the training slots whose mean points to the feature vector of silence"""


def describe(encoder: Encoder, sound: Waveform, gain: float = 1.0) -> Iterator[np.ndarray]:
    """Describe sound at the centres of its slots, by linear interpolation of the encoder's rows.

    Before its start and after its end the sound is continued by its mirror image.

    Args:
        encoder: the network.
        sound: int16 [640 T] at 16 kHz.
        gain: factor of the samples.

    Yields:
        float32 [<= 500, D], 2 T rows in all.

    Raises:
        RuntimeError: the encoder returned far more or fewer rows than its rate says.
    """
    slots = len(sound) // SLOT
    for start in range(0, slots, CHUNK):
        first = (start - CONTEXT) * SLOT
        piece = gain * mirrored(sound, first, first + (CHUNK + 2 * CONTEXT) * SLOT)
        rows = encoder.describe(piece, first)
        expected = len(piece) / SAMPLE_RATE * encoder.rate
        if abs(len(rows) - expected) > 2 * encoder.rate / 25:
            raise RuntimeError(f"{encoder.name}: {len(rows)} rows for {expected:.0f}")
        count = min(CHUNK, slots - start)
        centres = (CONTEXT + np.arange(count) + 0.5) / SLOT_RATE
        yield rows_at(rows, encoder, centres)


def rows_at(rows: np.ndarray, encoder: Encoder, seconds: np.ndarray) -> np.ndarray:
    """Interpolate the encoder's rows [N, D] of a piece at times [K] in it: [K, D].

    Beyond the first and the last row those go on.
    """
    position = ((seconds - encoder.first_centre) * encoder.rate).clip(0, len(rows) - 1)
    before = np.floor(position + 1e-6).astype(int)
    after = np.minimum(before + 1, len(rows) - 1)
    weight = (position - before)[:, None].astype(np.float32)
    return rows[before] * (1 - weight) + rows[after] * weight


def describe_clip(
    encoder: Encoder,
    choice: Choice,
    sound: Waveform,
    train_frames: int,
    components: int = 32,
    look_ahead: int = 2,
    pause: float = 0.3,
) -> tuple[Statistics, np.ndarray]:
    """Learn the statistics of a clip from its first `train_frames` frames.

    Returns:
        The statistics, and the features of the whole clip [2 T, C].
    """
    slots = np.concatenate(list(describe(encoder, sound)))
    levels = slot_levels(sound)
    train = SLOTS_PER_FRAME * train_frames
    learned = fit_statistics(
        *(slots[:train], levels[:train], encoder, choice),
        *(min(components, encoder.dims), look_ahead, pause),
    )
    return learned, silenced(learned.reduce(slots), pauses(levels, pause), learned)


def fit_statistics(
    slots: np.ndarray,
    levels: np.ndarray,
    encoder: Encoder,
    choice: Choice,
    components: int,
    look_ahead: int,
    pause: float,
) -> Statistics:
    """Learn the principal components of training features [K, D] and what silence is among them.

    The largest entry of each component is positive, so that the same sound gives the same signs.
    The features of silence point where the quietest slots lie, twice as far out as usual ones, so
    that they are no speech sound's.

    Args:
        slots: of `describe`.
        levels: of the same slots, dBFS [K].

    Raises:
        UserError: more components are asked for than the features have.
    """
    most = min(encoder.dims, len(slots) - 1)
    if not 0 < components <= most:
        raise UserError(
            f"components: expected 1 to {most} for the encoder {encoder.name} and {len(slots)} "
            f"training slots, found {components}"
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
    return Statistics(
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
    encoder: Encoder, statistics: Statistics, sound: Waveform, match_level: bool = True
) -> Iterator[np.ndarray]:
    """The features of an avatar for new speech, pauses silenced: float32 [n, C], 2 T rows in all.

    Args:
        encoder: the one that the statistics name.
        statistics: of the avatar.
        sound: int16 [640 T] at 16 kHz.
        match_level: bring the sound to the loudness of the training speech first.
    """
    levels = slot_levels(sound)
    gain = gain_between(speech_level(levels), statistics.level) if match_level else 1.0
    silent = pauses(levels, statistics.pause)
    done = 0
    for rows in describe(encoder, sound, gain):
        yield silenced(statistics.reduce(rows), silent[done : done + len(rows)], statistics)
        done += len(rows)


def silenced(slots: np.ndarray, silent: np.ndarray, statistics: Statistics) -> np.ndarray:
    """Fade features [K, C] to those of silence where `silent` [K] goes to 1."""
    share = silent[:, None].astype(np.float32)
    return slots * (1 - share) + statistics.silence * share


def windows(slots: Iterable[np.ndarray], look_ahead: int) -> Iterator[np.ndarray]:
    """Cut a window for each frame out of consecutive slots; the first and last slot go on outside.

    Args:
        slots: blocks [n, C], 2 T rows in all.
        look_ahead: slots that a window's centre lies after its frame.

    Yields:
        [n, 16, C], T in all; window i holds slots 2 i - 7 + `look_ahead` to 2 i + 8 + `look_ahead`.
    """
    lead = WINDOW // 2 - 1 - look_ahead
    waiting, heard, made = None, 0, 0
    for block in slots:
        heard += len(block)
        if waiting is None:
            waiting = block[np.arange(-lead, len(block)).clip(0, len(block) - 1)]
        else:
            waiting = np.concatenate([waiting, block])
        ready = max(0, (len(waiting) - WINDOW) // SLOTS_PER_FRAME + 1)
        if ready:
            yield _cut(waiting, ready)
            made += ready
            waiting = waiting[ready * SLOTS_PER_FRAME :]
    rest = heard // SLOTS_PER_FRAME - made
    if waiting is not None and rest > 0:
        needed = WINDOW + (rest - 1) * SLOTS_PER_FRAME
        yield _cut(waiting[np.arange(needed).clip(0, len(waiting) - 1)], rest)


def save_windows(path: Path, blocks: Iterable[np.ndarray], frames: int) -> None:
    """Write windows [n, 16, C], `frames` in all, as an .npy file, block by block."""
    written = 0
    with open(path, "wb") as file:
        for block in blocks:
            if not written:
                about = {"descr": "<f4", "fortran_order": False}
                shape = (frames, *block.shape[1:])
                np.lib.format.write_array_header_1_0(file, {**about, "shape": shape})
            file.write(np.ascontiguousarray(block, "<f4").tobytes())
            written += len(block)
    if written != frames:
        raise RuntimeError(f"{written} windows for {frames} frames")


class WindowsFile:
    """Windows float32 [N, 16, C] of an .npy file, read as they are asked for: file[i:j].

    A memory map would do the same, but fill the memory with an hour of speech.

    Raises:
        UserError: the file is missing, or no such array.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            mapped = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: cannot be read as .npy ({error})") from error
        self.shape, self.dtype = mapped.shape, mapped.dtype
        self.start = getattr(mapped, "offset", 0)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        size = int(np.prod(self.shape[1:]))
        count = max(0, stop - start) * size
        offset = self.start + start * size * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, count, offset=offset).reshape(-1, *self.shape[1:])


def whole_frames(sound: Waveform, path: Path) -> int:
    """How many frames a sound lasts; UserError if that is no whole number, or none."""
    frames, left = divmod(len(sound), SAMPLES_PER_FRAME)
    if left or not frames:
        raise UserError(
            f"{path}: expected whole frames of {SAMPLES_PER_FRAME} samples, found {len(sound)} "
            "samples; make it with `talker audio`"
        )
    return frames


def _cut(slots: np.ndarray, count: int) -> np.ndarray:
    view = sliding_window_view(slots, WINDOW, axis=0)[::SLOTS_PER_FRAME][:count]
    return view.swapaxes(1, 2)


def mirrored(sound: Waveform, start: int, stop: int) -> np.ndarray:
    """Samples start..stop as float32 in -1..1, mirrored at both ends of the sound."""
    last = len(sound) - 1
    places = np.abs((np.arange(start, stop) + last) % max(2 * last, 1) - last)
    low = int(places.min())
    return sound[low : int(places.max()) + 1][places - low].astype(np.float32) / 32768
