"""Open media files safely: regular local files only, in formats that refer to no other file."""

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
from av.error import FFmpegError
from av.stream import Stream

from talker.errors import UserError

REFERRING_FORMATS = {
    *("concat", "dash", "hls", "image2", "image2pipe", "imf", "webm_dash_manifest"),
    *("rtp", "rtsp", "sap", "sdp"),
    *("alsa", "fbdev", "kmsgrab", "lavfi", "tty", "video4linux2,v4l2", "x11grab"),
}
"""FFmpeg's formats that are refused: playlists, image sequences, network streams and devices."""
MAX_PIXELS = 8192 * 4320
"""Largest accepted frame in pixels (8K)."""
MAX_IDLE_SECONDS = 60
"""Largest accepted total length of the gaps in the timestamps of a track, in seconds."""
MAX_SECONDS = 12 * 3600
"""Longest accepted duration of a track in seconds."""


@contextmanager
def open_media(path: Path | zipfile.Path, kind: str) -> Iterator[av.container.InputContainer]:
    """Open a media file for reading.

    Only a regular file is opened, by its absolute path and with the protocol "file", so that no
    name is taken for a URL. Formats that refer to other files are refused. Metadata of an unknown
    encoding is replaced. Errors of FFmpeg inside the block become a UserError.

    Args:
        path: file on disk or in a zip archive.
        kind: expected content for the error message, such as "a video".

    Raises:
        UserError: the file is missing, empty, not a regular file, or cannot be read by FFmpeg.
    """
    try:
        if isinstance(path, Path):
            check_regular_file(path)
            file = os.path.abspath(path)
        else:
            file = io.BytesIO(path.read_bytes())
        with av.open(file, "r", options=_open_options(), metadata_errors="replace") as container:
            yield container
    except (FFmpegError, OSError) as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} cannot be read as {kind} ({reason}).") from error
    except ZeroDivisionError as error:
        message = (
            f"{path} is damaged: its header contains a time base of zero. Re-encode it, or copy it "
            "from its source again."
        )
        raise UserError(message) from error


def check_regular_file(path: Path) -> None:
    """Refuse folders, named pipes, sockets, devices and empty files.

    Raises:
        OSError: the file is missing or not accessible, is not a regular file, or is empty.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
        raise OSError(f"it is a {kinds.get(stat.S_IFMT(status.st_mode), 'device')}, not a file")
    if status.st_size == 0:
        raise OSError("it is an empty file")


def default_audio(container: av.container.InputContainer) -> av.AudioStream | None:
    """Return the audio track that players choose, or None if there is no audio."""
    streams = container.streams.audio
    try:
        best = container.streams.best("audio")
    except IndexError:  # FFmpeg has found a track after PyAV has listed them
        best = None
    return next((stream for stream in streams if stream is best), streams[0] if streams else None)


def read_packets(
    container: av.container.InputContainer, path: Path | zipfile.Path, *streams: Stream
) -> Iterator[av.Packet]:
    """Yield all packets of the streams (default: all), then one packet to flush each stream.

    Raises:
        UserError: the file contains a track that its header does not declare.
    """
    try:
        yield from container.demux(*streams)
    except IndexError as error:  # PyAV lists the tracks when it opens the file
        raise UserError(
            f"{path} contains a track that its header does not declare. Re-encode the file as mp4."
        ) from error


def seconds(ticks: int | None, time_base: Fraction | None) -> Fraction | None:
    """Return a timestamp in seconds, or None where it or its time base is undefined."""
    return None if ticks is None or not time_base else ticks * time_base


def _open_options() -> dict[str, str]:
    accepted: list[Any] = sorted(av.formats_available - REFERRING_FORMATS)
    return {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(accepted),
        "max_pixels": str(MAX_PIXELS),
    }
