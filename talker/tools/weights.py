"""List the optional models that talker can use, and download those that may be downloaded.

    talker weights
    talker weights fetch bisenet
    talker weights fetch obama --to data/obama/obama.mp4

Talker downloads nothing unless you run this command or choose an example video.
"""

import bz2
import json
import logging
import shutil
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Literal

import tyro

from talker.core.config import validated
from talker.core.download import download
from talker.core.exclusive import exclusive
from talker.core.files import atomic_write
from talker.data.weights import (
    WEIGHTS,
    Download,
    Weights,
    fault_of,
    location,
    paths_of,
)
from talker.errors import UserError

logger = logging.getLogger(__name__)


@validated
class Config:
    """Options of `talker weights`."""

    json: bool = False
    """Print the list as JSON."""
    accept_license: bool = False
    """Accept the license of the model, which `list` prints. Without this option, the
    command asks for confirmation, or stops with an error if it does not run in a terminal."""


def main(
    action: Annotated[Literal["list", "fetch"], tyro.conf.Positional] = "list",
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    *,
    to: Path | None = None,
    config: Config = Config(),
) -> None:
    """List the optional models, or download some of them.

    Args:
        action: `list` prints every model with its purpose, license, source, size, checksum and
            path, and whether the file exists and is valid. `fetch` downloads models to the folder
            in which talker searches for them. The environment variable TALKER_WEIGHTS sets this
            folder; the default is ~/.cache/talker/weights. An interrupted download is continued.
        names: Names of the models. Without names, `list` prints all models. `fetch` needs at least
            one name.
        to: Path to download to, instead of the default path: a file, or a folder if the model has
            several files. With this option, exactly one model must be named.
        config: Options.
    """
    chosen = [_weights(name) for name in names]
    if action == "fetch":
        if not chosen or (to is not None and len(chosen) > 1):
            raise UserError(
                "`talker weights fetch` needs the name of a model. `talker weights` lists the "
                "models."
            )
        for weights in chosen:
            fetch(weights, to, config.accept_license)
    else:
        rows = [describe(weights) for weights in chosen or WEIGHTS.values()]
        print(json.dumps(rows, indent=2) if config.json else as_text(rows))


def _weights(name: str) -> Weights:
    if name not in WEIGHTS:
        raise UserError(f"There is no model '{name}'. The models are: {', '.join(WEIGHTS)}.")
    return WEIGHTS[name]


def describe(weights: Weights) -> dict[str, str]:
    """Return what is known about a model, and its state on this machine, as text."""
    sums = [f"{file.checksum or 'unknown'} {file.name}" for file in weights.files]
    return {
        "name": weights.key,
        "state": state_of(weights),
        "purpose": weights.purpose,
        "used by": weights.use,
        "license": weights.license,
        "source": weights.source,
        "size": "unknown" if weights.size is None else f"{weights.size:,} bytes",
        "checksum": "\n".join(sums) or "unknown",
        "path": f"{location(weights)}" if weights.files else "given by the option under `used by`",
        "get it": f"talker weights fetch {weights.key}" if weights.files else weights.hint(),
    }


def state_of(weights: Weights) -> str:
    """Return whether a model is at its default path, and valid."""
    if not weights.files:
        return "not downloadable"
    for file, path in paths_of(weights):
        if not path.is_file():
            return (
                f"included in a package: {packaged}"
                if (packaged := _packaged(weights))
                else "missing"
            )
        if fault := fault_of(file, path):
            return f"invalid: {path} {fault}"
    return "valid"


def _packaged(weights: Weights) -> str | None:
    """Return the path of a model inside an installed package, or None."""
    if weights.key != "dlib":
        return None
    from talker.backends.landmarks_dlib import packaged_weights

    return packaged_weights()


