"""Read and write image files; in memory images are always RGB or RGBA uint8 arrays."""

import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from talker.clip import BROKEN_ZIP, Clip, check_regular
from talker.core.parallel import ordered_map
from talker.errors import UserError

MAX_PIXELS = 1 << 26
"""Largest accepted number of pixels of an image: 8192 x 8192, the limit of `talker frames`."""
MAX_SIDE = 32_768
"""Largest accepted width and height of an image in pixels, the limit of clip.json."""
PNG_HEADER = 26
"""Length in bytes of the start of a PNG file, up to its color type."""
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""Number of channels for each color type in the header of a PNG file."""
PNG_OPTIONS = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT]
"""Options of OpenCV for PNG files. With them, masks and torso images take 40 % less time to decode
than with OpenCV's own default, which only compresses runs of equal bytes. Masks become 5 kB larger,
and the size of torso images changes by -15 to 7 %.
"""
JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers of the JPEG segments that contain the size of the image."""


def read_image(path: Path | zipfile.Path) -> np.ndarray:
    """Read an image as RGB uint8 [H, W, 3], or RGBA uint8 [H, W, 4] if it has an alpha channel.

    Raises:
        UserError: the file is missing, is not a PNG, JPEG, WebP or BMP image that OpenCV can read,
            does not have 8 bits per channel, or has more than `MAX_PIXELS` pixels.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    check_regular(path)
    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
        pixels = _decode(encoded, path)
    except (OSError, cv2.error, *BROKEN_ZIP) as error:
        raise UserError(f"{path} cannot be read as an image ({error}).") from error
    if pixels is None:
        raise UserError(f"{path} is not a PNG, JPEG, WebP or BMP image that OpenCV can read.")
    if pixels.dtype != np.uint8:
        raise UserError(
            f"{path} has the pixel type {pixels.dtype}. It must have 8 bits per channel."
        )
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    code = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(pixels, code)


def _decode(encoded: np.ndarray, path: Path | zipfile.Path) -> np.ndarray | None:
    """Decode an image after checking that its header claims a size that fits in memory."""
    start = encoded[:32].tobytes()
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        size = _png(start) if len(start) >= PNG_HEADER else None
    elif start.startswith(b"\xff\xd8"):
        size = _jpeg(io.BytesIO(encoded.tobytes()))
    elif start.startswith(b"BM"):
        size = _little_endian(start[22:26], signed=True), _little_endian(start[18:22])
    elif start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        size = _webp(start)
    else:
        size = None
    if size is None:
        return None
    _check_size(path, abs(size[0]), size[1])
    return cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)


def _check_size(path: Path | zipfile.Path, height: int, width: int) -> None:
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise UserError(
            f"{path} declares {width}x{height} pixels. It must have at most {MAX_PIXELS / 1e6:.0f} "
            f"million pixels, and each side must have at most {MAX_SIDE}."
        )


def write_image(path: Path, pixels: np.ndarray, quality: int = 95) -> None:
    """Write RGB uint8 [H, W, 3] or RGBA [H, W, 4]; `quality` (0-100) applies to .jpg.

    Raises:
        OSError: the file cannot be written, with the reason of the system.
    """
    code = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    jpeg = [cv2.IMWRITE_JPEG_QUALITY, quality]
    options = {".jpg": jpeg, ".png": PNG_OPTIONS}.get(path.suffix, [])
    encoded = cv2.imencode(path.suffix, cv2.cvtColor(pixels, code), options)[1]
    path.write_bytes(encoded.tobytes())


def jpeg_bytes(pixels: np.ndarray, quality: int = 95) -> bytes:
    """Encode RGB uint8 [H, W, 3] as a JPEG file in memory."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)[1]
    return encoded.tobytes()


def webp_bytes(pixels: np.ndarray, quality: int) -> bytes:
    """Encode RGB or RGBA uint8 [H, W, 3 or 4] as a WebP file in memory; alpha stays exact."""
    code = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    options = [cv2.IMWRITE_WEBP_QUALITY, quality]
    return cv2.imencode(".webp", cv2.cvtColor(pixels, code), options)[1].tobytes()


def read_numbered(
    folder: Path, clip: Clip, suffix: str = ".jpg", ids: Iterable[int] | None = None
) -> Iterator[np.ndarray]:
    """Yield the images of the frames `ids` of a clip in order; all frames if `ids` is None.

    Raises:
        UserError: as in `read_frame`.
    """
    numbers = range(clip.frames) if ids is None else ids
    return ordered_map(lambda i: read_frame(folder, clip, i, suffix), numbers)


def read_frame(folder: Path, clip: Clip, i: int, suffix: str = ".jpg") -> np.ndarray:
    """Read the image of frame i of a clip as RGB uint8 [H, W, 3].

    Raises:
        UserError: the image is missing, unreadable, not of the clip's size, or has an alpha
            channel.
    """
    path = folder / f"{i}{suffix}"
    image = read_image(path)
    if image.shape[:2] != (clip.height, clip.width):
        raise UserError(
            f"{path} has {image.shape[1]}x{image.shape[0]} pixels, but clip.json "
            f"declares {clip.width}x{clip.height}. Run `talker frames` again."
        )
    if image.shape[2] != 3:
        raise UserError(f"{path} has an alpha channel. Use an image without one.")
    return image


def image_header(path: Path) -> tuple[int, int, int]:
    """Return height, width and channels of a .png or .jpg file without decoding it.

    Raises:
        UserError: the file is missing, has another format, is truncated (no end marker), or
            declares too many pixels.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            start = file.read(PNG_HEADER)
            file.seek(-min(16, len(start)), os.SEEK_END)
            end = file.read()
            if start.startswith(b"\x89PNG\r\n\x1a\n") and len(start) == PNG_HEADER:
                header, complete = _png(start), b"IEND" in end
            elif start.startswith(b"\xff\xd8"):
                header, complete = _jpeg(file), b"\xff\xd9" in end
            else:
                raise UserError(f"{path} is neither a PNG nor a JPEG image.")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    if header is None or not complete:
        raise UserError(f"{path} is truncated.")
    _check_size(path, *header[:2])
    return header


def _png(start: bytes) -> tuple[int, int, int]:
    return _big_endian(start[20:24]), _big_endian(start[16:20]), PNG_CHANNELS.get(start[25], 0)


def _jpeg(file: BinaryIO) -> tuple[int, int, int] | None:
    """Return height, width and channels from the first segment that contains them."""
    at = 2
    while True:
        file.seek(at)
        segment = file.read(10)
        if len(segment) < 10 or segment[0] != 0xFF:
            return None
        if segment[1] == 0xFF:  # a fill byte
            at += 1
            continue
        if segment[1] in JPEG_FRAMES:
            return _big_endian(segment[5:7]), _big_endian(segment[7:9]), segment[9]
        at += 2 + _big_endian(segment[2:4])


def _webp(start: bytes) -> tuple[int, int]:
    """Return height and width from the first chunk of a WebP file."""
    if start[12:16] == b"VP8X":
        return 1 + _little_endian(start[27:30]), 1 + _little_endian(start[24:27])
    if start[12:16] == b"VP8L":
        bits = _little_endian(start[21:25])
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    return _little_endian(start[28:30]) & 0x3FFF, _little_endian(start[26:28]) & 0x3FFF


def _little_endian(digits: bytes, signed: bool = False) -> int:
    return int.from_bytes(digits, "little", signed=signed)


def _big_endian(digits: bytes) -> int:
    return int.from_bytes(digits, "big")
