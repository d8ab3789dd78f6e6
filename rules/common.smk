"""What the rules share: the subjects, the speeches, the options of the stages."""

import copy
import functools
import hashlib
import re
import shlex
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from talker.core.batch import Subject, failures, faults, read_speeches, read_subjects, write_outcome
from talker.core.presets import choose_preset, merge_options, update
from talker.core.provenance import code_of
from talker.errors import UserError

AUDIO_SUFFIXES = {".wav", ".mp3", ".flac", ".m4a", ".aac", ".ogg", ".opus"}


# the folders that the path variables stand for: as a module they are known only here
DATA, RESULTS, LOGS, BENCHMARKS = (
    Path(workflow.pathvars.apply(f"<{name}>")) for name in ("data", "results", "logs", "benchmarks")
)

LOCAL = not workflow.storage_settings.default_storage_provider


wildcard_constraints:
    subject="[^/]+",
    name="[^/]+",
    split="train|val",


def read_yaml(path):
    return yaml.safe_load(Path(workflow.source_path(path)).read_text()) or {}


def read_schema(name):
    return read_yaml(f"../workflow/schemas/{name}.schema.yaml")


def name_of(file):
    """The name of a subject or a speech: its file's stem, fit to be the name of a folder."""
    return re.sub(r"[^\w.-]+", "_", Path(file).stem)


def read_tables():
    """The subjects and the speeches: only the video of `--config video=...`, or the tables."""
    if config.get("video"):
        return {name_of(config["video"]): Subject(config["video"])}, {}
    options = CONFIG_SCHEMA["properties"]["options"]
    subjects = read_subjects(Path(config["subjects"]), read_schema("subjects"), options)
    if not config.get("speeches"):
        return subjects, {}
    return subjects, read_speeches(Path(config["speeches"]), read_schema("speeches"), subjects)


def video_of(wildcards):
    """The video of a subject: of its row, else the one it was made of, else its dataset's own."""
    dataset = DATA / wildcards.subject
    if wildcards.subject in SUBJECTS:
        return SUBJECTS[wildcards.subject].video
    if (dataset / "source.txt").exists():
        return (dataset / "source.txt").read_text()
    return str(dataset / f"{wildcards.subject}.mp4")


def check_files():
    """List the videos and speeches that are missing; in a module another rule may make them."""
    if not workflow.modifier.is_main_snakefile() or workflow.remote_exec or not LOCAL:
        return
    wanted = {
        name: subject.video
        for name, subject in SUBJECTS.items()
        if Path(subject.video) != DATA / "demo" / "demo.mp4"
        and not (DATA / name / "clip.json").exists()
    }
    files = wanted | {name: speech.file for name, speech in SPEECHES.items()}
    missing = [f"{name}: no file {file}" for name, file in files.items() if not Path(file).exists()]
    if missing:
        raise WorkflowError("\n".join(missing))


def speeches_of(subject):
    """{name: file}: the speeches of data/{subject}/novel/, of the table, of `config["speech"]`."""
    files = {
        file.stem: str(file)
        for file in sorted((DATA / subject / "novel").glob("*"))
        if file.is_file() and file.suffix.lower() in AUDIO_SUFFIXES
    }
    for file in files.values():
        if re.search("[{}<>]", file):
            raise WorkflowError(f"{file}: rename it without {{ }} < >, which Snakemake replaces")
    table = {
        name: speech.file
        for name, speech in SPEECHES.items()
        if speech.subjects is None or subject in speech.subjects
    }
    given = config.get("speech") or {}
    if isinstance(given, str):
        given = {name_of(given): given}
    return files | table | given


def speech_of(wildcards):
    """The file of a novel speech; one `--config speech=FILE` serves any name that is asked for."""
    speeches = speeches_of(wildcards.subject)
    if wildcards.name in speeches:
        return speeches[wildcards.name]
    if isinstance(config.get("speech"), str):
        return config["speech"]
    return str(DATA / wildcards.subject / "novel" / f"{wildcards.name}.wav")


def scores_in(folder):
    """The DeepSpeech scores that the encoder of that name takes; it runs no network."""
    return f"{folder}/aud_ds.npy" if ENCODER == "deepspeech" else []


def check_scores():
    """Stop where they are missing: Snakemake would take finished results for its own sources."""
    for subject in SUBJECTS if LOCAL else ():
        file = Path(scores_in(DATA / subject) or ".")
        if not file.exists():
            raise WorkflowError(f"{file}: missing; the encoder deepspeech takes its scores there")


