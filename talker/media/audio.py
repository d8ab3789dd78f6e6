"""Decode audio of any format through PyAV, and read and write 16 kHz mono 16-bit wav files.

Audio is taken from the track that players choose by default, or from the specified track. Its
channels are averaged, unless they cancel each other; in that case only the loudest channel is used.
The declared duration cannot cause unlimited work (`talker.media.container`).
"""

import logging
import wave
import zipfile
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol, runtime_checkable

import av
import av.container
import av.filter
import numpy as np
from av.error import BlockingIOError as NotYetError
from av.error import EOFError as DrainedError
from av.error import InvalidDataError

from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, SOUND_TOLERANCE
from talker.errors import UserError, counted
from talker.media.container import (
    MAX_IDLE_SECONDS,
    MAX_SECONDS,
    default_audio,
    open_media,
    read_packets,
    seconds,
)

SYNC = {
    "first_pts": "0",  # cut samples before time zero, pad a late start with silence
    "async": "1",  # follow the timestamps: fill gaps and cut overlaps ...
    "min_hard_comp": "0.02",  # ... of more than 20 ms
}
"""Options of FFmpeg's filter `aresample`."""
SAMPLE_RATES = 4_000, 1_000_000
"""Lowest and highest accepted sample rate in Hz."""
MAX_JUMP_SECONDS = 1
"""Largest accepted step backwards of the timestamps, in seconds."""
CANCELLED = 0.05
"""Channels cancel each other where their mean has less than this fraction of the energy of the
loudest channel (for two channels: a correlation below -0.9)."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioFormat:
    """Sample rate in Hz, channel layout and sample format, in the words of FFmpeg."""

    rate: int
    layout: str
    samples: str


SPEECH = AudioFormat(SAMPLE_RATE, "mono", "s16")
"""16 kHz mono 16 bit, the format of all audio inside the project."""


@runtime_checkable
class Waveform(Protocol):
    """Samples int16 [S] at 16 kHz, in an array or a file, that support len() and slices."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def clip_sound(path: Path | zipfile.Path, frames: int) -> np.ndarray:
    """Read the audio of a clip of T frames, in any format, as int16 [640 T] at 16 kHz.

    Audio that is slightly too long is cut, audio that is slightly too short is padded with silence.

    Raises:
        UserError: the audio is missing, or its duration differs by more than `SOUND_TOLERANCE`.
    """
    samples = frames * SAMPLES_PER_FRAME
    sound = decode_audio(path)
    if abs(len(sound) - samples) > SOUND_TOLERANCE * SAMPLE_RATE:
        raise UserError(
            f"{path} lasts {len(sound) / SAMPLE_RATE:.2f} s, but the frames of the dataset last "
            f"{frames / FPS:.2f} s. Replace it with audio of the same length as the frames."
        )
    return np.pad(sound[:samples], (0, max(0, samples - len(sound))))


def decode_audio(
    path: Path | zipfile.Path,
    start: float | None = None,
    track: int | None = None,
    limit: int | None = None,
) -> np.ndarray:
    """Return all blocks of `decode_audio_blocks` as int16 [S]."""
    return np.concatenate(list(decode_audio_blocks(path, start, track, limit)))


def decode_audio_blocks(
    path: Path | zipfile.Path,
    start: float | None = None,
    track: int | None = None,
    limit: int | None = None,
) -> Iterator[np.ndarray]:
    """Decode one audio track of a file of any format, block by block.

    Sample n belongs to the time `start` + n / 16000 on the clock of the file: earlier samples are
    cut, a late start and gaps are filled with silence. Without `start`, sample 0 is the first one
    of the track that is not before time zero. Peaks above full scale are clipped.

    Args:
        path: file on disk or in a zip archive.
        start: time of sample 0 in seconds.
        track: number of the audio track, counted from 1; by default the one that players choose.
        limit: stop after about this many samples.

    Yields:
        int16 [n] at 16 kHz, mono.

    Raises:
        UserError: the file is missing, cannot be read, contains no audio or not that track, or
            its timestamps have gaps of more than a minute.
    """
    channels = cancelling_channels(path, track)
    with open_media(path, "audio") as container:
        stream = audio_stream(container, path, track)
        frames = _decode_frames(container, stream, path)
        for block in _resample(frames, SPEECH, path, start, limit, channels):
            yield block[0]


