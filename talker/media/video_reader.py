"""Read video files through PyAV: what a file contains, and its frames resampled to 25 fps."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from statistics import median

import av
import av.container
import av.stream
import cv2
import numpy as np
from av.error import FFmpegError, InvalidDataError

from talker.clip import FPS, Source
from talker.errors import UserError

MAX_MISSING_SECONDS = 0.5
"""A file whose content ends this many seconds before its declared duration counts as damaged."""
SCALER_THREADS = 1
"""Threads of swscale for one frame; its own default starts one per core for every frame."""
QUARTER_TURNS = {
    90: cv2.ROTATE_90_COUNTERCLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_CLOCKWISE,
}
"""OpenCV's code for each counterclockwise rotation in degrees."""


def probe(path: Path) -> Source:
    """Describe a video file by reading all of its packets and decoding one frame.

    Raises:
        UserError: the file is missing, contains no video, or ends before its declared duration.
    """
    first: av.VideoFrame | None = None
    times: list[Fraction] = []
    end = Fraction(0)
    with _opened(path) as container:
        stream = _video_stream(container, path)
        for packet in container.demux():
            if packet.stream is stream and first is None:
                first = next(iter(stream.decode(packet)), None)
            if packet.pts is None or packet.is_discard:
                continue
            time = packet.pts * packet.time_base
            end = max(end, time + (packet.duration or 0) * packet.time_base)
            if packet.stream is stream:
                times.append(time)
        if first is None:
            raise UserError(f"{path}: contains no video frame that can be decoded")
        declared = Fraction((container.start_time or 0) + (container.duration or 0), av.time_base)
        if declared - end > MAX_MISSING_SECONDS:
            raise UserError(
                f"{path}: is damaged: it declares a duration of {float(declared):.1f} s, but its "
                f"content ends at {float(end):.1f} s. Copy the file again from its origin."
            )
        start = _time(first, path)
        steps = [b - a for a, b in pairwise(sorted({time for time in times if time >= start}))]
        period = median(steps) if steps else 1 / (stream.average_rate or Fraction(FPS))
        uneven = any(abs(step - period) > period / 4 for step in steps)
        if steps and not uneven:
            period = sum(steps) / len(steps)  # many containers round times to milliseconds
        height, width = _upright(first, stream).shape[:2]
        sounds = container.streams.audio
        return Source(
            name=path.name,
            width=width,
            height=height,
            fps=round(float(1 / period), 3),
            variable_rate=uneven,
            rotation=first.rotation,
            duration=float(max(times) + period - start),
            video_start=float(start),
            audio_start=_start(sounds[0]) if sounds else None,
            codec=stream.codec_context.name,
        )


def frame_count(source: Source) -> int:
    """Return the number of 25 fps frames that `read_frames` yields."""
    return round(source.duration * FPS)


def read_frames(path: Path, source: Source, every: int = 1) -> Iterator[np.ndarray]:
    """Yield the frame shown i/25 s after the first one, for i = 0, every, 2 every, ...

    A frame is taken as shown from half a frame period before its timestamp until the next frame
    is. A frame is therefore never more than half a period (20 ms) early, and a gap in a video of
    variable rate repeats the frame before the gap.

    Yields:
        Upright RGB uint8 [H, W, 3] with square pixels, `source.height` x `source.width`; the same
        array object again where the video repeats a frame.

    Raises:
        UserError: a frame cannot be decoded, or the video ends too early.
    """
    early = min(Fraction(1, FPS), 1 / Fraction(source.fps)) / 2
    with _opened(path) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "AUTO"
        decoded = _decoded(container, stream, path, source)
        shown = _at_frame_rate(decoded, early, frame_count(source))
        converted, pixels = None, np.empty(0)
        for frame in islice(shown, 0, None, every):
            if frame is not converted:
                converted, pixels = frame, _upright(frame, stream)
            yield pixels


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a media file; turn errors of FFmpeg inside the block into a UserError."""
    try:
        with av.open(str(path)) as container:
            yield container
    except FFmpegError as error:
        raise UserError(f"{path}: cannot be read as a video: {error.strerror}") from error


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    cover = av.stream.Disposition.attached_pic
    for stream in container.streams.video:
        if not stream.disposition & cover:
            return stream
    raise UserError(f"{path}: expected a video, but the file contains no video stream")


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path, source: Source
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Yield each frame with its time after the first one; raise at the first damaged frame."""
    start = time = Fraction(0)
    try:
        for i, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise InvalidDataError(0, "a frame is incomplete")
            if i == 0:
                start = _time(frame, path)
            time = _time(frame, path) - start
            yield time, frame
    except InvalidDataError as error:
        raise UserError(
            f"{path}: is damaged after {float(time):.2f} s ({error.strerror}). Cut that part out, "
            "or copy the file again from its origin."
        ) from error
    end = float(time) + 1 / source.fps
    if source.duration - end > MAX_MISSING_SECONDS:
        raise UserError(
            f"{path}: is damaged: its duration is {source.duration:.1f} s, but it can be decoded "
            f"only up to {end:.1f} s. Copy the file again from its origin."
        )


def _at_frame_rate(
    timed: Iterator[tuple[Fraction, av.VideoFrame]], early: Fraction, count: int
) -> Iterator[av.VideoFrame]:
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


def _time(frame: av.VideoFrame, path: Path) -> Fraction:
    if frame.pts is None or frame.time_base is None:
        raise UserError(f"{path}: its frames have no timestamps. Re-encode the video as mp4.")
    return frame.pts * frame.time_base


def _upright(frame: av.VideoFrame, stream: av.VideoStream) -> np.ndarray:
    """Return RGB uint8 [H, W, 3], rotated as the file asks and scaled to square pixels."""
    width = round(frame.width * (stream.sample_aspect_ratio or 1))
    pixels = frame.to_ndarray(
        format="rgb24", width=width, height=frame.height, threads=SCALER_THREADS
    )
    turn = QUARTER_TURNS.get(frame.rotation % 360)
    return pixels if turn is None else cv2.rotate(pixels, turn)


def _start(stream: av.AudioStream) -> float:
    return float((stream.start_time or 0) * (stream.time_base or 0))
