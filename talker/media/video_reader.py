"""Read video files through PyAV, under one contract for every frame that is decoded.

For every file, `read_frames` yields frames with these properties:

- upright: the whole display matrix is applied, rotation as well as mirroring and flipping;
- of one size, that of the first frame with square pixels. Frames of another size but the same
  aspect, as in recordings of video calls, are scaled to it; another aspect is refused;
- progressive: interlaced frames are deinterlaced by FFmpeg's filter bwdif;
- 8-bit RGB with BT.709 primaries and SDR range (see `talker.media.color`);
- at 25 fps according to their timestamps, which increase: where presentation times go backwards
  (B-frames in AVI), decoding times are used.

Work is bounded for any declared duration: gaps of more than a minute, more than 12 hours and
frames of more than 8K are refused. Anything that cannot be read under this contract is refused
with an error that names the reason.
"""

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

import av
import av.container
import av.filter
import av.stream
import numpy as np
from av.error import BlockingIOError as NotYetError
from av.error import EOFError as DrainedError
from av.error import InvalidDataError
from av.sidedata.sidedata import Type as SideDataType

from talker.clip import FPS, Source
from talker.errors import UserError
from talker.media.color import RgbConverter, check_color, describe_color
from talker.media.container import (
    MAX_IDLE_SECONDS,
    MAX_PIXELS,
    MAX_SECONDS,
    default_audio,
    open_media,
    read_packets,
    seconds,
)

MAX_MISSING_SECONDS = 0.5
"""A file whose content ends this many seconds before its declared duration counts as damaged."""
PROBED_FRAMES = 16
"""Frames that `probe` decodes to find out about timestamps and interlacing."""
MAX_JUMP_SECONDS = 1
"""Largest accepted step backwards of the timestamps, in seconds; smaller ones are smoothed."""
MAX_PIXEL_ASPECT = 4
"""Largest accepted ratio between the sides of a stored pixel."""
MAX_ASPECT_CHANGE = 0.02
"""Largest relative change of the frame's aspect that is ignored."""

logger = logging.getLogger(__name__)

