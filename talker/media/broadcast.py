"""Write a video while it is rendered and heard, into a file or to a streaming server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path

import av
import av.container
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.error import FFmpegError

from talker.clip import FPS, SAMPLE_RATE
from talker.core.files import atomic_write
from talker.errors import UserError
from talker.media.disclosure import Disclosure

SERVERS = {"rtmp": ("flv", "rtmp,tcp"), "rtmps": ("flv", "rtmps,tls,tcp")}
"""Container and FFmpeg's protocols for each scheme of an address."""
FILES = {".mp4": "mp4", ".mkv": "matroska", ".flv": "flv", ".ts": "mpegts"}
"""Container for each suffix of a file."""
AUDIO_RATE = 44_100
"""Sample rate of the encoded audio in Hz, which all streaming platforms accept."""
KEY_FRAME_PERIOD = 2 * FPS
"""Number of frames between two key frames, at which a viewer can join."""
CRF = 20
"""Constant rate factor of the encoder; smaller values give a better quality."""
PATIENCE = 10
"""Time in seconds after which a server that does not respond is given up."""

Show = Callable[[np.ndarray, np.ndarray], None]


@contextmanager
def broadcast(
    target: str, height: int, width: int, disclosure: Disclosure | None = None
) -> Iterator[Show]:
    """Yield `show(frame, audio)`, which sends a frame and its 40 ms of audio to the target.

    Video is encoded as H.264 with a low latency, and audio as AAC. A file appears when the block
    ends without an error.

    Args:
        target: address of a server (rtmp:// or rtmps://), or name of a file whose suffix selects
            the container. Only the protocol that the address names is used.
        height: height of the frames, RGB uint8 [H, W, 3], in pixels.
        width: width of the frames in pixels.
        disclosure: what the metadata says about a synthetic video; None writes no such metadata.

    Raises:
        UserError: the scheme or the suffix is unknown, or FFmpeg cannot reach or write the target.
    """
    scheme, separator, _ = target.partition("://")
    path = Path(target)
    if separator and scheme not in SERVERS:
        raise UserError(
            f"{target} has the scheme {scheme}. Use an address with the scheme "
            f"{' or '.join(SERVERS)}, or the name of a file."
        )
    if not separator and path.suffix not in FILES:
        raise UserError(
            f"{target} has the suffix {path.suffix!r}. It must be one of {', '.join(FILES)}. To "
            "send to a server, give its address, which begins with "
            f"{' or '.join(one + '://' for one in SERVERS)}."
        )
    if disclosure and disclosure.signature:
        disclosure.signature.require(path)
    name, protocols = SERVERS[scheme] if separator else (FILES[path.suffix], "file")
    options = {"protocol_whitelist": protocols}
    if separator:
        options["rw_timeout"] = str(PATIENCE * 1_000_000)
    place = nullcontext((target,)) if separator else atomic_write(path)
    try:
        with (
            place as (scratch,),
            av.open(str(scratch), "w", format=name, options=options) as container,
        ):
            container.metadata.update(disclosure.tags() if disclosure else {})
            yield from _encode(container, height, width, disclosure)
            if disclosure and not separator and name == "mp4":
                container.close()
                disclosure.complete(Path(scratch), path.suffix)
    except FFmpegError as error:
        raise UserError(f"FFmpeg could not write to {target}: {error.strerror}.") from error


def _encode(
    container: av.container.OutputContainer, height: int, width: int, disclosure: Disclosure | None
) -> Iterator[Show]:
    """Yield `show`, and complete the container when the generator continues."""
    video = container.add_stream(
        "libx264",
        rate=FPS,
        options={"preset": "veryfast", "tune": "zerolatency", "crf": str(CRF)},
    )
    video.height, video.width = height + height % 2, width + width % 2  # yuv420p needs even sizes
    video.pix_fmt, video.gop_size = "yuv420p", KEY_FRAME_PERIOD
    sound = container.add_stream("aac", rate=AUDIO_RATE, layout="mono")
    container.start_encoding()
    marker = BitStreamFilterContext(disclosure.h264_filter(), video, video) if disclosure else None
    count = samples = 0

    def encode(picture: av.VideoFrame | None) -> None:
        for packet in video.encode(picture):
            container.mux(marker.filter(packet) if marker else packet)

    def show(frame: np.ndarray, audio: np.ndarray) -> None:
        nonlocal count, samples
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), "rgb24")
        picture.pts, picture.time_base = count, Fraction(1, FPS)
        encode(picture)
        piece = av.AudioFrame.from_ndarray(audio[None].astype(np.int16), "s16", "mono")
        piece.sample_rate, piece.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
        piece.pts = samples
        container.mux(sound.encode(piece))
        count, samples = count + 1, samples + len(audio)

    yield show
    encode(None)
    container.mux(sound.encode())
