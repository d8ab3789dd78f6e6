"""The rules, run with a stand-in for `talker` that only creates the outputs it is given."""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import make_schema
import make_venvs
import pytest
import yaml
from fake_workflow import ROOT, Workflow

from talker import __main__ as cli
from talker.__main__ import module_of
from talker.core import batch
from talker.core.config import from_mapping
from talker.core.provenance import closure

DATASET = {
    "frames",
    "audio",
    "speech",
    "landmarks",
    "blink",
    "track",
    "parsing",
    "background",
    "layers",
}
GRAPH = {
    "synthesize": set(),
    "frames": {"synthesize"},
    "audio": {"synthesize", "frames"},
    "speech": {"audio", "frames"},
    "landmarks": {"frames"},
    "blink": {"frames", "landmarks"},
    "shots": {"frames", "landmarks"},
    "fit": {"frames", "landmarks", "shots"},
    "track": {"frames", "landmarks", "fit"},
    "overlay": {"frames", "landmarks", "track"},
    "parsing": {"frames", "landmarks"},
    "background": {"frames", "parsing"},
    "layers": {"frames", "parsing", "background"},
    "verify": DATASET - {"speech"},
    "lipsync": {"audio", "verify"},
    "check": {"verify", "lipsync"} | DATASET - {"speech"},
    "train": {"check"} | DATASET,
    "render": {"train"} | DATASET,
    "evaluate": {"train"} | DATASET,
    "report": {"train", "render", "evaluate", "overlay"} | DATASET,
    "all": {"render", "evaluate", "report"},
}
AFTER_CHECK = {"train", "render", "evaluate", "report"}


def changed(value, schema):
    """Return another value of the same type that fits the schema; None is kept."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {
            field.name: changed(getattr(value, field.name), schema["properties"][field.name])
            for field in fields
        }
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        others = (value * 2 or 1, type(value)(value / 2), value + 1)
        return next(other for other in others if batch.schema_errors(other, schema, "") == [])
    if isinstance(value, tuple):
        schemas = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
        return [changed(member, one) for member, one in zip(value, schemas, strict=True)]
    return value


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workflow whose demo subject is complete; tests undo their changes."""
    workflow = Workflow(tmp_path_factory.mktemp("workflow"))
    workflow.run()
    return workflow


@pytest.fixture
def edited(finished):
    """Edit files of the finished workflow, and restore them after the test."""
    before = {}

    def edit(file: str, old: str, new: str) -> None:
        path = finished.folder / file
        before.setdefault(path, path.read_text())
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    yield edit
    for path, text in before.items():
        path.write_text(text)


def test_workflow_snakefile_is_the_same_workflow(finished):
    assert finished.planned("-s", "workflow/Snakefile", "-F") == set(GRAPH) - {"all"} | {"default"}


