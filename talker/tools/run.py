"""Turn videos into avatars in one command, from any folder.

    talker run me.mp4
    talker run videos/*.mp4
    talker run me.mp4 --say hello.wav --say "Good morning"
    talker run example:obama
    talker run old/project/data/me

This runs the same workflow as `snakemake` in a checkout, shows its progress, and prints where the
videos and the report are, and whether the avatar is good. The files are written to the folders
data, results, logs and benchmarks of the current folder.
"""

import glob
import importlib.util
import math
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from pydantic import Field

import talker
from talker.core.batch import name_of
from talker.core.config import validated
from talker.core.files import file_lock
from talker.data import layout
from talker.errors import UserError
from talker.tools.screen import Screen, event_in
from talker.tools.summary import summary, summary_of_many

MEDIA = {".wav", ".mp3", ".flac", ".m4a", ".aac", ".ogg", ".opus", ".mp4", ".mov", ".mkv", ".webm"}
"""Suffixes of audio files. `--say` treats any other value as a text."""
EXAMPLE = "example:"
"""Prefix that marks the name of an example video (`talker weights`)."""
NAME_LENGTH = 40
"""Largest number of characters of the name of a spoken text."""
SECONDS_BETWEEN_SIGNALS = 15.0
"""Time in seconds after which the stages are interrupted again if they still run."""
SECONDS_TO_REACT = 2.0
"""Time in seconds after which they are interrupted again if Snakemake has started another stage."""
SECONDS_BETWEEN_UPDATES = 0.25
"""Time in seconds between two updates of the live lines."""
Lines = queue.Queue[str | None]
"""Lines of the output of Snakemake, and None at its end."""
INTERRUPTED = (
    "Stopped. To continue, run the same command again: finished stages are kept, and training "
    "continues from its checkpoint."
)


