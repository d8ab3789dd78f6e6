"""Turn a video into an avatar in one command, from any folder.

    talker run me.mp4
    talker run me.mp4 --say hello.wav --say "Good morning"
    talker run example:obama
    talker run old/project/data/me

This runs the same workflow as `snakemake` in a checkout, shows its progress, and prints where the
videos and the report are, and whether the avatar is good. The files are written to the folders
data, results, logs and benchmarks of the current folder.
"""

import importlib.util
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from talker.tools.screen import Screen

MEDIA = {".wav", ".mp3", ".flac", ".m4a", ".aac", ".ogg", ".opus", ".mp4", ".mov", ".mkv", ".webm"}
"""Suffixes of sound files. `--say` treats any other value as a text."""
EXAMPLE = "example:"
"""Prefix that marks the name of an example video (`talker weights`)."""
NAME_LENGTH = 40
"""Largest number of characters of the name of a spoken text."""
SECONDS_BETWEEN_UPDATES = 0.25
"""Time in seconds between two updates of the live lines."""
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
    """Voice of espeak-ng for text; `espeak-ng --voices` lists the voices."""
    preset: Literal["auto", "draft", "full", "full_2_layers"] | None = None
    """Named set of options. `draft` trains a small avatar on a CPU. `full` trains an avatar of the
    size of GaussianTalker on an NVIDIA GPU. `full_2_layers` is `full` with two attention layers.
    `auto` selects `full` if this machine has a GPU, and `draft` otherwise. By default, the key
    `preset` of the configuration is used, which is `auto` unless you change it."""
    cores: Annotated[str, Field(pattern="^(all|[1-9][0-9]*)$")] = "all"
    """Number of CPU cores to use, or `all`."""
    out: Path = Path()
    """Folder to write to; by default, the current folder."""
    configfile: Path | None = None
    """YAML file with keys of the configuration of the workflow. They override the defaults, and the
    file config/config.yaml in the folder `--out`, if it exists."""
    dry_run: bool = False
    """Print which stages would run, without running them."""
    verbose: bool = False
    """Print the output of Snakemake instead of the progress display."""
    snakemake: str = ""
    """Additional arguments for Snakemake, as one string."""


def main(
    video: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO")],
    *,
    config: Config = Config(),
) -> None:
    """Extract a dataset from a video, train an avatar, render it, and write a report.

    If you repeat the command, it only computes what is missing or affected by a change.

    Args:
        video: Video of a person talking, or a dataset folder. A dataset folder of another project
            also works (see `talker adopt`). `example:obama` downloads and uses an example video.
        config: Options.
    """
    path = Path(video)
    if path.is_dir():
        if not any((path / name).exists() for name in (layout.FRAMES.folder, layout.CLIP)):
            raise UserError(
                f"{video} is a folder, but must be a video or a dataset folder, which contains "
                f"{layout.FRAMES.folder}/ or {layout.CLIP}."
            )
    elif not video.startswith(EXAMPLE) and not path.exists():
        raise UserError(f"{video} does not exist.")
    run_workflow(video, config)


def run_workflow(video: str, config: Config) -> None:
    """Run the workflow for one video, and print its results.

    Args:
        video: path of the video, relative to the current folder, or an example.
        config: options.

    Raises:
        ImportError: a package that the workflow needs is not installed.
        UserError: the run failed; the message contains the reasons.
        SystemExit: the run was interrupted.
    """
    for package in ("snakemake", "mediapipe"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"No module named '{package}'", name=package)
    out, overrides = config.out, _source(video, config.out)
    subject = overrides.get("example") or name_of(overrides["video"])
    if config.configfile is not None and not config.configfile.is_file():
        raise UserError(f"--configfile: The file {config.configfile} does not exist.")
    if config.preset:
        overrides["preset"] = config.preset
    if speeches := dict(_speeches(config, out / "data" / subject / layout.NOVEL)):
        overrides["speech"] = speeches
    out.mkdir(parents=True, exist_ok=True)
    with (
        file_lock(out / "results" / subject),
        tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file,
    ):
        yaml.safe_dump(overrides, file, allow_unicode=True)
        file.flush()
        status, errors = _run_snakemake(_command(config, file.name), config, subject)
    if status:
        raise UserError("\n".join(errors) or "The run failed.")
    if not config.dry_run:
        print(summary(video, subject, config))


def workflow_folder() -> Path:
    """Return the folder of the workflow, inside the installed package or the checkout itself."""
    package = Path(talker.__file__).parent
    packaged = package / "workflow"
    return packaged if packaged.is_dir() else package.parent


def _source(video: str, out: Path) -> dict[str, Any]:
    """Return the keys of the configuration that name the video."""
    if video.startswith(EXAMPLE):
        return {"example": video.removeprefix(EXAMPLE)}
    if Path(video).is_dir():
        return {"video": _seen_from(out, str(_dataset_folder(Path(video), out)))}
    return {"video": _seen_from(out, video)}


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
            f"{folder}: {inside} is another folder of the same name. Rename one of them."
        )
    return inside


def _seen_from(out: Path, file: str) -> str:
    """Return the path of a file relative to the output folder.

    Raises:
        UserError: the path contains a character that Snakemake replaces in paths.
    """
    if re.search("[{}<>]", file):
        raise UserError(
            f"{file}: The name must not contain any of the characters {{ }} < >. Rename the file."
        )
    return file if out.resolve() == Path.cwd() else os.path.abspath(file)