Timed = tuple[Fraction, av.VideoFrame]
"""A frame and its time in seconds after the first frame."""


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to turn a stored frame: transpose it, then flip its axes."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Orientation":
        """Read the display matrix of a frame; if it is missing or singular, the frame is not
        turned."""
        side_data: Any = frame.side_data  # its type stub lacks this key
        matrix = side_data.get(SideDataType.DISPLAYMATRIX)
        values = np.frombuffer(bytes(matrix or b""), np.int32)
        if len(values) != 9:
            return cls()
        a, b, c, d = (int(values[i]) for i in (0, 1, 3, 4))
        if abs(a * d) >= abs(b * c):
            return cls(False, a < 0, d < 0) if a * d else cls()
        return cls(True, c < 0, b < 0)

    @classmethod
    def of_source(cls, source: Source) -> "Orientation":
        """Return the orientation that `rotation` and `mirrored` describe."""
        quarters = source.rotation // 90 % 4
        transpose = quarters in (1, 3)
        flip_x, flip_y = quarters in (2, 3), quarters in (1, 2)
        return cls(transpose, flip_x != source.mirrored, flip_y)

    @property
    def mirrored(self) -> bool:
        return self.transpose == (self.flip_x == self.flip_y)

    @property
    def rotation(self) -> int:
        """Counterclockwise rotation in degrees, from -90 to 180, before any mirroring."""
        if self.transpose:
            return 90 if self.flip_y else -90
        return 180 if self.flip_y else 0

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return the upright frame of a stored one [H, W, 3]."""
        if self == Orientation():
            return pixels
        upright = pixels.swapaxes(0, 1) if self.transpose else pixels
        upright = upright[:, ::-1] if self.flip_x else upright
        return np.ascontiguousarray(upright[::-1] if self.flip_y else upright)


def probe(path: Path) -> Source:
    """Describe a video file by reading all of its packets and decoding its first frames.

    Raises:
        UserError: the file is missing, contains no video, ends before its declared duration, or
            cannot be read under the contract of this module.
    """
    with open_media(path, "a video") as container:
        stream = video_stream(container, path)
        index = _read_index(container, stream, path)
        if not index.frames:
            raise UserError(f"{path} contains no video frame that can be decoded.")
        declared = Fraction((container.start_time or 0) + (container.duration or 0), av.time_base)
        if declared - index.end > MAX_MISSING_SECONDS:
            raise UserError(
                f"{path} is damaged. It declares a duration of {float(declared):.1f} s, but "
                f"its content ends at {float(index.end):.1f} s. Copy the file again from "
                "its source."
            )
        first = index.frames[0]
        orientation = Orientation.of(first)
        height, width = _square_size(first, stream, path)
        if orientation.transpose:
            height, width = width, height
        color = describe_color(first)
        check_color(color, path)
        kind, times, start = _choose_times(index, stream)
        period, uneven = _frame_period(times, stream, path)
        sound = default_audio(container)
        sound_start = seconds(sound.start_time, sound.time_base) or 0 if sound else None
        return Source(
            name=path.name,
            width=width,
            height=height,
            fps=round(float(1 / period), 3),
            variable_rate=uneven,
            rotation=orientation.rotation,
            duration=float(times[-1] + period - times[0]),
            video_start=float(start),
            audio_start=None if sound_start is None else float(sound_start),
            codec=stream.codec_context.name,
            mirrored=orientation.mirrored,
            pixel_aspect=float(stream.sample_aspect_ratio or 1),
            interlaced=any(frame.interlaced_frame for frame in index.frames),
            timestamps=kind,
            color=color,
            audio_tracks=len(container.streams.audio),
        )


def frame_count(source: Source) -> int:
    """Return the number of 25 fps frames that `read_frames` yields."""
    return round(source.duration * FPS)


def read_frames(path: Path, source: Source, every: int = 1) -> Iterator[np.ndarray]:
    """Yield the frame shown i/25 s after the first one, for i = 0, every, 2 every, ...

    A frame counts as shown from half a frame period before its timestamp, until the next frame
    counts as shown. A frame is therefore never more than half a period (20 ms) early, and a gap in
    a video of variable rate repeats the frame before the gap.

    Yields:
        RGB uint8 [H, W, 3] under the contract of this module, `source.height` x `source.width`;
        the same array object again where the video repeats a frame.

    Raises:
        UserError: a frame cannot be decoded, or the video ends too early.
    """
    to_rgb = UprightConverter(path, source)
    converted, pixels = None, np.empty(0)
    for frame in decode_frames(path, source, every):
        if frame is not converted:
            converted, pixels = frame, to_rgb(frame)
        yield pixels


def decode_frames(path: Path, source: Source, every: int = 1) -> Iterator[av.VideoFrame]:
    """Yield the frames of `read_frames` before their conversion by `UprightConverter`.

    Raises:
        UserError: a frame cannot be decoded, or the video ends too early.
    """
    early = min(Fraction(1, FPS), 1 / Fraction(source.fps)) / 2
    with open_media(path, "a video") as container:
        stream = video_stream(container, path)
        stream.thread_type = "AUTO"
        decoded = _same_aspect(_decode(container, stream, path, source), source, path)
        shown = _at_frame_rate(_deinterlace(decoded), early, frame_count(source))
        yield from islice(shown, 0, None, every)


class UprightConverter:
    """Convert decoded frames to RGB under the contract of this module, in any number of threads."""

    def __init__(self, path: Path, source: Source) -> None:
        self._path = path
        self._orientation = Orientation.of_source(source)
        self._shape = source.height, source.width, 3
        self._threads = threading.local()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Return RGB uint8 [H, W, 3].

        Raises:
            UserError: the color description of the frame is not supported.
        """
        if not hasattr(self._threads, "converter"):  # a filter graph serves one thread
            stored = self._shape[:2]
            height, width = stored[::-1] if self._orientation.transpose else stored
            self._threads.converter = RgbConverter(height, width, self._path)
        pixels = self._orientation.apply(self._threads.converter.convert(frame))
        assert pixels.shape == self._shape
        assert pixels.dtype == np.uint8
        return pixels


def video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """Return the first video stream that is not a cover image; UserError if there is none."""
    cover = av.stream.Disposition.attached_pic
    for stream in container.streams.video:
        if not stream.disposition & cover and stream.codec_context is not None:
            return stream
    raise UserError(f"{path} contains no video stream. Use a video.")


