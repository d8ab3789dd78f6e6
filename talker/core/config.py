"""Options: every stage has a frozen dataclass `Config`; YAML and flags only override its defaults.

An unknown key or a value of the wrong type is an error that names the key and the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import dacite
import yaml

from talker.errors import UserError

Options = TypeVar("Options")


def _as_int(value: Any) -> Any:
    if isinstance(value, bool):
        raise dacite.WrongTypeError(int, value)
    return value


def _as_float(value: Any) -> Any:
    return float(_as_int(value)) if isinstance(value, int) else value


_STRICT = dacite.Config(strict=True, cast=[tuple], type_hooks={int: _as_int, float: _as_float})


def from_mapping(cls: type[Options], values: Mapping[str, Any] | None, where: str) -> Options:
    """Build the dataclass `cls` from `values`, with its defaults for the rest.

    Raises:
        UserError: an unknown key or a wrong type; `where` (a file, a section) opens the message.
    """
    try:
        return dacite.from_dict(cls, values or {}, _STRICT)
    except dacite.DaciteError as error:
        raise UserError(f"{where}: {error}") from error


def at_least(config: object, **least: int) -> None:
    """Refuse options of the dataclass `config` that are smaller than given; UserError."""
    for name, value in least.items():
        if not (found := getattr(config, name)) >= value:  # so that nan is refused too
            raise UserError(f"{name}: expected at least {value}, found {found}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: the file is missing, is not YAML or holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of options, found {type(content).__name__}")
    return content
