"""Live speech of `talker serve`: every session is one person who talks with an avatar.

The avatar never stops: without speech it receives silence, so it moves with a closed mouth. Every
answer is one frame with exactly its 640 samples of audio, so the two cannot drift apart. A session
sends them over a WebSocket (here) or in a call (`talker/tools/calls.py`).
"""

import asyncio
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.errors import UserError
from talker.media.espeak import speech_samples
from talker.tools.speak import Config, StreamingAvatar, load_streaming_avatar
from talker.tools.studio import Studio

logger = logging.getLogger(__name__)

MAX_SPEECH = 120
"""Longest speech in seconds that waits to be spoken; the rest is ignored."""
MAX_DELAY = round(0.4 * SAMPLE_RATE)
"""Largest number of microphone samples in the buffer; older ones are dropped."""
START_DELAY = 3 * SAMPLES_PER_FRAME
"""Number of microphone samples that are buffered before the avatar starts to speak them, so that
samples that arrive late cause no gaps."""
MAX_LATE = 0.5
"""Time in seconds by which a session may fall behind before its clock is set back."""
MAX_TEXT = 500
"""Largest number of characters of a text to speak."""
MICROPHONE, SPEECH = 0, 1
"""First byte of a message with audio: part of a microphone recording, or a complete speech."""
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


@dataclass(frozen=True)
class Answer:
    """One frame of an avatar, with its audio."""

    number: int
    """number of the frame"""
    sound: np.ndarray
    """int16 [640], samples at 16 kHz"""
    image: np.ndarray
    """RGB uint8 [H, W, 3]; empty if the frame was skipped"""

    def message(self) -> bytes:
        """Return the number (uint32), the audio (int16) and the frame as JPEG, little-endian.

        A skipped frame has no JPEG.
        """
        number = self.number.to_bytes(4, "little")
        return number + self.sound.astype("<i2").tobytes() + jpeg(self.image)


class Session:
    """The speech of one person, and the frames and the audio that the avatar answers with.

    Args:
        streaming: avatar with a state of its own.
        pack: function that converts an answer into what is sent.
    """

    def __init__(
        self, streaming: SkippingAvatar, pack: Callable[[Answer], Any] = Answer.message
    ) -> None:
        self.streaming, self.pack = streaming, pack
        self.speech = np.empty(0, np.int16)
        """Samples that wait to be spoken."""
        self.microphone = False
        """Whether they come from a microphone."""
        self.buffering = False
        """Whether the samples of a microphone wait until there are enough."""
        self.lock = threading.Lock()
        self.spoken: deque[np.ndarray] = deque()
        """Audio of the frames that are not rendered yet, 640 samples each."""
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
        """Return the next samples, int16 [count]. Missing speech is filled with silence."""
        with self.lock:
            speech = self.speech
            if self.buffering and len(speech) < START_DELAY:
                return np.zeros(count, np.int16)
            self.buffering = False
            self.speech = speech[count:]
        return np.pad(speech[:count], (0, count - len(speech[:count])))

    def advance(self) -> list[Any]:
        """Speak the next hop, and return the packed answer for each frame that it completes."""
        sound = self.take(self.streaming.config.hop * SAMPLES_PER_FRAME)
        self.spoken.extend(sound.reshape(-1, SAMPLES_PER_FRAME))
        answers = []
        for image in self.streaming.push_audio(sound):
            answers.append(self.pack(Answer(self.frames, self.spoken.popleft(), image)))
            self.frames += 1
        return answers

    async def run(self, send: Callable[[Any], Awaitable[None]]) -> None:
        """Send the answers in real time, until the task is canceled.

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
            for answer in await asyncio.to_thread(self.advance):
                await send(answer)
            due += period


def jpeg(image: np.ndarray) -> bytes:
    """Return an image, RGB uint8 [H, W, 3], as JPEG; nothing for a skipped frame."""
    if not image.size:
        return b""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


class Avatars:
    """The avatars that live sessions share; each is loaded once."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.lock = threading.Lock()
        self.loaded: dict[Path, tuple[int, SkippingAvatar]] = {}

    def session(self, file: Path, pack: Callable[[Answer], Any] = Answer.message) -> Session:
        """Return a new session with an avatar; UserError if the file is damaged."""
        with self.lock:
            changed = file.stat().st_mtime_ns
            if self.loaded.get(file, (0, None))[0] != changed:
                one = load_streaming_avatar(None, file, self.config)
                self.loaded[file] = changed, self._copy(one)
            return Session(self._copy(self.loaded[file][1]), pack)

    def _copy(self, one: Any) -> SkippingAvatar:
        """Return a streaming avatar with the same networks and its own state."""
        return SkippingAvatar(one.avatar, one.dataset, one.encoder, one.statistics, self.config)


