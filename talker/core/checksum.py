"""Compute checksums of files, and read files whose content is pinned by one."""

import hashlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from talker.errors import UserError

if TYPE_CHECKING:
    from torch.jit import ScriptModule

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


def read_verified(path: Path, sha256: str) -> bytes:
    """Return the content of a file.

    Raises:
        UserError: the file cannot be read, or its checksum differs.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise UserError(
            f"{path} has the SHA-256 checksum {actual}, but the configuration gives "
            f"'{sha256}'. Download the file again, or give the checksum of the file that "
            "you want to use."
        )
    return content


def load_torchscript(path: Path, sha256: str) -> "ScriptModule":
    """Load a TorchScript module onto the CPU.

    Raises:
        UserError: the file is missing, has another checksum, or is not a TorchScript module.
    """
    import torch

    content = BytesIO(read_verified(path, sha256))
    try:
        return torch.jit.load(content, map_location="cpu").eval()
    except RuntimeError as error:
        raise UserError(
            f"{path} is not a TorchScript module ({error}). Write it with torch.jit.trace or "
            "torch.jit.script."
        ) from error
