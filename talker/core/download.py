"""Download files over HTTP: resumable, with progress, and never half-written."""

import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import requests

from talker.core.progress import progress
from talker.errors import UserError

logger = logging.getLogger(__name__)

TIMEOUT = (15, 60)
"""Seconds to wait for a connection, and for the next bytes."""
CHUNK = 1 << 16
"""Number of bytes that are received at once; at most these are lost if the connection is cut."""
STEP = 1 << 20
"""Number of bytes after which progress is reported."""
MIRROR = "TALKER_MIRROR"
"""Environment variable with the address of a mirror, such as http://localhost:8000. It replaces the
scheme and the host of every address."""


def mirrored(url: str) -> str:
    """Return the address from which `url` is downloaded: its own, or that of the mirror."""
    mirror = os.environ.get(MIRROR)
    return mirror.rstrip("/") + urlsplit(url).path if mirror else url


def download(url: str, partial: Path, size: int | None = None) -> None:
    """Download a file to `partial`, and continue if a part of it is already there.

    If the connection is cut, the download continues as long as every attempt receives something.
    `partial` is kept after an error, so that the next call continues.

    Args:
        url: address of the file.
        partial: path of the file, in an existing folder.
        size: expected size in bytes, if known.

    Raises:
        UserError: the server cannot be reached or does not have the file, the file has another
            size, or the disk has not enough space.
        OSError: the file cannot be written.
    """
    url = mirrored(url)
    while True:
        before = _size(partial)
        try:
            if _continue(url, partial, size):
                return
        except requests.RequestException as error:
            if _size(partial) > before:
                logger.info("The connection was interrupted. Continuing the download of %s.", url)
                continue
            raise UserError(_unreachable(url, partial, error)) from error


def _continue(url: str, partial: Path, size: int | None) -> bool:
    """Receive the rest of a file; return False if the server asks to start from the beginning."""
    have = _size(partial)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable and have:
            if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                return True  # it was already complete
            partial.unlink()
            return False
        if not answer.ok:
            raise UserError(
                f"{url}: the server answered {answer.status_code} {answer.reason}. Try again "
                f"later, or download the file from another place and copy it to {partial}."
            )
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise UserError(
                f"{url}: the server answered with a web page instead of the file. Open the address "
                "in a browser: a proxy or a login page may be in between."
            )
        resumed = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if answer.status_code == requests.codes.partial_content and resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else size
        if size is not None and total != size:
            raise UserError(
                f"{url}: the file on the server has {total:,} bytes instead of {size:,}. The "
                "publisher has probably replaced it. Update talker, or report this as an issue."
            )
        _require_space(partial, (total or 0) - have)
        if have:
            logger.info("Continuing the download of %s after %.1f MB.", url, have / 1e6)
        steps = math.ceil(((total or 0) - have) / STEP)
        for _ in progress(_append(partial, have, answer), url.rpartition("/")[2], steps, "MiB"):
            pass
    if total is not None and _size(partial) < total:
        raise requests.ConnectionError(f"received {_size(partial):,} of {total:,} bytes")
    return True


def _append(partial: Path, start: int, answer: requests.Response) -> Iterator[int]:
    """Write what is received to `partial` from byte `start` on; yield after every `STEP` bytes."""
    received = 0
    with open(partial, "ab" if start else "wb") as file:
        for chunk in answer.iter_content(CHUNK):
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                error.filename = error.filename or str(partial)
                raise
            received += len(chunk)
            if received % STEP < len(chunk):
                yield received


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _require_space(partial: Path, needed: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if needed > free:
        raise UserError(
            f"{partial.parent}: the disk has {free / 1e6:.0f} MB of free space, but the download "
            f"needs {needed / 1e6:.0f} MB. Free some space, or choose another folder."
        )


def _unreachable(url: str, partial: Path, error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        reason = "the server does not answer"
    elif isinstance(error, requests.exceptions.SSLError):
        reason = "the secure connection failed"
    elif isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema):
        return f"{url} is not a valid address. Correct it."
    else:
        reason = "the server cannot be reached, or the connection was interrupted"
    kept = f" {_size(partial) / 1e6:.1f} MB were received and are kept." if _size(partial) else ""
    return (
        f"{url}: {reason}. Check the network connection and run the same command again.{kept} "
        "Without a connection, download the file on another machine."
    )
