"""Shared by all rules: the subjects, the speeches, and the options of the stages."""

import copy
import functools
import glob
import hashlib
import importlib.util
import os
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import talker
import yaml
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from talker.__main__ import module_of
from talker.backends import OPTIONS as BACKEND_OPTIONS
from talker.backends import backend_module
from talker.backends.weights import missing_file
from talker.core.batch import (
    SubjectRow,
    failures,
    name_of,
    read_speeches,
    read_subjects,
    schema_errors,
    write_outcome,
)
from talker.core.config import from_mapping
from talker.core.gpu import require_usable_gpu
from talker.core.presets import choose_preset, merge_options, update
from talker.core.provenance import code_of
from talker.data.weights import WEIGHTS, location
from talker.encoders import encoder_module, stage_encoder
from talker.errors import UserError
from talker.measure.overview import Folders, write_overview
from talker.media.signature import Signature

AUDIO_SUFFIXES = {".wav", ".mp3", ".flac", ".m4a", ".aac", ".ogg", ".opus"}

# The folders that the path variables stand for. Another workflow that imports this one as a module
# can set them to other folders.
DATA, RESULTS, LOGS, BENCHMARKS = (
    Path(workflow.pathvars.apply(f"<{name}>")) for name in ("data", "results", "logs", "benchmarks")
)

# False where files are kept in a bucket, so that Python cannot read them here.
LOCAL = not workflow.storage_settings.default_storage_provider


# Folder of the rules, as Snakemake names it.
RULES = Path(str(workflow.current_basedir))


# rules/given.smk constrains `subject`.
wildcard_constraints:
    name="[^/]+",
    split="train|val",


def read_yaml(path):
    """Return the content of a YAML file of the workflow."""
    return yaml.safe_load(Path(workflow.source_path(path)).read_text(encoding="utf-8")) or {}


def read_schema(name):
    """Return a JSON schema of the workflow."""
    return read_yaml(f"../workflow/schemas/{name}.schema.yaml")


def named_videos(names):
    """Return {subject: file} for one video, a list, or a pattern such as `videos/*.mp4`."""
    files = [names] if isinstance(names, str) else names
    if isinstance(names, str) and glob.has_magic(names) and not Path(names).exists():
        files = sorted(glob.glob(names))
    if not files:
        raise UserError(f"video: No file matches '{names}'. Check the pattern.")
    videos = {}
    for file in files:
        if (other := videos.setdefault(name_of(file), file)) != file:
            raise UserError(
                f"video: {other} and {file} would have the same name, {name_of(file)}. Rename one "
                "of them."
            )
    return videos


def example_video(name):
    """Return the path to which an example video is downloaded."""
    return DATA / name / f"{name}.mp4"


def with_video(name, row):
    """Return the row of a subject. If the row names a dataset folder, replace that by a video.

    Raises:
        UserError: the folder is not the subject's.
    """
    if not (LOCAL and Path(row.video).is_dir()):
        return row
    folder = DATA / name
    if not (folder.exists() and folder.samefile(row.video)):
        raise UserError(
            f"subject '{name}': {row.video} is a folder. It must be a video, or the folder {folder}. "
            f"To use a dataset in another folder, run `ln -s {Path(row.video).resolve()} {folder}`."
        )
    return replace(row, video=str(folder / f"{name}.mp4"))


def read_tables():
    """Return the subjects and the speeches of the tables, or only the video of `--config`."""
    if config.get("video"):
        videos = named_videos(config["video"])
        return {name: with_video(name, SubjectRow(file)) for name, file in videos.items()}, {}
    if example := config.get("example"):
        return {example: SubjectRow(str(example_video(example)))}, {}
    options = CONFIG_SCHEMA["properties"]["options"]
    subjects = read_subjects(Path(config["subjects"]), read_schema("subjects"), options)
    subjects = {name: with_video(name, row) for name, row in subjects.items()}
    if not config.get("speeches"):
        return subjects, {}
    return subjects, read_speeches(Path(config["speeches"]), read_schema("speeches"), subjects)


def demo_file(name):
    """Return an input of the demo: in the working directory, or else next to these rules."""
    file, shipped = Path("demo", name), RULES.parent / "demo" / name
    return str(shipped if LOCAL and not file.exists() and shipped.exists() else file)


def video_of(wildcards):
    """Return the video of a subject."""
    subject = wildcards.subject
    video = find_video(subject)
    known = subject in SUBJECTS or (DATA / subject).exists() or Path(video).exists()
    if LOCAL and not known and workflow.modifier.is_main_snakefile():
        raise WorkflowError(
            f"There is no subject '{subject}'. Add a row to {config['subjects']}, put a video at "
            f"{video}, or choose one of: {', '.join(SUBJECTS)}"
        )
    return video


