"""Principal component analysis, as used throughout the package."""

import numpy as np


def pca(deviations: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights and directions of the leading principal components.

    The directions are eigenvectors of the D x D second-moment matrix, so the cost grows linearly
    with the number of samples.

    Args:
        deviations: float [N, D], samples minus their mean.
        rank: number of components to keep; at most N are returned.

    Returns:
        Weights [N, rank] and orthonormal directions [rank, D], strongest first, such that
        `weights @ directions` approximates `deviations`. The entry of largest magnitude in each
        direction is positive, which fixes the sign.
    """
    _, vectors = np.linalg.eigh(deviations.T @ deviations)
    directions = vectors.T[::-1][: min(rank, len(deviations))]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    directions = directions * np.sign(largest)
    return deviations @ directions.T, directions
