"""Which stages rerun after an edit of any file of the package, or a change of any option.

`reruns.tsv` lists, independently of the code, which stages run the code of a file. A new module
needs a row there.
"""

import ast
import csv
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_workflow import ROOT, Workflow

from talker.__main__ import COMMANDS
from talker.backends import OPTIONS as BACKEND_OPTIONS
from talker.backends.weights import FILES
from talker.data.weights import METRIC_NETWORKS

GRAPHS = yaml.safe_load((ROOT / "tests" / "rulegraphs.yaml").read_text())
GRAPH = {rule: set(producers) for rule, producers in GRAPHS["a speech"].items() if rule != "all"}
RULES = {stage: {stage} & set(GRAPH) for stage in COMMANDS} | {
    "audio": {"audio", "novel_audio"},
    "speech": {"speech", "novel_speech"},
    "render": {"render", "render_novel"},
    "evaluate": {"evaluate", "evaluate_novel"},
}
"""The rules that run a stage. Some stages are used on the command line only and have none."""
TABLE = dict(
    csv.reader((ROOT / "tests" / "reruns.tsv").read_text().splitlines()[1:], delimiter="\t")
)
SCHEMA = yaml.safe_load((ROOT / "workflow" / "schemas" / "config.schema.yaml").read_text())

NAMED_FILES = {f"evaluate.{name}" for name in METRIC_NETWORKS} | {"train.speech_prior"}
"""Options that name a file, which has to exist."""
SIGNATURE = ("render.signature.certificate", "render.signature.key")
"""Options that name files and are only accepted together."""

MODES = {
    "the demo": ["results/demo/val.mp4", "results/demo/metrics.json", "results/demo/report.html"],
    "a video": ["--config", "video=me.mp4"],
    "a speech": [],
    "only the dataset": ["prepare"],
}
"""Arguments of snakemake, by the name of the mode in rulegraphs.yaml."""


def followers(stages: set[str]) -> set[str]:
    """Return the rules of these stages and all rules that depend on them."""
    found = set().union(*(RULES[stage] for stage in stages))
    while more := {rule for rule in GRAPH if GRAPH[rule] & found} - found:
        found |= more
    return found


def options(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, another value of its type) for every option in the schema."""
    for key, value in schema.get("properties", {}).items():
        if "properties" in value:
            yield from options(value, (*path, key))
        else:
            yield ".".join((*path, key)), example(value)


def example(schema: dict[str, Any]) -> Any:
    """Return a value that fits the schema and is not the default."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][-1]
    if "anyOf" in schema:
        return example(schema["anyOf"][0])
    if "prefixItems" in schema:
        return [example(item) for item in schema["prefixItems"]]
    kind = schema["type"] if isinstance(schema["type"], str) else schema["type"][0]
    if kind == "array":
        return [example(schema["items"])]
    value = {"integer": 97, "number": 0.97, "string": "other", "boolean": False}[kind]
    limit = schema.get("maximum", schema.get("exclusiveMaximum", value))
    return value if isinstance(value, str) or value <= limit else type(value)(limit * 0.7)


