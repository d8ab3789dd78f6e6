"""Show a run of the workflow: live lines on a terminal, one line per finished stage in a log.

The input consists of the events that the logger plugin `snakemake_logger_plugin_talker` prints, and
the progress lines in the logs of the running stages.
"""

import json
import os
import re
import statistics
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from talker.clip import train_length
from talker.core.progress import read_progress
from talker.data import layout
from talker.errors import counted

TAIL_BYTES = 4000
"""Number of bytes at the end of a log that are searched for a progress line."""
FIXED_STAGES = {"synthesize"}
"""Stages whose time does not depend on the length of the video."""
UNLISTED_STAGES = {"shots", "fit", "verify", "novel_audio", "novel_speech"}
"""Quick stages without a line in a log, which would otherwise be too long to read."""
REPORTED_PARTS = 2
"""Number of parts of a long loop; a line is written to a log after each, except the last."""
LAST_STAGE = "report"
"""Stage that completes a subject. With several subjects, only this stage has a line in the log."""
LONG_SECONDS = 180.0
"""Duration of a stage in seconds from which its progress is written to a log."""


@dataclass
class Job:
    """A running job."""

    rule: str
    """Name of its rule."""
    message: str
    """What it does, for example `me: training the avatar`."""
    subject: str
    """Name of its subject."""
    log: Path | None
    """Its log."""
    task: TaskID
    """Its line on the terminal."""
    started: float = field(default_factory=time.monotonic)
    """When it started, in seconds of the monotonic clock."""
    reported: tuple[str, int] = ("", 0)
    """The loop, and the number of its parts that were written to the log."""


