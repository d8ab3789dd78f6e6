"""Unknown options and values of a wrong type are refused, with the name of the option."""

import os
from dataclasses import field
from pathlib import Path
from typing import Literal

import make_schema
import pytest
from jsonschema import Draft202012Validator

from talker.core.config import from_mapping, read_yaml, validated
from talker.errors import UserError


@validated
class Loss:
    weight: float = 0.2


@validated
class Options:
    image_size: int = 256
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    kind: Literal["l1", "l2"] = "l1"
    seed: int | None = None
    loss: Loss = field(default_factory=Loss)


def test_values_override_defaults():
    values = {"image_size": 64, "betas": [0.5, 1], "seed": None, "loss": {"weight": 1}}
    assert from_mapping(Options, values, "x") == Options(64, betas=(0.5, 1.0), loss=Loss(1.0))
    assert from_mapping(Options, None, "x") == Options()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"image_sise": 64}, "image_sise"),
        ({"image_size": "64"}, "image_size"),
        ({"image_size": 64.5}, "image_size"),
        ({"rate": "fast"}, "rate"),
        ({"rate": True}, "rate"),
        ({"image_size": True}, "image_size"),
        ({"kind": "l3"}, "kind"),
        ({"loss": {"wait": 1.0}}, "wait"),
        ({"loss": {"weight": None}}, "weight"),
    ],
)
def test_a_fault_is_named(values, key):
    with pytest.raises(UserError, match=rf"^mine\.yaml: train: .*{key}"):
        from_mapping(Options, values, "mine.yaml: train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("{a: " * 20_000, "cannot be read as YAML"),
        (f"a: {'9' * 10_000}", "is not valid YAML"),
        ("- 1\n- 2\n", "must contain a mapping of options, but it contains a value of type list"),
    ],
)
def test_a_file_that_holds_no_options_is_refused(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml(file)
    with pytest.raises(UserError, match=r"absent\.yaml cannot be read"):
        read_yaml(tmp_path / "absent.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "endless.yaml"):
        with pytest.raises(UserError, match=f"{name} is a folder, pipe or device"):
            read_yaml(tmp_path / name)


def test_an_empty_file_holds_no_options(tmp_path: Path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


def test_the_schema_of_the_workflow_is_in_step_with_the_stages():
    assert make_schema.SCHEMA.read_text() == make_schema.render(), "run scripts/make_schema.py"


@pytest.mark.parametrize("preset", ["draft", "full", "full_2_layers"])
def test_presets_hold_options_of_the_stages(preset):
    options = read_yaml(make_schema.ROOT / "config" / "presets" / f"{preset}.yaml")
    Draft202012Validator(make_schema.config_schema()["properties"]["options"]).validate(options)
    for stage, values in options.items():
        from_mapping(make_schema.options_of(stage), values, preset)


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ({}, True),
        ({"betas": [0.5, 1], "kind": "l2", "seed": None, "loss": {"weight": 1}}, True),
        ({"image_sise": 64}, False),
        ({"image_size": True}, False),
        ({"betas": [0.5]}, False),
        ({"betas": [0.5, 0.5, 0.5]}, False),
        ({"kind": "l3"}, False),
        ({"seed": 1.5}, False),
        ({"loss": {"wait": 1.0}}, False),
    ],
)
def test_the_schema_of_options_is_as_strict_as_the_options(values, fits):
    assert Draft202012Validator(make_schema.schema_of(Options)).is_valid(values) is fits
    if not fits:
        with pytest.raises(UserError):
            from_mapping(Options, values, "mine.yaml")
