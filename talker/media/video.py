"""Video files, through PyAV: what a file holds, its pictures at 25 fps, and a streaming writer."""

import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, islice, pairwise
from pathlib import Path
from statistics import median
from typing import cast

import av
import av.container
import av.stream
import cv2
import numpy as np
from av.error import FFmpegError, InvalidDataError
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Source
from talker.core.files import replacing
from talker.errors import UserError
from talker.media.audio import Sound, WavFile
from talker.media.images import write_image

LOST_SECONDS = 0.5  # a file that ends this much before it says is damaged
SOUND_BIT_RATE = 96_000
ENCODER_THREADS = 8
"""on any machine, for x264's bytes depend on their number"""
CONVERTERS = 4
SCALER_THREADS = 1
"""Unless told, swscale starts as many as there are cores, and anew for every frame."""
QUARTER_TURNS = {
    90: cv2.ROTATE_90_COUNTERCLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_CLOCKWISE,
}


def probe(path: Path) -> Source:
    """Say what a video file holds: reads all its packets, decodes one frame.

    Raises:
        UserError: the file is missing, holds no video, or ends before it says.
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
            raise UserError(f"{path}: holds no video frame that can be decoded")
        claimed = Fraction((container.start_time or 0) + (container.duration or 0), av.time_base)
        if claimed - end > LOST_SECONDS:
            raise UserError(
                f"{path}: is damaged: it says that it lasts {float(claimed):.1f} s, but its "
                f"content ends at {float(end):.1f} s; copy it again from where it came"
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
    """How many 25 fps frames `read_frames` yields."""
    return round(source.duration * FPS)


def read_frames(path: Path, source: Source, every: int = 1) -> Iterator[np.ndarray]:
    """Yield what a video shows at i/25 s after its first frame, for i = 0, every, 2 every, ...

    A frame counts as shown from half a frame period before its timestamp until the next one does,
    so a picture is never more than half a period (20 ms) ahead of its instant and a gap in a
    video of variable rate holds the picture before it.

    Yields:
        Upright RGB uint8 [H, W, 3] with square pixels, `source.height` x `source.width`; the same
        array again where the video repeats a frame.

    Raises:
        UserError: a frame cannot be decoded or the video ends too early.
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
    """Open a media file; what FFmpeg cannot read inside the block is the file's fault."""
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
    raise UserError(f"{path}: expected a video, but it holds no video stream")


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path, source: Source
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Yield every frame and its time after the first one; raise at the first damaged one."""
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
            f"{path}: is damaged after {float(time):.2f} s ({error.strerror}); cut that part out, "
            "or copy the file again from where it came"
        ) from error
    end = float(time) + 1 / source.fps
    if source.duration - end > LOST_SECONDS:
        raise UserError(
            f"{path}: is damaged: it lasts {source.duration:.1f} s, but can be decoded only up to "
            f"{end:.1f} s; copy it again from where it came"
        )


def _at_frame_rate(
    timed: Iterator[tuple[Fraction, av.VideoFrame]], early: Fraction, count: int
) -> Iterator[av.VideoFrame]:
    """Yield, for i in 0..count-1, the last frame whose time is at most i/25 s + `early`."""
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
        raise UserError(f"{path}: its frames carry no times; re-encode the video as mp4")
    return frame.pts * frame.time_base


def _upright(frame: av.VideoFrame, stream: av.VideoStream) -> np.ndarray:
    """RGB uint8 [H, W, 3], turned as the file asks and scaled to square pixels."""
    width = round(frame.width * (stream.sample_aspect_ratio or 1))
    pixels = frame.to_ndarray(
        format="rgb24", width=width, height=frame.height, threads=SCALER_THREADS
    )
    turn = QUARTER_TURNS.get(frame.rotation % 360)
    return pixels if turn is None else cv2.rotate(pixels, turn)


def _start(stream: av.AudioStream) -> float:
    return float((stream.start_time or 0) * (stream.time_base or 0))


@dataclass(frozen=True)
class Format:
    """How pictures and sound are kept in a file of some suffix."""

    container: str
    codec: str
    pixels: str
    options: dict[str, str]
    sound: str
    transparent: bool = False


FORMATS = {
    # veryfast: of the size of x264's usual "medium" at the same crf, for half the work
    ".mp4": Format("mp4", "libx264", "yuv420p", {"preset": "veryfast"}, "aac"),
    ".webm": Format(
        "webm",
        "libvpx-vp9",
        "yuva420p",
        {"b": "0", "auto-alt-ref": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"},
        "libopus",
        transparent=True,
    ),
    ".mov": Format(
        "mov", "prores_ks", "yuva444p10le", {"profile": "4444"}, "pcm_s16le", transparent=True
    ),
}


class _Encoder:
    """Pictures (BT.709) and sound; sound goes in beside the frame it belongs to."""

    def __init__(
        self, container: av.container.OutputContainer, kind: Format, crf: int, samples: Sound
    ):
        self.container, self.kind = container, kind
        options = {"crf": str(crf), **kind.options}
        stream = container.add_stream(kind.codec, rate=FPS, options=options)
        self.video = cast(av.VideoStream, stream)
        self.video.pix_fmt = kind.pixels
        context = self.video.codec_context
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        context.thread_type, context.thread_count = "FRAME", ENCODER_THREADS
        self.converters = ThreadPoolExecutor(CONVERTERS)
        self.speaker = ThreadPoolExecutor(1)
        self.waiting: deque[tuple[Future[av.VideoFrame], Future[list[av.Packet]]]] = deque()
        self.samples = samples
        if len(samples):
            stream = container.add_stream(kind.sound, rate=SAMPLE_RATE, layout="mono")
            self.sound = cast(av.AudioStream, stream)
            self.sound.bit_rate = SOUND_BIT_RATE
        self.frames = 0

    def write(self, pixels: np.ndarray) -> None:
        height, width = pixels.shape[:2]
        even = pixels
        if height % 2 or width % 2:
            even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.frames == 0:
            self.video.height, self.video.width = even.shape[:2]
        channels = 4 if self.kind.transparent and even.shape[2] == 4 else 3
        expected = (self.video.height, self.video.width, channels)
        if even.shape != expected or even.dtype != np.uint8:
            raise ValueError(
                f"frame {self.frames}: expected uint8 {expected}, found {pixels.dtype} "
                f"{pixels.shape}"
            )
        if self.frames == 0:
            self.container.start_encoding()  # opens the codecs before threads use them
        form = "rgba" if channels == 4 else "rgb24"
        picture = self.converters.submit(self._convert, even, form)
        self.waiting.append((picture, self.speaker.submit(self._sound_of, self.frames)))
        self.frames += 1
        if len(self.waiting) > CONVERTERS:
            self._encode_next()

    def finish(self) -> None:
        while self.waiting:
            self._encode_next()
        self.container.mux(self.video.encode())
        if len(self.samples):
            self.container.mux(self.sound.encode())

    def stop(self) -> None:
        """Wait for the threads, which must not outlive the container."""
        for pool in (self.converters, self.speaker):
            pool.shutdown(cancel_futures=True)

    def _convert(self, pixels: np.ndarray, form: str) -> av.VideoFrame:
        frame = av.VideoFrame.from_ndarray(pixels, format=form)
        space = Colorspace.ITU709
        return frame.reformat(format=self.kind.pixels, dst_colorspace=space, threads=SCALER_THREADS)

    def _sound_of(self, number: int) -> list[av.Packet]:
        start = number * SAMPLES_PER_FRAME
        chunk = self.samples[start : start + SAMPLES_PER_FRAME]
        if not len(chunk):
            return []
        block = av.AudioFrame.from_ndarray(chunk[None], format="s16", layout="mono")
        block.sample_rate = SAMPLE_RATE
        block.pts = start
        return self.sound.encode(block)

    def _encode_next(self) -> None:
        number = self.frames - len(self.waiting)
        picture, sound = self.waiting.popleft()
        frame = picture.result()
        frame.pts = number
        self.container.mux(self.video.encode(frame))
        self.container.mux(sound.result())


@contextmanager
def video_writer(
    path: Path, wav: Path | None = None, crf: int = 18
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield `write(frame)`, which appends RGB uint8 [H, W, 3] to a 25 fps video as it is encoded.

    Threads read a frame after `write` has returned, so it must not be written to again. The suffix
    is one of `FORMATS`; those that can be transparent take RGBA [H, W, 4] as well. A path without a
    suffix becomes a folder of 00000.png, ... and sound.wav. The file appears when the block ends
    well. An odd height or width grows by one repeated pixel (yuv420p needs even sizes). `wav`
    (16 kHz mono) is muxed beside the frames and ends with them.

    Raises:
        UserError: another suffix, `wav` cannot be read, FFmpeg cannot write the file, or no frame
            was written.
    """
    if not path.suffix:
        with _pictures(path, wav) as write:
            yield write
        return
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: expected the suffix {', '.join(FORMATS)}")
    samples = WavFile(wav) if wav else np.zeros(0, np.int16)
    with replacing(path) as (scratch,):
        options = {"movflags": "+faststart"} if kind.container == "mp4" else {}
        with av.open(str(scratch), "w", format=kind.container, options=options) as container:
            encoder = _Encoder(container, kind, crf, samples)

            def write(frame: np.ndarray, /) -> None:
                with _failures_of(path):
                    encoder.write(frame)

            try:
                yield write
                if encoder.frames == 0:
                    raise UserError(f"{path}: no frame was written")
                with _failures_of(path):
                    encoder.finish()
            finally:
                encoder.stop()


@contextmanager
def _pictures(folder: Path, wav: Path | None) -> Iterator[Callable[[np.ndarray], None]]:
    numbers = count()
    with replacing(folder) as (scratch,):
        scratch.mkdir()

        def write(frame: np.ndarray, /) -> None:
            write_image(scratch / f"{next(numbers):05d}.png", frame)

        yield write
        if wav is not None:
            shutil.copyfile(wav, scratch / "sound.wav")
        if not next(numbers):
            raise UserError(f"{folder}: no frame was written")


@contextmanager
def _failures_of(path: Path) -> Iterator[None]:
    try:
        yield
    except FFmpegError as error:
        raise UserError(f"{path}: FFmpeg could not write it: {error}") from error
