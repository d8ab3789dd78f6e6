"""Images on disk: RGB uint8 arrays in memory, whatever the file format keeps."""

import zipfile
from pathlib import Path

import cv2
import numpy as np

from talker.errors import UserError


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