def as_text(rows: Iterable[dict[str, str]]) -> str:
    """Return the rows of `describe` as one table with a block of lines for each model."""
    lines = []
    for row in rows:
        lines.append(f"{row['name']:<14}{row['purpose']} [{row['state']}]")
        for key in ("used by", "license", "source", "size", "checksum", "path", "get it"):
            first, *more = row[key].split("\n")
            lines += [f"  {key:<12}{first}", *(f"  {'':<12}{line}" for line in more)]
    return "\n".join(lines)


def fetch(weights: Weights, to: Path | None = None, accept_license: bool = False) -> Path:
    """Download a model, unless it is there already, and return its path.

    Args:
        weights: the model.
        to: path to write instead of the default `location`.
        accept_license: whether the user accepted the terms of use.

    Raises:
        UserError: the model cannot be downloaded, its terms were not accepted, another file is at
            its path, or the download fails.
    """
    if not weights.files:
        raise UserError(
            f"{weights.key} cannot be downloaded by this command (license: "
            f"{weights.license}). To obtain it, {weights.hint()}. Then set `{weights.use}`."
        )
    missing = [(file, path) for file, path in paths_of(weights, to) if not _is_there(file, path)]
    if missing:
        _require_license(weights, accept_license)
    for file, path in missing:
        with exclusive([path], f"fetch:{file.checksum}") as needed:
            if needed:
                _fetch_file(file, path)
    path = to or location(weights)
    logger.info(
        "%s: %s. To use it, set `%s`.", path, "fetched" if missing else "valid", weights.use
    )
    return path


def _is_there(file: Download, path: Path) -> bool:
    """Return whether the published file is at `path`; UserError if it is another."""
    if not path.exists():
        return False
    if not path.is_file():
        raise UserError(
            f"{path} is a folder, but a file with this name is needed. Move the folder to "
            "another place."
        )
    if fault := fault_of(file, path):
        raise UserError(
            f"{path} is not the published file: it {fault}. Move or delete it, and run the same "
            "command again."
        )
    return True


def _require_license(weights: Weights, accepted: bool) -> None:
    """Ask whether the user accepts restricted terms of use; UserError if not."""
    if accepted or not weights.restricted:
        return
    terms = f"The license of {weights.key} restricts its use: {weights.license} ({weights.source})."
    if not sys.stdin or not sys.stdin.isatty():
        raise UserError(f"{terms} To accept it, repeat the command with --accept-license.")
    print(terms, file=sys.stderr)
    if input("Do you accept these terms? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError(f"{weights.key} was not downloaded, because the terms were not accepted.")


def _fetch_file(file: Download, path: Path) -> None:
    """Download a file, verify it and rename it to `path`."""
    partial = path.with_name(f".{path.name}.part")
    download(file.url, partial, None if file.unpack else file.size)
    try:
        with atomic_write(path) as (scratch,):
            if file.unpack:
                _unpack(file, partial, scratch)
            else:
                shutil.move(partial, scratch)
            if fault := fault_of(file, scratch):
                raise UserError(
                    f"The file downloaded from {file.url} {fault}. It was deleted. Run the "
                    "same command again. If the checksum is wrong again, the publisher has "
                    "probably replaced the file: update talker, or report this as an issue."
                )
    finally:
        partial.unlink(missing_ok=True)


def _unpack(file: Download, packed: Path, target: Path) -> None:
    """Decompress a .bz2 file, or the member of a .zip file that has the name of the file."""
    try:
        with _open_packed(file, packed) as source, target.open("wb") as output:
            shutil.copyfileobj(source, output)
    except (zipfile.BadZipFile, EOFError, IndexError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"The file downloaded from {file.url} cannot be unpacked ({error}). It was "
            "deleted. Run the same command again."
        ) from error


@contextmanager
def _open_packed(file: Download, packed: Path) -> Iterator[IO[bytes]]:
    if file.unpack == "bz2":
        with bz2.open(packed) as source:
            yield source
    else:
        with zipfile.ZipFile(packed) as archive:
            names = [name for name in archive.namelist() if Path(name).name == file.name]
            with archive.open(names[0]) as source:
                yield source
