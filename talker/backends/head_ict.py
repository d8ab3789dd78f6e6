"""The head of ICT-FaceKit (Li et al. 2020), from a clone of its repository."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from talker.data.weights import WEIGHTS
from talker.errors import UserError
from talker.head.morphable import MorphableHead
from talker.head.user_model import IDENTITIES, complete_head, require_file

NEUTRAL = "generic_neutral_mesh.obj"
"""File name of the neutral head in the folder FaceXModel."""

HEAD_VERTICES = 11_248
"""Number of vertices of face, head and neck, which come first in the topology."""

SCALE = 0.1
"""Decimeters per centimeter, the unit of the model."""


def load(files: Path | None) -> MorphableHead:
    """Read the head of a clone of ICT-FaceKit.

    Raises:
        UserError: a file is missing or damaged.
    """
    path = require_file(files, f"FaceXModel/{NEUTRAL}", WEIGHTS["ict"])
    mean, faces = read_obj(path)
    mean, faces = mean[:HEAD_VERTICES], faces[(faces < HEAD_VERTICES).all(axis=1)]
    shapes = {each.stem: each for each in sorted(path.parent.glob("*.obj")) if each != path}
    identities = [each for name, each in shapes.items() if name.startswith("identity")]
    expressions = [each for name, each in shapes.items() if not name.startswith("identity")]
    if not identities or not expressions:
        raise UserError(
            f"{path.parent} contains {len(identities)} identities and {len(expressions)} "
            "expressions. It must contain identity000.obj and further identities, and "
            "expressions such as jawOpen.obj."
        )

    def offsets(paths: list[Path]) -> np.ndarray:
        shapes = [read_obj(each)[0][:HEAD_VERTICES] for each in paths]
        for each, shape in zip(paths, shapes, strict=True):
            if shape.shape != mean.shape:
                raise UserError(
                    f"{each} has {len(shape)} vertices, but {NEUTRAL} has {len(mean)}. Use files "
                    "from the same version of ICT-FaceKit."
                )
        return np.stack(shapes) - mean

    return complete_head(
        path,
        mean * SCALE,
        faces,
        offsets(identities[:IDENTITIES]) * SCALE,
        offsets(expressions) * SCALE,
    )


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read vertices [V, 3] and triangles [F, 3] of a Wavefront file; polygons become fans.

    Raises:
        UserError: the file cannot be read.
    """
    vertices, faces = [], []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                kind, _, rest = line.partition(" ")
                if kind == "v":
                    vertices.append([float(word) for word in rest.split()[:3]])
                elif kind == "f":
                    corners = [int(word.partition("/")[0]) - 1 for word in rest.split()]
                    faces += [[corners[0], *pair] for pair in pairwise(corners[1:])]
        return np.array(vertices, float).reshape(-1, 3), np.array(faces, int).reshape(-1, 3)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a mesh ({error}). Get the file from ICT-FaceKit again."
        ) from error
