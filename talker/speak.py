"""Let an avatar speak while the speech comes in: 16 kHz PCM from stdin or a socket, frames out.

    arecord -q -t raw -f S16_LE -r 16000 | talker speak --data data/me --avatar results/me/avatar \
        | ffplay -f rawvideo -pixel_format rgb24 -video_size 512x512 -framerate 25 -
"""

import logging
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from talker.avatar.drive import natural_blinks, ping_pong, stretch
from talker.avatar.live import live_avatar
from talker.avatar.renderer import Drive, avatar_dataset, load_avatar, render_frames
from talker.avatar.speech_encoder import CONTEXT
from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.core.config import AtLeast1, NonNegative, validated
from talker.data.layout import speech_statistics
from talker.dataset import Dataset
from talker.encoders.base import Encoder
from talker.encoders.features import (
    SLOT,
    SLOT_RATE,
    SLOTS_PER_FRAME,
    WINDOW,
    mirrored,
    rows_at,
    silenced,
    whole_frames,
)
from talker.encoders.loudness import gain_between, pauses, slot_levels, speech_level
from talker.encoders.registry import load_encoder
from talker.encoders.statistics import Statistics
from talker.errors import UserError
from talker.media.audio import WavFile

logger = logging.getLogger(__name__)

REMEMBERED = 10 * SLOT_RATE
"""slots whose loudness counts"""
BLINKED = 600 * FPS
"""frames after which the blinks repeat"""
GONE = BrokenPipeError, ConnectionResetError
"""What a closed viewer raises."""


