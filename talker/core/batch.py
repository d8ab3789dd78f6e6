"""Read the tables of subjects and speeches, and report the outcome of a run with many subjects.

The workflow imports this module at every start, so it only imports modules that load fast.
"""

import csv
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError

from talker.core.files import atomic_write
from talker.errors import UserError

Schema = Mapping[str, Any]
"""A JSON schema."""
EXTRA_CELLS = "extra cells"
"""Key of the cells of a row for which the header has no column."""


@dataclass(frozen=True)
class SubjectRow:
    """A row of the table of subjects."""

    video: str
    """Path of the video."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options that this row overrides, as {stage: options}."""


@dataclass(frozen=True)
class SpeechRow:
    """A row of the table of speeches."""

    file: str
    """Path of the audio or video file."""
    subjects: frozenset[str] | None = None
    """Names of the subjects that speak it, or None for all subjects."""


def name_of(file: str | Path) -> str:
    """Return the name of a subject or a speech: the file's stem, made valid as a folder name."""
    return re.sub(r"[^\w.-]+", "_", Path(file).stem).lstrip(".") or "_"


def schema_errors(data: Any, schema: Schema, where: str) -> list[str]:
    """Return one line for every part of `data` that does not match the schema.

    Args:
        where: the file and line that `data` comes from, which begins every message.
    """
    lines = []
    stages = schema.get("properties", {}).get("options", schema).get("properties", {})
    for error in Draft202012Validator(schema).iter_errors(data):
        key = ".".join(map(str, error.absolute_path))
        lines += [
            f"{where}: {key}: {text}" if key else f"{where}: {text}"
            for text in _texts(error, stages)
        ]
    return lines


def _texts(error: ValidationError, stages: Schema) -> list[str]:
    """Return the messages of a schema error, in the wording of `talker.core.config.explain`.

    Args:
        stages: {stage: schema of its options}, to find the stage that has an unknown option.
    """
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(error.schema.get("properties", {}))  # pyright: ignore[reportAttributeAccessIssue]
        unknown = [key for key in error.instance if key not in known]
        return [
            "the row has more cells than the header has columns"
            if key == EXTRA_CELLS
            else f"unknown key '{key}'{_hint(str(key), known, error, stages)}"
            for key in unknown
        ]
    if error.context:
        return [", or ".join(dict.fromkeys(part.message for part in error.context))]
    return [error.message]


def _hint(key: str, known: list[str], error: ValidationError, stages: Schema) -> str:
    """Return which stages have the option `key`, or else a known key with a similar name."""
    if error.absolute_path and error.absolute_path[-1] in stages:
        homes = [name for name, part in stages.items() if key in part.get("properties", {})]
        if homes:
            return f"; it is an option of {' and '.join(f'`{name}`' for name in homes)}"
    close = difflib.get_close_matches(key, known, 1)
    return f"; did you mean '{close[0]}'?" if close else ""


def read_subjects(table: Path, schema: Schema, options: Schema) -> dict[str, SubjectRow]:
    """Read the table of subjects.

    Its columns are `subject`, `video`, and options of stages by their dotted names, such as
    `train.image_size`. An empty cell keeps the value of the configuration.

    Args:
        table: tab-separated file with a header.
        schema: JSON schema of the fixed columns of a row.
        options: JSON schema of `options` in the configuration.

    Returns:
        {subject: row}, in the order of the table.

    Raises:
        UserError: the table is invalid; the message has one line for every error in it.
    """
    subjects: dict[str, SubjectRow] = {}
    errors: list[str] = []
    for where, row in _rows(table):
        overrides, row_errors = _overrides(row, where)
        row_errors += schema_errors(row, schema, where)
        row_errors += schema_errors(overrides, options, where)
        if row.get("subject") in subjects:
            row_errors.append(f"{where}: The subject '{row['subject']}' already has a row above.")
        if not row_errors:
            subjects[row["subject"]] = SubjectRow(row["video"], overrides)
        errors += row_errors
    _raise_all(errors)
    return subjects


def read_speeches(table: Path, schema: Schema, subjects: Iterable[str]) -> dict[str, SpeechRow]:
    """Read the table of speeches.

    Its columns are `speech`, `file` and `subjects`: names separated by commas, or empty for all.

    Args:
        table: tab-separated file with a header.
        schema: JSON schema of a row.
        subjects: names of all subjects.

    Returns:
        {speech: row}, in the order of the table.

    Raises:
        UserError: the table is invalid or names an unknown subject; the message has one line for
            every error in it.
    """
    speeches: dict[str, SpeechRow] = {}
    known = set(subjects)
    errors: list[str] = []
    for where, row in _rows(table):
        names = {name.strip() for name in (row.get("subjects") or "").split(",") if name.strip()}
        row_errors = schema_errors(row, schema, where)
        row_errors += [
            f"{where}: The subject '{name}' is not in the table of subjects."
            for name in sorted(names - known)
        ]
        if row.get("speech") in speeches:
            row_errors.append(f"{where}: The speech '{row['speech']}' already has a row above.")
        if not row_errors:
            speeches[row["speech"]] = SpeechRow(row["file"], frozenset(names) or None)
        errors += row_errors
    _raise_all(errors)
    return speeches


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row, such as "subjects.tsv, line 2", and its cells by column."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, delimiter="\t", restkey=EXTRA_CELLS)
            for row in rows:
                yield f"{table}, line {rows.line_num}", row
    except OSError as error:
        raise UserError(f"{table} cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{table} must be UTF-8 text with tabs between the cells ({error})."
        ) from error


