"""Sizes of images from the headers of their files, without decoding a pixel."""

import os
from pathlib import Path
from typing import BinaryIO

from talker.errors import UserError

PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


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
