"""Turn the mesh and the bases of a user's head model into a `MorphableHead`.

The landmarks are embedded by rendering (`talker.head.embedding`), the head is aligned with the head
of the package, and expressions are taken from that head where the model has none.
"""

from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from talker.data.weights import Weights
from talker.errors import UserError
from talker.head.embedding import embed
from talker.head.fitting import stable_points
from talker.head.morphable import PARTS, MorphableHead
from talker.head.poses import procrustes

IDENTITIES = 100
"""Maximum number of identity components that are used, as in the published tracker."""

NEIGHBORS = 4
"""Number of vertices of the package's head from which a vertex takes its expressions."""


def complete_head(
    path: Path,
    mean: np.ndarray,
    faces: np.ndarray,
    identities: np.ndarray,
    basis: np.ndarray | None,
) -> MorphableHead:
    """Add landmarks to a model and align it with the head of the package.

    Args:
        path: file of the model, for error messages.
        mean: [V, 3] dm, upright, looking along +z.
        faces: int [F, 3], with consistent orientation.
        identities: [I, V, 3] dm, for weights of one standard deviation.
        basis: expressions [E, V, 3] dm, for weights of one standard deviation; None takes those of
            the package's head.

    Raises:
        UserError: no face is detected in renders of the model.
    """
    ours = MorphableHead.load()
    mean = mean - (mean.min(axis=0) + mean.max(axis=0)) / 2
    corners = mean[faces]
    outward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    if (outward * corners.mean(axis=1)).sum() < 0:
        faces = faces[:, ::-1]
    template = ours.landmarks(ours.vertices.astype(float))
    stable = stable_points(template)
    turn = np.eye(3)
    for _ in range(2):  # the second pass detects an upright face in the center of the image
        try:
            triangles, weights = embed(mean, faces)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        points = (mean[faces[triangles]] * weights[..., None]).sum(axis=1)
        # The alignment keeps the size of the model, which is part of its shape.
        _, rotation, _ = procrustes(points[None, stable], template[stable])
        shift = (points @ rotation[0])[stable].mean(axis=0) - template[stable].mean(axis=0)
        mean, turn = mean @ rotation[0] - shift, turn @ rotation[0]
    if basis is None:
        expressions, names = transfer_expressions(ours, mean), ours.expression_names
        sigma = ours.expression_sigma
    else:
        expressions = basis @ turn
        names, sigma = tuple(f"expression{i}" for i in range(len(basis))), 1.0
    return MorphableHead(
        vertices=mean.astype(np.float32),
        faces=faces.astype(np.int32),
        parts=np.zeros(len(faces), np.uint8),
        uvs=np.zeros((len(faces), 3, 2), np.float32),
        masks={name: np.zeros(len(mean), np.float32) for name in ours.masks},
        identity_names=tuple(f"identity{i}" for i in range(len(identities))),
        identities=(identities @ turn).astype(np.float32),
        expression_names=names,
        expressions=expressions.astype(np.float32),
        landmark_faces=triangles,
        landmark_weights=weights,
        identity_sigma=1.0,
        expression_sigma=sigma,
    )


def transfer_expressions(ours: MorphableHead, vertices: np.ndarray) -> np.ndarray:
    """Transfer the expressions of the package's head to other vertices.

    Each vertex takes the mean of its nearest neighbors on the skin, weighted by inverse distance.

    Args:
        ours: the head of the package.
        vertices: [V, 3] dm.

    Returns:
        [E, V, 3] dm.
    """
    skin = np.unique(ours.faces[ours.parts == PARTS.index("skin")])
    distance, nearest = KDTree(ours.vertices[skin]).query(vertices, k=NEIGHBORS)
    weights = 1.0 / (distance + 0.01)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("vk,evkc->evc", weights, ours.expressions[:, skin[nearest]], optimize=True)


def require_file(files: Path | None, name: str, weights: Weights) -> Path:
    """Return `files / name`.

    Raises:
        UserError: no folder was given, or it does not contain the file.
    """
    if files is None or not (files / name).is_file():
        reason = (
            f"{files / name} does not exist" if files else "the option `model_files` is not set"
        )
        raise UserError(
            f"The head model '{weights.key}' needs {name} from {weights.source}, but {reason}. "
            f"To obtain it, {weights.hint()}. The model 'anny' needs no files."
        )
    return files / name
