"""Validated dataclasses for the options of the stages.

Every stage has a class `Config` decorated with `@validated`. The annotation of a field holds its
type and range (`AtLeast1`, `Fraction`, `Annotated[int, Field(ge=16)]`), and the string below the
field is its help text. Validation, flags, help texts and the JSON schema are derived from them.
"""

import dataclasses
import difflib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, dataclass_transform

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from talker.errors import UserError

Validated = TypeVar("Validated")

AtLeast0 = Annotated[int, Field(ge=0)]
"""Integer of at least 0."""
AtLeast1 = Annotated[int, Field(ge=1)]
"""Integer of at least 1."""
NonNegative = Annotated[float, Field(ge=0)]
"""Finite number of at least 0."""
Positive = Annotated[float, Field(gt=0)]
"""Finite number above 0."""
Fraction = Annotated[float, Field(ge=0, le=1)]
"""Number from 0 to 1."""

DEFAULT_ENCODER = "hama"
"""Default of the option `encoder`, the speech encoder, which several stages share."""

_STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def validated(cls: type[Validated]) -> type[Validated]:
    """Turn a class into a frozen dataclass that validates its fields when it is constructed.

    Types are strict: a number may not be given as text or bool. Numbers must be finite. Unknown
    keys raise an error. The string below a field becomes its help text.
    """
    options = dataclass(frozen=True, config=_STRICT)(cls)
    for field in dataclasses.fields(options):
        if text := options.__pydantic_fields__[field.name].description:
            field.metadata = MappingProxyType({"help": unwrap(text)})  # tyro reads this key
    return options  # pyright: ignore[reportReturnType]


def unwrap(docstring: str, indent: int = 0) -> str:
    """Return a docstring in which lines that continue a paragraph are joined to it.

    tyro then wraps the text to the width of the terminal.

    Args:
        docstring: text that is wrapped as in the source.
        indent: minimum indentation of the lines to join. With 8, the entries of `Args:` become
            one line each, and the text before them is unchanged.
    """
    return re.sub(rf"(?<!\n)\n {{{indent},}}(?=\S)", " ", inspect.cleandoc(docstring))


def from_mapping(cls: type[Validated], values: Mapping[str, Any] | None, where: str) -> Validated:
    """Construct the validated dataclass `cls` from a mapping; missing keys keep their defaults.

    Args:
        values: JSON-like values, such as a parsed YAML section.
        where: the file and section that the values come from, which begins every error message.

    Raises:
        UserError: a key is unknown, or a value has the wrong type or is out of range.
    """
    try:
        return TypeAdapter(cls).validate_json(json.dumps(values or {}, default=str))
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {line}" for line in explain(error, cls))) from error


def explain(error: ValidationError, cls: type, name: Callable[[str], str] = str) -> list[str]:
    """Return one line for each error that pydantic reports for the fields of `cls`.

    Args:
        name: converts a dotted key into the user's spelling, such as a command line flag.
    """
    lines = []
    for detail in error.errors(include_url=False):
        keys = [str(key) for key in detail["loc"] if not str(key).startswith("function-")]
        key = name(".".join(keys))
        if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            close = difflib.get_close_matches(keys[-1], _names(cls, keys[:-1]), 1)
            lines.append(f"{key}: unknown option{f'; did you mean {close[0]!r}?' if close else ''}")
        else:
            message = detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
            given = "" if isinstance(detail["input"], dict) else f", found {detail['input']!r}"
            lines.append(f"{key}: {message}{given}" if key else message)
    return lines


def _names(cls: type, groups: list[str]) -> list[str]:
    """Return the field names of `cls`, or of the group of options that `groups` leads to."""
    for group in groups:
        kind = next((f.type for f in dataclasses.fields(cls) if f.name == group), None)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            return []
        cls = kind
    return [field.name for field in dataclasses.fields(cls)]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty mapping.

    Raises:
        UserError: the file cannot be read, is not valid YAML or holds something else.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a folder, pipe or device. Give the path of a YAML file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except RecursionError as error:
        raise UserError(f"{path} cannot be read as YAML (it is nested too deeply).") from error
    except (yaml.YAMLError, ValueError) as error:  # for example a number of a million digits
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(
            f"{path} must contain a mapping of options, but it contains a value of type "
            f"{type(content).__name__}."
        )
    return content
