"""Write one page about all subjects: outcome, verdict, numbers, reasons of failures and links.

The workflow writes it at the end of every run from the batch table, so this module only imports
modules that load fast.
"""

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from talker.core.batch import read_outcome, read_results
from talker.core.files import atomic_write
from talker.data import layout

TOO_SHORT = "too short to tell"
"""Verdict on an avatar whose mouth cannot be measured; the page shows no numbers of its mouth."""
GRADES = ("good", "usable", TOO_SHORT, "failed")
"""Verdicts from best to worst, in the order of sorting. Subjects without a verdict come last."""
NUMBERS = {
    "mouth": ("mouth_correlation", "{:z.1f}"),
    "amplitude": ("mouth_std_ratio", "{:.1f}"),
    "PSNR, dB": ("psnr", "{:.1f}"),
}
"""Column -> (metric of the held-out frames, its format)."""
MINUTES = "minutes"
"""Column with the time of all stages."""


@dataclass(frozen=True)
class Folders:
    """The folders that contain one folder for each subject."""

    data: Path
    results: Path
    benchmarks: Path


def write_overview(page: Path, table: Path, folders: Folders) -> None:
    """Write the page about all subjects of a batch table (`talker.core.batch.write_outcome`)."""
    rows = read_outcome(table)
    names = dict.fromkeys(row["subject"] for row in rows)
    subjects = [
        _subject(name, [row for row in rows if row["subject"] == name], page.parent, folders)
        for name in names
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    columns = [{"label": "subject", "style": "subject"}, {"label": "outcome", "style": "outcome"}]
    columns += [{"label": label, "style": "number"} for label in (*NUMBERS, MINUTES)]
    text = environment.get_template("overview.html.jinja").render(
        subjects=subjects,
        columns=columns,
        states=Counter(one["outcome"] for one in subjects).most_common(),
    )
    with atomic_write(page) as (scratch,):
        scratch.write_text(text, encoding="utf-8")


def _subject(
    name: str, rows: Sequence[Mapping[str, str]], home: Path, folders: Folders
) -> dict[str, Any]:
    """Return what the page shows about a subject; paths are relative to the page's folder."""
    results = folders.results / name
    state = rows[0]["state"]
    measured = read_results(results / "metrics.json") if state == "done" else {}
    verdict, held_out = measured.get("verdict", {}), measured.get("held_out", {})
    grade = verdict.get("grade")
    if grade == TOO_SHORT:
        held_out = {name: held_out[name] for name in held_out if not name.startswith("mouth_")}
    first = layout.FRAMES.path(folders.data / name, 0)
    links = [("report", results / "report.html"), ("held-out", results / "val.mp4")]
    links += [(video.stem, video) for video in sorted((results / layout.NOVEL).glob("*.mp4"))]
    reasons = [f"{row['rule']}: {row['reason']}" if row["rule"] else row["reason"] for row in rows]
    return {
        "name": name,
        "outcome": grade or ("no verdict" if state == "done" else state),
        "style": (grade or state).split()[0],
        "rank": GRADES.index(grade) if grade in GRADES else len(GRADES),
        "picture": _link(first, home) if first.exists() else None,
        "reasons": [*verdict.get("reasons", ()), *filter(None, reasons)],
        "logs": [{"file": r["log"], "link": _link(Path(r["log"]), home)} for r in rows if r["log"]],
        "numbers": [
            _number(label, held_out.get(metric), text) for label, (metric, text) in NUMBERS.items()
        ]
        + [_number(MINUTES, _minutes(folders.benchmarks / name), "{:.1f}")],
        "links": [
            {"label": label, "link": _link(path, home)} for label, path in links if path.exists()
        ],
    }


def _number(label: str, value: float | None, text: str) -> dict[str, Any]:
    known = isinstance(value, int | float)
    return {
        "label": label,
        "value": value if known else "",
        "text": text.format(value) if known else "-",
    }


def _minutes(benchmarks: Path) -> float | None:
    """Return the time of all stages of a subject in minutes, or None if nothing was measured."""
    seconds = []
    for path in benchmarks.rglob("*.tsv"):
        with open(path, newline="", encoding="utf-8") as file:
            seconds += [float(row["s"]) for row in csv.DictReader(file, delimiter="\t")]
    return sum(seconds) / 60 if seconds else None


def _link(path: Path, home: Path) -> str:
    return quote(os.path.relpath(path, home))
