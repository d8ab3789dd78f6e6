"""Paths, links, commands and options in the documentation exist."""

import importlib
import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import jsonschema
import numpy as np
import pytest
import yaml

from talker.__main__ import COMMANDS, module_of
from talker.clip import SAMPLE_RATE
from talker.encoders import Choice

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "config/README.md"])
FOLDERS = "config|demo|docs|envs|examples|profiles|rules|scripts|talker|tests|workflow"
WRITTEN_BY_THE_READER = {"talker/encoders/centroid.py"}
PLACEHOLDER = re.compile(r"[A-Z]{3,}|[*{}<>]")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_spans(text: str) -> list[str]:
    """Return the inline code of a page, without its code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_in_the_documentation_exist(page: Path) -> None:
    paths = [
        span
        for span in code_spans(page.read_text(encoding="utf-8"))
        if re.fullmatch(rf"({FOLDERS})/[\w./*-]+", span) and not PLACEHOLDER.search(span)
    ]
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert set(missing) <= WRITTEN_BY_THE_READER


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_in_the_documentation_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    files = [link.partition("#")[0] for link in links if "://" not in link]
    missing = [file for file in files if file and not (page.parent / file).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_documentation_exist(page: Path) -> None:
    words = re.findall(
        r"(?:^|[`|] ?)talker ([a-z]+)\b", page.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert set(words) <= {*COMMANDS}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_configurations_in_the_documentation_are_valid(page: Path) -> None:
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
    schema.pop("required", None)  # the examples show only what differs from the defaults
    for block in re.findall(
        r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL
    ):
        jsonschema.validate(yaml.safe_load(block.replace("sha256: ...", 'sha256: ""')), schema)


def flag_of(stage: str, name: str) -> str:
    """Return the name of an argument on the command line, which tyro may change."""
    hints = get_type_hints(importlib.import_module(module_of(stage)).main, include_extras=True)
    renamed = [
        note.name for note in getattr(hints[name], "__metadata__", ()) if hasattr(note, "name")
    ]
    return next((new for new in renamed if new), name.replace("_", "-"))


def option_names(stage: str) -> set[str]:
    """Return the flags of a stage, including those of groups, with dashes."""

    def names(cls: type, prefix: str = "") -> set[str]:
        found = set()
        for field in fields(cls):
            kind, name = field.type, f"{prefix}{field.name}".replace("_", "-")
            found |= names(kind, f"{name}.") if is_dataclass(kind) else {f"--{name}"}
        return found

    main = importlib.import_module(module_of(stage)).main
    parameters = inspect.signature(main).parameters
    arguments = {f"--{flag_of(stage, name)}" for name in parameters}
    return arguments | names(type(parameters["config"].default))


def test_the_table_of_stages_names_every_command_and_existing_options() -> None:
    page = (ROOT / "docs/pipeline.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)` \|(.*)$", page, flags=re.MULTILINE))
    assert set(COMMANDS) - set(table) <= {"bench", "info", "pack"}
    for stage, row in table.items():
        flags = set(re.findall(r"`(--[\w.-]+)`", row))
        assert flags <= option_names(stage), stage


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_documentation_use_existing_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for stage, arguments in re.findall(r"\btalker ([a-z]+)((?: [^`\n|]*)?)", text):
        if stage in COMMANDS:
            flags = set(re.findall(r"(?<!\S)--[a-z][\w.-]*", arguments))
            assert flags - {"--help", "--config"} <= option_names(stage), (
                f"talker {stage}{arguments}"
            )


def test_every_stage_has_an_entry_in_the_api_reference() -> None:
    page = (ROOT / "docs/api/stages.md").read_text()
    assert set(re.findall(r"^::: talker\.(?:tools\.)?(\w+)$", page, flags=re.MULTILINE)) == set(
        COMMANDS
    )


def test_the_encoder_of_the_tutorial_describes_the_right_time() -> None:
    page = (ROOT / "docs/tutorials/own-encoder.md").read_text()
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0], names)
    encoder = names["load"](Choice("centroid"), None)
    rng = np.random.default_rng(0)
    sound = 1e-3 * rng.standard_normal(2 * SAMPLE_RATE).astype(np.float32)
    sound[SAMPLE_RATE - 160 : SAMPLE_RATE + 160] += rng.standard_normal(320).astype(np.float32)
    rows = encoder.extract(sound, 0)
    assert rows.shape[1] == encoder.dims
    loudest = encoder.first_center + rows[:, 1].argmax() / encoder.rate
    assert loudest == pytest.approx(1.0, abs=0.011)


def test_tests_named_on_the_page_on_reliability_exist():
    page = (ROOT / "docs/reliability.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", page)
    assert len(named) > 30
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"
