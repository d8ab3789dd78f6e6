"""Loop subdivision, which smooths the head model's mesh before rendering."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse


@dataclass(frozen=True)
class Subdivision:
    """A finer mesh whose V' vertices are a linear function of the V coarse vertices."""

    operator: sparse.csr_matrix
    """sparse [V', V]; the first V rows move the coarse vertices onto the smooth surface"""
    faces: np.ndarray
    """int32 [4 F, 3]; coarse triangle f is divided into triangles 4 f to 4 f + 3"""

    def __call__(self, vertices: np.ndarray) -> np.ndarray:
        """Return the fine vertices (or their attributes) float32 [V', C] of coarse ones [V, C]."""
        return (self.operator @ vertices).astype(np.float32)


def loop_subdivision(faces: np.ndarray, vertices: int) -> Subdivision:
    """Return one step of Loop subdivision of faces [F, 3] over the given number of vertices.

    Loop 1987 with the weights of Warren 1995; boundary edges stay sharp.
    """
    directed = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    ordered = np.sort(directed, axis=1)
    edges, index, uses = np.unique(ordered, axis=0, return_inverse=True, return_counts=True)
    index = index.ravel()
    opposite = faces[:, [2, 0, 1]].ravel()
    border = uses == 1
    count = len(edges)

    ends = np.where(border, 1 / 2, 3 / 8)
    rows = np.concatenate([np.arange(count), np.arange(count), index])
    columns = np.concatenate([edges[:, 0], edges[:, 1], opposite])
    values = np.concatenate([ends, ends, np.where(border, 0, 1 / 8)[index]])
    odd = sparse.coo_matrix((values, (rows, columns)), (count, vertices))

    on_border = np.zeros(vertices, bool)
    on_border[edges[border]] = True
    used = np.concatenate([edges[border], edges[~border]])
    kind = np.repeat([True, False], [border.sum(), (~border).sum()])
    a, b = np.concatenate([used, used[:, ::-1]]).T
    kind = np.tile(kind, 2)
    counted = np.where(on_border[a], kind, True)  # a boundary vertex depends on its boundary only
    a, b = a[counted], b[counted]
    valence = np.bincount(a, minlength=vertices)
    weight = np.where(on_border, 1 / 8, np.where(valence == 3, 3 / 16, 3 / (8.0 * valence.clip(1))))
    ring = sparse.coo_matrix((weight[a], (a, b)), (vertices, vertices))
    even = ring + sparse.diags(1 - valence * weight)

    middles = (vertices + index).reshape(-1, 3)
    m0, m1, m2 = middles.T
    v0, v1, v2 = faces.T
    fine = np.stack([v0, m0, m2, v1, m1, m0, v2, m2, m1, m0, m1, m2], axis=1).reshape(-1, 3)
    return Subdivision(sparse.csr_matrix(sparse.vstack([even, odd])), fine.astype(np.int32))


def subdivide_corners(values: np.ndarray) -> np.ndarray:
    """Interpolate values at triangle corners [F, 3, C] linearly: returns [4 F, 3, C]."""
    a, b, c = values.transpose(1, 0, 2)
    ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
    corners = [a, ab, ca, b, bc, ab, c, ca, bc, ab, bc, ca]
    return np.stack(corners, axis=1).reshape(-1, 3, values.shape[2])
