"""Write video files through PyAV, frame by frame while they are rendered.

Colors are encoded with the matrix of BT.601 in limited range, and the tags say so. Readers that
honor the tags and readers that ignore them and assume BT.601, such as OpenCV, then decode the same
RGB values. Primaries and transfer are those of sRGB, which frames are in. Rounding is accurate, so
that a decoded image has the mean of the original.

Audio is muxed at its own sample rate.
"""

import sys
import wave
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count
from math import ceil
from pathlib import Path
from typing import NamedTuple, cast

import av
import av.container
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
)

from talker.clip import FPS
from talker.core.files import atomic_write
from talker.core.parallel import ordered_map, usable_cores
from talker.errors import UserError
from talker.media.audio import AudioFormat, decode_native, native_format
from talker.media.disclosure import Disclosure
from talker.media.images import write_image

AUDIO_BIT_RATE = 96_000
"""Bit rate of each channel of encoded audio in bits per second."""
AUDIO_THREADS = 4
"""Number of audio encoders that work at the same time."""
AUDIO_PACKET = 1024
"""Number of samples of an AAC packet, which is also the delay of the encoder."""
AUDIO_GROUP = 256
"""Number of packets that one audio encoder encodes."""
LEAD_IN = 32
"""Number of packets that an audio encoder encodes before its group."""
LEAD_OUT = 4
"""Number of packets that an audio encoder encodes after its group."""
SCALER_FLAGS = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
"""Options of swscale; without accurate rounding every image becomes one level darker."""
ENCODER_THREADS = 4
"""Threads of the encoder of a group of pictures, the same on every machine: x264's output depends
on it."""
SEQUENCE_THREADS = 8
"""Threads of an encoder that encodes all frames."""
CORES_PER_ENCODER = 2
"""Number of cores that one video encoder keeps busy, with frames of 512x512 pixels."""
MAX_ENCODERS = 8
"""Largest number of video encoders that work at the same time."""
QUEUED_FRAMES = 8
"""Number of frames that wait for an encoder if there is only one."""
QUEUED_BYTES = 2**30
"""Largest size in bytes of the frames that wait for their encoders."""
SCALER_THREADS = 1
"""Threads of swscale for one frame; its own default starts one per core for every frame."""
CONVERTER_THREADS = 8
"""Threads that convert RGB frames to the pixel format of the encoder."""


@dataclass(frozen=True)
class Format:
    """Container, codecs and pixel format for one file suffix."""

    container: str
    codec: str
    pixel_format: str
    options: dict[str, str]
    audio_codec: str
    group: int | None
    """Number of frames that are encoded independently of all others; None encodes them all in one
    sequence."""
    transparent: bool = False
    quality: str = "crf"
    """Name of the encoder's option for constant quality."""


