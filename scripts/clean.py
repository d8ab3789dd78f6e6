"""Delete what talker wrote about subjects, and keep every other file in their folders.

    python scripts/clean.py demo

Needs only Python's standard library, so that it also works without an environment.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from talker.core.ownership import remove_own  # noqa: E402
from talker.errors import counted  # noqa: E402

RECORDS = {
    "data": ("source.txt", "quality_refused.json"),
    "results": ("source.txt",),
    "logs": ("**/*.log",),
    "benchmarks": ("**/*.tsv",),
}
"""Names of the files without a manifest that the workflow writes, in each of its folders."""

LISTED = 20
"""Largest number of kept files that are listed for a subject."""


def clean(subject: str) -> list[Path]:
    """Delete what talker wrote about a subject; return the files that remain."""
    kept = []
    for name, records in RECORDS.items():
        folder = Path(name, subject)
        for pattern in records:
            for path in list(folder.glob(pattern)):
                path.unlink()
        kept += remove_own(folder)
    return kept


def main() -> None:
    """Clean the subjects that the command line names, and list the files that are kept."""
    for subject in sys.argv[1:]:
        kept = clean(subject)
        for path in kept[:LISTED]:
            print(f"Kept {path}, because talker did not write it.")
        if len(kept) > LISTED:
            print(f"Kept {counted(len(kept) - LISTED, 'more file')} that talker did not write.")


if __name__ == "__main__":
    main()
