"""What a speech encoder is, and the ones there are: sound in, a feature vector every few ms out.

A new one is a module with a function that returns an `Encoder`, and its line in `ENCODERS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from talker.errors import UserError


@dataclass(frozen=True)
class Encoder:
    """A frozen network that describes speech.

    `encode` maps sound, float32 [S] at 16 kHz in -1..1, to features float32 [N, dims]; row k
    describes the sound around `first_centre` + k / `rate` seconds. It needs no more memory for an
    hour of sound than its features take. `sha256` identifies the weights.
    """

    name: str
    dims: int
    rate: float
    first_centre: float
    sha256: str
    encode: Callable[[np.ndarray], np.ndarray]


def load_encoder(name: str) -> Encoder:
    """Load an encoder by name; UserError if there is none, or its weights are missing."""
    if name not in ENCODERS:
        raise UserError(f"speech encoder '{name}': expected one of {', '.join(ENCODERS)}")
    return ENCODERS[name]()


def _hama() -> Encoder:
    from talker.media.hama import load

    return load()


ENCODERS: dict[str, Callable[[], Encoder]] = {"hama": _hama}