def has_frames_and_sound(folder):
    """Return whether a dataset folder contains all that is extracted from the video."""
    frames = (folder / "clip.json").exists() or (folder / "ori_imgs").exists()
    return frames and (folder / "aud.wav").exists()


def require_input_files():
    """Stop if videos or speeches are missing, unless a rule of an importing workflow makes them.

    A dataset with frames and audio does not need its video.
    """
    if not workflow.modifier.is_main_snakefile() or workflow.remote_exec or not LOCAL:
        return
    videos = {
        name: subject.video
        for name, subject in SUBJECTS.items()
        if Path(subject.video) != DATA / "demo" / "demo.mp4"
        and name != config.get("example")
        and not has_frames_and_sound(DATA / name)
    }
    files = videos | {name: speech.file for name, speech in SPEECHES.items()}
    missing = [
        f"{name}: {file} does not exist" for name, file in files.items() if not Path(file).exists()
    ]
    if missing:
        raise WorkflowError(
            "\n".join([*missing, "Check the paths in the configuration and in the tables."])
        )


def speeches_of(subject):
    """Return {name: file}: the speeches of data/{subject}/novel/, the table and `speech`.

    Without any of them, the subject speaks the sample (`sample_speech`).
    """
    files = {
        file.stem: str(file)
        for file in sorted((DATA / subject / "novel").glob("*"))
        if file.is_file() and file.suffix.lower() in AUDIO_SUFFIXES
    }
    for file in files.values():
        if re.search("[{}<>]", file):
            raise WorkflowError(
                f"{file}: the name contains one of the characters {{ }} < >, which have a special "
                "meaning for Snakemake. Rename the file."
            )
    table = {
        name: speech.file
        for name, speech in SPEECHES.items()
        if speech.subjects is None or subject in speech.subjects
    }
    configured = config.get("speech") or {}
    if isinstance(configured, str):
        configured = {name_of(configured): configured}
    speeches = files | table | configured
    if not speeches and config.get("sample_speech") and LOCAL:
        return {"hello": demo_file("hello.wav")}
    return speeches


def speech_of(wildcards):
    """Return the file of a speech; `--config speech=FILE` sets it for all names."""
    subject, name = wildcards.subject, wildcards.name
    speeches = speeches_of(subject)
    if name in speeches:
        return speeches[name]
    if isinstance(config.get("speech"), str):
        return config["speech"]
    file = DATA / subject / "novel" / f"{name}.wav"
    if LOCAL and not file.exists() and workflow.modifier.is_main_snakefile():
        raise WorkflowError(
            f"Subject '{subject}' has no speech '{name}'. Put its file at {file}, add a row to the "
            "table of speeches, or add `--config speech=FILE`"
        )
    return str(file)


def dataset_of(wildcards):
    """Return the files of a dataset, without its speech features.

    Files that the dataset of another program lacks are left out if no rule can make them.
    """
    folder = DATA / wildcards.subject
    files = [
        str(folder / name)
        for name in (
            "clip.json",
            "aud.wav",
            "landmarks.npz",
            "parsing",
            "au.csv",
            "track_params.pt",
            "track_report.json",
            "transforms_train.json",
            "transforms_val.json",
            "bc.jpg",
            "gt_imgs",
            "torso_imgs",
        )
    ]
    made = [file for file in files if file not in UNMADE or Path(file).exists()]
    return [*made, ancient(str(folder / "ori_imgs"))]


def deepspeech_scores(folder):
    """Return the file of DeepSpeech scores if the encoder `deepspeech` reads one, else an empty list.

    Scores are not needed if the network that computes them is there.
    """
    return f"{folder}/aud_ds.npy" if ENCODER == "deepspeech" and not DEEPSPEECH.is_file() else []


def require_deepspeech_scores():
    """Stop if DeepSpeech scores are missing.

    Snakemake itself would not stop, because it accepts existing features even if their input is
    missing.
    """
    for subject in SUBJECTS if LOCAL else ():
        file = Path(deepspeech_scores(DATA / subject) or ".")
        if not file.exists():
            raise WorkflowError(
                f"{file} does not exist, and {DEEPSPEECH} does not exist either. The encoder "
                "deepspeech needs a file of scores or the network that computes them. To obtain the "
                f"network, {WEIGHTS['deepspeech'].hint()}."
            )


def missing_file_of(stage, subject):
    """Return which file a stage lacks for its options, or None."""
    options = options_of(stage, subject)
    if stage != "render":
        return missing_file(stage, options)
    signature = from_mapping(Signature, options.get("signature"), "render: signature")
    fault = signature.missing_file()
    return fault and f"render: {fault}"