def test_every_extra_is_pinned():
    """Except for those that replace a default backend, which are installed by hand."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for extra in extras.keys() - {"all", "dlib", "fan"}:
        packages = {re.split(r"[=<>\[]", package)[0].lower() for package in extras[extra]}
        assert packages <= pins, extra


@pytest.mark.parametrize("group", ["prepare", "avatar"])
def test_an_environment_has_what_its_stages_import(group):
    """Only imports at module level count; functions may import optional packages."""
    imported = set()
    for stage in make_venvs.stages_of(group):
        for name in closure(module_of(stage)):
            path = ROOT.joinpath(*name.split("."))
            source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            for node in ast.parse(source.read_text()).body:
                if isinstance(node, ast.Import):
                    imported.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module.partition(".")[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    *_, own = make_venvs.requirements_of(group).splitlines()
    packages = list(project["dependencies"])
    for extra in re.findall(r"[\w-]+", own.partition("[")[2]):
        packages += project["optional-dependencies"][extra]
    installed = {re.split(r"[=<>\[]", package)[0] for package in packages}
    homes = packages_distributions()
    for module in imported & set(homes) - {"talker"}:
        assert installed & {name.lower().replace("_", "-") for name in homes[module]}, module


def test_a_second_run_does_nothing(finished):
    for name in ("val.mp4", "metrics.json", "report.html"):
        assert (finished.folder / "results/demo" / name).exists()
    assert "Nothing to be done" in finished.run()


def test_every_job_is_logged_and_measured(finished):
    logs = {path.stem for path in (finished.folder / "logs/demo").iterdir()}
    assert logs == {path.stem for path in (finished.folder / "benchmarks/demo").iterdir()}
    assert logs == set(GRAPH) - {"all", "render"} | {"render_val"}


def test_another_encoder_reruns_speech_and_what_follows(finished):
    """No image is processed again, and `check` always uses the default encoder."""
    assert finished.planned("--config", "encoder=mel") == {"speech"} | AFTER_CHECK
    commands = finished.run("-n", "-p", "--config", "encoder=mel")
    assert "--features data/demo/aud_mel.npy --encoder=mel" in commands
    assert re.search("talker train .* --encoder=mel", commands)
    assert "'mfcc' is not one of" in finished.refuse("-n", "--config", "encoder=mfcc")
    missing = finished.refuse("-n", "--config", "encoder=deepspeech")
    assert "data/demo/aud_ds.npy does not exist" in missing
    assert "talker weights fetch deepspeech" in missing


def test_deepspeech_runs_on_a_video_if_its_network_is_there(finished, tmp_path):
    network = tmp_path / "deepspeech.pb"
    network.touch()
    options = f"options={{speech: {{model: {network}}}}}"
    planned = finished.run("-n", "-p", "--config", "encoder=deepspeech", options)
    assert f"--encoder=deepspeech --model={network}" in planned or (
        f"--model={network} --encoder=deepspeech" in planned
    )


def test_a_preset_reaches_its_stage(finished):
    draft = yaml.safe_load((ROOT / "config/presets/draft.yaml").read_text())
    commands = finished.run("-n", "-p", "-F", "--config", "preset=draft")
    assert f" --image-size={draft['train']['image_size']} " in commands


def test_every_command_of_the_rules_fits_its_stage(finished, tmp_path, monkeypatch):
    mains = {stage: importlib.import_module(cli.module_of(stage)).main for stage in cli.COMMANDS}
    defaults = {
        stage: inspect.signature(main).parameters["config"].default for stage, main in mains.items()
    }
    schemas = {stage: make_schema.schema_of(type(default)) for stage, default in defaults.items()}
    options = {
        stage: changed(defaults[stage], schemas[stage])
        for stage in set(cli.COMMANDS) - make_schema.NOT_IN_WORKFLOW
    }
    for stage in ("speech", "train"):
        del options[stage]["encoder"]
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(yaml.safe_dump({"options": options, "speech": "hello.wav"}))
    (finished.folder / "hello.wav").touch()
    output = finished.run("-n", "-p", "-F", "--configfile", str(overlay))

    monkeypatch.chdir(tmp_path)  # the outputs have locks next to them
    calls = []
    for stage, main in mains.items():
        capture = functools.update_wrapper(lambda **given: calls.append(given), main)
        monkeypatch.setattr(f"{cli.module_of(stage)}.main", capture)
    commands = re.findall(r"^Shell command: talker (.*) > \S+ 2>&1", output, flags=re.MULTILINE)
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["talker", *shlex.split(command)])
        cli.main()
        stage = shlex.split(command)[0]
        expected = from_mapping(type(defaults[stage]), options[stage], stage)
        assert calls.pop()["config"] == expected
    assert {command.split()[0] for command in commands} == set(options)


def test_wrong_options_are_refused_by_name(finished, tmp_path):
    overlay = tmp_path / "mine.yaml"
    config = {
        "preset": "fast",
        "vidoe": "me.mp4",
        "video": 7,
        "options": {"trian": {}, "render": {"batsch": 1}, "evaluate": {"batch": "1"}},
    }
    overlay.write_text(yaml.safe_dump(config))
    output = finished.refuse("-n", "--configfile", str(overlay))
    for complaint in (
        r"config: preset: 'fast' is not one of",
        r"config: unknown key 'vidoe'; did you mean 'video'",
        r"config: video: 7 is not of type 'string'",
        r"config: options: unknown key 'trian'; did you mean 'train'",
        r"config: options\.render: unknown key 'batsch'; did you mean 'batch'",
        r"config: options\.evaluate\.batch: '1' is not of type 'integer'",
    ):
        assert re.search(complaint, output), output


def test_a_gpu_that_torch_cannot_use_stops_the_run_before_the_first_job(finished, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = finished.folder / "bin" / "nvidia-smi"
    torch = finished.folder / "torch.py"
    try:
        driver.write_text("#!/bin/sh\necho 'GPU 0: GTX 1080 (UUID: GPU-a)'\n")
        driver.chmod(0o755)
        torch.write_text(
            "__version__ = '2.0'\n"
            "class version: cuda = '13.0'\n"
            "class cuda: is_available = staticmethod(lambda: False)\n"
        )
        output = finished.refuse("--forcerun", "train", "--config", "preset=full")
        assert "This machine has 1 NVIDIA GPU, but torch cannot use it" in output
        assert "preset `draft`" in output
        assert "Error in rule" not in output
        finished.run("-n", "--config", "preset=full")
    finally:
        driver.unlink()
        torch.unlink()


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (["me\tme.mp4", "me\tyou.mp4"], r"line 3: The subject 'me' already has a row above"),
        (["a/b\tme.mp4"], r"line 2: subject: 'a/b' does not match"),
        (["me"], r"line 2: video: None is not of type 'string'"),
    ],
)
def test_a_wrong_row_is_refused_by_its_line(finished, tmp_path, rows, complaint):
    table = tmp_path / "subjects.tsv"
    table.write_text("\n".join(["subject\tvideo", *rows]) + "\n")
    output = finished.refuse("-n", "--config", f"subjects={table}")
    assert re.search(complaint, output), output


def test_every_missing_file_is_listed_at_once(finished, tmp_path):
    table = tmp_path / "subjects.tsv"
    table.write_text("subject\tvideo\nada\tnone.mp4\nbob\tnone too.mp4\n")
    output = finished.refuse("-n", "--config", f"subjects={table}")
    assert "ada: none.mp4 does not exist\n" in output
    assert "bob: none too.mp4 does not exist\n" in output


def test_a_video_on_the_command_line_is_the_only_subject_and_remembered(finished, tmp_path):
    video = tmp_path / "my clip (1).mp4"
    video.touch()
    commands = finished.run("-n", "-p", "--config", f"video={video}")
    assert f"talker frames --video '{video}' --clip data/my_clip_1_/clip.json" in commands
    assert "demo" not in commands.replace(str(video), "")
    target = "data/my_clip_1_/aud.wav"
    finished.run(target, "--config", f"video={video}")
    assert finished.planned(target) == set()
    (finished.folder / "broken").write_text("frames")
    finished.refuse(target, "--forcerun", "frames")
    (finished.folder / "broken").unlink()
    assert finished.planned("data/my_clip_1_/clip.json") == {"frames"}, "a failure does not forget"


def test_a_subject_without_a_row_brings_its_video(finished):
    target = "results/guest/val.mp4"
    assert "data/guest/guest.mp4" in finished.refuse("-n", target)
    (finished.folder / "data/guest").mkdir()
    (finished.folder / "data/guest/guest.mp4").touch()
    assert "frames" in finished.planned(target)


NOVEL = {"novel_audio", "novel_speech", "render_novel", "evaluate_novel"}


def test_a_subject_without_new_speech_speaks_the_sample(finished, tmp_path):
    sample = ["--config", "sample_speech=True"]
    assert NOVEL | {"report"} == finished.planned("results/demo/report.html", *sample)
    speech = tmp_path / "own.wav"
    speech.touch()
    jobs = finished.run("-n", *sample, f"speech={speech}")
    assert "novel/own.mp4" in jobs and "novel/hello.mp4" not in jobs


def test_a_speech_in_the_dataset_folder_is_spoken(finished):
    folder = finished.folder / "data/demo/novel"
    folder.mkdir(exist_ok=True)
    (folder / "welcome.mp3").touch()
    (folder / "welcome.wav").mkdir()
    assert finished.planned() == NOVEL | {"report"}
    (folder / "{welcome}.wav").touch()
    assert "novel/{welcome}.wav: the name contains" in finished.refuse("-n")
    (folder / "{welcome}.wav").unlink()
    finished.run()
    assert (finished.folder / "results/demo/novel/welcome.mp4").exists()
    assert "data/demo/novel/absent.wav" in finished.refuse("-n", "results/demo/novel/absent.mp4")


def test_a_speech_of_the_config_is_spoken(finished, tmp_path):
    speech = tmp_path / "my words.flac"
    speech.touch()
    targets = [f"results/demo/novel/{name}.mp4" for name in ("my_words", "other")]
    commands = finished.run("-n", "-p", *targets, "--config", f"speech={speech}")
    assert f"--source '{speech}' --wav data/demo/novel/my_words/aud.wav" in commands
    assert f"--source '{speech}' --wav data/demo/novel/other/aud.wav" in commands
    commands = finished.run("-n", "-p", "--config", f"speech={{greeting: {speech}}}")
    assert f"--source '{speech}' --wav data/demo/novel/greeting/aud.wav" in commands


def test_a_failed_stage_says_why_and_is_repeated(finished, edited):
    (finished.folder / "broken").write_text("train")
    path = finished.folder / "talker/train.py"
    edited("talker/train.py", path.read_text(), path.read_text() + "\nUNUSED = 1\n")
    output = finished.refuse()
    assert "talker train: error: no face in any frame" in output
    assert "Traceback" not in output
    assert not (finished.folder / "results/demo/avatar").exists()
    (finished.folder / "broken").unlink()
    assert finished.planned() >= AFTER_CHECK


def test_names_that_yaml_would_change_are_taken_as_typed(finished, tmp_path):
    for name in ("clip #3.mp4", "Interview: part 1.mp4", "Anna's clip.mp4", "a$b.mp4", '"q".mp4'):
        video = tmp_path / name
        video.touch()
        commands = finished.run("-n", "-p", "--config", f"video={video}")
        (command,) = re.findall(r"^Shell command: (talker frames .*?) &&", commands, re.MULTILINE)
        assert shlex.split(command)[3] == str(video)
        run = ["make", "--dry-run", "run", f"VIDEO={video}"]
        made = subprocess.run(run, cwd=ROOT, capture_output=True, text=True).stdout
        (command,) = re.findall("^talker run .*", made, re.MULTILINE)
        assert shlex.split(command)[2] == str(video)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("results/nobody/val.mp4", "There is no subject 'nobody'. Add a row"),
        ("results/demo/novel/absent.mp4", "Subject 'demo' has no speech 'absent'. Put its file at"),
    ],
)
def test_an_unknown_subject_or_speech_is_one_sentence(finished, target, message):
    output = finished.refuse("-n", target)
    assert message in output
    assert "MissingInput" not in output and "Traceback" not in output


def test_a_useless_video_is_refused_before_the_first_job(finished, synthetic):
    (finished.folder / "long.yaml").write_text("options: {check: {limits: {min_seconds: 10}}}")
    arguments = ["--config", f"video={synthetic.video}", "--configfile", "long.yaml"]
    output = finished.refuse(*arguments)
    assert "it is 4.0 s long, but at least 10 s are required" in output
    assert not (finished.folder / "logs/synthetic").exists()


def test_a_preset_for_a_gpu_is_refused_without_one(finished, edited):
    path = finished.folder / "talker/train.py"
    edited("talker/train.py", path.read_text(), path.read_text() + "\nUNUSED = 2\n")
    edited("rules/preflight.smk", 'which("nvidia-smi")', 'which("no such driver")')
    output = finished.refuse("--config", "preset=full")
    assert "Preset 'full' requires an NVIDIA GPU, but nvidia-smi was not found here." in output
    (finished.folder / "cpu.yaml").write_text("options: {train: {device: cpu}}")
    finished.run("--config", "preset=full", "--configfile", "cpu.yaml")


def test_a_dataset_larger_than_the_disk_is_refused(finished, edited, synthetic):
    edited("rules/preflight.smk", "_SECOND = 6e6", "_SECOND = 6e18")
    output = finished.refuse("--config", f"video={synthetic.video}", "preset=draft")
    assert "The datasets need about 24000000000.0 GB, but " in output
    assert not (finished.folder / "logs/synthetic").exists()


def test_a_refused_clip_keeps_its_measurements(finished):
    """Snakemake deletes the outputs of a failed job."""
    talker = finished.folder / "bin/talker"
    before = talker.read_text()
    talker.write_text(before + 'if stage == "check": sys.exit("talker check: error: too dark")\n')
    output = finished.refuse("--forcerun", "check")
    talker.write_text(before)
    assert "too dark" in output
    refused = finished.folder / "data/demo/quality_refused.json"
    assert refused.read_text() == "check"
    finished.run()
    assert not refused.exists()


def test_warnings_of_the_gate_reach_the_terminal(finished):
    talker = finished.folder / "bin/talker"
    before = talker.read_text()
    talker.write_text(before + 'if stage == "check": print("warning: few blinks")\n')
    output = finished.run("--forcerun", "check")
    talker.write_text(before)
    assert "demo: warning: few blinks" in output


def test_the_batch_table_keeps_other_subjects(finished):
    finished.run()
    (finished.folder / "you.mp4").touch()
    (finished.folder / "broken").write_text("frames")
    finished.refuse("--config", "video=you.mp4")
    (finished.folder / "broken").unlink()
    rows = (finished.folder / "results/batch.tsv").read_text().splitlines()
    states = dict(row.split("\t")[:2] for row in rows)
    assert states["demo"] == "done"
    assert states["you"] == "failed"


def test_a_pattern_of_videos_is_many_subjects(finished):
    folder = finished.folder / "videos"
    folder.mkdir()
    for name in ("one.mp4", "two #2.mp4"):
        (folder / name).touch()
    jobs = finished.run("-n", "--config", "video=videos/*.mp4")
    plan = finished.run(
        *("-n", "--quiet", "host", "rules", "progress", "--config", "video=videos/*.mp4")
    )
    assert len(plan.splitlines()) <= 20
    assert "one: training" in jobs and "two_2: training" in jobs
    (folder / "two_2.mov").touch()
    assert "would have the same name, two_2" in finished.refuse("-n", "--config", "video=videos/*")
    assert "No file matches" in finished.refuse("-n", "--config", "video=videos/*.avi")
