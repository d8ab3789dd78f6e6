"""Compute checksums of files."""

import hashlib
from pathlib import Path

CHUNK = 1 << 20
"""Number of bytes that are read at once."""


def checksum(path: Path, kind: str) -> str:
    """Return a checksum of a file as hexadecimal digits; `kind` is sha256, sha1 or git."""
    digest = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
    if kind == "git":
        digest.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