class Screen:
    """The state of a run, and its lines on the terminal.

    Args:
        out: folder of the run, with the folders data and benchmarks.
        subjects: names of the subjects.
        dry_run: whether the run only lists the stages that would run.
        status: file to which the state is written as JSON, for other programs.
    """

    def __init__(
        self, out: Path, subjects: Sequence[str], dry_run: bool = False, status: Path | None = None
    ) -> None:
        self.out, self.subjects, self.dry_run, self.status = out, subjects, dry_run, status
        self.console = Console(highlight=False, soft_wrap=True, markup=False)
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<16}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self.console,
            auto_refresh=False,
            transient=True,
        )
        self.total_line = self.bars.add_task("", total=None, detail="", visible=False)
        self.training: Mapping[str, int] = {}
        """Options of the training that determine its length."""
        self.times = mean_times(out, subjects, self.training)
        self.jobs: dict[int, Job] = {}
        self.left: dict[str, int] = {}
        self.total = self.done = 0
        self.busy = 0.0
        self.started = time.monotonic()
        self.errors: list[str] = []
        self.lines: list[str] = []

    def __enter__(self) -> "Screen":
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.dry_run and len(self.subjects) > 1:
            jobs = ", ".join(f"{count} {rule}" for rule, count in self.left.items())
            text = f"would run {counted(self.total, 'job')}: {jobs or 'all outputs exist'}"
            self.print(textwrap.fill(text, subsequent_indent="  "))
        if self.console.is_terminal:
            self.bars.stop()

    def print(self, text: str, in_log: bool = True) -> None:
        """Print a line above the live lines of a terminal, or into a log if `in_log`."""
        self.lines.append(text)
        if in_log or self.console.is_terminal:
            self.console.print(text, soft_wrap=not self.console.is_terminal)

    def show(self, line: str) -> None:
        """Show an event, given as a line of JSON; other lines are ignored."""
        event = event_in(line)
        if event is None:
            return
        kind = event.get("event")
        if "training" in event:
            self.training = event["training"]
            self.times = mean_times(self.out, self.subjects, self.training)
        if kind == "run_info":
            self.left = {k: n for k, n in event["stats"].items() if k not in ("all", "total")}
            self.total = sum(self.left.values())
        elif kind == "job_info" and event["rule_name"] != "all":
            if not self.dry_run:
                self._start(event)
            elif len(self.subjects) == 1:
                self.print(f"would run: {event['rule_msg']}")
        elif kind == "job_finished" and event["job_id"] in self.jobs:
            self._finish(self.jobs.pop(event["job_id"]))
        elif kind == "job_error" and event["jobid"] in self.jobs:
            job = self.jobs.pop(event["jobid"])
            self.bars.remove_task(job.task)
            self.print(f"failed: {job.message}")
        elif kind == "error" or (event["level"] in ("ERROR", "CRITICAL") and event["from_rules"]):
            self.errors.append(plain_error(event["message"]))
        elif event["from_rules"] and kind is None:
            if event["level"] == "WARNING":
                self.print("warning: " + event["message"])
            elif not self.total:  # later, only the number of complete subjects is logged
                self.print(event["message"])

    def _start(self, event: Mapping[str, Any]) -> None:
        log = self.out / event["log"][0] if event.get("log") else None
        message = event.get("rule_msg") or event["rule_name"]
        task = self.bars.add_task(event["rule_name"], total=None, detail="")
        subject = (event.get("wildcards") or {}).get("subject", self.subjects[0])
        self.jobs[event["jobid"]] = Job(event["rule_name"], message, subject, log, task)

    def _finish(self, job: Job) -> None:
        self.bars.remove_task(job.task)
        seconds = time.monotonic() - job.started
        self.busy += seconds
        self.done += 1
        self.left[job.rule] = self.left.get(job.rule, 1) - 1
        if job.rule == "frames":  # now the length of the video is known
            self.times = mean_times(self.out, self.subjects, self.training)
        width = len(str(self.total))
        if len(self.subjects) == 1 or job.rule == LAST_STAGE:
            text = f"[{self.done:>{width}}/{self.total}] {job.message} ({duration(seconds)})"
            self.print(text, in_log=job.rule not in UNLISTED_STAGES)
        for warning in warnings_of(job.log):
            self.print(f"warning: {job.subject}: {warning}")

    def update(self) -> None:
        """Read the logs of the running jobs, and draw their lines."""
        for job in self.jobs.values():
            self._update_job(job)
        if self.total:
            detail = f"{self.done} of {self.total} stages"
            left = self.seconds_left()
            detail += f", about {duration(left)} left" if left is not None else ""
            self.bars.update(
                self.total_line,
                description=f"total {duration(time.monotonic() - self.started)}",
                total=self.total,
                completed=self.done,
                visible=True,
                detail=detail,
            )
        if self.console.is_terminal:
            self.bars.refresh()
        self.write_status("running")

    def write_status(self, state: Literal["running", "finished", "failed"]) -> None:
        """Write the state of the run to the file `status`, if there is one."""
        if self.status is None:
            return
        tasks = {task.id: task for task in self.bars.tasks}
        jobs = [(job, tasks[job.task]) for job in self.jobs.values()]
        content = {
            "state": state,
            "done": self.done,
            "total": self.total,
            "seconds_left": self.seconds_left(),
            "running": [
                {
                    "stage": job.rule,
                    "message": job.message,
                    "detail": task.fields["detail"],
                    "done": task.completed,
                    "total": task.total,
                }
                for job, task in jobs
            ],
            "lines": self.lines,
            "errors": self.errors,
        }
        scratch = self.status.with_name(f".{self.status.name}.new")
        scratch.write_text(json.dumps(content), encoding="utf-8")
        scratch.replace(self.status)

    def _update_job(self, job: Job) -> None:
        elapsed = time.monotonic() - job.started
        state = read_progress(tail(job.log))
        if state is None:
            expected = self.times.get(job.rule)
            left = f", about {duration(expected - elapsed)} left" if expected else ""
            self.bars.update(job.task, detail=duration(elapsed) + left)
            return
        text = f"{state.name} {state.done}/{state.total} {state.unit}"
        text += f", {duration(state.seconds_left)} left"
        self.bars.update(job.task, total=state.total, completed=state.done, detail=text)
        part = state.done * REPORTED_PARTS // max(state.total, 1)
        reached = state.name, min(part, REPORTED_PARTS - 1)
        if reached != job.reported and not self.console.is_terminal and elapsed > LONG_SECONDS:
            if reached[1]:
                self.print(f"{job.rule}: {text}")
            job.reported = reached

    def seconds_left(self) -> float | None:
        """Return the time to the end of the run in seconds; None without times of all stages."""
        if any(count > 0 and rule not in self.times for rule, count in self.left.items()):
            return None
        work = sum(count * self.times[rule] for rule, count in self.left.items() if count > 0)
        now = time.monotonic()
        work -= sum(min(now - job.started, self.times[job.rule]) for job in self.jobs.values())
        running = sum(now - job.started for job in self.jobs.values())
        parallel = max((self.busy + running) / max(now - self.started, 1.0), 1.0)
        return max(work, 0.0) / parallel


