"""The interface of a speech encoder, which maps sound to feature vectors at a fixed rate."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from talker.core.config import DEFAULT_ENCODER


@dataclass(frozen=True)
class Encoder:
    """A frozen speech encoder."""

    name: str
    dims: int
    """Number of values of a feature vector."""
    rate: float
    """Feature vectors per second."""
    first_center: float
    """Time in seconds on which the first feature vector of a piece of sound is centered."""
    sha256: str
    """Hash that identifies the weights; empty if there are none."""
    extract: Callable[[np.ndarray, int], np.ndarray]
    """Map a piece of sound to its features.

    The arguments are float32 [S] at 16 kHz in -1..1, and the position of its first sample in the
    whole sound, which may be negative and is needed only by encoders with stored features. Returns
    float32 [N, dims]; row k is centered on `first_center` + k / `rate` seconds of the piece. Pieces
    last 14 s.
    """


@dataclass(frozen=True)
class Choice:
    """A speech encoder together with its weights and layer, for those that have a choice."""

    name: str = DEFAULT_ENCODER
    model: str = ""
    """Folder or hub id of the weights of a transformer; empty selects the default of the family."""
    layer: int = 0
    """Layer whose output is used, counted from 1; 0 selects the one at 3/4 of the depth."""