@validated
class Config:
    """Options of `talker run`."""

    say: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Audio file or text for the avatar to speak. Text is converted to speech by espeak-ng. Repeat
    the option for several files or texts. Without it, the avatar speaks a sample sentence."""
    voice: str = "en-us"
    """Voice of espeak-ng that reads the texts given with `--say`. `espeak-ng --voices` lists the
    voices."""
    preset: Literal["auto", "draft", "full", "full_2_layers"] | None = None
    """Named set of options. `draft` trains a small avatar on a CPU. `full` trains an avatar as
    large as those of GaussianTalker, but with one attention layer instead of two, and needs an
    NVIDIA GPU. `full_2_layers` is `full` with two attention layers. `auto` selects `full` if this
    machine has a GPU, and `draft` otherwise. By default, the key `preset` of the configuration is
    used, which is `auto` unless you change it."""
    cores: Annotated[str, Field(pattern="^(all|[1-9][0-9]*)$")] = "all"
    """Number of CPU cores to use, or `all`."""
    out: Path = Path()
    """Folder to write to; by default, the current folder."""
    configfile: Path | None = None
    """YAML file with settings of the workflow. They override the default settings and those of
    config/config.yaml in the folder given with `--out`, if that file exists."""
    dry_run: bool = False
    """Print which stages would run, without running them."""
    verbose: bool = False
    """Print the output of Snakemake instead of the progress display."""
    status: Path | None = None
    """JSON file to which the state of the run is written several times a second, for other programs
    to read: the stages, their progress, the warnings and the errors. By default, no such file is
    written."""
    snakemake: str = ""
    """Additional arguments for Snakemake, as one string after an equals sign, such as
    `--snakemake="--forcerun train"`."""


def main(
    videos: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO ...")],
    *,
    config: Config = Config(),
) -> None:
    """Extract a dataset from a video, train an avatar, render it, and write a report.

    If you repeat the command, it only computes what is missing or affected by a change.

    Args:
        videos: Videos of a person talking, or dataset folders. One avatar is trained for each of
            them. A dataset folder of another project also works (see `talker adopt`).
            `example:obama` downloads and uses an example video.
        config: Options.
    """
    names = [name for video in videos for name in _matching(video)]
    if not names:
        raise UserError("Name at least one video, for example: talker run me.mp4")
    for name in names:
        if Path(name).is_dir():
            if not any(
                (Path(name) / file).exists() for file in (layout.FRAMES.folder, layout.CLIP)
            ):
                raise UserError(
                    f"{name} is a folder, but not a dataset folder, because it contains neither "
                    f"{layout.FRAMES.folder}/ nor {layout.CLIP}. Give a video or a dataset folder."
                )
        elif not Path(name).exists() and (not name.startswith(EXAMPLE) or len(names) > 1):
            raise UserError(f"{name} does not exist.")
    run_workflow(names, config)


def _matching(video: str) -> Sequence[str]:
    """Return the files that match a pattern which the shell did not expand, or else the name."""
    if glob.has_magic(video) and not Path(video).exists():
        return sorted(glob.glob(video)) or [video]
    return [video]


def run_workflow(videos: Sequence[str], config: Config) -> None:
    """Run the workflow, and print the results.

    Args:
        videos: paths of the videos, relative to the current folder, or one example.
        config: options.

    Raises:
        ImportError: a package that the workflow needs is not installed.
        UserError: the run failed; the message contains the reasons.
        SystemExit: the run was interrupted.
    """
    for package in ("snakemake", "mediapipe"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"No module named '{package}'", name=package)
    out, overrides = config.out, _source(videos, config.out)
    subjects = [name_of(path) for path in overrides.get("video", ())] or [overrides["example"]]
    if config.configfile is not None and not config.configfile.is_file():
        raise UserError(f"--configfile: The file {config.configfile} does not exist.")
    if config.preset:
        overrides["preset"] = config.preset
    novel = [out / "data" / subject / layout.NOVEL for subject in subjects]
    with ExitStack() as stack:
        if speeches := dict(_speeches(config, novel)):
            overrides["speech"] = speeches
        out.mkdir(parents=True, exist_ok=True)
        for subject in sorted(set(subjects)):
            stack.enter_context(file_lock(out / "results" / subject))
        file = stack.enter_context(
            tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8")
        )
        yaml.safe_dump(overrides, file, allow_unicode=True)
        file.flush()
        table = out / "results" / "batch.tsv"
        before = table.stat().st_mtime_ns if table.exists() else None
        command = _command(config, file.name, several=len(subjects) > 1)
        status, errors = _run_snakemake(command, config, subjects)
        finished = table.exists() and table.stat().st_mtime_ns != before
    if len(subjects) > 1 and finished:
        print(summary_of_many(subjects, out))
    if status:
        raise UserError("\n".join(errors) or "The run failed.")
    if len(subjects) == 1 and not config.dry_run:
        print(summary(videos[0], subjects[0], config))


def workflow_folder() -> Path:
    """Return the folder of the workflow, inside the installed package or the checkout itself."""
    package = Path(talker.__file__).parent
    packaged = package / "workflow"
    return packaged if packaged.is_dir() else package.parent


def _source(videos: Sequence[str], out: Path) -> dict[str, Any]:
    """Return the keys of the configuration that name the videos."""
    if len(videos) == 1 and videos[0].startswith(EXAMPLE):
        return {"example": videos[0].removeprefix(EXAMPLE)}
    paths = [_dataset_folder(Path(name), out) if Path(name).is_dir() else name for name in videos]
    return {"video": [_seen_from(out, str(path)) for path in paths]}


def _dataset_folder(folder: Path, out: Path) -> Path:
    """Return the path of a dataset folder inside `out`, where a link is made if it is elsewhere.

    Raises:
        UserError: `out` has another folder of that name.
    """
    inside = out / "data" / name_of(folder.resolve())
    if not inside.exists():
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.symlink_to(folder.resolve())
    elif not inside.samefile(folder):
        raise UserError(
            f"{folder} cannot be used, because {inside} is another dataset folder with the same "
            "name. Rename one of them."
        )
    return inside


def _seen_from(out: Path, file: str) -> str:
    """Return the path of a file as seen from the output folder: relative if it is inside.

    Raises:
        UserError: the path contains a character that Snakemake replaces in paths.
    """
    if re.search("[{}<>]", file):
        raise UserError(
            f"{file}: The name must not contain any of the characters {{ }} < >. Rename the file."
        )
    if out.resolve() == Path.cwd():
        return file
    path, folder = os.path.abspath(file), os.path.abspath(out)
    return os.path.relpath(path, folder) if Path(path).is_relative_to(folder) else path


def _speeches(config: Config, folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield the name and path of each audio file, and speak each text into a file in all folders.

    A dry run writes no file. There, the sample speech takes the place of the texts.

    Args:
        folders: the folder of each subject in which the workflow finds new speech.
    """
    names = set()
    for speech in config.say:
        if not speech.strip():
            raise UserError("--say: The value is empty. Give an audio file or a text.")
        is_file = Path(speech).suffix.lower() in MEDIA
        if is_file and not Path(speech).is_file():
            raise UserError(f"--say: The file {speech} does not exist.")
        name = name_of(speech) if is_file else _name_of_text(speech)
        if name in names:
            raise UserError(f"--say: Two values have the name '{name}'. Rename one of the files.")
        names.add(name)
        if is_file:
            yield name, _seen_from(config.out, speech)
            continue
        files = [folder / f"{name}.wav" for folder in folders]
        if not config.dry_run:
            _speak(speech, config.voice, files)
        elif not all(file.exists() for file in files):
            from talker.media.espeak import find_espeak

            find_espeak()  # raises if the run itself would fail
            yield name, str(workflow_folder() / "demo" / "hello.wav")


def _name_of_text(text: str) -> str:
    """Return the name of a spoken text: its words, and a checksum if they do not fit."""
    name = re.sub(r"\W+", "_", text).strip("_")
    if len(name) <= NAME_LENGTH and name:
        return name
    return f"{name[:NAME_LENGTH]}_{zlib.crc32(text.encode()):08x}".lstrip("_")


