"""The command line is fast and strict, and prints one message for a mistake of the user."""

import dataclasses
import importlib
import inspect
import itertools
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType

import pytest

from talker import __main__ as cli
from talker import __version__
from talker.core.config import AtLeast1, read_yaml, unwrap, validated
from talker.core.files import Output
from talker.errors import UserError

STAGES = list(cli.COMMANDS)


ROOT = Path(__file__).parents[1]


@validated
class Config:
    size: AtLeast1 = 256
    smooth: bool = True


@pytest.fixture
def talker(monkeypatch):
    """Run `talker ARGS`, with a stage `track` that fails on an absent clip and returns options."""
    seen = []

    def main(*, clip: Path, config: Config = Config()) -> None:
        if not clip.exists():
            raise UserError(f"{clip}: expected a clip, found nothing")
        seen.append(config)

    def run(*args: str) -> Config | None:
        monkeypatch.setattr(sys, "argv", ["talker", *args])
        cli.main()
        return seen.pop() if seen else None

    stage = ModuleType("talker.track")
    stage.main = main
    monkeypatch.setitem(sys.modules, "talker.track", stage)
    return run


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.json"
    path.touch()
    return str(path)


def test_help_lists_every_stage_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['talker', '--help']; from talker.__main__ import main; main(); "
        "print('heavy:', {'torch', 'numpy', 'tyro', 'mediapipe'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: set()" in done.stdout
    for stage in STAGES:
        assert f"\n  {stage} " in done.stdout


def test_version(talker, capsys):
    talker("--version")
    assert capsys.readouterr().out == f"talker {__version__}\n"


def test_an_unknown_stage_is_refused(talker):
    with pytest.raises(SystemExit, match="There is no stage 'trakc'"):
        talker("trakc")


def test_a_mistake_is_one_message(talker):
    with pytest.raises(SystemExit) as stop:
        talker("track", "--clip", "absent.json")
    message = "talker track: error: absent.json: expected a clip, found nothing"
    assert stop.value.code == message


def test_flags_beat_the_file_which_beats_the_defaults(talker, clip, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("track: {size: 64, smooth: false}\nblink: {}\n")
    assert talker("track", "--clip", clip) == Config()
    assert talker("track", "--clip", clip, "--config", str(file)) == Config(64, False)
    assert talker("track", "--clip", clip, f"--config={file}", "--size", "9") == Config(9, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("track: {sise: 64}", r"mine\.yaml: track: .*sise"),
        ("track: {size: big}", r"mine\.yaml: track: .*size"),
    ],
)
def test_a_wrong_key_of_the_file_is_named(talker, clip, tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit, match=message):
        talker("track", "--clip", clip, "--config", str(file))
    with pytest.raises(SystemExit, match="--config needs the path of a YAML file"):
        talker("track", "--clip", clip, "--config")


@pytest.mark.parametrize("source", ["flag", "sections", "workflow"])
def test_a_value_out_of_range_is_refused_before_the_stage_runs(talker, clip, tmp_path, source):
    file = tmp_path / "mine.yaml"
    sections = "track: {size: 0, smooth: 3}\n"
    file.write_text(sections if source == "sections" else f"options: {{{sections.strip()}}}\n")
    flags = ["--size", "0"] if source == "flag" else ["--config", str(file)]
    where = {
        "flag": "--size",
        "sections": f"{file}: track: size",
        "workflow": f"{file}: options: track: size",
    }[source]
    with pytest.raises(SystemExit) as refused:
        talker("track", "--clip", clip, *flags)
    first, *others = str(refused.value.code).splitlines()
    assert first.startswith(f"talker track: error: {where}: should be greater than or equal to 1")
    assert first.endswith(", found 0")
    assert len(others) == (0 if source == "flag" else 1), "one line for every error"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_the_configuration_of_the_workflow(stage, monkeypatch, tmp_path):
    main = importlib.import_module(cli.module_of(stage)).main
    kind = type(inspect.signature(main).parameters["config"].default)
    assert isinstance(cli._read_options(ROOT / "config" / "config.yaml", stage, kind), kind)
    sections = tmp_path / "mine.yaml"
    sections.write_text(f"{stage}: {{no_such_option: 1}}\n")
    with pytest.raises(UserError, match=rf"mine\.yaml: {stage}: no_such_option: unknown option"):
        cli._read_options(sections, stage, kind)


def test_the_preset_of_the_configuration_reaches_a_stage(tmp_path):
    from talker.train import Config as TrainConfig

    shutil.copytree(ROOT / "config", tmp_path / "config")
    file = tmp_path / "config" / "config.yaml"
    for preset in ("draft", "full"):
        file.write_text(f"preset: {preset}\nencoder: mel\nsubjects: x.tsv\n")
        options = cli._read_options(file, "train", TrainConfig)
        expected = read_yaml(ROOT / "config" / "presets" / f"{preset}.yaml").get("train", {})
        assert (options.image_size, options.gaussians) == (
            expected.get("image_size", TrainConfig().image_size),
            expected.get("gaussians", TrainConfig().gaussians),
        )
        assert options.encoder == "mel"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_takes_paths_and_frozen_options(stage):
    main = importlib.import_module(cli.module_of(stage)).main
    parameters = inspect.signature(main).parameters
    config = parameters["config"].default
    assert list(parameters)[-1] == "config"
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen


def early_breaks(text: str) -> list[str]:
    """Return the rows of a help text that end although the next word would have fitted."""
    early = []
    for row, following in itertools.pairwise(text.splitlines()):
        if continued := re.match(r"│( {8,})(\S+)", following):
            column = continued.end(1)
            starts_there = (
                row[column - 2 : column] == "  " and row[column] != " "
            )  # not just the name of an option
            room = len(row) - len(" │") - len(row.rstrip("│ "))
            if starts_there and room > len(continued[2]):
                early.append(row)
    return early


def test_help_texts_keep_paragraphs():
    text = "A\n    B.\n\n    C.\n\n    Args:\n        a: one\n            two.\n        b: x."
    assert unwrap("A\n    B.\n\n    C.") == "A B.\n\nC."
    assert unwrap(text, indent=8) == "A\nB.\n\nC.\n\nArgs:\n    a: one two.\n    b: x."


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_explains_itself_and_refuses_unknown_flags(monkeypatch, capsys, stage):
    monkeypatch.setattr(sys, "argv", ["talker", stage, "--help"])
    monkeypatch.setenv("COLUMNS", "110")  # wider than the source, so that its line breaks show
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: talker {stage}" in shown
    assert not early_breaks(shown), "a help text keeps the line breaks of the source"
    arguments = {"run": ["me.mp4"], "view": ["me.avatar"]}.get(stage, [])
    monkeypatch.setattr(sys, "argv", ["talker", stage, *arguments, "--no-such-flag"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code not in (0, None)
    assert "--no-such-flag" in capsys.readouterr().err


@pytest.mark.parametrize(
    "stage",
    sorted(
        set(STAGES) - {"adopt", "bench", "demo", "info", "run", "serve", "speak", "view", "weights"}
    ),
)
def test_a_stage_says_what_it_makes(stage):
    main = importlib.import_module(cli.module_of(stage)).main
    hints = typing.get_type_hints(main, include_extras=True)
    assert Output in hints.values()