def _speeches(config: Config, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the file of each speech; texts are spoken into a file in `folder`."""
    names = set()
    for speech in config.say:
        if not speech.strip():
            raise UserError("--say: The value is empty. Give an audio file or a text.")
        if is_file := Path(speech).suffix.lower() in MEDIA:
            name, file = name_of(speech), _seen_from(config.out, speech)
            if not Path(speech).is_file():
                raise UserError(f"--say: The file {speech} does not exist.")
        else:
            name = _name_of_text(speech)
            file = _seen_from(config.out, str(folder / f"{name}.wav"))
        if name in names:
            raise UserError(f"--say: Two values have the name '{name}'. Rename one of the files.")
        names.add(name)
        if not is_file:
            _speak(speech, config.voice, folder / f"{name}.wav")
        yield name, file


def _name_of_text(text: str) -> str:
    """Return the name of a spoken text: its words, and a checksum if they do not fit."""
    name = re.sub(r"\W+", "_", text).strip("_")
    if len(name) <= NAME_LENGTH and name:
        return name
    return f"{name[:NAME_LENGTH]}_{zlib.crc32(text.encode()):08x}".lstrip("_")


def _speak(text: str, voice: str, file: Path) -> None:
    """Speak a text into a file, unless the file exists.

    Raises:
        UserError: espeak-ng is not installed, or the file exists with other sound.
    """
    from talker.media.espeak import write_speech

    with tempfile.TemporaryDirectory() as folder:
        spoken = Path(folder, "speech.wav")
        write_speech(text, voice, spoken)
        sound = spoken.read_bytes()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sound)
    elif file.read_bytes() != sound:
        raise UserError(
            f"--say: The file {file} already exists and contains other audio. Rename or delete it."
        )


def _command(config: Config, overrides: str) -> list[str]:
    """Return the command line of Snakemake, which is run in the folder to write to."""
    workflow = workflow_folder()
    files = [overrides]  # later files have precedence, and all have it over config/config.yaml
    if config.configfile is not None:
        files.insert(0, os.path.abspath(config.configfile))
    if not (config.out / "config" / "config.yaml").exists():
        files.insert(0, str(workflow / "config" / "config.yaml"))
    # The lock of Snakemake would have to be removed by hand after a crash.
    options = ["--nolock", "--cores", config.cores, "--configfile", *files]
    if config.dry_run:
        options.append("--dry-run")
    if not config.verbose:
        options += ["--logger", "talker"]
    options += shlex.split(config.snakemake)
    return [sys.executable, "-m", "snakemake", "-s", str(workflow / "Snakefile"), *options]


def _run_snakemake(
    command: Sequence[str], config: Config, subject: str
) -> tuple[int, Sequence[str]]:
    """Run Snakemake and show its progress; return its exit status and its error messages."""
    pipe = None if config.verbose else subprocess.PIPE
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
    with _interruptible(process):
        if config.verbose:
            return process.wait(), ["The run failed. The reason is in the output above."]
        return _watch(process, Screen(config.out, subject, config.dry_run))


def _watch(process: subprocess.Popen[str], screen: Screen) -> tuple[int, Sequence[str]]:
    """Show the events of a process until it ends; return its exit status and error messages."""
    lines: queue.Queue[str | None] = queue.Queue()
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
    return status, screen.errors or ["".join(rest).strip()]


@contextmanager
def _interruptible(process: subprocess.Popen[str]) -> Iterator[None]:
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
            os.killpg(process.pid, signal.SIGINT)
            process.communicate()
        except (KeyboardInterrupt, ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if isinstance(error, KeyboardInterrupt):
            print(INTERRUPTED, file=sys.stderr, flush=True)
            raise SystemExit(130) from None
        raise
    finally:
        signal.signal(signal.SIGHUP, before)


def summary(video: str, subject: str, config: Config) -> str:
    """Return where the results are, the verdict with its reasons, and what to do next."""
    results = config.out / "results" / subject
    speeches = sorted((results / layout.NOVEL).glob("*.mp4"))
    rows = [("New speech", str(path)) for path in speeches]
    rows += [
        ("Held-out part", str(results / "val.mp4")),
        ("Report", str(results / "report.html")),
    ]
    verdict = _verdict(results / "metrics.json")
    if verdict:
        rows.append(("Verdict", " ".join([f"{verdict['grade']}.", *verdict.get("reasons", [])])))
        rows += [("Advice", text) for text in verdict.get("advice", [])]
    rows.append(("Next", _next_command(video, subject, config, verdict.get("grade"))))
    return "\n" + "\n".join(f"{name + ':':<15}{text}" for name, text in rows)


def _verdict(metrics: Path) -> Mapping[str, Any]:
    """Return the verdict in a file of metrics; it is empty if there is none."""
    try:
        return json.loads(metrics.read_text(encoding="utf-8")).get("verdict", {})
    except (OSError, ValueError, AttributeError):
        return {}


def _next_command(video: str, subject: str, config: Config, grade: str | None) -> str:
    """Return the command that is useful after a run."""
    if subject == "demo":
        return 'talker run me.mp4 --say "Good morning"'
    out = [] if config.out == Path() else ["--out", str(config.out)]
    if grade in ("failed", "too short to tell"):
        return f"{shlex.join(['talker', 'run', 'longer.mp4', *out])}, with a longer or better video"
    if not config.say:
        return f'{shlex.join(["talker", "run", video, *out])} --say "Good morning"'
    data, avatar = config.out / "data" / subject, config.out / "results" / subject / "avatar"
    files = ["--data", str(data), "--avatar", str(avatar), "--file", f"{subject}.avatar"]
    return f"{shlex.join(['talker', 'bundle', *files])}, to use the avatar from Python"
