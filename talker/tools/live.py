"""Live speech of `talker serve`: every session is one person who talks with an avatar.

The avatar never stops: without speech it receives silence, so it moves with a closed mouth. Every
message holds one frame and exactly its 640 samples of sound, so the two cannot drift apart.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

import cv2
import numpy as np

from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.speak import StreamingAvatar

MAX_SPEECH = 120
"""Longest speech in seconds that waits to be spoken; the rest is ignored."""
MAX_DELAY = round(0.4 * SAMPLE_RATE)
"""Largest number of samples of a microphone that wait; older ones are dropped."""
START_DELAY = 3 * SAMPLES_PER_FRAME
"""Number of samples of a microphone that must arrive before they are spoken, so that the sound has
no gaps if a few of them come late."""
MAX_LATE = 0.5
"""Time in seconds by which a session may fall behind before its clock is set back."""
JPEG_QUALITY = 85
"""Quality of the frames, 1 to 100."""


class SkippingAvatar(StreamingAvatar):
    """A streaming avatar that renders only the last frame of a hop if the computer is too slow."""

    late = False
    """Whether to skip frames."""

    def _render(self, frames: int) -> Iterator[np.ndarray]:
        skipped = frames - self.rendered - 1 if self.late else 0
        for _ in range(skipped):
            yield np.empty(0, np.uint8)
        self.rendered += skipped
        yield from super()._render(frames)


class Session:
    """The speech of one person, and the frames and the sound that the avatar answers with."""

    def __init__(self, streaming: SkippingAvatar) -> None:
        self.streaming = streaming
        self.speech = np.empty(0, np.int16)
        """Samples that wait to be spoken."""
        self.microphone = False
        """Whether they come from a microphone."""
        self.buffering = False
        """Whether the samples of a microphone wait until there are enough."""
        self.lock = threading.Lock()
        self.spoken: deque[np.ndarray] = deque()
        """Sound of the frames that are not rendered yet, 640 samples each."""
        self.frames = 0
        """Number of frames that were sent."""

    def say(self, samples: np.ndarray) -> None:
        """Speak int16 [S] at 16 kHz, in place of what waits to be spoken."""
        with self.lock:
            self.speech = samples[: MAX_SPEECH * SAMPLE_RATE]
            self.microphone = self.buffering = False

    def listen(self, samples: np.ndarray) -> None:
        """Append int16 [S] of a microphone, which arrive as they are recorded.

        They replace other speech.
        """
        with self.lock:
            before = self.speech if self.microphone else self.speech[:0]
            self.buffering = self.buffering or not len(before)
            self.microphone = True
            self.speech = np.concatenate([before, samples])[-MAX_DELAY:]

    def stop(self) -> None:
        """Forget what waits to be spoken."""
        self.say(np.empty(0, np.int16))

    def take(self, count: int) -> np.ndarray:
        """Return the next samples int16 [count]; silence where there is no speech."""
        with self.lock:
            speech = self.speech
            if self.buffering and len(speech) < START_DELAY:
                return np.zeros(count, np.int16)
            self.buffering = False
            self.speech = speech[count:]
        return np.pad(speech[:count], (0, count - len(speech[:count])))

    def advance(self) -> list[bytes]:
        """Speak the next hop, and return a message for each frame that it completes.

        A message is the number of the frame (uint32), its 640 samples of sound (int16) and the
        frame as JPEG, all little-endian. A skipped frame has no JPEG.
        """
        sound = self.take(self.streaming.config.hop * SAMPLES_PER_FRAME)
        self.spoken.extend(sound.reshape(-1, SAMPLES_PER_FRAME))
        messages = []
        for image in self.streaming.push_audio(sound):
            number = self.frames.to_bytes(4, "little")
            messages.append(number + self.spoken.popleft().astype("<i2").tobytes() + jpeg(image))
            self.frames += 1
        return messages

    async def run(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send the messages in real time, until the task is canceled.

        If the computer is too slow, frames are skipped; if it is still too slow, the speech is
        slowed down, so that the delay stays bounded.
        """
        period = self.streaming.config.hop / FPS
        due = time.monotonic()
        while True:
            behind = time.monotonic() - due
            if behind > MAX_LATE:
                due += behind
            await asyncio.sleep(max(0.0, -behind))
            self.streaming.late = behind > period
            for message in await asyncio.to_thread(self.advance):
                await send(message)
            due += period


def jpeg(image: np.ndarray) -> bytes:
    """Return an image, RGB uint8 [H, W, 3], as JPEG; nothing for a skipped frame."""
    if not image.size:
        return b""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()
