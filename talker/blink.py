"""Measure how far the eyes are closed and the brows are raised, in OpenFace's action units.

`talker blink --clip clip.json --landmarks landmarks.npz --au au.csv`
"""

import logging
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from talker.backends import load_backend
from talker.clip import FPS, Clip, load_per_frame
from talker.core.config import Fraction, validated
from talker.core.files import Output, atomic_write
from talker.data.formats import AU45_BLINK, BROW_UNITS, brow_units, write_action_units
from talker.errors import counted
from talker.head.brows import brow_raise

logger = logging.getLogger(__name__)

Percentile = Annotated[float, Field(ge=0, le=100)]


@validated
class Config:
    """How the eye closure and the brows are measured."""

    backend: Literal["ear", "openface", "pyfeat", "blendshapes"] = "ear"
    """Method: `ear` (eye aspect ratio of the landmarks), `openface` or `pyfeat` (the values in a
    table that OpenFace or py-feat wrote), or `blendshapes` (MediaPipe's face landmarker)."""
    table: str | None = None
    """Path of the csv file that `openface` or `pyfeat` reads."""
    weights: str | None = None
    """Path of the weights: face_landmarker.task for `blendshapes`. By default, the file that
    `talker weights fetch` downloads is used."""
    open_percentile: Percentile = 75.0
    """Percentile (0 to 100) of the eye aspect ratio at which `ear` considers the eyes open."""
    closed_percentile: Percentile = 0.5
    """Percentile (0 to 100) of the eye aspect ratio at which `ear` considers the eyes closed."""
    closed_ratio: Fraction = 0.25
    """`ear` counts the eyes as fully closed only below this fraction of the aspect ratio of open
    eyes. Without this limit, small eye movements in a clip without blinks would count as blinks."""


def main(
    *,
    clip: Path,
    landmarks: Path,
    au: Output,
    images: Path | None = None,
    config: Config = Config(),
) -> None:
    """Estimate eye closure and brow motion in every frame, and write them as OpenFace does.

    Args:
        clip: clip.json of the dataset.
        landmarks: landmarks.npz, the face mesh of every frame.
        au: au.csv to write, with intensities from 0 to 5. ` AU45_r` is 0 for open eyes, and 2 or
            more for closed eyes. ` AU01_r` and ` AU02_r` are the raising of the inner and the outer
            brows, and ` AU04_r` is the lowering of the brows. The names begin with a space, as in
            the files of OpenFace.
        images: Folder of the frames, %d.jpg; only `blendshapes` needs it.
        config: Options.
    """
    described = Clip.load(clip)
    meshes = load_per_frame(landmarks, described.frames, "points")
    backend = load_backend("blink", config.backend)
    points, valid = meshes["points"], meshes["valid"]
    units = backend.measure(described, images, points, valid, config)
    if not BROW_UNITS.keys() & units.keys():
        units |= brow_units(brow_raise(points, valid, units["AU45_r"]))
    with atomic_write(au) as (scratch,):
        write_action_units(scratch, units, valid)
    closed = units["AU45_r"] > AU45_BLINK
    blinks = (closed[1:] > closed[:-1]).sum()
    logger.info("Detected %s in %.1f s.", counted(blinks, "blink"), len(closed) / FPS)
