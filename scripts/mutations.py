"""Mutations of bytes that work for any file format, for the scripts that fuzz the stages."""

import random

FOREIGN = {
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "zip": b"PK\x03\x04" + bytes(200),
    "gzip": b"\x1f\x8b\x08" + bytes(200),
    "elf": b"\x7fELF" + bytes(200),
    "pickle": b"\x80\x04\x95\x17\0\0\0\0\0\0\0\x8c\x02os\x8c\x06getcwd\x93)R.",
    "riff": b"RIFF\xff\xff\xff\xffWAVEfmt \xff\xff\xff\xff",
    "empty": b"",
    "byte": b"\x00",
}
"""Contents of other formats, which a renamed file may have."""


def truncate(rng: random.Random, content: bytes) -> bytes:
    """Return the beginning of `content`."""
    return content[: rng.randrange(len(content))]


def flip(rng: random.Random, content: bytes, ends: tuple[int, ...]) -> bytes:
    """Flip bits in the first bytes of `content`, or in all of it.

    Args:
        rng: random numbers.
        content: content of a file.
        ends: numbers of bytes that its headers may have.
    """
    damaged = bytearray(content)
    end = rng.choice([*ends, len(damaged)])
    for _ in range(rng.choice([1, 4, 32, 256])):
        damaged[rng.randrange(min(end, len(damaged)))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def overwrite(rng: random.Random, content: bytes) -> bytes:
    """Overwrite a part of `content` with zeros or noise; its length stays the same."""
    damaged = bytearray(content)
    at = rng.randrange(len(damaged))
    size = rng.randrange(1, max(2, len(damaged) // 3))
    filling = bytes(size) if rng.random() < 0.5 else rng.randbytes(size)
    damaged[at : at + size] = filling[: len(damaged) - at]
    return bytes(damaged)
