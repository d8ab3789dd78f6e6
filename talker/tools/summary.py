"""Say at the end of `talker run` where the results are, how good they are, and what to do next."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker.core.batch import read_outcome
from talker.data import layout
from talker.errors import UserError

if TYPE_CHECKING:
    from talker.tools.run import Config

LISTED = 20
"""Largest number of videos that are listed; results/index.html lists all."""


def summary(video: str, subject: str, config: "Config") -> str:
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


def summary_of_many(subjects: Sequence[str], out: Path) -> str:
    """Return one line for each subject: its verdict and report, or why it failed.

    Args:
        subjects: names of the subjects.
        out: folder of the run, which contains the batch table.
    """
    rows = {row["subject"]: row for row in read_outcome(out / "results" / "batch.tsv")}
    lines = [""]
    width = max(len(name) for name in subjects)
    for name in subjects[:LISTED]:
        row = rows.get(name, {"state": "not finished", "rule": "", "reason": "", "verdict": ""})
        if row["state"] == "done":
            text = str(out / "results" / name / "report.html")
        else:
            text = f"{row['rule']}: {row['reason']}" if row["rule"] else row["reason"]
        lines.append(f"{name:<{width}}  {row['verdict'] or row['state']:<18}  {text}".rstrip())
    if len(subjects) > LISTED:
        lines.append(f"and {len(subjects) - LISTED} more")
    lines.append(f"All subjects: {out / 'results' / 'index.html'}")
    return "\n".join(lines)


def _verdict(metrics: Path) -> Mapping[str, Any]:
    """Return the verdict in a file of metrics; it is empty if there is none."""
    try:
        return json.loads(metrics.read_text(encoding="utf-8")).get("verdict", {})
    except (OSError, ValueError, AttributeError):
        return {}


def _next_command(video: str, subject: str, config: "Config", grade: str | None) -> str:
    """Return the command that is useful after a run."""
    if subject == "demo":
        return f"talker run me.mp4 {_say()}"
    out = [] if config.out == Path() else ["--out", str(config.out)]
    if grade in ("failed", "too short to tell"):
        return f"use a longer or better video: {shlex.join(['talker', 'run', 'longer.mp4', *out])}"
    if not config.say:
        return f"{shlex.join(['talker', 'run', video, *out])} {_say()}"
    data, avatar = config.out / "data" / subject, config.out / "results" / subject / "avatar"
    files = ["--data", str(data), "--avatar", str(avatar), "--file", f"{subject}.avatar"]
    return f"to use the avatar from Python: {shlex.join(['talker', 'bundle', *files])}"


def _say() -> str:
    """Return an example of `--say` that works on this machine."""
    from talker.media.espeak import find_espeak

    try:
        find_espeak()
    except UserError:
        return "--say speech.wav"
    return '--say "Good morning"'