def _overrides(row: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Remove the dotted columns from `row`; return {stage: options} and error messages."""
    options: dict[str, Any] = {}
    errors = []
    for column in [column for column in row if "." in column]:
        cell = row.pop(column)
        if cell and cell.strip():
            errors += _set_nested(options, column.split("."), cell, f"{where}: {column}")
    return options, errors


def _set_nested(options: dict[str, Any], keys: Sequence[str], cell: str, where: str) -> list[str]:
    """Set a nested key of `options` to the YAML value in `cell`; return error messages."""
    try:
        value = yaml.safe_load(cell)
    except (yaml.YAMLError, ValueError):
        return [f"{where}: '{cell:.80}' is not valid YAML."]
    *groups, last = keys
    for key in groups:
        options = options.setdefault(key, {})
        if not isinstance(options, dict):
            return [
                f"{where}: Another column already sets `{key}` as a whole. Keep only one of the "
                "columns."
            ]
    if last in options:
        return [
            f"{where}: Another column already sets a part of `{last}`. Keep only one of the "
            "columns."
        ]
    options[last] = value
    return []


def _raise_all(errors: list[str]) -> None:
    if errors:
        raise UserError("\n".join(errors))


@dataclass(frozen=True)
class Failure:
    """A job that failed."""

    rule: str
    """Name of its rule."""
    log: Path
    """Its log file."""
    reason: str
    """The last error message of its log, or how it was killed."""
    from_stage: bool
    """Whether the log contains the reason."""


BLOCK = re.compile(
    r"^( *)Error in rule (?P<rule>\w+)\b.*\n(?P<text>(?:\1 +.*\n|\n)*)", re.MULTILINE
)
"""Pattern of the block for a failed job in Snakemake's log. Each job of a failed group has one."""
LOG = re.compile(r"^ +log: (.+?)(?: \(check log file.*)?$", re.MULTILINE)
"""Pattern of the log file in such a block."""
OUTPUT = re.compile(r"^ +output: (.+)$", re.MULTILINE)
"""Pattern of the outputs in such a block."""
STATUS = re.compile(r"SLURM status is: '(\w+)'")
"""Pattern of the state of a Slurm job in such a block."""
MESSAGE = re.compile(
    r"^(talker \w+: error: .*(?:\n  .*)*"
    r"|[\w.]*(?:[Ee]rror|Exception)(?:: .*)?|.*: command not found)$",
    re.MULTILINE,
)
"""Pattern of an error message in the log of a job. A message of `talker` continues on indented
lines."""


KILLED = (
    "killed before it could report an error, probably because the memory was exhausted. Stop other "
    "programs, run fewer jobs at once (`--cores 1`), or use a shorter video"
)
"""Reason of the failure of a job that was killed on this machine."""


def failures(text: str) -> list[Failure]:
    """Return the last failure of each failed job, except jobs that succeeded when repeated.

    Snakemake removes the outputs of a failed job, so a job whose outputs all exist succeeded when
    it was repeated.

    Args:
        text: Snakemake's own log.
    """
    last: dict[Path, Failure] = {}
    for block in BLOCK.finditer(text):
        outputs = OUTPUT.search(block["text"])
        if outputs and all(Path(output).exists() for output in outputs[1].split(", ")):
            continue
        if match := LOG.search(block["text"]):
            log = Path(match[1])
            lines = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            messages = MESSAGE.findall(lines)
            status = STATUS.findall(block["text"])
            ended = f"killed {status[-1]}" if status else KILLED
            reason = " ".join((messages or [ended])[-1].split())
            last[log] = Failure(block["rule"], log, reason, bool(messages))
    return list(last.values())


def read_results(metrics: Path) -> dict[str, Any]:
    """Return `verdict` and `held_out` of a metrics.json; empty if it cannot be read."""
    try:
        content = json.loads(metrics.read_text(encoding="utf-8"))
        return {"verdict": dict(content["verdict"]), "held_out": dict(content["held_out"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def read_outcome(table: Path) -> list[dict[str, str]]:
    """Return the rows of a batch table, which `write_outcome` wrote, by column."""
    with open(table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def write_outcome(
    table: Path, targets: Mapping[str, Sequence[Path]], failed: Sequence[Failure], logs: Path
) -> tuple[int, int]:
    """Write a row for every subject: done (and its verdict), failed (and why), or not finished.

    Rows of earlier runs for other subjects are kept.

    Args:
        table: tab-separated file to write.
        targets: {subject: files that make it complete}.
        failed: the jobs that failed. A failed group also contains jobs that did not fail. If
            the logs of some of them contain a reason, only these are reported.
        logs: folder that contains one folder of logs for every subject.

    Returns:
        The number of subjects that are done, and the number of those that are not.
    """
    rows: list[Sequence[str]] = []
    done = 0
    if table.exists():
        with open(table, newline="", encoding="utf-8") as file:
            earlier = list(csv.reader(file, delimiter="\t"))[1:]
        rows += [(*row, "")[:6] for row in earlier if row and row[0] not in targets]
    for subject, files in targets.items():
        missing = [str(file) for file in files if not file.exists()]
        causes = [failure for failure in failed if logs / subject in failure.log.parents]
        causes = [failure for failure in causes if failure.from_stage] or causes[:1]
        if causes:  # existing files may come from an earlier run
            rows += [(subject, "failed", f.rule, f.reason, str(f.log), "") for f in causes]
        elif missing:
            rows.append((subject, "not finished", "", f"{missing[0]} is missing", "", ""))
        else:
            done += 1
            metrics = [file for file in files if file.name == "metrics.json"]
            grade = read_results(metrics[0]).get("verdict", {}).get("grade", "") if metrics else ""
            rows.append((subject, "done", "", "", "", grade))
    with (
        atomic_write(table) as (scratch,),
        open(scratch, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("subject", "state", "rule", "reason", "log", "verdict"))
        writer.writerows(rows)
    return done, len(targets) - done
