"""Write workflow/schemas/config.schema.yaml from the options of the stages.

    python scripts/make_schema.py

The Snakefile reads the schema, because importing the stages imports torch, which takes seconds. A
test fails if the schema is out of date.
"""

import importlib
import inspect
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from talker.__main__ import COMMANDS, TOOLS, module_of
from talker.core.config import unwrap
from talker.data.weights import EXAMPLES

ROOT = Path(__file__).parent.parent
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
PRESETS = ROOT / "config" / "presets"
NOT_IN_WORKFLOW = TOOLS - {"synthesize"}
"""Stages that are run on the command line only, not by rules."""
FILE = "^[^{}<>]+$"
"""File names without the characters that mark wildcards and path variables in Snakemake."""


def options_of(stage: str) -> type:
    """Return the dataclass of a stage's options."""
    main = importlib.import_module(module_of(stage)).main
    return type(inspect.signature(main).parameters["config"].default)


def schema_of(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of a validated dataclass or of an annotation, without references."""
    schema = TypeAdapter(kind).json_schema()
    return _inlined(schema, schema.pop("$defs", {}))


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Replace references by their definitions, unwrap texts, and drop titles that repeat names."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        definition = definitions[schema["$ref"].rpartition("/")[2]]
        return _inlined(
            {**definition, **{k: v for k, v in schema.items() if k != "$ref"}}, definitions
        )
    return {
        key: unwrap(value) if key == "description" else _inlined(value, definitions)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }


def input_properties() -> dict[str, Any]:
    """Return the schema of the keys that name videos and speech."""
    return {
        "subjects": {
            "type": "string",
            "description": (
                "Path of the table of subjects (tab-separated): their names and videos."
            ),
        },
        "speeches": {
            "type": "string",
            "description": ("Path of the table of new speech (tab-separated) for the subjects."),
        },
        "video": {
            "type": ["string", "array"],
            "pattern": FILE,
            "items": {"type": "string", "pattern": FILE},
            "description": (
                "Video, list of videos, or a pattern such as videos/*.mp4, to use instead of "
                "the table of subjects."
            ),
        },
        "example": {
            "enum": list(EXAMPLES),
            "description": ("Example video to download and use instead of the table of subjects."),
        },
        "speech": {
            "description": (
                "Audio or video file with new speech that every subject speaks, or several "
                "such files as a mapping {name: file}."
            ),
            "type": ["string", "object"],
            "pattern": FILE,
            "propertyNames": {"pattern": r"^\w[\w.-]*$"},
            "additionalProperties": {"type": "string", "pattern": FILE},
        },
        "sample_speech": {
            "type": "boolean",
            "description": (
                "Whether to render a video with the speech demo/hello.wav for each subject "
                "without new speech."
            ),
        },
    }


def config_schema() -> dict[str, Any]:
    """Return the schema of the whole workflow configuration."""
    stages = {
        stage: schema_of(options_of(stage)) for stage in COMMANDS if stage not in NOT_IN_WORKFLOW
    }
    for stage in ("speech", "train"):
        del stages[stage]["properties"]["encoder"]  # the top-level key `encoder` sets both
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of the talker workflow",
        "type": "object",
        "additionalProperties": False,
        "required": ["preset", "subjects"],
        "properties": {
            "preset": {"enum": ["auto", *sorted(path.stem for path in PRESETS.glob("*.yaml"))]},
            "encoder": schema_of(typing.get_type_hints(options_of("speech"))["encoder"]),
            **input_properties(),
            "extras": {
                "description": "Additional outputs to write with the video of the held-out frames.",
                "type": "array",
                "items": {"enum": ["side_by_side", "attention"]},
            },
            "jobs_per_gpu": {
                "type": "integer",
                "minimum": 1,
                "description": "Number of trainings that run at once on each GPU of this machine.",
            },
            "modules": {
                "description": (
                    "Environment modules to load for each group of rules with --sdm env-modules."
                ),
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    family: {"type": "array", "items": {"type": "string"}}
                    for family in ("prepare", "avatar")
                },
            },
            "venvs": {
                "type": "string",
                "description": "Folder of virtual environments written by `make envs`.",
            },
            "pathvars": {
                "description": "Folders to use instead of data, results, logs and benchmarks.",
                "type": "object",
                "additionalProperties": {"type": "string"},
            },
            "options": {
                "description": "Options of each stage that differ from their defaults.",
                "type": "object",
                "additionalProperties": False,
                "properties": stages,
            },
        },
    }


def render() -> str:
    """Return the text of the schema file."""
    return "# Written by scripts/make_schema.py.\n" + yaml.safe_dump(
        config_schema(), sort_keys=False
    )


if __name__ == "__main__":
    SCHEMA.write_text(render(), encoding="utf-8")
