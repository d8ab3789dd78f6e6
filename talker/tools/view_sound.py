"""The audio panel of `talker view`: new speech, and the clock of its player.

The panel is a page of its own (view_sound.html) inside the page of the viewer. It sends audio files
and the time of its player over a WebSocket, and receives the audio that it plays.
"""

import html
import io
import json
import tempfile
import threading
import time
import wave
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from talker.avatar.drive import natural_blinks
from talker.clip import SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.dataset import Dataset
from talker.encoders import load_encoder
from talker.encoders.features import FeatureStats, avatar_features, windows
from talker.errors import UserError
from talker.media.audio import decode_audio

MAX_SPEECH = 600
"""Longest speech in seconds; the rest of a longer file is ignored."""
MAX_UPLOAD = 256 * 2**20
"""Size in bytes of the largest audio file that the page may send."""
PAGE = Path(__file__).with_name("view_sound.html")
"""Page of the panel."""


@dataclass(frozen=True)
class Speech:
    """New speech, one row for each frame."""

    sound: np.ndarray
    """int16 [S], samples at 16 kHz"""
    windows: Float32[np.ndarray, "N 16 C"]
    """float32 [N, 16, C], speech windows"""
    closure: Float32[np.ndarray, "N"]
    """float32 [N], eye closure from 0 (open) to 1 (closed)"""


def read_speech(content: bytes, dataset: Dataset, statistics: FeatureStats) -> Speech:
    """Extract the speech of an audio file of any format.

    Raises:
        UserError: the file contains no audio that can be decoded.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "sound")
        file.write_bytes(content)
        try:
            sound = decode_audio(file, limit=MAX_SPEECH * SAMPLE_RATE)
        except UserError as error:
            raise UserError(str(error).replace(str(file), "The file")) from error
    sound = np.pad(sound, (0, -len(sound) % SAMPLES_PER_FRAME))
    slots = avatar_features(load_encoder(statistics.choice), statistics, sound)
    rows = np.concatenate(list(windows(slots, statistics.look_ahead)))
    closure = natural_blinks(dataset.eye[dataset.train_ids, 0], len(rows), seed=0)
    return Speech(sound, rows, closure)


class Clock:
    """The time in the speech, as the player in the page reports it."""

    def __init__(self) -> None:
        self.reported = (0.0, 0.0, False)

    def set(self, seconds: float, playing: bool) -> None:
        """Take the time of the player in seconds."""
        self.reported = seconds, time.monotonic(), playing

    @property
    def playing(self) -> bool:
        return self.reported[2]

    def time(self) -> float:
        """Return the present time in the speech in seconds."""
        seconds, at, playing = self.reported
        return seconds + playing * (time.monotonic() - at)


class SoundPanel:
    """The server of the panel, with the speech and the clock of its player.

    Args:
        host: address to listen on.
        port: port to listen on.
        read: function that converts the content of an audio file into speech.
        changed: event that is set when the speech or the time has changed.

    Raises:
        UserError: the port is in use.
    """

    def __init__(
        self, host: str, port: int, read: Callable[[bytes], Speech], changed: threading.Event
    ) -> None:
        self.read, self.changed = read, changed
        self.speech: Speech | None = None
        self.clock = Clock()
        try:
            self.server = serve(self.attend, host, port, max_size=MAX_UPLOAD)
        except OSError as error:
            raise UserError(
                f"The port {port} cannot be used for the audio ({error}). Choose another `--port`."
            ) from error
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def attend(self, connection: ServerConnection) -> None:
        """Take audio files and the time of the player from the panel of a page."""
        with suppress(ConnectionClosed):
            if self.speech is not None:
                connection.send(wav_bytes(self.speech.sound))
            for message in connection:
                if isinstance(message, bytes):
                    self._accept(connection, message)
                else:
                    self._follow(message)
        self.clock.set(0.0, False)

    def _accept(self, connection: ServerConnection, content: bytes) -> None:
        """Read an audio file, and return its audio to the panel."""
        connection.send("Extracting the speech features")
        try:
            self.speech = self.read(content)
        except UserError as error:
            connection.send(str(error))
            return
        self.clock.set(0.0, False)
        connection.send(wav_bytes(self.speech.sound))
        connection.send("The speech is ready. Press play.")

    def _follow(self, message: str) -> None:
        """Take the time of the player; a message that is not understood is ignored."""
        with suppress(ValueError, KeyError, TypeError):
            clock = json.loads(message)
            played = self.clock.playing
            self.clock.set(max(0.0, float(clock["time"])), bool(clock["playing"]))
            if not (played and self.clock.playing):
                self.changed.set()

    def close(self) -> None:
        """End the server."""
        self.server.shutdown()


def panel_html(port: int) -> str:
    """Return the HTML element of the panel, whose server listens on a port."""
    page = PAGE.read_text(encoding="utf-8").replace("PORT", str(port))
    return (
        f'<iframe title="Sound" srcdoc="{html.escape(page)}" '
        'style="border:0;width:100%;height:100px;padding:0 0.6em"></iframe>'
    )


def wav_bytes(sound: np.ndarray) -> bytes:
    """Return int16 [S] at 16 kHz as the content of a wav file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(sound.astype("<i2").tobytes())
    return buffer.getvalue()