def audio_stream(
    container: av.container.InputContainer, path: Path | zipfile.Path, track: int | None = None
) -> av.AudioStream:
    """Return the audio track with this number, counted from 1, or the default one.

    Raises:
        UserError: there is no audio track, or none with this number.
    """
    streams = container.streams.audio
    stream = default_audio(container)
    if stream is None:
        raise UserError(f"{path} has no audio track, but audio is needed. Use a file with audio.")
    if track is not None:
        if not 1 <= track <= len(streams):
            raise UserError(
                f"{path} has no audio track {track}. Its tracks are 1 to {len(streams)}."
            )
        stream = streams[track - 1]
    if stream.codec_context is None:
        raise UserError(
            f"{path} has audio that cannot be decoded, because its codec is unknown. Convert it "
            "to wav."
        )
    return stream


def audio_tracks(path: Path | zipfile.Path, track: int | None = None) -> tuple[int, int]:
    """Return the number, counted from 1, of the track that would be decoded, and of all tracks."""
    with open_media(path, "audio") as container:
        stream = audio_stream(container, path, track)
        return container.streams.audio.index(stream) + 1, len(container.streams.audio)


def cancelling_channels(path: Path | zipfile.Path, track: int | None = None) -> dict[int, int]:
    """Find out whether the channels of a track cancel each other, as those of opposite phase do.

    Returns:
        For each number of channels that cancel each other, the index of the loudest channel.
    """
    energies: dict[int, np.ndarray] = {}
    means: dict[int, float] = {}
    with open_media(path, "audio") as container:
        stream = audio_stream(container, path, track)
        if stream.channels == 1:
            return {}
        for frame in _decode_frames(container, stream, path, log=False):
            samples = _channels(frame)
            count = len(samples)
            if count > 1:
                energy = np.square(samples).sum(axis=1)
                energies[count] = energies.get(count, np.zeros(count)) + energy
                mean = float(np.square(samples.mean(axis=0)).sum())
                means[count] = means.get(count, 0.0) + mean
    cancelled = {
        count: int(energy.argmax())
        for count, energy in energies.items()
        if means[count] < CANCELLED * energy.max()
    }
    for count, channel in cancelled.items():
        logger.warning(
            "%s has %d channels that cancel each other out, because their phases are opposite. "
            "Only channel %d is used.",
            *(path, count, channel + 1),
        )
    return cancelled


def native_format(path: Path, track: int | None = None) -> AudioFormat:
    """Return the rate and layout (mono or stereo) of an audio track, with float samples.

    Raises:
        UserError: the file cannot be read or contains no audio.
    """
    with open_media(path, "audio") as container:
        stream = audio_stream(container, path, track)
        _check_rate(stream.sample_rate, path)
        layout = "mono" if stream.channels == 1 else "stereo"
        return AudioFormat(stream.sample_rate, layout, "fltp")


def decode_native(
    path: Path, target: AudioFormat, start: float | None = None, track: int | None = None
) -> Generator[np.ndarray]:
    """Decode an audio track as blocks of the target format, timed as by `decode_audio_blocks`.

    Yields:
        [C, n] in a planar sample format, [1, C n] in a packed one.

    Raises:
        UserError: as `decode_audio_blocks`.
    """
    with open_media(path, "audio") as container:
        stream = audio_stream(container, path, track)
        yield from _resample(_decode_frames(container, stream, path), target, path, start)


