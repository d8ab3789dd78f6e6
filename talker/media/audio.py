"""Sound: decoding whatever FFmpeg reads (through PyAV), and 16 kHz mono 16-bit wav in and out."""

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
    "first_pts": "0",  # cut what lies before time zero, fill what is missing after it
    "async": "1",  # keep to the timestamps: fill gaps, cut overlaps ...
    "min_hard_comp": "0.02",  # ... of more than 20 ms
}

logger = logging.getLogger(__name__)


class Sound(Protocol):
    """int16 [S] at 16 kHz, an array or a file: len(sound), sound[i:j]."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def decode_audio(path: Path | zipfile.Path, start: float | None = None) -> np.ndarray:
    """All of `decoded_blocks` as int16 [S]."""
    return np.concatenate(list(decoded_blocks(path, start)))


def decoded_blocks(path: Path | zipfile.Path, start: float | None = None) -> Iterator[np.ndarray]:
    """Decode the first sound track of any file, block by block: int16 [n], 16 kHz mono.

    Sample n sounds at `start` + n / 16000 on the file's own clock: what lies before is cut, a late
    track and gaps are filled with silence. Without `start`, sample 0 is the track's first one
    that is not before time zero.
    Channels are averaged; peaks above full scale are clipped.

    Raises:
        UserError: the file is missing, cannot be read or holds no sound.
    """
    try:
        file = str(path) if isinstance(path, Path) else io.BytesIO(path.read_bytes())
        with av.open(file, "r") as container:
            if not container.streams.audio:
                raise UserError(f"{path}: expected sound, but it holds no sound track")
            samples = 0
            for block in _resampled(_decoded(container, path), start):
                samples += len(block)
                yield block
    except (FFmpegError, OSError) as error:
        raise UserError(f"{path}: cannot be read as sound: {error.strerror or error}") from error
    if not samples:
        raise UserError(f"{path}: holds no sound that can be decoded")


class WavFile:
    """The samples of a wav written by `write_wav`, read as they are asked for: file[i:j] is int16.

    Raises:
        UserError: the file is missing, is no wav, or is not 16 kHz mono 16 bit.
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
                    raise EOFError(f"cut off: its header speaks of {self.samples} samples")
        except (OSError, EOFError, wave.Error) as error:
            raise UserError(f"{path}: cannot be read as wav ({error})") from error
        if found != (SAMPLE_RATE, 1, 16):
            rate, channels, bits = found
            raise UserError(
                f"{path}: expected {SAMPLE_RATE} Hz, 1 channel, 16 bit; found {rate} Hz, "
                f"{channels} channel(s), {bits} bit; convert it with `talker audio --source {path} "
                "--wav OUT.wav`"
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
    """Write int16 [S] at 16 kHz, or blocks of it, as a mono wav."""
    blocks = [samples] if isinstance(samples, np.ndarray) else samples
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        for block in blocks:
            file.writeframes(block.astype("<i2", casting="equiv").tobytes())


def _decoded(
    container: av.container.InputContainer, path: Path | zipfile.Path
) -> Iterator[av.AudioFrame]:
    """Yield what can be decoded: sound files often end in tags, and a gap becomes silence."""
    stream = container.streams.audio[0]
    damaged = 0
    for packet in container.demux(stream):
        try:
            yield from stream.decode(packet)
        except InvalidDataError:
            damaged += 1
    if damaged:
        logger.warning("%s: %d damaged packet(s) of sound were skipped", path, damaged)


def _resampled(frames: Iterator[av.AudioFrame], start: float | None) -> Iterator[np.ndarray]:
    graph, kind = None, None
    zero, samples = Fraction(start or 0), 0
    for frame in frames:
        tick = frame.time_base or Fraction(1, frame.sample_rate)
        if graph is None and start is None:
            # what lies before time zero is an encoder's run-up, and no sound
            zero = max(frame.pts or 0, 0) * tick
        found = frame.sample_rate, frame.format.name, frame.layout.name
        if graph is not None and found != kind:  # files that were joined: a new graph goes on
            for block in _rest(graph):
                samples += len(block)
                yield block
            graph = None
        if graph is None:
            graph, kind = _resampler(frame), found
            origin = round((zero + Fraction(samples, SAMPLE_RATE)) / tick)
        if frame.pts is not None:
            frame.pts -= origin
        graph.push(frame)
        for block in _pulled(graph):
            samples += len(block)
            yield block
    if graph is not None:
        yield from _rest(graph)


def _resampler(frame: av.AudioFrame) -> av.filter.Graph:
    """A filter graph that takes frames like this one and returns them as `RESAMPLE` says."""
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


def _rest(graph: av.filter.Graph) -> Iterator[np.ndarray]:
    graph.push(None)
    yield from _pulled(graph)


def _pulled(graph: av.filter.Graph) -> Iterator[np.ndarray]:
    while True:
        try:
            yield graph.pull().to_ndarray()[0]
        except (NotYetError, DrainedError):
            return