def duration(seconds: float) -> str:
    """Return a duration as text, such as `12 s`, `3:05 min` or `1:12 h`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole // 60 % 60:02d} h"


def tail(log: Path | None) -> str:
    """Return the end of a log; it is empty if the log does not exist."""
    if log is not None:
        with suppress(OSError), open(log, "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - TAIL_BYTES, 0))
            return file.read().decode(errors="replace")
    return ""


def warnings_of(log: Path | None) -> list[str]:
    """Return the warnings in the log of a stage."""
    if log is None or not log.exists():
        return []
    text = log.read_text(encoding="utf-8", errors="replace")
    return re.findall(r"^warning: (.*)$", text, flags=re.MULTILINE)


def event_in(line: str) -> dict[str, Any] | None:
    """Return the event of Snakemake that a line of JSON describes, or None for another line."""
    with suppress(ValueError):
        event = json.loads(line)
        return event if isinstance(event, dict) else None
    return None


def plain_error(message: str) -> str:
    """Return an error message of Snakemake without the places in the rule files."""
    message = re.sub(r"\A\w*(?:Error|Exception)(?: in .*, line \d+)?:\n?", "", message.strip())
    return re.sub(r'\n  File ".*"(?:, line .*)?', "", message).strip()


def mean_times(out: Path, subjects: Sequence[str], training: Mapping[str, int]) -> dict[str, float]:
    """Return the expected time of each rule in seconds, as the mean over the subjects.

    Args:
        training: as for `training_images`.
    """
    times: dict[str, list[float]] = {}
    for subject in subjects:
        for rule, seconds in earlier_times(out, subject, training):
            times.setdefault(rule, []).append(seconds)
    return {rule: statistics.fmean(values) for rule, values in times.items()}


def earlier_times(
    out: Path, subject: str, training: Mapping[str, int]
) -> Iterator[tuple[str, float]]:
    """Yield the rules with their expected time in seconds, from earlier runs in the same folder.

    If the subject itself has a benchmark of a rule, only this one counts. Otherwise the time is the
    median over the other subjects, in proportion to the number of frames, or for the training in
    proportion to the number of images.
    """
    folder = out / "benchmarks"
    times: dict[str, dict[str, list[float]]] = {}
    for file in sorted(folder.glob("*/**/*.tsv")):
        name, *folders = file.relative_to(folder).parts[:-1]
        with suppress(OSError, ValueError, IndexError):
            row = file.read_text(encoding="utf-8").splitlines()[1]
            by_subject = times.setdefault(rule_of(file.stem, novel=bool(folders)), {})
            by_subject.setdefault(name, []).append(float(row.split("\t")[0]))
    frames = frame_count(out / "data" / subject)
    for rule, by_subject in times.items():
        seconds = list(by_subject.get(subject, ()))
        for name, values in by_subject.items() if not seconds else ():
            length, factor = frame_count(out / "data" / name), 1.0
            if frames and length and rule == "train":
                factor = training_images(training, frames) / training_images(training, length)
            elif frames and length and rule not in FIXED_STAGES:
                factor = frames / length
            seconds += [factor * value for value in values]
        yield rule, statistics.median(seconds)


def training_images(training: Mapping[str, int], frames: int) -> int:
    """Return the number of images that a training renders for a video of some frames.

    Args:
        training: options of `talker train` that determine it; without them, it is 1.
        frames: number of frames of the video.
    """
    if not training:
        return 1
    canonical = training["canonical_steps"] * training["canonical_batch"]
    deformation = training["deformation_steps"] * training["deformation_batch"]
    return canonical + min(deformation, training["max_epochs"] * train_length(frames))


def rule_of(benchmark: str, novel: bool) -> str:
    """Return the rule that wrote a benchmark; `novel` says whether it is about new speech."""
    name = "render" if benchmark.startswith("render") else benchmark
    if not novel:
        return name
    return f"novel_{name}" if name in ("audio", "speech") else f"{name}_novel"


def frame_count(dataset: Path) -> int | None:
    """Return the number of frames of a dataset folder, or None if it is unknown."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((dataset / layout.CLIP).read_text(encoding="utf-8"))["frames"])
    return None
