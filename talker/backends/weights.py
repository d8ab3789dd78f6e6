"""Require the files that a backend needs: networks, tables and head models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talker.backends import BACKENDS, OPTIONS
from talker.data.weights import WEIGHTS, Weights, location
from talker.errors import UserError

FILES = {
    ("landmarks", "fan"): "weights",
    ("parsing", "bisenet"): "weights",
    ("parsing", "multiclass"): "weights",
    ("blink", "openface"): "table",
    ("blink", "pyfeat"): "table",
    ("blink", "blendshapes"): "weights",
    ("head", "bfm2009"): "model_files",
    ("head", "ict"): "model_files",
}
"""Option that names the file or folder which a backend of a step needs."""


def require_weights(path: str | None, backend: str, weights: Weights) -> Path:
    """Return the path of a weights file that exists and is not truncated.

    Args:
        path: value of the option `weights`; by default, the file that `talker weights fetch` wrote.
        backend: name of the backend, for the message.
        weights: the published file.

    Raises:
        UserError: the option is not set and the file was not fetched, the file is missing, or it
            is a shortened copy of the published file.
    """
    file = Path(path) if path else location(weights)
    if not file.is_file():
        found = f"{file}: missing" if path else f"weights: not set, and {file} does not exist"
        raise UserError(f"{found}; the backend '{backend}' needs it: {weights.hint()}")
    size, expected = file.stat().st_size, weights.size
    if file.name == weights.name and expected is not None and size < expected:
        raise UserError(
            f"{file}: has {size:,} bytes, expected {expected:,}; the download was probably "
            f"interrupted: {weights.hint()}"
        )
    return file


def wrong_weights(file: Path, reason: str, weights: Weights) -> UserError:
    """Return the error of a file that does not hold the expected network."""
    return UserError(f"{file}: does not hold {weights.name} ({reason}); {weights.hint()}")


def missing_file(stage: str, options: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the file that the chosen backend needs, or None.

    Only names and sizes are checked; the stage checks the content.

    Args:
        stage: name of the stage, such as "parsing".
        options: options of the stage as the configuration gives them; missing ones are defaults.
    """
    if stage not in OPTIONS:
        return None
    step, option = OPTIONS[stage]
    name = options.get(option, BACKENDS[step][0])
    key = FILES.get((step, name))
    if key is None:
        return None
    path = options.get(key)
    if key == "weights":
        try:
            require_weights(path, name, WEIGHTS[name])
        except UserError as error:
            return f"{stage}: {error}"
    elif not path or not Path(path).exists():
        found = f"{path}: missing" if path else "not set"
        where = WEIGHTS[name].hint() if name in WEIGHTS else "see docs/backends.md"
        return f"{stage}: {key}: {found}; {option} '{name}' needs it: {where}"
    return None
