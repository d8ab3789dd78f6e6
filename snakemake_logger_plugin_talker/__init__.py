"""A logger plugin of Snakemake that prints every event as one line of JSON, for `talker run`."""

import json
from logging import LogRecord

from snakemake_interface_logger_plugins.base import LogHandlerBase

FIELDS = (
    *("event", "jobid", "job_id", "rule_name", "rule_msg", "wildcards", "log", "stats"),
    "training",  # in the message of the rules about the preset
)
"""Attributes of a log record that are printed if the record has them."""


class LogHandler(LogHandlerBase):
    """Print log records to standard output."""

    writes_to_stream = True  # pyright: ignore[reportAssignmentType]
    writes_to_file = False  # pyright: ignore[reportAssignmentType]
    has_filter = True  # pyright: ignore[reportAssignmentType]
    has_formatter = True  # pyright: ignore[reportAssignmentType]
    needs_rulegraph = False  # pyright: ignore[reportAssignmentType]

    def emit(self, record: LogRecord) -> None:
        """Print a record: its message, its level, and whether a file of the workflow wrote it."""
        fields = {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        fields |= {"message": record.getMessage(), "level": record.levelname}
        fields["from_rules"] = record.pathname.endswith((".smk", "Snakefile"))
        print(json.dumps(fields, default=str), flush=True)
