"""Images on disk: RGB uint8 arrays in memory, whatever the file format keeps."""

import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from talker.clip import Clip
from talker.core.parallel import ordered_map
from talker.errors import UserError

PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def read_image(path: Path | zipfile.Path) -> np.ndarray:
    """Read an image as RGB uint8 [H, W, 3], or RGBA uint8 [H, W, 4] if it has an alpha channel.

    Raises:
        UserError: the file is missing or no image.
    """
    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
        pixels = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if len(encoded) else None
    except (OSError, KeyError):
        pixels = None
    if pixels is None:
        raise UserError(f"{path}: missing, or not an image that OpenCV can read")
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    code = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(pixels, code)


def write_image(path: Path, pixels: np.ndarray, quality: int = 95) -> None:
    """Write RGB uint8 [H, W, 3] or RGBA [H, W, 4]; `quality` (0-100) is for .jpg."""
    code = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    if not cv2.imwrite(str(path), cv2.cvtColor(pixels, code), options):
        raise OSError(f"{path}: could not be written")


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
    """Yield the images of `clip`'s frames `ids` (all of them if None) in order.

    Raises:
        UserError: an image is missing, unreadable or not of the clip's size.
    """

    def read(i: int) -> np.ndarray:
        path = folder / f"{i}{suffix}"
        image = read_image(path)
        if image.shape[:2] != (clip.height, clip.width):
            raise UserError(
                f"{path}: expected {clip.width}x{clip.height} pixels as clip.json says, "
                f"found {image.shape[1]}x{image.shape[0]}; make the frames again"
            )
        return image

    return ordered_map(read, range(clip.frames) if ids is None else ids)


def image_header(path: Path) -> tuple[int, int, int]:
    """Height, width and channels of a .png or .jpg that is whole: it has its end mark.

    Raises:
        UserError: the file is missing, of another format, or cut off.
    """
    try:
        with path.open("rb") as file:
            start = file.read(26)
            file.seek(-min(16, len(start)), os.SEEK_END)
            end = file.read()
            if start.startswith(b"\x89PNG\r\n\x1a\n") and len(start) == 26:
                found, whole = _png(start), b"IEND" in end
            elif start.startswith(b"\xff\xd8"):
                found, whole = _jpeg(file), b"\xff\xd9" in end
            else:
                raise UserError(f"{path}: is neither .png nor .jpg")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if found is None or not whole:
        raise UserError(f"{path}: is cut off")
    return found


def _png(start: bytes) -> tuple[int, int, int]:
    return _number(start[20:24]), _number(start[16:20]), PNG_CHANNELS.get(start[25], 0)


def _jpeg(file: BinaryIO) -> tuple[int, int, int] | None:
    """Walk the segments up to the one that describes the picture."""
    at = 2
    while True:
        file.seek(at)
        segment = file.read(10)
        if len(segment) < 10 or segment[0] != 0xFF:
            return None
        if segment[1] in JPEG_FRAMES:
            return _number(segment[5:7]), _number(segment[7:9]), segment[9]
        at += 2 + _number(segment[2:4])


def _number(digits: bytes) -> int:
    return int.from_bytes(digits, "big")
