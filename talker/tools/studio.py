"""The folder of `talker serve`: uploaded videos, the queue of their runs, and the avatars.

Every video becomes one subject. Its run is `talker run`, so it is cached, can be stopped and
continued, and its results are where those of the command line are.
"""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from talker.data import layout
from talker.errors import UserError
from talker.media.audio import audio_stream
from talker.media.container import open_media
from talker.media.video_reader import probe

logger = logging.getLogger(__name__)

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$"
"""Pattern of the names that a page may give. They contain no dot and no slash, so they cannot leave
the folder."""
SUFFIXES = ("mp4", "mov", "mkv", "webm", "m4v", "avi")
"""Suffixes of the videos that are accepted; the content decides about their format."""
CONSENT = "consent.json"
"""File with the consent; it is written last, so that it marks a complete upload."""
STATUS, LOG = "status.json", "run.log"
PATIENCE = 20.0
"""Time in seconds that a stopped run has to write its checkpoint before it is killed."""
LOG_TAIL = 2000
"""Number of characters at the end of a log that are shown if a run fails without a message."""


class ExistsError(UserError):
    """A subject with this name already exists."""


class MissingError(UserError):
    """No subject or avatar has this name."""


@dataclass
class Studio:
    """The subjects of a folder, and one queue of runs. All methods may be called by any thread."""

    out: Path
    options: tuple[str, ...] = ()
    """Further options of `talker run`."""
    waiting: deque[str] = field(default_factory=deque)
    """Names of the subjects whose runs wait, in their order."""
    running: str | None = None
    """Name of the subject whose run is in progress."""
    process: subprocess.Popen | None = None
    """The run in progress."""
    closed: bool = False

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.out = self.out.resolve()
        self.uploads.mkdir(parents=True, exist_ok=True)
        for folder in self.uploads.iterdir():
            if not (folder / CONSENT).exists():  # an upload that a crash interrupted
                shutil.rmtree(folder)
        self.worker = threading.Thread(target=self._work, daemon=True)
        self.worker.start()

    @property
    def uploads(self) -> Path:
        """The folder with a folder for each uploaded video."""
        return self.out / "uploads"

    def names(self) -> list[str]:
        """Return the names of all complete uploads."""
        return sorted(path.parent.name for path in self.uploads.glob(f"*/{CONSENT}"))

    @contextmanager
    def reserve(self, name: str, suffix: str, consent: str) -> Iterator[Path]:
        """Yield the path of a new video, which the block writes and accepts.

        Nothing remains if the block raises.

        Raises:
            ExistsError: a subject with this name already exists.
            UserError: the name, the suffix or the consent is not acceptable.
        """
        if not re.fullmatch(NAME, name):
            raise UserError(
                f"The name {name!r} is not valid. Use up to 40 letters, digits, - and _."
            )
        if suffix not in SUFFIXES:
            raise UserError(
                f"The video has the suffix {suffix!r}. It must be one of {', '.join(SUFFIXES)}."
            )
        if not consent.strip():
            raise UserError("State how the person in the video has consented to the avatar.")
        folder = self.uploads / name
        if any((self.out / room / name).exists() for room in ("data", "results")):
            raise ExistsError(f"A subject with the name {name} already exists.")
        try:
            folder.mkdir()
        except FileExistsError as error:
            raise ExistsError(f"A subject with the name {name} already exists.") from error
        try:
            video = folder / f"{name}.{suffix}"
            yield video
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def accept(self, video: Path, consent: str) -> None:
        """Complete an upload with its consent; UserError if the file is not a video with audio."""
        require_talking_video(video)
        text = {"consent": consent, "given": datetime.now(UTC).isoformat(timespec="seconds")}
        (video.parent / CONSENT).write_text(json.dumps(text) + "\n", encoding="utf-8")

    def start(self, name: str) -> None:
        """Append a subject to the queue, unless it is waiting or running."""
        with self.changed:
            if name != self.running and name not in self.waiting:
                (self.uploads / name / STATUS).unlink(missing_ok=True)
                self.waiting.append(name)
                self.changed.notify()

    def stop(self, name: str) -> None:
        """Take a subject out of the queue, or interrupt its run, which can be continued."""
        with self.changed:
            if name in self.waiting:
                self.waiting.remove(name)
            elif name == self.running and self.process is not None:
                self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Interrupt the run in progress and end the queue."""
        with self.changed:
            self.closed = True
            self.waiting.clear()
            self.changed.notify()
            process = self.process
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        self.worker.join(PATIENCE)

    def describe(self, name: str) -> dict[str, Any]:
        """Return the state of a subject: its run, the gate, the verdict and its files."""
        folder, results = self.uploads / name, self.out / "results" / name
        run = read_json(folder / STATUS)
        state = run.get("state", "new")
        if name == self.running:
            state = "running"
        elif name in self.waiting:
            state = "waiting"
        elif state == "running":
            state = "stopped"
        gate = read_json(self.out / "data" / name / layout.QUALITY)
        gate = {key: gate[key] for key in ("accepted", "failures", "warnings") if key in gate}
        return {
            "name": name,
            "state": state,
            "position": self.waiting.index(name) + 1 if name in self.waiting else 0,
            "run": run,
            "gate": {k: gate.get(k) for k in ("accepted", "failures", "warnings")}
            if gate
            else None,
            "verdict": read_json(results / "metrics.json").get("verdict"),
            "report": (results / "report.html").exists(),
            "avatar": (results / f"{name}.avatar").exists(),
            "consent": read_json(folder / CONSENT).get("consent", ""),
        }

    def avatars(self) -> list[str]:
        """Return the names of the avatars: those of the subjects, and the files of the folder."""
        files = [*self.out.glob("*.avatar"), *self.out.glob("results/*/*.avatar")]
        return sorted({file.stem for file in files if re.fullmatch(NAME, file.stem)})

    def avatar(self, name: str) -> Path:
        """Return the file of an avatar; MissingError if there is none."""
        for file in (self.out / "results" / name / f"{name}.avatar", self.out / f"{name}.avatar"):
            if re.fullmatch(NAME, name) and file.is_file():
                return file
        raise MissingError(f"There is no avatar with the name {name}.")

    def require(self, name: str) -> str:
        """Return the name of a subject; raises MissingError if it does not exist."""
        if name not in self.names():
            raise MissingError(f"There is no subject with the name {name}.")
        return name

    def _work(self) -> None:
        """Run the subjects of the queue, one after the other."""
        while True:
            with self.changed:
                self.running, self.process = None, None
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if self.closed:
                    return
                self.running = name = self.waiting.popleft()
            try:
                self._run(name)
            except OSError:
                logger.exception("The run of %s failed.", name)

    def _run(self, name: str) -> None:
        """Run the workflow for a subject, and write its avatar with the consent into one file."""
        folder, results = self.uploads / name, self.out / "results" / name
        video = next(path for path in folder.iterdir() if path.suffix[1:] in SUFFIXES)
        status = folder / STATUS
        run = ["run", str(video), "--out", str(self.out), "--status", str(status), *self.options]
        consent = read_json(folder / CONSENT)
        text = f"{consent.get('consent', '')} ({consent.get('given', '')})"
        bundle = ["bundle", "--data", str(self.out / "data" / name)]
        bundle += ["--avatar", str(results / "avatar"), "--file", str(results / f"{name}.avatar")]
        for command in (run, [*bundle, f"--consent={text}"]):
            if (code := self._execute(command, folder / LOG)) == 0:
                continue
            found = read_json(status)
            interrupted = code in (130, -signal.SIGINT, 143, -signal.SIGTERM)
            found["state"] = "stopped" if interrupted else "failed"
            if not interrupted and not found.get("errors"):
                tail = (folder / LOG).read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:]
                found["errors"] = [tail.strip()]
            status.write_text(json.dumps(found), encoding="utf-8")
            return

    def _execute(self, command: list[str], log: Path) -> int:
        """Run a command of talker; return its exit status."""
        with log.open("w", encoding="utf-8") as output:
            with self.changed:
                if self.closed:
                    return -signal.SIGTERM
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "talker", *command],
                    cwd=self.out,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            return self.process.wait()


def require_talking_video(file: Path) -> None:
    """Raise UserError if a file is not a video with audio."""
    try:
        probe(file)
        with open_media(file, "sound") as container:
            audio_stream(container, file)
    except UserError as error:
        raise UserError(str(error).replace(str(file), "The file")) from error


def read_json(file: Path) -> dict[str, Any]:
    """Return the content of a file of JSON; it is empty if there is none."""
    with suppress(OSError, ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}
