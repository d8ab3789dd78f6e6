"""Encode the audio of a video with several encoders at the same time.

The AAC encoder uses one thread, and can need more time than rendering and encoding the images. The
audio is therefore encoded in groups of packets, each by an encoder of its own. An encoder starts
some packets before its group and ends some packets after it, so that it chooses the same windows as
an encoder of the whole audio, and about the same quantization. These additional packets are
dropped.
"""

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, cast

import av
import av.container
import numpy as np
from av.audio.codeccontext import AudioCodecContext

from talker.clip import FPS
from talker.core.parallel import ordered_map
from talker.media.audio import AudioFormat, decode_native, native_format

BIT_RATE = 96_000
"""Bit rate of each channel of encoded audio in bits per second."""
THREADS = 4
"""Number of encoders that work at the same time."""
PACKET = 1024
"""Number of samples of an AAC packet, which is also the delay of the encoder."""
GROUP = 512
"""Number of packets that one encoder encodes."""
LEAD_IN = 32
"""Number of packets that an encoder encodes before its group."""
LEAD_OUT = 4
"""Number of packets that an encoder encodes after its group."""


class _Piece(NamedTuple):
    """Samples for one encoder."""

    samples: np.ndarray
    """float32 [C, n]"""
    start: int
    """number of the first sample"""
    group: range
    """numbers of the samples of the group"""
    last: bool
    """whether the audio ends with these samples"""


class AudioEncoder:
    """The encoded audio of a video, which is computed a few groups ahead of its use.

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
        self.stream.bit_rate = BIT_RATE * self.stream.channels
        self.codec: AudioCodecContext = self.stream.codec_context
        self.grouped = codec == "aac"
        self.blocks = decode_native(path, self.format, start)
        self.encoded = ordered_map(self._encode, self._pieces(), THREADS if self.grouped else 1)
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

    def _pieces(self) -> Iterator[_Piece]:
        """Decode the samples of each group, with those before and after it."""
        length, before, after = round(self.format.rate / FPS), 0, 0
        if self.grouped:
            length, before, after = (PACKET * count for count in (GROUP, LEAD_IN, LEAD_OUT))
        start, first = 0, 0
        samples = np.zeros((self.stream.channels, 0), np.float32)
        parts, end = [samples], 0
        for block in self.blocks:
            parts.append(block)
            end += block.shape[1]
            while end >= first + length + after:
                samples = np.concatenate(parts, axis=1)
                group = range(first, first + length)
                yield _Piece(samples[:, : group.stop + after - start], start, group, last=False)
                first = group.stop
                parts = [samples[:, max(0, first - before - start) :]]
                start = end - parts[0].shape[1]
        yield _Piece(np.concatenate(parts, axis=1), start, range(first, end), last=True)

    def _encode(self, piece: _Piece) -> list[av.Packet]:
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
            first = piece.group.start - PACKET
            end = sys.maxsize if piece.last else piece.group.stop - PACKET
            packets = [packet for packet in packets if first <= (packet.pts or 0) < end]
        for packet in packets:
            packet.stream = self.stream
        return packets

    def stop(self) -> None:
        """Wait for the threads."""
        self.thread.shutdown(cancel_futures=True)
        self.encoded.close()
        self.blocks.close()
