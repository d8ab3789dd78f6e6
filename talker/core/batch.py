"""Many subjects: the tables of subjects and speeches, and what became of every subject of a run.

The workflow reads it at every start, so it imports nothing heavy. A faulty table is refused with a
line for every fault in it.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from talker.core.files import atomic_write
from talker.errors import UserError

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class SubjectRow:
    video: str
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """{stage: options} that differ from those of the configuration"""


@dataclass(frozen=True)
class SpeechRow:
    file: str
    subjects: frozenset[str] | None = None
    """who says it; None is everybody"""


def schema_errors(data: Any, schema: Schema, where: str) -> list[str]:
    """Return a line for everything in `data` that does not fit the schema."""
    found = []
    for error in Draft202012Validator(schema).iter_errors(data):
        key = ".".join(map(str, error.absolute_path))
        found.append(f"{where}: {key}: {error.message}" if key else f"{where}: {error.message}")
    return found


def read_subjects(table: Path, schema: Schema, options: Schema) -> dict[str, SubjectRow]:
    """Read the table of subjects.

    Its columns are `subject`, `video`, and options of stages by their dotted names, such as
    `train.image_size`; an empty cell leaves the configuration's value.

    Args:
        table: tab-separated, with a header.
        schema: JSON schema of a row's fixed columns.
        options: JSON schema of `options` in the configuration.

    Raises:
        UserError: a line for every fault of the table.
    """
    subjects: dict[str, SubjectRow] = {}
    complaints = []
    for where, row in _rows(table):
        overrides = {column: row.pop(column) for column in list(row) if "." in column}
        found = schema_errors(row, schema, where)
        if row.get("subject") in subjects:
            found.append(f"{where}: subject '{row['subject']}' has a row already")
        chosen: dict[str, Any] = {}
        for column, cell in overrides.items():
            if cell and cell.strip():
                found += _put(chosen, column.split("."), cell, f"{where}: {column}")
        found += schema_errors(chosen, options, where)
        complaints += found
        if not found:
            subjects[row["subject"]] = SubjectRow(row["video"], chosen)
    _refuse(complaints)
    return subjects


def read_speeches(table: Path, schema: Schema, subjects: Iterable[str]) -> dict[str, SpeechRow]:
    """Read the table of speeches: `speech`, `file`, and `subjects` (separated by commas, or empty).

    Raises:
        UserError: a line for every fault of the table, such as a subject that is not there.
    """
    speeches: dict[str, SpeechRow] = {}
    known = set(subjects)
    complaints = []
    for where, row in _rows(table):
        found = schema_errors(row, schema, where)
        if row.get("speech") in speeches:
            found.append(f"{where}: speech '{row['speech']}' has a row already")
        who = {name.strip() for name in (row.get("subjects") or "").split(",") if name.strip()}
        found += [
            f"{where}: subjects: there is no subject '{name}'" for name in sorted(who - known)
        ]
        complaints += found
        if not found:
            speeches[row["speech"]] = SpeechRow(row["file"], frozenset(who) or None)
    _refuse(complaints)
    return speeches


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, delimiter="\t", restkey="cells without a column")
            for row in rows:
                yield f"{table}, line {rows.line_num}", row
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: expected UTF-8 text, tabs between cells; {error}") from error


def _put(chosen: dict[str, Any], keys: Sequence[str], cell: str, where: str) -> list[str]:
    """Set a nested key of `chosen` to the YAML in `cell`; return what is wrong with it."""
    try:
        value = yaml.safe_load(cell)
    except yaml.YAMLError:
        return [f"{where}: '{cell}' is not YAML"]
    *groups, last = keys
    for key in groups:
        chosen = chosen.setdefault(key, {})
        if not isinstance(chosen, dict):
            return [f"{where}: another column sets all of '{key}'"]
    if last in chosen:
        return [f"{where}: another column sets a part of it"]
    chosen[last] = value
    return []


def _refuse(complaints: list[str]) -> None:
    if complaints:
        raise UserError("\n".join(complaints))


@dataclass(frozen=True)
class Failure:
    rule: str
    log: Path
    reason: str
    said: bool
    """whether the stage itself gave the reason"""


BLOCK = re.compile(
    r"^( *)Error in rule (?P<rule>\w+)\b.*\n(?P<text>(?:\1 +.*\n|\n)*)", re.MULTILINE
)
"""A failed job in Snakemake's own log; one for every job of a failed group."""
LOG = re.compile(r"^ +log: (.+?)(?: \(check log file.*)?$", re.MULTILINE)
OUTPUT = re.compile(r"^ +output: (.+)$", re.MULTILINE)
STATUS = re.compile(r"SLURM status is: '(\w+)'")
MESSAGE = re.compile(
    r"^(talker \w+: error: .*|[\w.]*(?:[Ee]rror|Exception)(?:: .*)?|.*: command not found)$",
    re.MULTILINE,
)


def failures(text: str) -> list[Failure]:
    """Return the jobs that failed, of the text of Snakemake's log; the last failure of each.

    Snakemake removes what a failed job leaves; where all its outputs are there, it was repeated.
    """
    found: dict[Path, Failure] = {}
    for match in BLOCK.finditer(text):
        outputs = OUTPUT.search(match["text"])
        if outputs and all(Path(output).exists() for output in outputs[1].split(", ")):
            continue
        if named := LOG.search(match["text"]):
            log = Path(named[1])
            heard = log.read_text(errors="replace") if log.exists() else ""
            messages = MESSAGE.findall(heard)
            status = STATUS.findall(match["text"])
            reason = messages[-1] if messages else " ".join(["killed", *status[-1:]])
            found[log] = Failure(match["rule"], log, reason, bool(messages))
    return list(found.values())


def write_outcome(
    table: Path, wanted: Mapping[str, Sequence[Path]], failed: Sequence[Failure], logs: Path
) -> tuple[int, int]:
    """Write a row for every subject: done, failed (where and why) or not finished.

    Args:
        table: the tab-separated table to write.
        wanted: {subject: files that make it complete}.
        failed: the jobs that failed. Where jobs ran as a group, all of them are here: those that
            said why come first.
        logs: the folder with a folder of logs for every subject.

    Returns:
        the numbers of subjects that are done and that are not.
    """
    rows, done = [], 0
    for subject, files in wanted.items():
        missing = [str(file) for file in files if not file.exists()]
        causes = [failure for failure in failed if logs / subject in failure.log.parents]
        causes = [failure for failure in causes if failure.said] or causes[:1]
        if causes:  # what is there may be of an earlier run
            rows += [(subject, "failed", f.rule, f.reason, str(f.log)) for f in causes]
        elif missing:
            rows.append((subject, "not finished", "", f"no {missing[0]}", ""))
        else:
            done += 1
            rows.append((subject, "done", "", "", ""))
    with atomic_write(table) as (scratch,), open(scratch, "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("subject", "state", "rule", "reason", "log"))
        writer.writerows(rows)
    return done, len(wanted) - done
