"""Render an avatar live, from 16 kHz PCM on stdin or a socket to raw video frames.

    arecord -q -t raw -f S16_LE -r 16000 | talker speak --data data/me --avatar results/me/avatar \
        | ffplay -f rawvideo -pixel_format rgb24 -video_size 512x512 -framerate 25 -
    ... | talker speak --avatar me.avatar --output rtmp://localhost/live/me
"""

import logging
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from talker.avatar.bundle import disclosure_of, load_subject, speech_statistics
from talker.avatar.drive import longest_stretch, natural_blinks, ping_pong
from talker.avatar.live import live_avatar
from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, render_frames
from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.core.config import AtLeast0, AtLeast1, NonNegative, validated
from talker.dataset import Dataset
from talker.encoders import Encoder, load_encoder
from talker.encoders.features import (
    SLOT,
    SLOT_RATE,
    SLOTS_PER_FRAME,
    WINDOW,
    FeatureStats,
    mirrored,
    mute,
    rows_at,
    whole_frames,
)
from talker.encoders.loudness import gain_between, pauses, slot_levels, speech_level
from talker.errors import UserError
from talker.media.audio import WavFile
from talker.media.broadcast import Show, broadcast
from talker.media.disclosure import labeled

logger = logging.getLogger(__name__)

LEVEL_SLOTS = 10 * SLOT_RATE
"""Number of the latest time steps from which the loudness is computed."""
BLINK_PERIOD = 600 * FPS
"""Frames after which the blinks repeat."""
WARM_UP = 2
"""Duration in seconds of the audio that `--benchmark` processes before it measures."""
CLOSED_VIEWER = BrokenPipeError, ConnectionResetError
"""Errors that writing to a closed viewer raises."""