def _speak(text: str, voice: str, files: Sequence[Path]) -> None:
    """Speak a text into those of the files that do not exist.

    Raises:
        UserError: espeak-ng is not installed, or one of the files exists with other audio.
    """
    from talker.media.espeak import write_speech

    with tempfile.TemporaryDirectory() as folder:
        spoken = Path(folder, "speech.wav")
        write_speech(text, voice, spoken)
        sound = spoken.read_bytes()
    for file in files:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sound)
        elif file.read_bytes() != sound:
            raise UserError(
                f"--say: The file {file} already exists and contains other audio. Rename or delete "
                "it."
            )


def _command(config: Config, overrides: str, several: bool) -> list[str]:
    """Return the command line of Snakemake, which is run in the folder to write to.

    Args:
        overrides: YAML file of the configuration.
        several: whether there are several videos; then a failure stops only its own video.
    """
    workflow = workflow_folder()
    files = [overrides]  # later files have precedence, and all have it over config/config.yaml
    if config.configfile is not None:
        files.insert(0, os.path.abspath(config.configfile))
    if not (config.out / "config" / "config.yaml").exists():
        files.insert(0, str(workflow / "config" / "config.yaml"))
    # The lock of Snakemake would have to be removed by hand after a crash.
    options = ["--nolock", "--cores", config.cores, "--configfile", *files]
    if several:
        options += ["--workflow-profile", str(workflow / "profiles" / "batch")]
    if config.dry_run:
        options.append("--dry-run")
    if not config.verbose:
        options += ["--logger", "talker"]
    options += shlex.split(config.snakemake)
    return [sys.executable, "-m", "snakemake", "-s", str(workflow / "Snakefile"), *options]


def _run_snakemake(
    command: Sequence[str], config: Config, subjects: Sequence[str]
) -> tuple[int, Sequence[str]]:
    """Run Snakemake and show its progress; return its exit status and its error messages."""
    pipe = None if config.verbose else subprocess.PIPE
    with _default_interrupt():
        process = subprocess.Popen(
            command,
            cwd=config.out,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            encoding="utf-8",
            errors="replace",
            process_group=0,
        )
    lines: Lines = queue.Queue()
    with _interruptible(process, lines):
        if config.verbose:
            return process.wait(), ["The run failed. The reason is in the output above."]
        return _watch(process, lines, Screen(config.out, subjects, config.dry_run, config.status))


@contextmanager
def _default_interrupt() -> Iterator[None]:
    """Let processes that are started here end on SIGINT, which shells ignore in the background."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _watch(
    process: subprocess.Popen[str], lines: Lines, screen: Screen
) -> tuple[int, Sequence[str]]:
    """Show the events of a process until it ends; return its exit status and error messages."""
    rest: deque[str] = deque(maxlen=30)

    def read_events() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    readers = [
        threading.Thread(target=read_events, daemon=True),
        threading.Thread(target=lambda: rest.extend(process.stderr or ()), daemon=True),
    ]
    for reader in readers:
        reader.start()
    with screen:
        running = True
        while running:
            try:
                line = lines.get(timeout=SECONDS_BETWEEN_UPDATES)
                running = line is not None
                screen.show(line or "")
            except queue.Empty:
                screen.update()
    status = process.wait()
    readers[1].join(timeout=1)
    screen.errors = screen.errors or ["".join(rest).strip()] if status else []
    screen.write_status("failed" if status else "finished")
    return status, screen.errors


def _stop(process: subprocess.Popen[str], lines: Lines) -> None:
    """Interrupt a process group until its leader, Snakemake, ends.

    Snakemake loses a SIGINT that arrives while it writes a line of its log or handles the end of a
    job, and then starts the next jobs. The stages are not interrupted more often than necessary,
    because training writes no checkpoint after a second SIGINT.
    """
    sent = next_signal = -math.inf
    while process.poll() is None:
        if time.monotonic() >= next_signal:
            os.killpg(process.pid, signal.SIGINT)
            sent = time.monotonic()
            next_signal = sent + SECONDS_BETWEEN_SIGNALS
        with suppress(queue.Empty):
            event = event_in(lines.get(timeout=SECONDS_BETWEEN_UPDATES) or "") or {}
            if event.get("event") == "job_info":
                next_signal = min(next_signal, sent + SECONDS_TO_REACT)


@contextmanager
def _interruptible(process: subprocess.Popen[str], lines: Lines) -> Iterator[None]:
    """Stop the process and its jobs on Ctrl-C, SIGTERM and SIGHUP, and exit.

    The process has its own process group, so that each signal reaches it once. Jobs end with a
    checkpoint. A second Ctrl-C kills them.
    """
    before = signal.getsignal(signal.SIGHUP)
    if before == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        yield
    except BaseException as error:
        print("Stopping the running stages.", file=sys.stderr, flush=True)
        try:
            _stop(process, lines)
        except (KeyboardInterrupt, ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if isinstance(error, KeyboardInterrupt):
            print(INTERRUPTED, file=sys.stderr, flush=True)
            raise SystemExit(130) from None
        raise
    finally:
        signal.signal(signal.SIGHUP, before)