def require_backend_files():
    """Stop if a backend, a metric or a signature lacks a file that it needs."""
    if workflow.remote_exec or not LOCAL:
        return
    subjects = [None, *(name for name in SUBJECTS if SUBJECTS[name].options)]
    missing = {
        fault: None
        for subject in subjects
        for stage in (*BACKEND_OPTIONS, "evaluate", "render")
        if (fault := missing_file_of(stage, subject))
    }
    if missing:
        raise WorkflowError("\n".join(missing))


def log_preset():
    """Log the preset and why it was chosen; `talker run` also reads how long a training is."""
    if workflow.remote_exec:
        return
    reason = "as configured"
    if config["preset"] == "auto":
        reason = f"because {'an' if GPU else 'no'} NVIDIA GPU was found"
    defaults = CONFIG_SCHEMA["properties"]["options"]["properties"]["train"]["properties"]
    training = {name: rule["default"] for name, rule in defaults.items() if "default" in rule}
    training |= options_of("train", None)
    length = ("canonical_steps", "canonical_batch", "deformation_steps", "deformation_batch")
    logger.info(
        f"The training preset is {PRESET} ({training['image_size']} pixels), {reason}.",
        extra={"training": {name: training[name] for name in (*length, "max_epochs")}},
    )


def require_named_preset():
    """Stop if the GPU of this machine would determine the preset of jobs on other machines."""
    if config["preset"] == "auto" and workflow.non_local_exec:
        raise WorkflowError(
            "config: preset: 'auto' selects the preset for this machine, but jobs run on other "
            "machines. Choose a preset explicitly, for example with `--config preset=full`."
        )


def require_gpu_for_torch():
    """Stop if jobs on this machine would train on the CPU because torch cannot use its GPU."""
    if not GPU or workflow.non_local_exec or not importlib.util.find_spec("torch"):
        return
    try:
        require_usable_gpu()
    except UserError as error:
        raise WorkflowError(str(error)) from None


def novel_results(subject):
    """Return the videos of a subject's new speeches, each followed by its metrics."""
    folder = RESULTS / subject / "novel"
    return [
        str(folder / f"{name}.{kind}") for name in speeches_of(subject) for kind in ("mp4", "json")
    ]


def extra_outputs(video):
    """Return the additional outputs of a rendering that the key `extras` asks for, by name.

    Args:
        video: path of the rendered video without its suffix.
    """
    extras = config.get("extras") or []
    files = {"side_by_side": f"{video}_side_by_side.mp4"} if "side_by_side" in extras else {}
    folders = {"attention": directory(f"{video}_attention")} if "attention" in extras else {}
    return files | folders


def extra_flags(output):
    """Return the command line flags for the additional outputs of a job."""
    paths = {name: output.get(name) for name in ("side_by_side", "attention")}
    flags = ([f"--{name.replace('_', '-')}", path] for name, path in paths.items() if path)
    return shlex.join(sum(flags, []))


def set_source_of_environments():
    """Set the environment variable that tells envs/*.yaml where to install this project from.

    Raises:
        WorkflowError: conda environments are requested, but the project is installed from a wheel.
    """
    source = Path(talker.__file__).parents[1]
    os.environ.update(TALKER_SOURCE=str(source))
    ways = {str(way) for way in workflow.deployment_settings.deployment_method}
    if "conda" in ways and not (source / "pyproject.toml").exists():
        raise WorkflowError(
            "Conda environments require a clone of the project, but talker was installed from a "
            f"wheel, in {source}. Run without --software-deployment-method conda."
        )


def targets_of(subject):
    """Return the files that make a subject complete."""
    files = [RESULTS / subject / name for name in ("val.mp4", "metrics.json", "report.html")]
    extras = extra_outputs(RESULTS / subject / "val").values()
    return [*files, *map(Path, novel_results(subject)), *map(Path, map(str, extras))]


def subject_with_overrides(subject):
    """Return the subject if its row overrides options, else None."""
    return subject if subject in SUBJECTS and SUBJECTS[subject].options else None


@functools.cache
def options_of(stage, subject):
    """Return the options of a stage; `subject` is None for a subject without overrides."""
    options = dict(OPTIONS)
    if subject is not None:
        options = update(copy.deepcopy(OPTIONS), SUBJECTS[subject].options)
    return options.get(stage, {})


@functools.cache
def cli_flags(stage, subject):
    """Return the options of a stage as command line flags; groups become `--group.name`."""

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

    return shlex.join(flags_of(options_of(stage, subject)))


def speech_prior_of(wildcards):
    """Return the file of `talker prior` that the training of a subject uses, if any."""
    options = options_of("train", subject_with_overrides(wildcards.subject))
    return options.get("speech_prior") or []


code_hash = functools.cache(code_of)