@validated
class Config:
    """Options of `talker speak`."""

    hop: AtLeast1 = 2
    """frames rendered at once: fewer come sooner, more cost less"""
    ahead: NonNegative = 0.1
    """seconds of sound that the encoder waits for beyond what it describes"""
    past: NonNegative = 4.0
    """seconds of sound that it hears again for every hop"""
    seed: int = 0
    """of the blinks"""

    def latency(self, look_ahead: int) -> float:
        """Seconds from a sound to its frame, without the time that computing takes.

        A frame's window reaches 9 + `look_ahead` slots of 20 ms beyond the frame's start, the
        encoder waits for `ahead`, and frames come in hops. AudioNet's context of 3 later frames is
        not waited for: the newest window stands in for theirs.
        """
        return (WINDOW // 2 + 1 + look_ahead) * 0.02 + self.ahead + self.hop / FPS


class Speaker:
    """Takes sound of any length at a time and yields the frames that it completes."""

    def __init__(
        self, avatar: Any, dataset: Dataset, encoder: Encoder, learned: Statistics, config: Config
    ) -> None:
        self.avatar, self.dataset, self.config = avatar, dataset, config
        self.draw = live_avatar(avatar, config.hop)
        self.on_gpu = next(avatar.parameters()).is_cuda
        self.encoder, self.learned = encoder, learned
        ids = stretch(dataset)
        self.path = ids[ping_pong(max(1, 2 * len(ids) - 2), len(ids))]
        self.eye = natural_blinks(dataset.eye[dataset.train_ids], BLINKED, config.seed)
        self.sound = np.empty(0, np.int16)
        self.heard = 0
        """samples that came in, of which `sound` is the end"""
        self.levels = np.empty(0, np.float32)
        self.slots = np.empty((0, len(learned.silence)), np.float32)
        self.described = 0
        """slots that were described, of which `slots` is the end"""
        self.shown = 0
        """frames that were yielded"""

    @property
    def latency(self) -> float:
        return self.config.latency(self.learned.look_ahead)

    def hear(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Take int16 [n] of sound; yield the RGB uint8 [H, W, 3] frames that it completes."""
        self._remember(samples)
        ahead = round(self.config.ahead * SAMPLE_RATE)
        ready = max(0, (self.heard - ahead) // SLOT)
        frames = (ready - self._reach()) // SLOTS_PER_FRAME
        if frames - self.shown >= self.config.hop:
            self._describe(ready)
            yield from self._show(frames)

    def finish(self) -> Iterator[np.ndarray]:
        """Yield the frames that are left, one for each 640 samples, the last begun one included."""
        frames = -(-self.heard // SAMPLES_PER_FRAME)
        self._remember(np.zeros(frames * SAMPLES_PER_FRAME - self.heard, np.int16))
        if frames > self.shown:
            self._describe(frames * SLOTS_PER_FRAME)
            yield from self._show(frames)

    def _reach(self) -> int:
        """Slots beyond a frame's first one that its window needs."""
        return WINDOW // 2 - 1 + self.learned.look_ahead

    def _remember(self, samples: np.ndarray) -> None:
        whole = self.heard // SLOT
        begin = self.heard - len(self.sound)
        sound = np.concatenate([self.sound, samples])
        levels = np.concatenate([self.levels, slot_levels(sound[whole * SLOT - begin :])])
        self.heard += len(samples)
        needed = self.described * SLOT - round(self.config.past * SAMPLE_RATE)
        self.sound = sound[max(0, needed - begin) :]
        self.levels = levels[-max(REMEMBERED, self.heard // SLOT - self.described) :]

    def _describe(self, ready: int) -> None:
        """Describe the slots up to `ready`, hearing the sound before them again."""
        past = round(self.config.past * SAMPLE_RATE)
        first = self.described * SLOT - past
        gain = gain_between(speech_level(self.levels), self.learned.level)
        begin = self.heard - len(self.sound)
        piece = gain * mirrored(self.sound, first - begin, self.heard - begin)
        rows = self.encoder.describe(piece, first)
        centres = (np.arange(self.described, ready) + 0.5) * SLOT - first
        slots = self.learned.reduce(rows_at(rows, self.encoder, centres / SAMPLE_RATE))
        known = self.heard // SLOT
        silent = pauses(self.levels, self.learned.pause)
        at = np.arange(self.described, ready) - (known - len(silent))
        slots = silenced(slots, silent[at.clip(0, len(silent) - 1)], self.learned)
        kept = (CONTEXT + WINDOW) * SLOTS_PER_FRAME
        self.slots = np.concatenate([self.slots, slots])[-max(kept, len(slots) + kept) :]
        self.described = ready

    def _show(self, frames: int) -> Iterator[np.ndarray]:
        """Render up to frame `frames`, with the windows that their context needs."""
        first = max(self.shown - CONTEXT // 2, 0)
        begin = self.described - len(self.slots)
        lead = WINDOW // 2 - 1 - self.learned.look_ahead
        at = SLOTS_PER_FRAME * np.arange(first, frames)[:, None] - lead + np.arange(WINDOW)
        windows = self.slots[(at - begin).clip(0, len(self.slots) - 1)]
        ids = np.arange(self.shown, frames)
        drive = Drive(
            frames=self.path[ids % len(self.path)],
            windows=windows,
            heard=ids - first,
            eye=self.eye[ids % BLINKED],
        )
        self.shown = frames
        batch = self.config.hop if self.on_gpu else 1  # on the CPU each core takes a frame
        yield from render_frames(self.avatar, self.dataset, drive, batch, live=self.draw)


def load_speaker(data: Path, avatar: Path, config: Config) -> Speaker:
    """Read what speaks: the avatar, its dataset, its encoder.

    Raises:
        UserError: something is missing, or the encoder cannot describe live sound.
    """
    model = load_avatar(avatar)
    dataset = avatar_dataset(data, model)
    own = avatar / "speech.npz"
    stored = dataset.folder / speech_statistics(model.config.encoder)
    learned = Statistics.load(own if own.exists() else stored)
    return Speaker(model, dataset, load_encoder(learned.choice), learned, config)


def measure_latency(speaker: Speaker, sound: np.ndarray) -> dict[str, float]:
    """Speak int16 [S] as fast as it goes, 40 ms at a time, and time it.

    Returns:
        `waits_ms`, from a sound to its frame without computing; `hop_ms_median` and `hop_ms_p95`,
        what a hop takes to compute; `latency_ms_p95`, both together; `real_time_factor`, computing
        over sound (below 1 it keeps up); `frames`.
    """
    hops: list[float] = []
    frames = 0
    begun = time.perf_counter()
    for start in range(0, len(sound), SAMPLES_PER_FRAME):
        before = time.perf_counter()
        made = sum(1 for _ in speaker.hear(sound[start : start + SAMPLES_PER_FRAME]))
        if made:
            hops.append(1000 * (time.perf_counter() - before))
        frames += made
    frames += sum(1 for _ in speaker.finish())
    seconds = time.perf_counter() - begun
    waits = 1000 * speaker.latency
    slow = float(np.quantile(hops, 0.95)) if hops else float("nan")
    return {
        "waits_ms": waits,
        "hop_ms_median": float(np.median(hops)) if hops else float("nan"),
        "hop_ms_p95": slow,
        "latency_ms_p95": waits + slow,
        "real_time_factor": seconds * SAMPLE_RATE / len(sound),
        "frames": frames,
    }


def speak(speaker: Speaker, sound: BinaryIO, picture: BinaryIO) -> int:
    """Pass on PCM (s16le, 16 kHz, mono) as raw RGB frames; how many there were.

    It ends with the sound, or when nobody takes the frames any more.
    """
    frames = 0

    def pass_on(made: Iterable[np.ndarray]) -> None:
        nonlocal frames
        for frame in made:
            picture.write(frame.tobytes())
            picture.flush()
            frames += 1

    try:
        while chunk := sound.read(2 * SAMPLES_PER_FRAME):
            whole = chunk[: len(chunk) // 2 * 2]
            pass_on(speaker.hear(np.frombuffer(whole, "<i2").astype(np.int16)))
        pass_on(speaker.finish())
    except GONE:
        logger.info("the viewer was closed")
    return frames


def _connection(port: int) -> socket.socket:
    """Wait for the first to call this port of 127.0.0.1; UserError if it is taken."""
    try:
        server = socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port}: cannot be used ({error}); take another") from error
    with server:
        return server.accept()[0]


def main(
    *,
    data: Path,
    avatar: Path,
    port: int | None = None,
    benchmark: Path | None = None,
    config: Config = Config(),
) -> None:
    """Speak live: PCM (s16le, 16 kHz, mono) in, raw RGB frames (25 a second) out.

    Args:
        data: dataset folder.
        avatar: folder that `talker train` wrote.
        port: wait on this port of 127.0.0.1 for one connection that sends the sound and takes the
            frames; without it they come from stdin and go to stdout.
        benchmark: measure latency and speed on this wav (of `talker audio`) instead.
        config: options.
    """
    speaker = load_speaker(data, avatar, config)
    dataset = speaker.dataset
    if benchmark is not None:
        recorded = WavFile(benchmark)
        whole_frames(recorded, benchmark)
        for name, value in measure_latency(speaker, recorded[:]).items():
            logger.info("%s: %.4g", name, value)
        return
    logger.info(
        "%dx%d rgb24 at %d fps, %.0f ms behind the sound and what computing takes",
        *(dataset.width, dataset.height, FPS, 1000 * speaker.latency),
    )
    with ExitStack() as stack:
        stack.enter_context(suppress(*GONE))  # what the viewer did not take cannot be flushed
        if port is None:
            sound = sys.stdin.buffer
            picture = stack.enter_context(open(sys.stdout.fileno(), "wb", closefd=False))
        else:
            connection = stack.enter_context(_connection(port))
            sound = stack.enter_context(connection.makefile("rb"))
            picture = stack.enter_context(connection.makefile("wb"))
        frames = speak(speaker, sound, picture)
    logger.info("%d frames", frames)
