"""Process the frames of a clip in chunks, so that temporary arrays do not grow with its length."""

from collections.abc import Iterator

CHUNK = 64
"""Number of frames that are processed together; few enough to fit into the processor's cache."""


def chunks(frames: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `CHUNK` frames that cover `frames` frames."""
    for start in range(0, frames, CHUNK):
        yield slice(start, min(start + CHUNK, frames))
