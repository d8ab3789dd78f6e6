"""Ridge regression whose strength is chosen by cross-validation over consecutive stretches."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from talker.core.parallel import one_thread

FOLDS = 5
"""Number of consecutive stretches that cross-validation holds out in turn."""
GAP = 16
"""Frames left out between training and test stretches, because their speech windows overlap."""
STRENGTHS = (30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
"""Regularization strengths that cross-validation chooses from, for standardized features."""


@dataclass(frozen=True)
class Ridge:
    """A fitted linear map from features [N, F] to targets [N, D]."""

    weight: np.ndarray
    """[F, D]"""
    bias: np.ndarray
    """[D]"""

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the predicted targets [N, D] of features [N, F]."""
        return features @ self.weight + self.bias


@dataclass(frozen=True)
class CrossValidated:
    """A ridge regression on all rows, and what cross-validation predicted for each of them."""

    ridge: Ridge
    strength: float
    """chosen regularization strength"""
    held_out: np.ndarray
    """[N, D], prediction for each row by a fit that did not see its stretch"""


def fit_ridge(features: np.ndarray, targets: np.ndarray, strength: float) -> Ridge:
    """Fit targets [N, D] to features [N, F], penalizing squared weights but not the bias.

    If there are no rows, the prediction is 0. The result does not depend on the number of cores.
    """
    return _fit_ridges(features, targets, [strength])[0]


def _fit_ridges(
    features: np.ndarray, targets: np.ndarray, strengths: Sequence[float]
) -> list[Ridge]:
    """Return the result of `fit_ridge` for each strength."""
    if not len(features):
        weight = np.zeros((features.shape[1], targets.shape[1]))
        return [Ridge(weight, np.zeros(targets.shape[1]))] * len(strengths)
    x_mean, y_mean = features.mean(0), targets.mean(0)
    x, y = (torch.from_numpy(part).double() for part in (features - x_mean, targets - y_mean))
    with one_thread():
        gram, moments, unit = x.T @ x, x.T @ y, torch.eye(x.shape[1], dtype=x.dtype)
        weights = [torch.linalg.solve(gram + s * unit, moments).numpy() for s in strengths]
    return [Ridge(weight, y_mean - x_mean @ weight) for weight in weights]


def stretches(count: int, folds: int = FOLDS, gap: int = GAP) -> list[tuple[slice, np.ndarray]]:
    """Return (test rows, training rows bool [count]) for each of `folds` consecutive stretches."""
    bounds = np.linspace(0, count, folds + 1).astype(int)
    pairs = []
    for first, last in pairwise(bounds):
        train = np.ones(count, bool)
        train[max(first - gap, 0) : last + gap] = False
        pairs.append((slice(int(first), int(last)), train))
    return pairs


def fit_cross_validated(
    features: np.ndarray,
    targets: np.ndarray,
    strengths: Sequence[float] = STRENGTHS,
    extra: tuple[np.ndarray, np.ndarray] | None = None,
    gap: int = GAP,
) -> CrossValidated:
    """Fit a ridge regression with the strength that predicts held-out stretches best.

    Args:
        features: [N, F], rows in temporal order.
        targets: [N, D].
        strengths: regularization strengths to choose from.
        extra: features [M, F] and targets [M, D] that are used in every fit but never for testing.
        gap: rows left out between training and test stretches.
    """
    more_x, more_y = extra or (features[:0], targets[:0])

    def fit(rows: np.ndarray | slice, strengths: Sequence[float]) -> list[Ridge]:
        x, y = np.concatenate([features[rows], more_x]), np.concatenate([targets[rows], more_y])
        return _fit_ridges(x, y, strengths)

    predicted = {strength: np.empty(targets.shape) for strength in strengths}
    for test, train in stretches(len(features), gap=gap):
        for strength, ridge in zip(strengths, fit(train, strengths), strict=True):
            predicted[strength][test] = ridge.predict(features[test])
    best = min(
        strengths, key=lambda strength: float(np.square(predicted[strength] - targets).mean())
    )
    return CrossValidated(fit(slice(None), [best])[0], best, predicted[best])