class WavFile:
    """A wav file as written by `write_wav`, whose slices file[i:j] are read from disk as int16.

    Raises:
        UserError: the file is missing, is not a wav file, or is not 16 kHz mono 16 bit.
    """

    def __init__(self, path: Path | zipfile.Path) -> None:
        self.path = path
        try:
            with path.open("rb") as handle, wave.open(handle) as file:
                kind = file.getframerate(), file.getnchannels(), 8 * file.getsampwidth()
                self.samples = file.getnframes()
                width = file.getnchannels() * file.getsampwidth()
                file.setpos(max(0, self.samples - 1))
                if self.samples and len(file.readframes(1)) < width:
                    raise EOFError(f"it is truncated: its header declares {self.samples} samples")
        except (OSError, EOFError, RuntimeError, wave.Error) as error:
            raise UserError(
                f"{path} cannot be read as wav ({error or 'it is truncated'})."
            ) from error
        if kind != (SAMPLE_RATE, 1, 16):
            rate, channels, bits = kind
            raise UserError(
                f"{path} has a sample rate of {rate} Hz, {counted(channels, 'channel')} and "
                f"{bits} bits. It must have {SAMPLE_RATE} Hz, 1 channel and 16 bits. Convert it "
                f"with `talker audio --source {path} --wav OUT.wav`."
            )

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(self.samples)
        with self.path.open("rb") as handle, wave.open(handle) as file:
            file.setpos(start)
            content = file.readframes(max(0, stop - start))
        return np.frombuffer(content, np.dtype("<i2")).astype(np.int16)


def read_wav(path: Path) -> np.ndarray:
    """Read a whole wav as int16 [S] at 16 kHz; UserError as from `WavFile`."""
    return WavFile(path)[:]


def write_wav(path: Path, samples: np.ndarray | Iterable[np.ndarray]) -> None:
    """Write int16 [S] at 16 kHz, or an iterable of such blocks, as a mono wav file."""
    blocks = [samples] if isinstance(samples, np.ndarray) else samples
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        for block in blocks:
            file.writeframes(block.astype("<i2", casting="equiv").tobytes())


def _decode_frames(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    path: Path | zipfile.Path,
    log: bool = True,
) -> Iterator[av.AudioFrame]:
    """Yield the frames that can be decoded; damaged packets become gaps.

    Many audio files end in tags that do not decode, so damage is only logged.
    """
    damaged = 0
    for packet in read_packets(container, path, stream):
        try:
            yield from stream.decode(packet)
        except InvalidDataError:
            damaged += 1
    if damaged and log:
        logger.warning("Skipped %s of %s.", counted(damaged, "damaged audio packet"), path)


def _channels(frame: av.AudioFrame) -> np.ndarray:
    """Return the samples of a frame as float64 [C, n], of any scale."""
    values = frame.to_ndarray()
    samples = values.astype(np.float64) - (128.0 if values.dtype == np.uint8 else 0.0)
    if frame.format.is_planar:
        return samples
    return samples.reshape(-1, frame.layout.nb_channels).T