@dataclass
class _Index:
    """Information from all packets: first frames, times in seconds, end of all streams."""

    frames: list[av.VideoFrame] = field(default_factory=list)
    presentation: list[Fraction] = field(default_factory=list)
    decoding: list[Fraction] = field(default_factory=list)
    packets: int = 0
    end: Fraction = Fraction(0)


def _read_index(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path
) -> _Index:
    index = _Index()
    for packet in read_packets(container, path):
        if packet.stream is stream and len(index.frames) < PROBED_FRAMES:
            try:
                index.frames += stream.decode(packet)
            except InvalidDataError:
                if not index.frames:
                    raise
        presented = seconds(packet.pts, packet.time_base)
        decoded = seconds(packet.dts, packet.time_base)
        if packet.is_discard or (presented is None and decoded is None and not packet.size):
            continue
        time = presented if presented is not None else decoded
        if time is not None:
            index.end = max(index.end, time + (packet.duration or 0) * packet.time_base)
        if packet.stream is stream:
            index.packets += 1
            index.presentation += [] if presented is None else [presented]
            index.decoding += [] if decoded is None else [decoded]
    return index


def _choose_times(
    index: _Index, stream: av.VideoStream
) -> tuple[Literal["pts", "dts", "none"], list[Fraction], Fraction]:
    """Choose the timestamps to use.

    Returns:
        The kind of timestamps, those of all frames in increasing order, and the first one.
    """
    stamps = [frame.pts for frame in index.frames]
    known = [stamp for stamp in stamps if stamp is not None]
    rising = len(known) == len(stamps) and all(a < b for a, b in pairwise(known))
    first = seconds(index.frames[0].pts, index.frames[0].time_base)
    if rising and first is not None and index.presentation:
        times = {first, *(time for time in index.presentation if time >= first)}
        return "pts", sorted(times), first
    if index.decoding:
        times = sorted(set(index.decoding))
        return "dts", times, times[0]
    period = 1 / (stream.guessed_rate or stream.average_rate or Fraction(FPS))
    return "none", [i * period for i in range(max(1, index.packets))], Fraction(0)


def _frame_period(
    times: list[Fraction], stream: av.VideoStream, path: Path
) -> tuple[Fraction, bool]:
    """Return the time between frames in seconds, and whether it varies by over a quarter.

    Raises:
        UserError: the times leave gaps that are too long, or last too long.
    """
    steps = [b - a for a, b in pairwise(times)]
    longest = max(steps, default=Fraction(0))
    if sum(max(step - 1, Fraction(0)) for step in steps) > MAX_IDLE_SECONDS:
        raise UserError(
            f"{path} has no frame for {float(longest):.0f} s, according to its timestamps. "
            f"At most {MAX_IDLE_SECONDS} s are allowed. Cut the video, or re-encode it as "
            "mp4."
        )
    if times[-1] - times[0] > MAX_SECONDS:
        raise UserError(
            f"{path} contains {float(times[-1] - times[0]) / 3600:.1f} hours of video. At "
            f"most {MAX_SECONDS // 3600} hours are allowed. Cut it to the part that you "
            "need."
        )
    period = median(steps) if steps else 1 / (stream.average_rate or Fraction(FPS))
    uneven = any(abs(step - period) > period / 4 for step in steps)
    if steps and not uneven:
        period = sum(steps, Fraction(0)) / len(steps)  # many containers round times to milliseconds
    shortest, longest = Fraction(1, 1000), Fraction(MAX_IDLE_SECONDS)
    return min(max(period, shortest), longest), uneven


