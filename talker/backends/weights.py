"""Check that the files that a backend needs exist: networks, tables and head models."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from talker.backends import BACKENDS, OPTIONS
from talker.data.weights import METRIC_NETWORKS, WEIGHTS, Weights, location
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
        unset = "" if path else "the option `weights` is not set, and "
        raise UserError(
            f"The backend '{backend}' needs {weights.name}, but {unset}{file} does not exist. "
            f"To obtain it, {weights.hint()}."
        )
    size, expected = file.stat().st_size, weights.size
    if file.name == weights.name and expected is not None and size < expected:
        raise UserError(
            f"{file} has {size:,} bytes instead of {expected:,}, probably because the download was "
            f"interrupted. To obtain it again, {weights.hint()}."
        )
    return file


def wrong_weights(file: Path, reason: str, weights: Weights) -> UserError:
    """Return the error of a file that does not hold the expected network."""
    return UserError(
        f"{file} does not contain {weights.name} ({reason}). To obtain it, {weights.hint()}."
    )


def missing_file(stage: str, options: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the files that a stage needs for its options, or None.

    Only names and sizes are checked; the stage checks the content.

    Args:
        stage: name of the stage, such as "parsing".
        options: options of the stage as the configuration gives them; missing ones are defaults.
    """
    if stage == "evaluate":
        return "\n".join(_missing_metric_files(options)) or None
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
        reason = f"{path} does not exist" if path else "it is not set"
        where = (
            f"To obtain it, {WEIGHTS[name].hint()}." if name in WEIGHTS else "See docs/backends.md."
        )
        return f"{stage}: The {option} '{name}' needs the option `{key}`, but {reason}. {where}"
    return None


def _missing_metric_files(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the files of `evaluate`; `published` means the fetched file."""
    for option in METRIC_NETWORKS:
        path = options.get(option)
        file = location(WEIGHTS[option]) if path == "published" else Path(path or ".")
        if not file.exists():
            yield (
                f"evaluate: The option `{option}` needs {file}, which does not exist. To obtain "
                f"it, {WEIGHTS[option].hint()}."
            )
    detector = options.get("second_detector", "none")
    if FILES.get(("landmarks", detector)) == "weights":
        try:
            require_weights(options.get("second_detector_weights"), detector, WEIGHTS[detector])
        except UserError as error:
            yield f"evaluate: second_detector: {error}"