@validated
class Config:
    """Options of `talker speak`."""

    hop: AtLeast1 = 2
    """Number of frames rendered at once. Fewer frames reduce the latency; more frames reduce the
    computation."""
    ahead: NonNegative = 0.1
    """Duration in seconds of the future audio that the speech encoder waits for and uses as
    context."""
    past: NonNegative = 4.0
    """Duration in seconds of the past audio that the speech encoder receives as context each time
    it encodes `hop` frames."""
    seed: AtLeast0 = 0
    """Seed of the random numbers of the blinks."""
    label: str = ""
    """Text that is drawn in the lower left corner of every frame, such as "Synthetic". By default,
    there is none. The metadata of a file or a stream always state that it is synthetic."""

    def latency(self, look_ahead: int) -> float:
        """Return the seconds from audio to its frame, without the time for computing.

        The window of a frame extends 9 + `look_ahead` steps of 20 ms beyond the frame's start, the
        encoder waits for `ahead`, and frames are rendered in hops.
        """
        return (WINDOW // 2 + 1 + look_ahead) * 0.02 + self.ahead + self.hop / FPS


class StreamingAvatar:
    """Takes audio in pieces of any length and yields the frames that each piece completes.

    Args:
        avatar: avatar of the subject.
        dataset: dataset of the same subject.
        encoder: speech encoder that the avatar was trained with.
        statistics: statistics of its features of the training speech.
    """

    def __init__(
        self,
        avatar: Avatar,
        dataset: Dataset,
        encoder: Encoder,
        statistics: FeatureStats,
        config: Config,
    ) -> None:
        self.avatar, self.dataset, self.config = avatar, dataset, config
        self.render_head = live_avatar(avatar, config.hop)
        self.on_gpu = next(avatar.parameters()).is_cuda
        self.encoder, self.statistics = encoder, statistics
        ids = longest_stretch(dataset)
        self.path = ids[ping_pong(max(1, 2 * len(ids) - 2), len(ids))]
        self.closure = natural_blinks(dataset.eye[dataset.train_ids, 0], BLINK_PERIOD, config.seed)
        self.audio = np.empty(0, np.int16)
        """The latest samples that are still needed."""
        self.received = 0
        """Number of all samples so far."""
        self.levels = np.empty(0, np.float32)
        """Loudness of the latest steps."""
        self.slots = np.empty((0, len(statistics.silence)), np.float32)
        """Features of the latest encoded steps."""
        self.encoded = 0
        """Number of all encoded steps so far."""
        self.rendered = 0
        """Number of all rendered frames so far."""

    @property
    def latency(self) -> float:
        """Seconds from audio to its frame, without the time for computing."""
        return self.config.latency(self.statistics.look_ahead)

    def push_audio(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Take int16 samples [n]; yield the frames, RGB uint8 [H, W, 3], that they complete."""
        self._store(samples)
        ahead = round(self.config.ahead * SAMPLE_RATE)
        ready = max(0, (self.received - ahead) // SLOT)
        frames = (ready - self._reach()) // SLOTS_PER_FRAME
        if frames - self.rendered >= self.config.hop:
            self._encode(ready)
            yield from self._render(frames)

    def finish(self) -> Iterator[np.ndarray]:
        """Yield the frames that are left, one for each 640 samples; the last may be incomplete."""
        frames = -(-self.received // SAMPLES_PER_FRAME)
        self._store(np.zeros(frames * SAMPLES_PER_FRAME - self.received, np.int16))
        if frames > self.rendered:
            self._encode(frames * SLOTS_PER_FRAME)
            yield from self._render(frames)

    def _reach(self) -> int:
        """Return how many steps beyond a frame's first one its window needs."""
        return WINDOW // 2 - 1 + self.statistics.look_ahead

    def _store(self, samples: np.ndarray) -> None:
        """Append samples and their loudness, and drop what is no longer needed."""
        whole = self.received // SLOT
        begin = self.received - len(self.audio)
        audio = np.concatenate([self.audio, samples])
        levels = np.concatenate([self.levels, slot_levels(audio[whole * SLOT - begin :])])
        self.received += len(samples)
        needed = self.encoded * SLOT - round(self.config.past * SAMPLE_RATE)
        self.audio = audio[max(0, needed - begin) :]
        self.levels = levels[-max(LEVEL_SLOTS, self.received // SLOT - self.encoded) :]

    def _encode(self, ready: int) -> None:
        """Encode the steps up to `ready`, with the audio before them as context."""
        past = round(self.config.past * SAMPLE_RATE)
        first = self.encoded * SLOT - past
        gain = gain_between(speech_level(self.levels), self.statistics.level)
        begin = self.received - len(self.audio)
        piece = gain * mirrored(self.audio, first - begin, self.received - begin)
        rows = self.encoder.extract(piece, first)
        centers = (np.arange(self.encoded, ready) + 0.5) * SLOT - first
        slots = self.statistics.reduce(rows_at(rows, self.encoder, centers / SAMPLE_RATE))
        known = self.received // SLOT
        silent = pauses(self.levels, self.statistics.pause)
        at = np.arange(self.encoded, ready) - (known - len(silent))
        slots = mute(slots, silent[at.clip(0, len(silent) - 1)], self.statistics)
        self.slots = np.concatenate([self.slots, slots])[-(len(slots) + 2 * WINDOW) :]
        self.encoded = ready

    def _render(self, frames: int) -> Iterator[np.ndarray]:
        """Render all frames before frame `frames`."""
        ids = np.arange(self.rendered, frames)
        begin = self.encoded - len(self.slots)
        lead = WINDOW // 2 - 1 - self.statistics.look_ahead
        at = SLOTS_PER_FRAME * ids[:, None] - lead + np.arange(WINDOW)
        recorded = self.path[ids % len(self.path)]
        drive = Drive(
            background_frame_ids=recorded,
            windows=self.slots[(at - begin).clip(0, len(self.slots) - 1)],
            window_ids=np.arange(len(ids)),
            eye=np.stack([self.closure[ids % BLINK_PERIOD], self.dataset.eye[recorded, 1]], axis=1),
        )
        self.rendered = frames
        batch = self.config.hop if self.on_gpu else 1  # on the CPU each core renders one frame
        label = self.config.label
        for frame in render_frames(
            self.avatar, self.dataset, drive, batch, render_head=self.render_head
        ):
            yield labeled(frame, label) if label else frame


def load_streaming_avatar(data: Path | None, avatar: Path, config: Config) -> StreamingAvatar:
    """Read an avatar, its dataset (None: from the avatar's file) and its speech encoder.

    Raises:
        UserError: a file is missing, or the encoder cannot encode live audio.
    """
    model, dataset = load_subject(avatar, data)
    statistics = FeatureStats.load(speech_statistics(avatar, dataset, model.config.encoder))
    return StreamingAvatar(model, dataset, load_encoder(statistics.choice), statistics, config)


def measure_latency(streaming: StreamingAvatar, audio: np.ndarray) -> dict[str, float]:
    """Push int16 [S] in pieces of 40 ms, as fast as they are processed, and measure the time.

    Returns:
        `waits_ms`: time from audio to its frame, without computing. `hop_ms_median` and
        `hop_ms_p95`: time to compute a hop, median and 95th percentile. `latency_ms_p95`: the sum
        of waiting and computing. `real_time_factor`: computing time over the duration of the audio;
        below 1 the computer keeps up. `frames`: number of frames.
    """
    hops: list[float] = []
    frames = 0
    start = time.perf_counter()
    for first in range(0, len(audio), SAMPLES_PER_FRAME):
        before = time.perf_counter()
        count = sum(1 for _ in streaming.push_audio(audio[first : first + SAMPLES_PER_FRAME]))
        if count:
            hops.append(1000 * (time.perf_counter() - before))
        frames += count
    frames += sum(1 for _ in streaming.finish())
    seconds = time.perf_counter() - start
    waits = 1000 * streaming.latency
    slow = float(np.quantile(hops, 0.95)) if hops else float("nan")
    return {
        "waits_ms": waits,
        "hop_ms_median": float(np.median(hops)) if hops else float("nan"),
        "hop_ms_p95": slow,
        "latency_ms_p95": waits + slow,
        "real_time_factor": seconds * SAMPLE_RATE / len(audio),
        "frames": frames,
    }


def speak(streaming: StreamingAvatar, source: BinaryIO, show: Show) -> int:
    """Read PCM (s16le, 16 kHz, mono) from `source`, and show each frame with its 640 samples.

    It stops when the audio ends or the reader of the frames is closed. Returns the number of
    frames.
    """
    count = 0
    heard = np.empty(0, np.int16)

    def show_all(frames: Iterable[np.ndarray]) -> None:
        nonlocal count, heard
        for frame in frames:
            audio, heard = heard[:SAMPLES_PER_FRAME], heard[SAMPLES_PER_FRAME:]
            show(frame, np.pad(audio, (0, SAMPLES_PER_FRAME - len(audio))))
            count += 1

    try:
        while chunk := source.read(2 * SAMPLES_PER_FRAME):
            whole = chunk[: len(chunk) // 2 * 2]
            samples = np.frombuffer(whole, "<i2").astype(np.int16)
            heard = np.concatenate([heard, samples])
            show_all(streaming.push_audio(samples))
        show_all(streaming.finish())
    except CLOSED_VIEWER:
        logger.info("The program that reads the frames closed the connection.")
    return count


def raw_frames(sink: BinaryIO) -> Show:
    """Return a function that writes frames as raw RGB, without audio."""

    def show(frame: np.ndarray, _: np.ndarray) -> None:
        sink.write(frame.tobytes())
        sink.flush()

    return show


def _connection(port: int) -> socket.socket:
    """Wait for the first connection to a port of 127.0.0.1; UserError if the port is in use."""
    try:
        server = socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise UserError(f"The port {port} cannot be used ({error}). Choose another one.") from error
    with server:
        return server.accept()[0]


def main(
    *,
    avatar: Path,
    data: Path | None = None,
    port: int | None = None,
    output: str | None = None,
    benchmark: Path | None = None,
    config: Config = Config(),
) -> None:
    """Render an avatar live, from PCM audio (s16le, 16 kHz, mono) to raw RGB frames at 25 fps.

    Args:
        avatar: Avatar folder written by `talker train`, or file written by `talker bundle`.
        data: Dataset folder. It is not needed if the avatar is a file.
        port: Port of 127.0.0.1 on which to wait for one connection that sends the audio and reads
            the frames. By default, the audio is read from stdin and the frames are written to
            stdout.
        output: File (.mp4, .mkv, .flv or .ts) or address of a streaming server (rtmp:// or
            rtmps://) that receives the frames with their audio, encoded as H.264 and AAC. By
            default, raw frames are written to stdout or to the connection.
        benchmark: Wav file written by `talker audio`. If it is given, the command only measures
            the latency and the speed with this audio, and does not read or write streams.
        config: Options.
    """
    streaming = load_streaming_avatar(data, avatar, config)
    dataset = streaming.dataset
    if benchmark is not None:
        audio = WavFile(benchmark)
        whole_frames(audio, benchmark)
        list(streaming.push_audio(audio[: WARM_UP * SAMPLE_RATE]))  # compiles
        streaming = load_streaming_avatar(data, avatar, config)
        for name, value in measure_latency(streaming, audio[:]).items():
            logger.info("%s: %.4g", name, value)
        return
    logger.info(
        "The frames have %dx%d pixels (rgb24) at %d fps. The latency is %.0f ms plus the "
        "computation time.",
        *(dataset.width, dataset.height, FPS, 1000 * streaming.latency),
    )
    with ExitStack() as stack:
        stack.enter_context(suppress(*CLOSED_VIEWER))  # flushing to a closed viewer fails again
        if port is None:
            source = sys.stdin.buffer
            sink = stack.enter_context(open(sys.stdout.fileno(), "wb", closefd=False))
        else:
            connection = stack.enter_context(_connection(port))
            source = stack.enter_context(connection.makefile("rb"))
            sink = stack.enter_context(connection.makefile("wb"))
        show = raw_frames(sink)
        if output is not None:
            disclosure = disclosure_of(streaming.avatar, dataset)
            place = broadcast(output, dataset.height, dataset.width, disclosure)
            show = stack.enter_context(place)
        count = speak(streaming, source, show)
    logger.info("Wrote %d frames.", count)
