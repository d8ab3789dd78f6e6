"""Decode sound of any format through PyAV, and read and write 16 kHz mono 16-bit wav files."""

import io
import logging
import wave
import zipfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import av.container
import av.filter
import numpy as np
from av.error import BlockingIOError as NotYetError
from av.error import EOFError as DrainedError
from av.error import FFmpegError, InvalidDataError

from talker.clip import SAMPLE_RATE
from talker.errors import UserError

RESAMPLE = {
    "sample_rate": str(SAMPLE_RATE),
    "out_chlayout": "mono",
    "out_sample_fmt": "s16",
    "first_pts": "0",  # cut samples before time zero, pad a late start with silence
    "async": "1",  # follow the timestamps: fill gaps and cut overlaps ...
    "min_hard_comp": "0.02",  # ... of more than 20 ms
}
"""Options of FFmpeg's filter `aresample`."""

logger = logging.getLogger(__name__)


class Waveform(Protocol):
    """Samples int16 [S] at 16 kHz, in an array or a file, that support len() and slices."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def decode_audio(path: Path | zipfile.Path, start: float | None = None) -> np.ndarray:
    """Return all blocks of `decode_audio_blocks` as int16 [S]."""
    return np.concatenate(list(decode_audio_blocks(path, start)))


def decode_audio_blocks(
    path: Path | zipfile.Path, start: float | None = None
) -> Iterator[np.ndarray]:
    """Decode the first audio track of a file of any format, block by block.

    Sample n belongs to the time `start` + n / 16000 on the clock of the file: earlier samples are
    cut, a late start and gaps are filled with silence. Without `start`, sample 0 is the first one
    of the track that is not before time zero. Channels are averaged, peaks above full scale are
    clipped.

    Yields:
        int16 [n] at 16 kHz, mono.

    Raises:
        UserError: the file is missing, cannot be read or contains no sound.
    """
    try:
        file = str(path) if isinstance(path, Path) else io.BytesIO(path.read_bytes())
        with av.open(file, "r") as container:
            if not container.streams.audio:
                raise UserError(f"{path}: expected sound, but the file has no audio track")
            samples = 0
            for block in _resample(_decode_frames(container, path), start):
                samples += len(block)
                yield block
    except (FFmpegError, OSError) as error:
        raise UserError(f"{path}: cannot be read as sound: {error.strerror or error}") from error
    if not samples:
        raise UserError(f"{path}: contains no sound that can be decoded")


class WavFile:
    """A wav file as written by `write_wav`, whose slices file[i:j] are read from disk as int16.

    Raises:
        UserError: the file is missing, is not a wav file, or is not 16 kHz mono 16 bit.
    """

    def __init__(self, path: Path | zipfile.Path) -> None:
        self.path = path
        try:
            with path.open("rb") as handle, wave.open(handle) as file:
                found = file.getframerate(), file.getnchannels(), 8 * file.getsampwidth()
                self.samples = file.getnframes()
                width = file.getnchannels() * file.getsampwidth()
                file.setpos(max(0, self.samples - 1))
                if self.samples and len(file.readframes(1)) < width:
                    raise EOFError(f"truncated: its header declares {self.samples} samples")
        except (OSError, EOFError, wave.Error) as error:
            raise UserError(f"{path}: cannot be read as wav ({error or 'truncated'})") from error
        if found != (SAMPLE_RATE, 1, 16):
            rate, channels, bits = found
            raise UserError(
                f"{path}: expected {SAMPLE_RATE} Hz, 1 channel, 16 bit; found {rate} Hz, "
                f"{channels} channel(s), {bits} bit. Convert it with `talker audio --source {path} "
                "--wav OUT.wav`."
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
    container: av.container.InputContainer, path: Path | zipfile.Path
) -> Iterator[av.AudioFrame]:
    """Yield the frames that can be decoded; damaged packets become gaps.

    Many sound files end in tags that do not decode, so damage is only logged.
    """
    stream = container.streams.audio[0]
    damaged = 0
    for packet in container.demux(stream):
        try:
            yield from stream.decode(packet)
        except InvalidDataError:
            damaged += 1
    if damaged:
        logger.warning("%s: skipped %d damaged audio packet(s)", path, damaged)


def _resample(frames: Iterator[av.AudioFrame], start: float | None) -> Iterator[np.ndarray]:
    graph, current = None, None
    zero, samples = Fraction(start or 0), 0
    for frame in frames:
        tick = frame.time_base or Fraction(1, frame.sample_rate)
        if graph is None and start is None:
            # samples before time zero are the delay of an encoder, not sound
            zero = max(frame.pts or 0, 0) * tick
        audio_format = frame.sample_rate, frame.format.name, frame.layout.name
        if graph is not None and audio_format != current:  # joined files
            for block in _flush(graph):
                samples += len(block)
                yield block
            graph = None
        if graph is None:
            graph, current = _resampler(frame), audio_format
            origin = round((zero + Fraction(samples, SAMPLE_RATE)) / tick)
        if frame.pts is not None:
            frame.pts -= origin
        graph.push(frame)
        for block in _pull(graph):
            samples += len(block)
            yield block
    if graph is not None:
        yield from _flush(graph)


def _resampler(frame: av.AudioFrame) -> av.filter.Graph:
    """Return a filter graph that converts frames of this format as defined by `RESAMPLE`."""
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_abuffer(
            sample_rate=frame.sample_rate,
            format=frame.format.name,
            layout=frame.layout.name,
            time_base=frame.time_base,
        ),
        graph.add("aresample", **RESAMPLE),
        graph.add("abuffersink"),
    ).configure()
    return graph


def _flush(graph: av.filter.Graph) -> Iterator[np.ndarray]:
    graph.push(None)
    yield from _pull(graph)


def _pull(graph: av.filter.Graph) -> Iterator[np.ndarray]:
    while True:
        try:
            yield graph.pull().to_ndarray()[0]
        except (NotYetError, DrainedError):
            return