def _resample(
    frames: Iterator[av.AudioFrame],
    target: AudioFormat,
    path: Path | zipfile.Path,
    start: float | None,
    limit: int | None = None,
    channels: dict[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """Yield blocks [C, n] of the target format; the format of the frames may change.

    Raises:
        UserError: the audio has no samples, or its timestamps or its sample rate cannot be used.
    """
    graph, current = None, None
    zero, samples, clock, decoded = Fraction(start or 0), 0, _Clock(path), Fraction(0)
    for frame in frames:
        _check_rate(frame.sample_rate, path)
        tick = frame.time_base or Fraction(1, frame.sample_rate)
        if graph is None and start is None:
            # samples before time zero are the delay of an encoder, not audio
            zero = max(frame.pts or 0, 0) * tick
        time = clock.advance(seconds(frame.pts, tick), zero, frame)
        decoded += Fraction(frame.samples, frame.sample_rate)
        if limit is not None and (samples >= limit or time * target.rate >= limit):
            break
        kind = frame.sample_rate, frame.format.name, frame.layout.name
        if graph is not None and kind != current:
            for block in _flush(graph):
                samples += block.shape[1]
                yield block
            graph = None
        if graph is None:
            channel = (channels or {}).get(frame.layout.nb_channels)
            graph, current = _resampler(frame, target, channel), kind
            origin = round((zero + Fraction(samples, target.rate)) / tick)
        if frame.pts is not None:
            frame.pts -= origin
        graph.push(frame)
        for block in _pull(graph):
            samples += block.shape[1]
            yield block
    for block in [] if graph is None else _flush(graph):
        samples += block.shape[1]
        yield block
    if decoded and not samples and start is None:  # too few samples for the resampler
        rows = 1 if target.layout == "mono" else 2
        dtype = np.int16 if target.samples.startswith("s16") else np.float32
        yield np.zeros((rows, -int(-decoded * target.rate // 1)), dtype)
    elif not samples:
        raise UserError(f"{path} contains no audio samples that can be decoded.")


class _Clock:
    """Check that the timestamps of a track neither jump back nor leave long gaps."""

    def __init__(self, path: Path | zipfile.Path) -> None:
        self.path, self.end, self.idle = path, Fraction(0), Fraction(0)

    def advance(self, stamp: Fraction | None, zero: Fraction, frame: av.AudioFrame) -> Fraction:
        """Return the start of a frame in seconds after `zero`.

        Raises:
            UserError: the track jumps back, pauses too long or lasts too long.
        """
        time = self.end if stamp is None else stamp - zero
        self.idle += max(time - self.end - 1, Fraction(0))
        if self.idle > MAX_IDLE_SECONDS:
            raise UserError(
                f"{self.path} has a gap of {float(time - self.end):.0f} s in its audio, after "
                f"{float(self.end):.2f} s. Cut the file there, or convert it to wav."
            )
        if self.end > 0 and time < self.end - MAX_JUMP_SECONDS:
            raise UserError(
                f"{self.path} has audio whose timestamps jump back by "
                f"{float(self.end - time):.1f} s after {float(self.end):.2f} s. Cut the file "
                "there, or convert it to wav."
            )
        if time > MAX_SECONDS:
            raise UserError(
                f"{self.path} has more than {MAX_SECONDS // 3600} hours of audio, which is the "
                "limit. Cut the file."
            )
        self.end = max(self.end, time + Fraction(frame.samples, frame.sample_rate))
        return time


def _check_rate(rate: int, path: Path | zipfile.Path) -> None:
    lowest, highest = SAMPLE_RATES
    if not lowest <= rate <= highest:
        raise UserError(
            f"{path} has a sample rate of {rate} Hz. It must be from {lowest} to {highest} Hz."
        )


def _resampler(frame: av.AudioFrame, target: AudioFormat, channel: int | None) -> av.filter.Graph:
    """Return a filter graph that converts frames of this format to the target format.

    Args:
        channel: index of the only channel to use; None mixes all of them.
    """
    graph = av.filter.Graph()
    buffer = graph.add_abuffer(
        sample_rate=frame.sample_rate,
        format=frame.format.name,
        layout=frame.layout.name,
        time_base=frame.time_base,
    )
    pan = [] if channel is None else [graph.add("pan", f"mono|c0=c{channel}")]
    resample = graph.add(
        "aresample",
        sample_rate=str(target.rate),
        out_chlayout=target.layout,
        out_sample_fmt=target.samples,
        **SYNC,
    )
    graph.link_nodes(buffer, *pan, resample, graph.add("abuffersink")).configure()
    return graph


def _flush(graph: av.filter.Graph) -> Iterator[np.ndarray]:
    graph.push(None)
    yield from _pull(graph)


def _pull(graph: av.filter.Graph) -> Iterator[np.ndarray]:
    while True:
        try:
            yield graph.pull().to_ndarray()
        except (NotYetError, DrainedError):
            return
