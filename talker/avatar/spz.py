"""Gaussians as an SPZ file, a compressed format that many viewers read.

The format is that of https://github.com/nianticlabs/spz, version 2: a gzip stream with a header of
16 bytes and one array for each kind of parameter. Its axes are x right, y up and z back, which are
those of the avatar. A file takes about 15 bytes for each Gaussian without harmonics, instead of 248
as .ply.
"""

import gzip
import struct
from pathlib import Path

import numpy as np

from talker.avatar.gaussians import Gaussians

MAGIC, VERSION = 0x5053474E, 2
POSITION_BITS = 12
"""Number of bits of a coordinate after the binary point; coordinates have 24 bits."""
COLOR_SCALE = 0.15
"""Factor of the constant color coefficients before they are stored around 0.5."""
HARMONIC_BITS = (5, 4)
"""Number of significant bits of the coefficients of degree 1, and of higher degrees."""


def save_spz(path: Path, gaussians: Gaussians) -> None:
    """Write Gaussians [G, ...] to an .spz file."""
    means, quats, scales, opacities, sh = gaussians.arrays()
    count, harmonics = sh.shape[:2]
    degree = round(harmonics**0.5) - 1
    fixed = np.round(means * 2**POSITION_BITS).clip(-(2**23), 2**23 - 1).astype("<i4")
    unit = quats / np.linalg.norm(quats, axis=-1, keepdims=True)
    unit *= np.where(unit[:, :1] < 0, -1, 1)
    steps = np.where(np.arange(1, harmonics) < 4, *(2 ** (8 - bits) for bits in HARMONIC_BITS))
    rest = np.round(sh[:, 1:] * 128 + 128)
    rest = np.floor((rest + steps[:, None] // 2) / steps[:, None]) * steps[:, None]
    parts = [
        struct.pack("<IIIBBBB", MAGIC, VERSION, count, degree, POSITION_BITS, 0, 0),
        fixed.reshape(-1, 1).view(np.uint8)[:, :3].tobytes(),
        _bytes(255 / (1 + np.exp(-opacities))),
        _bytes((COLOR_SCALE * sh[:, 0] + 0.5) * 255),
        _bytes((scales + 10) * 16),
        _bytes(unit[:, 1:] * 127.5 + 127.5),
        _bytes(rest),
    ]
    path.write_bytes(gzip.compress(b"".join(parts), mtime=0))


def _bytes(values: np.ndarray) -> bytes:
    """Round values to whole numbers from 0 to 255."""
    return np.round(values).clip(0, 255).astype(np.uint8).tobytes()