def modules_of(stage, subject):
    """Return the modules with the code of a stage: its own, its backend and its encoder."""
    chosen = [module_of(stage)]
    if backend := backend_module(stage, options_of(stage, subject)):
        chosen.append(backend)
    if encoder := stage_encoder(stage, ENCODER):
        chosen.append(encoder_module(encoder))
    return chosen


def stage_options(stage):
    """Return a parameter of a rule: the options of a stage as command line flags."""
    return lambda wildcards: cli_flags(
        stage, subject_with_overrides(wildcards.get("subject", "demo"))
    )


def fingerprint(stage, after=()):
    """Return a parameter of a rule: a hash of all that affects its outputs, except input files.

    It covers the code and the options of the stage, its backend and its encoder, and the same for
    the rules in `after`. If the user provided outputs of such a rule, it covers those files
    instead. Snakemake reruns a job whose parameters changed. The earlier rules are included because
    Snakemake does not run a job to replace a missing intermediate file. If an earlier stage was
    changed and then failed, the outputs of later stages would be considered up to date.
    """

    @functools.cache
    def hash_of(**wildcards):
        subject = subject_with_overrides(wildcards.get("subject", "demo"))
        parts = [cli_flags(stage, subject)]
        parts += [code_hash(module) for module in modules_of(stage, subject)]
        for earlier in after:
            of_earlier = earlier.params.fingerprint.hash_of
            parts += given_content(earlier, wildcards) or [of_earlier(**wildcards)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    def parameter(wildcards):
        return hash_of(**wildcards)

    parameter.hash_of = hash_of
    return parameter


def scale_with_attempt(amount):
    """Return a resource of a rule that doubles with every retry."""
    return lambda wildcards, attempt: amount * 2 ** (attempt - 1)


def report_outcome(logs):
    """Write the batch table and log how many subjects are complete and why others failed."""
    if not LOCAL:
        return
    failed = failures("\n".join(Path(log).read_text(encoding="utf-8") for log in logs))
    table = RESULTS / "batch.tsv"
    targets = {subject: targets_of(subject) for subject in SUBJECTS}
    done, rest = write_outcome(table, targets, failed, LOGS)
    page = RESULTS / "index.html"
    write_overview(page, table, Folders(DATA, RESULTS, BENCHMARKS))
    logger.info(f"Complete subjects: {done} of {done + rest}. {page} shows all subjects.")
    for failure in [each for each in failed if each.from_stage] or failed:
        logger.error(f"{failure.log}: {failure.reason}")


def read_file_names():
    """Read file names from the command line exactly as they were typed.

    Snakemake parses the values of `--config` as YAML, which changes names like `clip #3.mp4`.
    """
    for argument in workflow.config_settings.config_args or ():
        key, _, value = str(argument).partition("=")
        if key in ("video", "speech") and (Path(value).is_file() or glob.has_magic(value)):
            config[key] = value


read_file_names()
CONFIG_SCHEMA = read_schema("config")
if errors := schema_errors(config, CONFIG_SCHEMA, "config"):
    raise WorkflowError("\n".join(errors))
try:
    SUBJECTS, SPEECHES = read_tables()
except UserError as error:
    raise WorkflowError(str(error)) from None

PRESET = choose_preset(config["preset"])
GPU = int(PRESET != "draft")
OPTIONS = merge_options(read_yaml(f"../config/presets/{PRESET}.yaml"), config)
ENCODER = OPTIONS["speech"]["encoder"]
DEEPSPEECH = Path(OPTIONS["speech"].get("model") or location(WEIGHTS["deepspeech"]))
# Rules refer to outputs by path, not as `rules.speech.output`, because Snakemake would then run that
# rule even if its outputs were provided by the user.
SPEECH_FEATURES = f"<data>/{{subject}}/aud_{ENCODER}.npy"
SPEECH_STATISTICS = f"<data>/{{subject}}/aud_{ENCODER}.npz"
NOVEL_FEATURES = f"<data>/{{subject}}/novel/{{name}}/aud_{ENCODER}.npy"
ENV_MODULES = {"prepare": [], "avatar": []} | (config.get("modules") or {})

set_source_of_environments()
require_input_files()
require_deepspeech_scores()
require_backend_files()

# The `talker` next to this Python comes last on the PATH, so that an active environment has
# precedence. Snakemake sets OMP_NUM_THREADS for every job; numba reads its own variable. The sums of
# OpenBLAS would depend on its number of threads.
venv_path = f"{config['venvs']}/bin:" if config.get("venvs") else ""
shell.prefix(
    f'export PATH="{venv_path}$PATH:{Path(sys.executable).parent}"'
    " NUMBA_NUM_THREADS=$OMP_NUM_THREADS OPENBLAS_NUM_THREADS=1"
    f" TALKER_JOBS_PER_GPU={config.get('jobs_per_gpu', 1)}; "
)
