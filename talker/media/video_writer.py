"""Write video files through PyAV, frame by frame while they are rendered."""

import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import cast

import av
import av.container
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.core.files import replacing
from talker.errors import UserError
from talker.media.audio import Waveform, WavFile
from talker.media.images import write_image
from talker.media.video_reader import SCALER_THREADS

AUDIO_BIT_RATE = 96_000
"""Bit rate of encoded sound in bits per second."""
ENCODER_THREADS = 8
"""Threads of the video encoder, the same on every machine: x264's output depends on it."""
CONVERTER_THREADS = 4
"""Threads that convert RGB frames to the pixel format of the encoder."""


@dataclass(frozen=True)
class Format:
    """Container, codecs and pixel format for one file suffix."""

    container: str
    codec: str
    pixel_format: str
    options: dict[str, str]
    audio_codec: str
    transparent: bool = False


FORMATS = {
    # "veryfast" takes half the time of x264's default for files of the same size and quality
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
    """Encode BT.709 frames and sound, interleaved frame by frame."""

    def __init__(
        self, container: av.container.OutputContainer, encoding: Format, crf: int, samples: Waveform
    ):
        self.container, self.encoding = container, encoding
        options = {"crf": str(crf), **encoding.options}
        stream = container.add_stream(encoding.codec, rate=FPS, options=options)
        self.video = cast(av.VideoStream, stream)
        self.video.pix_fmt = encoding.pixel_format
        context = self.video.codec_context
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        context.thread_type, context.thread_count = "FRAME", ENCODER_THREADS
        self.converter_threads = ThreadPoolExecutor(CONVERTER_THREADS)
        self.audio_thread = ThreadPoolExecutor(1)
        self.pending: deque[tuple[Future[av.VideoFrame], Future[list[av.Packet]]]] = deque()
        self.samples = samples
        if len(samples):
            stream = container.add_stream(encoding.audio_codec, rate=SAMPLE_RATE, layout="mono")
            self.audio = cast(av.AudioStream, stream)
            self.audio.bit_rate = AUDIO_BIT_RATE
        self.frames = 0

    def write(self, pixels: np.ndarray) -> None:
        height, width = pixels.shape[:2]
        even = pixels
        if height % 2 or width % 2:
            even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.frames == 0:
            self.video.height, self.video.width = even.shape[:2]
        channels = 4 if self.encoding.transparent and even.shape[2] == 4 else 3
        expected = (self.video.height, self.video.width, channels)
        if even.shape != expected or even.dtype != np.uint8:
            raise ValueError(
                f"frame {self.frames}: expected uint8 {expected}, found {pixels.dtype} "
                f"{pixels.shape}"
            )
        if self.frames == 0:
            self.container.start_encoding()  # opens the codecs before threads use them
        layout = "rgba" if channels == 4 else "rgb24"
        picture = self.converter_threads.submit(self._to_yuv, even, layout)
        self.pending.append((picture, self.audio_thread.submit(self._encode_audio, self.frames)))
        self.frames += 1
        if len(self.pending) > CONVERTER_THREADS:
            self._encode_next()

    def finish(self) -> None:
        while self.pending:
            self._encode_next()
        self.container.mux(self.video.encode())
        if len(self.samples):
            self.container.mux(self.audio.encode())

    def stop(self) -> None:
        """Wait for the threads, which must end before the container is closed."""
        for pool in (self.converter_threads, self.audio_thread):
            pool.shutdown(cancel_futures=True)

    def _to_yuv(self, pixels: np.ndarray, layout: str) -> av.VideoFrame:
        frame = av.VideoFrame.from_ndarray(pixels, format=layout)
        space = Colorspace.ITU709
        pixel_format = self.encoding.pixel_format
        return frame.reformat(format=pixel_format, dst_colorspace=space, threads=SCALER_THREADS)

    def _encode_audio(self, number: int) -> list[av.Packet]:
        start = number * SAMPLES_PER_FRAME
        chunk = self.samples[start : start + SAMPLES_PER_FRAME]
        if not len(chunk):
            return []
        block = av.AudioFrame.from_ndarray(chunk[None], format="s16", layout="mono")
        block.sample_rate = SAMPLE_RATE
        block.pts = start
        return self.audio.encode(block)

    def _encode_next(self) -> None:
        number = self.frames - len(self.pending)
        picture, sound = self.pending.popleft()
        frame = picture.result()
        frame.pts = number
        self.container.mux(self.video.encode(frame))
        self.container.mux(sound.result())


@contextmanager
def video_writer(
    path: Path, wav: Path | None = None, crf: int = 18
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield `write(frame)`, which appends RGB uint8 [H, W, 3] to a 25 fps video.

    The suffix of `path` selects one of `FORMATS`; transparent formats accept RGBA [H, W, 4] too.
    A path without a suffix becomes a folder of 00000.png, 00001.png, ... and sound.wav. The file
    appears when the block ends without an error. An odd height or width grows by one repeated
    pixel, because yuv420p needs even sizes. Threads read a frame after `write` has returned, so
    its array must not be modified afterwards.

    Args:
        path: file or folder to write.
        wav: 16 kHz mono sound to mux; what exceeds the frames is cut.
        crf: constant rate factor of the encoder; smaller is better and larger.

    Raises:
        UserError: the suffix is unknown, `wav` cannot be read, FFmpeg cannot write the file, or
            no frame was written.
    """
    if not path.suffix:
        with _image_folder(path, wav) as write:
            yield write
        return
    encoding = FORMATS.get(path.suffix.lower())
    if encoding is None:
        raise UserError(
            f"{path}: expected one of the suffixes {', '.join(FORMATS)}, found {path.suffix!r}"
        )
    samples = WavFile(wav) if wav else np.zeros(0, np.int16)
    with replacing(path) as (scratch,):
        options = {"movflags": "+faststart"} if encoding.container == "mp4" else {}
        with av.open(str(scratch), "w", format=encoding.container, options=options) as container:
            encoder = _Encoder(container, encoding, crf, samples)

            def write(frame: np.ndarray, /) -> None:
                with _ffmpeg_errors(path):
                    encoder.write(frame)

            try:
                yield write
                if encoder.frames == 0:
                    raise UserError(f"{path}: no frame was written")
                with _ffmpeg_errors(path):
                    encoder.finish()
            finally:
                encoder.stop()


@contextmanager
def _image_folder(folder: Path, wav: Path | None) -> Iterator[Callable[[np.ndarray], None]]:
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
def _ffmpeg_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FFmpegError as error:
        raise UserError(f"{path}: FFmpeg could not write this file: {error}") from error
