"""Video files, through PyAV: what a file holds, its pictures at 25 fps, and a streaming writer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.errors import UserError
from talker.files import replacing
from talker.media.audio import read_wav

SOUND_BIT_RATE = 96_000


class _Encoder:
    """H.264 (BT.709, yuv420p) and AAC in an open mp4; sound goes in beside the frame it belongs to."""

    def __init__(self, container: av.container.OutputContainer, crf: int, samples: np.ndarray):
        self.container = container
        self.video = container.add_stream("libx264", rate=FPS, options={"crf": str(crf)})
        self.video.pix_fmt = "yuv420p"
        context = self.video.codec_context
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        self.samples = samples
        if len(samples):
            self.sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            self.sound.bit_rate = SOUND_BIT_RATE
        self.frames = 0

    def write(self, pixels: np.ndarray) -> None:
        height, width = pixels.shape[:2]
        even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.frames == 0:
            self.video.height, self.video.width = even.shape[:2]
        expected = (self.video.height, self.video.width, 3)
        if even.shape != expected or even.dtype != np.uint8:
            raise ValueError(f"frame {self.frames}: expected {expected}, found {pixels.shape}")
        frame = av.VideoFrame.from_ndarray(even, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709
        )
        frame.pts = self.frames
        self.container.mux(self.video.encode(frame))
        start = self.frames * SAMPLES_PER_FRAME
        chunk = self.samples[start : start + SAMPLES_PER_FRAME]
        if len(chunk):
            block = av.AudioFrame.from_ndarray(chunk[None], format="s16", layout="mono")
            block.sample_rate = SAMPLE_RATE
            block.pts = start
            self.container.mux(self.sound.encode(block))
        self.frames += 1

    def finish(self) -> None:
        self.container.mux(self.video.encode())
        if len(self.samples):
            self.container.mux(self.sound.encode())


@contextmanager
def video_writer(
    path: Path, wav: Path | None = None, crf: int = 18
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield `write(frame)`, which appends RGB uint8 [H, W, 3] to a 25 fps mp4 as it is encoded.

    The file appears when the block ends well. An odd height or width grows by one repeated pixel
    (yuv420p needs even sizes). `wav` (16 kHz mono) is muxed beside the frames and ends with them.

    Raises:
        UserError: `wav` cannot be read, FFmpeg cannot write the file, or no frame was written.
    """
    samples = read_wav(wav) if wav else np.zeros(0, np.int16)
    with replacing(path) as (scratch,):
        options = {"movflags": "+faststart"}
        with av.open(str(scratch), "w", format="mp4", options=options) as container:
            encoder = _Encoder(container, crf, samples)

            def write(frame: np.ndarray) -> None:
                with _failures_of(path):
                    encoder.write(frame)

            yield write
            if encoder.frames == 0:
                raise UserError(f"{path}: no frame was written")
            with _failures_of(path):
                encoder.finish()


@contextmanager
def _failures_of(path: Path) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise UserError(f"{path}: FFmpeg could not write it: {error}") from error