def graph(text: str) -> dict[str, set[str]]:
    """Return {rule: rules it depends on} from the output of `--rulegraph mermaid-js`."""
    names = dict(re.findall(r"^\s*(id\d+)\[(\w+)\]$", text, flags=re.MULTILINE))
    producers: dict[str, set[str]] = {name: set() for name in names.values()}
    for producer, consumer in re.findall(r"^\s*(id\d+) --> (id\d+)$", text, flags=re.MULTILINE):
        producers[names[consumer]].add(names[producer])
    return producers


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A workflow in which the demo and a new speech are complete."""
    workflow = Workflow(tmp_path_factory.mktemp("reruns"))
    speech = workflow.folder / "data/demo/novel/hello.wav"
    speech.parent.mkdir(parents=True)
    speech.touch()
    workflow.run()
    return workflow


def test_the_table_has_a_row_for_every_file_of_the_package() -> None:
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "talker").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files == set(TABLE)


@pytest.mark.parametrize("file", TABLE)
def test_an_edit_reruns_the_stages_of_its_row_and_what_follows(
    finished: Workflow, file: str
) -> None:
    path = finished.folder / file
    before = path.read_bytes()
    stages = {"every stage": set(COMMANDS), "nothing": set()}.get(
        TABLE[file], set(TABLE[file].split())
    )
    path.write_bytes(before + b"\nUNUSED = 1\n")
    try:
        assert finished.planned() == followers(stages)
    finally:
        path.write_bytes(before)


def write_subjects(workflow: Workflow, cells: dict[str, dict[str, Any]]) -> None:
    """Write a table of subjects from {subject: {option: value}}."""
    columns = sorted({key for chosen in cells.values() for key in chosen})
    lines = [["subject", "video", *columns]]
    for name, chosen in cells.items():
        values = [json.dumps(chosen[key]) if key in chosen else "" for key in columns]
        lines.append([name, f"{name}.mp4", *values])
    table = workflow.folder / "config" / "subjects.tsv"
    table.write_text("".join("\t".join(line) + "\n" for line in lines))


def test_every_option_reruns_its_stage_and_what_follows(tmp_path: Path) -> None:
    """One subject per option: first all have the defaults, then each sets its option."""
    keys = [
        (key, value)
        for key, value in options(SCHEMA["properties"]["options"])
        if not key.startswith("synthesize.")  # options of the demo, tested below
    ]
    cells = {f"s{i}": {key: value} for i, (key, value) in enumerate(keys)}
    for chosen in cells.values():
        ((key, value),) = chosen.items()
        stage, _, option = key.partition(".")
        if stage in BACKEND_OPTIONS and option == BACKEND_OPTIONS[stage][1]:
            needed = FILES.get((BACKEND_OPTIONS[stage][0], value))
            chosen |= {f"{stage}.{needed}": "config/config.yaml"} if needed else {}
        if key in NAMED_FILES:
            chosen[key] = "config/config.yaml"  # a run refuses files that do not exist
        if key in SIGNATURE:
            chosen |= dict.fromkeys(SIGNATURE, "config/config.yaml")
    workflow = Workflow(tmp_path)
    for name in cells:
        (tmp_path / f"{name}.mp4").touch()
    write_subjects(workflow, {"s0": {}})
    workflow.run()
    for outer in ("data", "results", "benchmarks"):
        for name in cells:
            if name != "s0":
                shutil.copytree(tmp_path / outer / "s0", tmp_path / outer / name)
    write_subjects(workflow, {name: {} for name in cells})
    workflow.run("--touch", "--forceall")
    assert workflow.planned() == set()

    write_subjects(workflow, cells)
    planned: dict[str, set[str]] = {name: set() for name in cells}
    for name, rule in re.findall(r"> logs/(\w+)/([a-z]+)\w*\.log 2>&1", workflow.run("-n", "-p")):
        planned[name].add(rule)
    for name, chosen in cells.items():
        key = next(iter(chosen))
        stage = key.partition(".")[0]
        expected = {rule for rule in followers({stage}) if "novel" not in rule}
        assert planned[name] == expected, key


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        ("options.synthesize.size", 98, {"synthesize"}),
        ("options.synthesize.frames", 97, {"synthesize"}),
        ("options.synthesize.seed", 97, {"synthesize"}),
        ("options.synthesize.crf", 17, {"synthesize"}),
        ("options.frames.quality", 97, {"frames"}),
        ("options.train.weights.l1", 0.97, {"train"}),
        ("options.report.stills", 97, {"report"}),
        ("jobs_per_gpu", 4, set()),
        ("venvs", "/opt/talker", set()),
        ("modules.prepare", ["talker/prepare"], {"synthesize", "frames", "audio", "landmarks"}),
        ("modules.avatar", ["talker/avatar"], {"verify"}),
        ("pathvars.results", "elsewhere", {"train", "render", "evaluate", "report"}),
        ("pathvars.logs", "elsewhere", set()),
        ("pathvars.benchmarks", "elsewhere", set()),
    ],
)
def test_a_key_of_the_configuration_reruns(
    finished: Workflow, tmp_path: Path, key: str, value: Any, stages: set[str]
) -> None:
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(yaml.safe_dump(nested))
    assert finished.planned("--configfile", str(overlay)) == followers(stages)


def test_the_other_preset_trains_again(finished: Workflow) -> None:
    now = "full" if shutil.which("nvidia-smi") else "draft"
    assert finished.planned("--config", f"preset={now}") == set()
    other = "draft" if now == "full" else "full"
    assert finished.planned("--config", f"preset={other}") == followers({"train"})


def test_what_does_not_matter_reruns_nothing(finished: Workflow, edited: Any) -> None:
    """Comments and layout of every module, threads, and file times."""
    for path in (finished.folder / "talker").rglob("*.py"):
        text = path.read_text()
        edited(path, f"# a comment\n\n{ast.unparse(ast.parse(text))}\n")
    for path in (finished.folder / "rules").glob("*.smk"):
        edited(path, re.sub(r"threads: \d+", "threads: 3", path.read_text()))
    (finished.folder / "data/demo/demo.mp4").touch()
    (finished.folder / "data/demo/ori_imgs/0.lms").write_text("1 2")  # as `landmarks` does
    assert finished.planned() == set()


def test_docstrings_do_not_count_as_code(finished: Workflow, edited: Any) -> None:
    for path in (finished.folder / "talker").glob("*.py"):
        edited(path, path.read_text().replace('"""', '"""Now, ', 1))
    assert finished.planned() == set()


def test_a_fresh_checkout_does_not_count_as_an_edit(finished: Workflow) -> None:
    """Git writes the files again, so they are newer than the outputs."""

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", finished.folder, *words], check=True, capture_output=True)

    git("init", "-q")
    git("add", "talker", "rules", "config", "workflow", "demo", "Snakefile")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all")
    for part in ("talker", "rules", "config", "workflow", "demo"):
        shutil.rmtree(finished.folder / part)
    git("checkout", "--", ".")
    assert finished.planned() == set()


@pytest.fixture
def edited(finished: Workflow) -> Iterator[Any]:
    """Write files of the finished workflow, and restore them after the test."""
    before: dict[Path, str] = {}

    def edit(path: Path, text: str) -> None:
        before.setdefault(path, path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")

    yield edit
    for path, text in before.items():
        path.write_text(text)


@pytest.mark.parametrize("mode", GRAPHS)
def test_the_rule_graph_of_every_mode(finished: Workflow, mode: str) -> None:
    targets = MODES[mode]
    if "me.mp4" in " ".join(targets):
        (finished.folder / "me.mp4").touch()
    assert graph(finished.run("--rulegraph", "mermaid-js", *targets)) == {
        rule: set(producers) for rule, producers in GRAPHS[mode].items()
    }