FORMATS = {
    # "veryfast" takes half the time of x264's default for files of the same size and quality
    ".mp4": Format("mp4", "libx264", "yuv420p", {"preset": "veryfast"}, "aac", 250),
    ".webm": Format(
        "webm",
        "libvpx-vp9",
        "yuva420p",
        {"b": "0", "auto-alt-ref": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"},
        "libopus",
        128,
        transparent=True,
    ),
    ".mov": Format(
        *("mov", "prores_ks", "yuva444p10le", {"profile": "4444"}, "pcm_s16le", 16),
        transparent=True,
    ),
}

CODECS = {
    "libx264": FORMATS[".mp4"],
    "h264_nvenc": Format(
        *("mp4", "h264_nvenc", "yuv420p", {"rc": "vbr", "b": "0", "preset": "p5"}, "aac", None),
        quality="cq",
    ),
}
"""Video encoders of .mp4 files by FFmpeg's names; NVENC is a part of most NVIDIA GPUs."""


class _Samples(NamedTuple):
    """Samples for one audio encoder."""

    samples: np.ndarray
    """float32 [C, n]"""
    start: int
    """number of the first sample"""
    group: range
    """numbers of the samples of the group"""
    last: bool
    """whether the audio ends with these samples"""


class _AudioEncoder:
    """The encoded audio of a video, which is computed a few groups of packets ahead of its use.

    The AAC encoder uses one thread, and can need more time than rendering and encoding the images.
    Each group of packets therefore has an encoder of its own, and several are encoded at the same
    time. An encoder starts some packets before its group and ends some packets after it, so that it
    chooses the same windows as an encoder of the whole audio. These additional packets are dropped.

    The quantization is coarser than by one encoder of the whole audio, which adapts it over several
    seconds. Above all, steady tones are noisier: at 44.1 and 48 kHz, the signal-to-noise ratio of
    tones and chords is 31 to 36 dB instead of 42 to 45 dB, and that of white noise is 2 dB lower.
    At 16 kHz, the bit rate is so high that the difference is at most 0.1 dB.

    Args:
        container: file to which a stream is added for the audio.
        codec: name of the encoder. AAC is encoded in groups, others in one sequence.
        path: audio or video file.
        start: time of the first sample on the clock of the file, in seconds; by default that of its
            first sample.

    Raises:
        UserError: the file cannot be read or contains no audio.
    """

    def __init__(
        self,
        container: av.container.OutputContainer,
        codec: str,
        path: Path,
        start: float | None,
    ) -> None:
        native = native_format(path)
        rates = av.Codec(codec, "w").audio_rates or [native.rate]
        rate = min((r for r in rates if r >= native.rate), default=max(rates))
        self.format = AudioFormat(rate, native.layout, native.samples)
        stream = container.add_stream(codec, rate=rate, layout=native.layout)
        self.stream = cast(av.AudioStream, stream)
        self.stream.bit_rate = AUDIO_BIT_RATE * self.stream.channels
        self.codec: AudioCodecContext = self.stream.codec_context
        self.grouped = codec == "aac"
        self.blocks = decode_native(path, self.format, start)
        threads = AUDIO_THREADS if self.grouped else 1
        self.encoded = ordered_map(self._encode, self._pieces(), threads)
        self.thread = ThreadPoolExecutor(1)
        self.packets: deque[av.Packet] = deque()

    def start(self) -> None:
        """Start to encode, after the container was opened."""
        self.next = self.thread.submit(next, self.encoded, None)

    def packets_until(self, frames: int, last: bool = False) -> list[av.Packet]:
        """Return the next packets, up to the end of the first `frames` video frames.

        Args:
            frames: number of video frames.
            last: the video ends there; the last packet is cut at its end.
        """
        end = round(frames * self.format.rate / FPS)
        packets = []
        while self.packets or self._next_group():
            rest = end - (self.packets[0].pts or 0)
            if rest <= 0 or (rest < (self.packets[0].duration or 0) and not last):
                break
            packet = self.packets.popleft()
            packet.duration = min(packet.duration or 0, rest)
            packets.append(packet)
        return packets

    def _next_group(self) -> bool:
        """Wait for the packets of the next group; return False if there are none."""
        while not self.packets and (packets := self.next.result()) is not None:
            self.packets += packets
            self.start()
        return bool(self.packets)

    def _pieces(self) -> Iterator[_Samples]:
        """Decode the samples of each group, with those before and after it."""
        length, before, after = round(self.format.rate / FPS), 0, 0
        if self.grouped:
            length, before, after = (
                AUDIO_PACKET * count for count in (AUDIO_GROUP, LEAD_IN, LEAD_OUT)
            )
        start, first = 0, 0
        parts, end = [np.zeros((self.stream.channels, 0), np.float32)], 0
        for block in self.blocks:
            parts.append(block)
            end += block.shape[1]
            while end >= first + length + after:
                samples = np.concatenate(parts, axis=1)
                group = range(first, first + length)
                yield _Samples(samples[:, : group.stop + after - start], start, group, last=False)
                first = group.stop
                parts = [samples[:, max(0, first - before - start) :]]
                start = end - parts[0].shape[1]
        yield _Samples(np.concatenate(parts, axis=1), start, range(first, end), last=True)

    def _encode(self, piece: _Samples) -> list[av.Packet]:
        """Return the packets of a group."""
        codec = self.codec
        if self.grouped:
            codec = cast(AudioCodecContext, av.CodecContext.create(self.codec.name, "w"))
            codec.sample_rate, codec.layout = self.codec.sample_rate, self.codec.layout
            codec.format, codec.bit_rate = self.codec.format, self.codec.bit_rate
            codec.flags = self.codec.flags
        packets = []
        if piece.samples.size:
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(piece.samples),
                format=self.format.samples,
                layout=self.format.layout,
            )
            frame.sample_rate, frame.pts = self.format.rate, piece.start
            packets = codec.encode(frame)
        if piece.last:
            packets += codec.encode()
        if self.grouped:
            first = piece.group.start - AUDIO_PACKET
            end = sys.maxsize if piece.last else piece.group.stop - AUDIO_PACKET
            packets = [packet for packet in packets if first <= (packet.pts or 0) < end]
        for packet in packets:
            packet.stream = self.stream
        return packets

    def stop(self) -> None:
        """Wait for the threads."""
        self.thread.shutdown(cancel_futures=True)
        self.encoded.close()
        self.blocks.close()