def check_preset():
    """Stop where this machine's own GPU would choose the preset of jobs that run elsewhere."""
    if config["preset"] == "auto" and workflow.non_local_exec:
        raise WorkflowError("config: preset: name it where jobs run elsewhere (preset=full)")


def targets_of(subject):
    """What makes a subject complete."""
    outer = RESULTS / subject
    novel = [f"novel/{name}.{kind}" for name in speeches_of(subject) for kind in ("mp4", "json")]
    return [outer / file for file in ["val.mp4", "metrics.json", "report.html", *novel]]


def special(wildcards):
    """The subject, if options of its own set it apart from the others, else None."""
    subject = getattr(wildcards, "subject", "demo")
    return subject if subject in SUBJECTS and SUBJECTS[subject].options else None


@functools.cache
def words(stage, subject):
    """The options of a stage as command line flags, those of a group as --group.name."""

    def flags_of(options, group=""):
        for key, value in options.items():
            name = group + key.replace("_", "-")
            if isinstance(value, dict):
                yield from flags_of(value, f"{name}.")
            elif isinstance(value, bool):
                yield f"--{name}" if value else f"--no-{name}"
            elif isinstance(value, list):
                yield from (f"--{name}", *map(str, value))
            else:
                yield f"--{name}={value}"

    options = dict(OPTIONS)
    if subject is not None:
        options = update(copy.deepcopy(OPTIONS), SUBJECTS[subject].options)
    return shlex.join(flags_of(options.get(stage, {})))


def flags(stage):
    """A parameter of a rule: the options of a stage for a subject, as command line flags."""
    return lambda wildcards: words(stage, special(wildcards))


def recipe(stage, after=()):
    """A parameter of a rule: what made its outputs for a subject.

    It is a hash of the code and the options of a stage and of those before it: Snakemake does not
    miss an intermediate file that is gone, so that without the stages before it, a stage would stay
    as it is when an earlier one was changed and then failed.
    """
    code = code_of(f"talker.{stage}")
    before = [rule.params.recipe.hashed for rule in after]

    @functools.cache
    def hashed(subject):
        parts = [code, words(stage, subject), *(earlier(subject) for earlier in before)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    def made(wildcards):
        return hashed(special(wildcards))

    made.hashed = hashed
    return made


def growing(amount):
    """A resource of a job that doubles with every retry of it."""
    return lambda wildcards, attempt: amount * 2 ** (attempt - 1)


def say_outcome(logs):
    """Write what became of every subject, and say which ones failed; of files in a bucket nothing."""
    if not LOCAL:
        return
    failed = failures("\n".join(Path(log).read_text() for log in logs))
    table = RESULTS / "batch.tsv"
    wanted = {subject: targets_of(subject) for subject in SUBJECTS}
    done, rest = write_outcome(table, wanted, failed, LOGS)
    logger.info(f"{done} of {done + rest} subjects are complete; {table} has a row for each")
    for failure in failed:
        if failure.said:
            logger.error(f"{failure.log}: {failure.reason}")


CONFIG_SCHEMA = read_schema("config")
if found := faults(config, CONFIG_SCHEMA, "config"):
    raise WorkflowError("\n".join(found))
try:
    SUBJECTS, SPEECHES = read_tables()
except UserError as error:
    raise WorkflowError(str(error)) from None

PRESET = choose_preset(config["preset"])
GPU = int(PRESET != "draft")
OPTIONS = merge_options(read_yaml(f"../config/presets/{PRESET}.yaml"), config)
ENCODER = OPTIONS["speech"]["encoder"]

check_files()
check_scores()
MODULES = {"media": [], "face": [], "avatar": []} | (config.get("modules") or {})

# Where its environment is not active, the `talker` beside this Python is found last on the PATH.
# Snakemake sets OMP_NUM_THREADS for every job, numba wants a variable of its own.
first = f"{config['venvs']}/bin:" if config.get("venvs") else ""
shell.prefix(
    f'export PATH="{first}$PATH:{Path(sys.executable).parent}" NUMBA_NUM_THREADS=$OMP_NUM_THREADS'
    f" TALKER_JOBS_PER_GPU={config.get('jobs_per_gpu', 1)}; "
)
