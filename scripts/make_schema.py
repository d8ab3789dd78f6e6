"""Write workflow/schemas/config.schema.yaml from the options of the stages.

    python scripts/make_schema.py

The Snakefile reads the schema because importing the stages, and torch with them, takes seconds; a
test fails where the two are out of step.
"""

import dataclasses
import importlib
import inspect
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from talker.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
PRESETS = ROOT / "config" / "presets"
BY_HAND = {"bench", "pack", "speak"}
"""Stages that no rule runs."""
FILE = "^[^{}<>]+$"
"""Snakemake takes these for wildcards and path variables."""
SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}


def options_of(stage: str) -> type:
    """Return the dataclass of a stage's options."""
    main = importlib.import_module(f"talker.{stage}").main
    return type(inspect.signature(main).parameters["config"].default)


def schema_of(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of an annotation: a dataclass, a scalar, a tuple, a choice, a union.

    Raises:
        TypeError: an annotation of another kind.
    """
    arguments = typing.get_args(kind)
    if kind in SCALARS:
        return {"type": SCALARS[kind]}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = {field.name: schema_of(hints[field.name]) for field in dataclasses.fields(kind)}
        return {"type": "object", "additionalProperties": False, "properties": fields}
    if typing.get_origin(kind) is typing.Literal:
        return {"enum": list(arguments)}
    if typing.get_origin(kind) is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": schema_of(arguments[0])}
    if typing.get_origin(kind) is tuple:
        items = [schema_of(argument) for argument in arguments]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if isinstance(kind, types.UnionType):
        members = [schema_of(argument) for argument in arguments]
        simple = all(set(member) == {"type"} for member in members)
        return {"type": [m["type"] for m in members]} if simple else {"anyOf": members}
    if kind is type(None):
        return {"type": "null"}
    raise TypeError(f"no JSON schema for {kind}")


def config_schema() -> dict[str, Any]:
    """Return the schema of the whole workflow configuration."""
    stages = {stage: schema_of(options_of(stage)) for stage in COMMANDS if stage not in BY_HAND}
    for stage in ("speech", "train"):
        del stages[stage]["properties"]["encoder"]  # the key `encoder` is for both
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of the talker workflow",
        "type": "object",
        "additionalProperties": False,
        "required": ["preset", "subjects"],
        "properties": {
            "preset": {"enum": ["auto", *sorted(path.stem for path in PRESETS.glob("*.yaml"))]},
            "encoder": schema_of(typing.get_type_hints(options_of("speech"))["encoder"]),
            "subjects": {"type": "string", "description": "table of subjects and their videos"},
            "speeches": {"type": "string", "description": "table of speeches for the subjects"},
            "video": {"type": "string", "pattern": FILE, "description": "run this video alone"},
            "speech": {
                "description": "novel speech: one file, or {name: file}",
                "type": ["string", "object"],
                "pattern": FILE,
                "propertyNames": {"pattern": r"^\w[\w.-]*$"},
                "additionalProperties": {"type": "string", "pattern": FILE},
            },
            "jobs_per_gpu": {
                "type": "integer",
                "minimum": 1,
                "description": "how many jobs share a GPU of this machine",
            },
            "modules": {
                "description": "environment modules of each family of rules, for --sdm env-modules",
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    family: {"type": "array", "items": {"type": "string"}}
                    for family in ("media", "face", "avatar")
                },
            },
            "venvs": {"type": "string", "description": "folder made by scripts/make_venvs.py"},
            "pathvars": {
                "description": "other folders for data, results, logs, benchmarks",
                "type": "object",
                "additionalProperties": {"type": "string"},
            },
            "options": {
                "description": "options of the stages that differ from their defaults",
                "type": "object",
                "additionalProperties": False,
                "properties": stages,
            },
        },
    }


def render() -> str:
    return "# made by scripts/make_schema.py\n" + yaml.safe_dump(config_schema(), sort_keys=False)


if __name__ == "__main__":
    SCHEMA.write_text(render())
