"""What the rules share: the subjects, the speeches, the options of the stages."""

import csv
import hashlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from snakemake.exceptions import WorkflowError
from snakemake.utils import update_config

from talker.provenance import code_of

AUDIO_SUFFIXES = {".wav", ".mp3", ".flac", ".m4a", ".aac", ".ogg", ".opus"}


wildcard_constraints:
    subject="[^/]+",
    name="[^/]+",
    split="train|val",


def read_yaml(path):
    return yaml.safe_load(Path(workflow.source_path(path)).read_text()) or {}


def check_schema(data, schema, where):
    """Stop where `data` does not fit the schema, with a line for every fault."""
    validator = Draft202012Validator(read_yaml(f"../workflow/schemas/{schema}"))
    faults = []
    for error in validator.iter_errors(data):
        key = ".".join(map(str, error.absolute_path))
        faults.append(f"{where}: {key}: {error.message}" if key else f"{where}: {error.message}")
    if faults:
        raise WorkflowError("\n".join(faults))


def name_of(file):
    """The name of a subject or a speech: its file's stem, fit to be the name of a folder."""
    return re.sub(r"[^\w.-]+", "_", Path(file).stem)


def read_subjects():
    """{subject: video}: only the video of `--config video=...`, or every row of the table."""
    if config.get("video"):
        return {name_of(config["video"]): config["video"]}
    subjects = {}
    with open(config["subjects"], newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        for row in rows:
            where = f"{config['subjects']}, line {rows.line_num}"
            check_schema(row, "subjects.schema.yaml", where)
            if row["subject"] in subjects:
                raise WorkflowError(f"{where}: subject '{row['subject']}' has a row already")
            subjects[row["subject"]] = row["video"]
    return subjects


def video_of(wildcards):
    """The video of a subject: of its row, else the one it was made of, else its dataset's own."""
    folder = Path("data", wildcards.subject)
    if wildcards.subject in SUBJECTS:
        return SUBJECTS[wildcards.subject]
    if (folder / "source.txt").exists():
        return (folder / "source.txt").read_text()
    return str(folder / f"{wildcards.subject}.mp4")


def speeches_of(subject):
    """{name: file}: the speeches of `config["speech"]` and of data/{subject}/novel/."""
    files = [
        file
        for file in sorted(Path("data", subject, "novel").glob("*"))
        if file.suffix.lower() in AUDIO_SUFFIXES
    ]
    given = config.get("speech") or {}
    if isinstance(given, str):
        given = {name_of(given): given}
    return {file.stem: str(file) for file in files} | given


def speech_of(wildcards):
    """The file of a novel speech; one `--config speech=FILE` serves any name that is asked for."""
    speeches = speeches_of(wildcards.subject)
    if wildcards.name in speeches:
        return speeches[wildcards.name]
    if isinstance(config.get("speech"), str):
        return config["speech"]
    return f"data/{wildcards.subject}/novel/{wildcards.name}.wav"


def scores_in(folder):
    """The DeepSpeech scores that the encoder of that name takes; it runs no network."""
    return f"{folder}/aud_ds.npy" if ENCODER == "deepspeech" else []


def check_scores():
    """Stop where they are missing: Snakemake would take finished results for its own sources."""
    for subject in SUBJECTS:
        file = Path(scores_in(f"data/{subject}") or ".")
        if not file.exists():
            raise WorkflowError(f"{file}: missing; the encoder deepspeech takes its scores there")


def flags(stage):
    """The options of a stage as command line flags, those of a group as --group.name."""

    def words(options, group=""):
        for key, value in options.items():
            name = group + key.replace("_", "-")
            if isinstance(value, dict):
                yield from words(value, f"{name}.")
            elif isinstance(value, bool):
                yield f"--{name}" if value else f"--no-{name}"
            elif isinstance(value, list):
                yield from (f"--{name}", *map(str, value))
            else:
                yield f"--{name}={value}"

    return shlex.join(words(OPTIONS.get(stage, {})))


def recipe(stage, after=()):
    """What made an output: a hash of the code and the options of a stage and of those before it.

    Snakemake does not miss an intermediate file that is gone: without the stages before it, a stage
    would stay as it is when an earlier one was changed and then failed.
    """
    parts = [code_of(f"talker.{stage}"), flags(stage), *(rule.params.recipe for rule in after)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


check_schema(config, "config.schema.yaml", "config")
SUBJECTS = read_subjects()

PRESET = config["preset"]
if PRESET == "auto":
    PRESET = "full" if shutil.which("nvidia-smi") else "draft"
GPU = int(PRESET == "full")
OPTIONS = read_yaml(f"../config/presets/{PRESET}.yaml")
update_config(OPTIONS, config.get("options") or {})
ENCODER = config["encoder"]
for stage in ("speech", "train"):
    OPTIONS.setdefault(stage, {})["encoder"] = ENCODER

check_scores()

# Where its environment is not active, the `talker` beside this Python is found last on the PATH.
# Snakemake sets OMP_NUM_THREADS for every job, numba wants a variable of its own.
shell.prefix(
    f'export PATH="$PATH:{Path(sys.executable).parent}" NUMBA_NUM_THREADS=$OMP_NUM_THREADS; '
)