class _Encoder:
    """Encode frames and audio in threads, and write them interleaved, frame by frame.

    One encoder cannot use many cores, so each group of pictures has its own, and several groups are
    encoded at the same time. Their packets are written in order and without a change: no frame
    refers to another group, all encoders have the same settings and therefore the same headers, and
    the decoding times of all groups are shifted by the same number of frames.
    """

    def __init__(
        self,
        container: av.container.OutputContainer,
        encoding: Format,
        crf: int,
        sound: Path | None,
        sound_start: float | None,
    ) -> None:
        self.container, self.encoding = container, encoding
        self.options = {encoding.quality: str(crf), **encoding.options}
        stream = container.add_stream(encoding.codec, rate=FPS, options=self.options)
        self.video = cast(av.VideoStream, stream)
        self.codec: VideoCodecContext = self.video.codec_context
        """encoder of the current group"""
        self.group = encoding.group or sys.maxsize
        self.sound = None
        if sound is not None:
            self.sound = _AudioEncoder(container, encoding.audio_codec, sound, sound_start)
        encoders = min(MAX_ENCODERS, ceil(usable_cores() / CORES_PER_ENCODER))
        self.encoder_threads = [
            ThreadPoolExecutor(1) for _ in range(encoders if encoding.group else 1)
        ]
        self.converter_threads = ThreadPoolExecutor(CONVERTER_THREADS)
        self.pending: deque[Future[list[av.Packet]]] = deque()
        self.frames = 0
        self.written = 0

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
                f"Frame {self.frames} must be uint8 {expected}, but it is {pixels.dtype} "
                f"{pixels.shape}."
            )
        if self.frames == 0:
            self._configure(self.codec)
            self._open_codecs()
            if self.sound:
                self.sound.start()
            ahead = (len(self.encoder_threads) - 1) * self.group
            self.most_pending = QUEUED_FRAMES + min(ahead, QUEUED_BYTES // even.nbytes)
        elif self.frames % self.group == 0:
            self.codec = cast(VideoCodecContext, av.CodecContext.create(self.encoding.codec, "w"))
            self.codec.options, self.codec.flags = self.options, self.video.codec_context.flags
            self._configure(self.codec)
        layout = "rgba" if channels == 4 else "rgb24"
        picture = self.converter_threads.submit(self._to_yuv, even, layout)
        self.pending.append(
            self._encoder_thread().submit(self._encode, self.codec, picture, self.frames)
        )
        self.frames += 1
        if len(self.pending) > self.most_pending:
            self._mux_next()

    def _configure(self, codec: VideoCodecContext) -> None:
        """Set all properties of a codec on which the headers of the video depend."""
        codec.height, codec.width = self.video.height, self.video.width
        codec.framerate = Fraction(FPS)
        codec.pix_fmt = self.encoding.pixel_format
        codec.colorspace = Colorspace.SMPTE170M
        codec.color_primaries = ColorPrimaries.BT709
        codec.color_trc = ColorTrc.IEC61966_2_1
        codec.color_range = ColorRange.MPEG
        codec.thread_type = "FRAME"
        codec.thread_count = ENCODER_THREADS if self.encoding.group else SEQUENCE_THREADS

    def _open_codecs(self) -> None:
        """Open the codecs before threads use them; UserError if the machine lacks the encoder."""
        try:
            self.container.start_encoding()
        except FFmpegError as error:
            if self.encoding.codec == "h264_nvenc":
                raise UserError(
                    f"The video encoder {self.encoding.codec} does not work on this machine "
                    f"({error.strerror}). It needs an NVIDIA GPU with NVENC (A100, H100 and H200 "
                    "have none) and its driver. Use libx264 instead."
                ) from error
            raise

    def _encoder_thread(self) -> ThreadPoolExecutor:
        """Return the thread of the group to which the next frame belongs."""
        return self.encoder_threads[self.frames // self.group % len(self.encoder_threads)]

    def finish(self) -> None:
        while self.pending:
            self._mux_next()
        if self.frames % self.group:
            self._mux_video(self.codec.encode())
        if self.sound:
            self.container.mux(self.sound.packets_until(self.frames, last=True))

    def stop(self) -> None:
        """Wait for the threads, which must end before the container is closed."""
        for pool in (*self.encoder_threads, self.converter_threads):
            pool.shutdown(cancel_futures=True)
        if self.sound:
            self.sound.stop()

    def _to_yuv(self, pixels: np.ndarray, layout: str) -> av.VideoFrame:
        frame = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), format=layout)
        return frame.reformat(
            format=self.encoding.pixel_format,
            dst_colorspace=Colorspace.ITU601,
            interpolation=SCALER_FLAGS,
            threads=SCALER_THREADS,
        )

    def _encode(
        self, codec: VideoCodecContext, picture: Future[av.VideoFrame], number: int
    ) -> list[av.Packet]:
        """Encode a frame and return the packets that are complete, at the end of a group all."""
        frame = picture.result()
        frame.pts = number
        packets = codec.encode(frame)
        return packets if (number + 1) % self.group else packets + codec.encode()

    def _mux_next(self) -> None:
        self._mux_video(self.pending.popleft().result())
        self.written += 1
        if self.sound:
            self.container.mux(self.sound.packets_until(self.written))

    def _mux_video(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            packet.stream = self.video
            self.container.mux(packet)


@contextmanager
def video_writer(
    path: Path,
    sound: Path | None = None,
    crf: int = 18,
    sound_start: float | None = None,
    codec: str = "libx264",
    disclosure: Disclosure | None = None,
    groups: bool = True,
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield `write(frame)`, which appends RGB uint8 [H, W, 3] to a 25 fps video.

    The suffix of `path` selects one of `FORMATS`; transparent formats accept RGBA [H, W, 4] too.
    A path without a suffix becomes a folder of 00000.png, 00001.png, ... and sound.wav. The file
    appears when the block ends without an error. An odd height or width grows by one repeated
    pixel, because yuv420p needs even sizes. Threads read a frame after `write` has returned, so
    its array must not be modified afterwards.

    Args:
        path: file or folder to write.
        sound: audio or video file of any format whose default audio track is muxed at its own
            sample rate, or the nearest that the codec supports; audio beyond the last frame is cut.
        crf: constant rate factor of the encoder; smaller values give larger files of better
            quality.
        sound_start: time of the first frame on the clock of `sound`, in seconds; by default that
            of its first sample.
        codec: encoder of .mp4 files, a key of `CODECS`.
        disclosure: what the metadata says about a synthetic video; None writes no such metadata.
        groups: encode groups of pictures at the same time, which is faster on many cores; False
            encodes all frames in one sequence.

    Raises:
        UserError: the suffix is unknown, `sound` cannot be read or contains no samples, the machine
            lacks the encoder, FFmpeg cannot write the file, the file cannot be signed, or no frame
            was written.
    """
    if disclosure and disclosure.signature:
        disclosure.signature.require(path)
    if not path.suffix:
        with _image_folder(path, sound, sound_start, disclosure) as write:
            yield write
        return
    suffix = path.suffix.lower()
    encoding = CODECS[codec] if suffix == ".mp4" else FORMATS.get(suffix)
    if encoding is None:
        raise UserError(
            f"{path} has the suffix {path.suffix!r}. It must be one of {', '.join(FORMATS)}."
        )
    if not groups:
        encoding = replace(encoding, group=None)
    with atomic_write(path) as (scratch,):
        options = {"movflags": "+faststart"} if encoding.container == "mp4" else {}
        with av.open(str(scratch), "w", format=encoding.container, options=options) as container:
            container.metadata.update(disclosure.tags() if disclosure else {})
            encoder = _Encoder(container, encoding, crf, sound, sound_start)

            def write(frame: np.ndarray, /) -> None:
                with _ffmpeg_errors(path):
                    encoder.write(frame)

            try:
                yield write
                if encoder.frames == 0:
                    raise UserError(f"{path} was not written, because no frame was rendered.")
                with _ffmpeg_errors(path):
                    encoder.finish()
            finally:
                encoder.stop()
        if disclosure and encoding.container in {"mp4", "mov"}:
            disclosure.complete(scratch, suffix)


@contextmanager
def _image_folder(
    folder: Path, sound: Path | None, sound_start: float | None, disclosure: Disclosure | None
) -> Iterator[Callable[[np.ndarray], None]]:
    numbers = count()
    with atomic_write(folder) as (scratch,):
        scratch.mkdir()

        def write(frame: np.ndarray, /) -> None:
            path = scratch / f"{next(numbers):05d}.png"
            write_image(path, frame)
            if disclosure:
                disclosure.insert_chunk(path)

        yield write
        frames = next(numbers)
        if not frames:
            raise UserError(f"{folder} was not written, because no frame was rendered.")
        if sound is not None:
            _write_native_wav(scratch / "sound.wav", sound, sound_start, frames)


def _write_native_wav(path: Path, sound: Path, start: float | None, frames: int) -> None:
    """Write the audio of `frames` video frames as 16-bit wav at its own rate."""
    native = native_format(sound)
    packed = AudioFormat(native.rate, native.layout, "s16")
    remaining = round(frames * native.rate / FPS)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if native.layout == "mono" else 2)
        file.setsampwidth(2)
        file.setframerate(native.rate)
        for block in decode_native(sound, packed, start):
            samples = block.reshape(-1, file.getnchannels())[:remaining]
            file.writeframes(samples.astype("<i2", casting="equiv").tobytes())
            remaining -= len(samples)


@contextmanager
def _ffmpeg_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FFmpegError as error:
        raise UserError(f"FFmpeg could not write {path}: {error}") from error
