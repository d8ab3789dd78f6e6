"""A head mesh with linear identity and expression bases and landmarks embedded on its surface.

The head that comes with the package is cut out of MakeHuman's CC0 body (scripts/make_head.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer

from talker.errors import UserError

DEFAULT_MODEL = Path(__file__).with_name("head_model.npz")
"""File of the head that comes with the package."""

PARTS = ("skin", "mouth", "eyes", "upper_teeth", "lower_teeth", "tongue", "lashes")
"""Names of the parts of a head; `MorphableHead.parts` holds indices into them."""


@dataclass(frozen=True)
class MorphableHead:
    """Vertices and linear bases in dm: x to the image's right, y up, z towards the camera.

    The origin is the mean of the landmarks; the face looks along +z.
    """

    vertices: np.ndarray
    """float32 [V, 3], the mean shape with a neutral expression."""
    faces: np.ndarray
    """int32 [F, 3], counter-clockwise seen from outside."""
    parts: np.ndarray
    """uint8 [F], index into `PARTS`."""
    uvs: np.ndarray
    """float32 [F, 3, 2], texture coordinates of each corner, v up."""
    masks: dict[str, np.ndarray]
    """float32 [V] in 0..1 each: lips, ears, eyelids, and `openness` (visible part of the sky)."""
    identity_names: tuple[str, ...]
    """Name of each identity."""
    identities: np.ndarray
    """float32 [I, V, 3], offsets for a weight of 1."""
    expression_names: tuple[str, ...]
    """Name of each expression."""
    expressions: np.ndarray
    """float32 [E, V, 3], offsets for a weight of 1."""
    landmark_faces: np.ndarray
    """int32 [478], the triangle that contains each point of MediaPipe's face mesh."""
    landmark_weights: np.ndarray
    """float32 [478, 3], barycentric weights in that triangle."""
    identity_sigma: float = 0.2
    """Expected size of the identity weights."""
    expression_sigma: float = 0.1
    """Expected size of the expression weights."""

    @classmethod
    def load(cls, path: Path = DEFAULT_MODEL) -> "MorphableHead":
        """Read a model.

        Raises:
            UserError: the file is missing, damaged or not a head model.
        """
        try:
            with np.load(path) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as a head model ({error}).") from error
        missing = {"vertices", "faces", "expressions", "landmark_faces"} - arrays.keys()
        if missing:
            raise UserError(
                f"{path} is not a head model, because it lacks the arrays "
                f"{', '.join(sorted(missing))}."
            )

        def floats(name: str) -> np.ndarray:
            return arrays[name].astype(np.float32)

        masks = arrays["masks"].astype(np.float32) / 255
        return cls(
            vertices=floats("vertices"),
            faces=arrays["faces"].astype(np.int32),
            parts=arrays["parts"],
            uvs=floats("uvs"),
            masks=dict(zip(arrays["mask_names"].tolist(), masks, strict=True)),
            identity_names=tuple(arrays["identity_names"].tolist()),
            identities=floats("identities"),
            expression_names=tuple(arrays["expression_names"].tolist()),
            expressions=floats("expressions"),
            landmark_faces=arrays["landmark_faces"].astype(np.int32),
            landmark_weights=floats("landmark_weights"),
        )

    def shape(self, identity: Mapping[str, float]) -> Float[np.ndarray, "V 3"]:
        """Return the neutral vertices [V, 3] for identity weights.

        Raises:
            ValueError: the model has no identity of that name.
        """
        weights = _weights(identity, self.identity_names)
        return self.vertices + np.tensordot(weights, self.identities, 1)

    def landmarks(self, vertices: Float[np.ndarray, "*B V 3"]) -> Float[np.ndarray, "*B 478 3"]:
        """Return the 478 mesh points [..., 478, 3] on vertices [..., V, 3]."""
        corners = vertices[..., self.faces[self.landmark_faces], :]
        return (corners * self.landmark_weights[:, :, None]).sum(-2)


def vertex_normals(
    vertices: Float[np.ndarray, "V 3"], faces: Integer[np.ndarray, "F 3"]
) -> Float[np.ndarray, "V 3"]:
    """Return unit normals [V, 3]: the mean of the adjacent face normals weighted by area."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    sums = np.stack(
        [
            np.bincount(faces.ravel(), np.repeat(normals[:, axis], 3), len(vertices))
            for axis in range(3)
        ],
        axis=1,
    )
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def _weights(values: Mapping[str, float], names: tuple[str, ...]) -> np.ndarray:
    unknown = values.keys() - set(names)
    if unknown:
        raise ValueError(f"The head model has no shape named {', '.join(sorted(unknown))}.")
    return np.array([values.get(name, 0.0) for name in names], np.float32)