def _square_size(frame: av.VideoFrame, stream: av.VideoStream, path: Path) -> tuple[int, int]:
    """Return height and width of the stored frame, scaled horizontally to square pixels."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, MAX_PIXEL_ASPECT) <= aspect <= MAX_PIXEL_ASPECT:
        raise UserError(
            f"{path} has pixels with the aspect ratio {aspect}. It must be from "
            f"1:{MAX_PIXEL_ASPECT} to {MAX_PIXEL_ASPECT}:1. Re-encode the video with square "
            "pixels."
        )
    height, width = frame.height, max(1, round(frame.width * aspect))
    if height * width > MAX_PIXELS:
        raise UserError(
            f"{path} has frames of {width} x {height} pixels. At most 8192 x 4320 are allowed."
        )
    return height, width


def _decode(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path, source: Source
) -> Iterator[Timed]:
    """Yield each frame with its time, in increasing order; raise at the first damaged frame."""
    origin, time, period = None, None, 1 / Fraction(source.fps)
    try:
        packets = read_packets(container, path, stream)
        for frame in chain.from_iterable(map(stream.decode, packets)):
            if frame.is_corrupt:
                raise InvalidDataError(0, "a frame is incomplete")
            stamp = {"pts": frame.pts, "dts": frame.dts, "none": None}[source.timestamps]
            clock = seconds(stamp, frame.time_base)
            if time is None:
                origin, time = clock, Fraction(0)
            elif clock is None or origin is None:
                time += period
            elif clock - origin < time - MAX_JUMP_SECONDS:
                raise UserError(
                    f"{path} has timestamps that jump back by "
                    f"{float(time + origin - clock):.1f} s after {float(time):.2f} s. "
                    "Re-encode the video as mp4, or cut it there."
                )
            else:
                time = clock - origin if clock - origin > time else time + period
            yield time, frame
    except InvalidDataError as error:
        raise UserError(
            f"{path} is damaged after {float(time or 0):.2f} s ({error.strerror}). Cut that "
            "part out, or copy the file again from its source."
        ) from error
    end = float(time or 0) + 1 / source.fps
    if source.duration - end > MAX_MISSING_SECONDS:
        raise UserError(
            f"{path} is damaged. Its duration is {source.duration:.1f} s, but it can be "
            f"decoded only up to {end:.1f} s. Copy the file again from its source."
        )


def _same_aspect(timed: Iterator[Timed], source: Source, path: Path) -> Iterator[Timed]:
    """Pass on frames whose size may change; refuse a change of the aspect."""
    first, last = None, None
    for time, frame in timed:
        size = frame.width, frame.height
        first = first or size
        if last is not None and size != last:
            change = size[0] * first[1] / (size[1] * first[0])
            if not 1 - MAX_ASPECT_CHANGE <= change <= 1 + MAX_ASPECT_CHANGE:
                raise UserError(
                    f"{path} has a frame size that changes from {first[0]} x {first[1]} to "
                    f"{size[0]} x {size[1]} pixels after {float(time):.2f} s. Cut the video there."
                )
            logger.warning(
                "The frame size of %s changes from %d x %d to %d x %d pixels after %.2f s. All "
                "frames are scaled to the first size.",
                *(path, *last, *size, float(time)),
            )
        last = size
        yield time, frame


def _deinterlace(timed: Iterator[Timed]) -> Iterator[Timed]:
    """Pass on progressive frames; from the first interlaced frame on, filter with bwdif."""
    graph, key = None, None
    waiting: list[Fraction] = []
    for time, frame in timed:
        if graph is None and not frame.interlaced_frame:
            yield time, frame
            continue
        shape = frame.width, frame.height, frame.format.name
        if graph is None or shape != key:
            if graph is not None:
                yield from _pull_timed(graph, waiting, None)
            graph, key = _bwdif(frame), shape
        yield from _pull_timed(graph, waiting, (time, frame))
    if graph is not None:
        yield from _pull_timed(graph, waiting, None)


def _pull_timed(
    graph: av.filter.Graph, waiting: list[Fraction], pushed: Timed | None
) -> Iterator[Timed]:
    if pushed is not None:
        waiting.append(pushed[0])
    graph.vpush(None if pushed is None else pushed[1])
    while waiting:
        try:
            yield waiting[0], graph.vpull()
        except (NotYetError, DrainedError):
            return
        waiting.pop(0)


def _bwdif(frame: av.VideoFrame) -> av.filter.Graph:
    """Return a filter graph that deinterlaces the frames that are marked as interlaced."""
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=frame.time_base,
        ),
        graph.add("bwdif", mode="send_frame", deint="interlaced"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _at_frame_rate(timed: Iterator[Timed], early: Fraction, count: int) -> Iterator[av.VideoFrame]:
    """Yield, for i = 0 .. count-1, the last frame whose time is at most i/25 s + `early`."""
    shown = None
    i = 0
    for time, frame in timed:
        while shown is not None and i < count and Fraction(i, FPS) + early < time:
            yield shown
            i += 1
        shown = frame
    while shown is not None and i < count:
        yield shown
        i += 1
