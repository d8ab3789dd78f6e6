"""A broadcast arrives with sound and picture together, in a file and at a server."""

import io
import socket
import subprocess
import time
from pathlib import Path

import av
import numpy as np
import pytest
from test_disclosure import SOURCE, TYPE, XMP_UUID, attributes
from test_speak import data, encoder, learned, streaming_avatar, syllables  # noqa: F401

from talker.errors import UserError
from talker.media.broadcast import broadcast
from talker.media.disclosure import Disclosure
from talker.tools.speak import speak

DISCLOSURE = Disclosure("me", "0" * 64, consent="By letter: 'yes'; [2026], 100 %=\\é")
INSTRUCTIONS = "{http://ns.adobe.com/photoshop/1.0/}Instructions"
FLASH = 25
"""Number of the frame that is bright and loud."""


def flash(target: str, frames: int = 50, disclosure: Disclosure | None = None) -> None:
    """Broadcast black and silent frames, except for one."""
    with broadcast(target, 33, 48, disclosure) as show:
        for k in range(frames):
            loud = 8000 * np.sin(np.arange(640)) if k == FLASH else np.zeros(640)
            show(np.full((33, 48, 3), 255 * (k == FLASH), np.uint8), loud.astype(np.int16))


def marks_of_pictures(file: Path) -> list[dict[str, str]]:
    """Return the XMP properties that the user data of the H.264 stream contain."""
    marks = []
    with av.open(str(file)) as container:
        for frame in container.decode(video=0):
            for data in frame.side_data:
                content = bytes(data)
                if data.type.name == "SEI_UNREGISTERED" and content[:16].hex() == XMP_UUID:
                    marks.append(attributes(content[16:].rstrip(b"\0")))
    return marks


def times_of_flash(file: str) -> tuple[float, float, int]:
    """Return the times in seconds of the flash and of its audio, and the number of frames."""
    gray: list[tuple[float, float]] = []
    loud: list[tuple[float, float]] = []
    with av.open(file) as container:
        for frame in container.decode(video=0, audio=0):
            if isinstance(frame, av.VideoFrame):
                gray.append((frame.to_ndarray(format="gray").mean(), frame.time))
            else:
                samples = np.abs(frame.to_ndarray().astype(float)).reshape(-1)
                at = int(samples.argmax())
                loud.append((samples[at], frame.time + at / frame.sample_rate))
    return max(gray)[1], max(loud)[1], len(gray)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".flv", ".ts"])
def test_a_file_has_sound_and_picture_together(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"me{suffix}"
    flash(str(file), disclosure=DISCLOSURE)
    shown, heard, frames = times_of_flash(str(file))
    assert frames == 50
    assert -0.02 < heard - shown < 0.06  # the audio of a frame lasts 40 ms
    marks = marks_of_pictures(file)
    assert len(marks) > 1 if suffix == ".ts" else len(marks) == 1  # one for each header
    if suffix != ".ts":  # it has no metadata
        with av.open(str(file)) as container:
            assert "Synthetic video" in str(container.metadata)
    assert marks[0][SOURCE] == TYPE
    assert DISCLOSURE.consent in marks[0][INSTRUCTIONS]


def test_a_server_receives_the_broadcast(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"rtmp://127.0.0.1:{free.getsockname()[1]}/live/me"
    program = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    received = tmp_path / "received.mkv"
    command = [program, "-v", "error", "-listen", "1", "-i", address, "-c", "copy", received]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as server:
        try:
            for _ in range(50):
                time.sleep(0.2)
                try:
                    flash(address, disclosure=DISCLOSURE)
                    break
                except UserError as error:  # the server does not listen yet
                    assert "refused" in str(error)
            server.wait(20)
        finally:
            server.kill()
    shown, heard, frames = times_of_flash(str(received))
    assert frames == 50 and -0.02 < heard - shown < 0.06
    assert DISCLOSURE.consent in marks_of_pictures(received)[0][INSTRUCTIONS]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://127.0.0.1/me", "Use an address with the scheme rtmp or rtmps"),
        ("me.avi", "It must be one of .mp4"),
        ("rtmp://127.0.0.1:9/live/me", "FFmpeg could not write to rtmp"),
    ],
)
def test_a_target_that_cannot_be_used_is_one_sentence(target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        flash(target)


def test_speech_is_broadcast_with_its_own_sound(data, encoder, learned) -> None:  # noqa: F811
    sound = syllables(30, seed=1)
    heard: list[np.ndarray] = []
    source = io.BytesIO(sound.astype("<i2").tobytes())
    count = speak(
        streaming_avatar(data, encoder, learned), source, lambda _, audio: heard.append(audio)
    )
    assert count == 30 and np.array_equal(np.concatenate(heard), sound)
