"""Validated dataclasses: one definition gives types, ranges, JSON schema, flags and help texts.

Every stage has a class `Config` decorated with `@validated`. A field's annotation holds its range
(`AtLeast1`, `Fraction`, `Annotated[int, Field(ge=16)]`), the string below it is its help text.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from talker.errors import UserError

Validated = TypeVar("Validated")

AtLeast0 = Annotated[int, Field(ge=0)]
AtLeast1 = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
"""Ranges that many options share."""

_STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def validated(cls: type[Validated]) -> type[Validated]:
    """Turn a class into a frozen dataclass that validates its fields when it is constructed.

    Types are strict (no text or bool for a number), numbers are finite, unknown keys are refused.
    """
    return dataclass(frozen=True, config=_STRICT)(cls)  # pyright: ignore[reportReturnType]


def from_mapping(cls: type[Validated], values: Mapping[str, Any] | None, where: str) -> Validated:
    """Construct the validated dataclass `cls` from a mapping; missing keys keep their defaults.

    Args:
        values: JSON-like values, such as a parsed YAML section.
        where: the file or section that the values come from; error messages begin with it.

    Raises:
        UserError: a key is unknown, or a value has the wrong type or is out of range.
    """
    try:
        return TypeAdapter(cls).validate_json(json.dumps(values or {}, default=str))
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {line}" for line in explain(error, cls))) from error


def explain(error: ValidationError, cls: type, name: Callable[[str], str] = str) -> list[str]:
    """Return one line for each fault that pydantic found in the fields of `cls`.

    Args:
        name: turns a dotted key into what the user wrote, such as a command line flag.
    """
    lines = []
    for fault in error.errors(include_url=False):
        keys = [str(key) for key in fault["loc"] if not str(key).startswith("function-")]
        key = name(".".join(keys))
        if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            close = difflib.get_close_matches(keys[-1], _names(cls, keys[:-1]), 1)
            lines.append(f"{key}: unknown option{f'; did you mean {close[0]!r}?' if close else ''}")
        else:
            message = fault["msg"].removeprefix("Value error, ").replace("Input should", "should")
            found = "" if isinstance(fault["input"], dict) else f", found {fault['input']!r}"
            lines.append(f"{key}: {message}{found}" if key else message)
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
    """Read a YAML mapping.

    Raises:
        UserError: the file is missing, is not YAML or does not hold a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of options, found {type(content).__name__}")
    return content