class BusyError(UserError):
    """There are as many sessions as allowed."""


class Live:
    """The live sessions of all people.

    Args:
        studio: folder with the avatars.
        config: options of live speech.
        voice: voice of espeak-ng for typed text.
        max_sessions: largest number of sessions at the same time.
    """

    def __init__(self, studio: Studio, config: Config, voice: str, max_sessions: int) -> None:
        self.studio, self.voice, self.max_sessions = studio, voice, max_sessions
        self.avatars = Avatars(config)
        self.sessions = 0
        """Number of sessions in progress."""
        self.speaking = threading.Lock()  # espeak-ng has one state for the whole process

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the block as a session; BusyError if there are as many as allowed."""
        if self.sessions >= self.max_sessions:
            raise BusyError("Too many sessions. Try again later.")
        self.sessions += 1
        try:
            yield
        finally:
            self.sessions -= 1

    async def converse(self, socket: WebSocket, name: str) -> None:
        """Let a person talk with an avatar over a WebSocket.

        The client sends audio as 16 kHz int16 after a byte (0: microphone, 1: a whole speech), or
        JSON: {"say": TEXT} or {"stop": true}. It receives a description of the session as JSON, and
        then an `Answer.message` for each frame.
        """
        await socket.accept()
        try:
            with self.counted():
                await self._converse(socket, name)
        except BusyError as error:
            await socket.close(1013, str(error))

    async def _converse(self, socket: WebSocket, name: str) -> None:
        task = None
        try:
            session = await asyncio.to_thread(self.avatars.session, self.studio.avatar(name))
            await socket.send_json(describe_session(session))
            task = asyncio.create_task(self._stream(session, socket))
            while not task.done():
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                try:
                    await asyncio.to_thread(self.apply, session, message)
                except UserError as error:
                    await socket.send_json({"error": str(error)})
        except UserError as error:
            await socket.send_json({"error": str(error)})
            await socket.close(1011)
        except WebSocketDisconnect:
            pass
        finally:
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError, RuntimeError, WebSocketDisconnect):
                    await task

    async def _stream(self, session: Session, socket: WebSocket) -> None:
        """Send the answers of a session, and close the socket if that fails."""
        try:
            await session.run(socket.send_bytes)
        except WebSocketDisconnect:
            pass
        except Exception:
            logger.exception("A live session failed.")
            await socket.close(1011, "The session failed. See the log of the server.")

    def apply(self, session: Session, message: Mapping[str, Any]) -> None:
        """Apply a message of a client to its session; UserError if it is not understood.

        Args:
            session: session of the client.
            message: audio in `bytes`, or JSON in `text`, as in a message of ASGI.
        """
        if (content := message.get("bytes")) is not None:
            if len(content) % 2 == 0:
                raise UserError(
                    "An audio message must start with one byte that gives its type, followed by "
                    "samples of 2 bytes each."
                )
            samples = np.frombuffer(content[1:], "<i2").astype(np.int16)
            if content[0] == MICROPHONE:
                session.listen(samples)
            else:
                session.say(samples)
            return
        try:
            request = json.loads(message.get("text") or "")
            text = request.get("say")
        except (ValueError, AttributeError) as error:
            raise UserError("The message is neither audio nor a JSON object.") from error
        if isinstance(text, str) and text.strip():
            if len(text) > MAX_TEXT:
                raise UserError(f"The text is longer than {MAX_TEXT} characters.")
            with self.speaking:
                samples = speech_samples(text, self.voice)
            session.say(samples)
        elif request.get("stop"):
            session.stop()


def describe_session(session: Session) -> dict[str, Any]:
    """Return what a client needs to know about a live session."""
    streaming = session.streaming
    return {
        "width": streaming.dataset.width,
        "height": streaming.dataset.height,
        "fps": FPS,
        "sample_rate": SAMPLE_RATE,
        "latency": streaming.latency,
    }
