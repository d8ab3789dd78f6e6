"""What an encoder's features are reduced by: principal components and the features of silence."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from talker.clip import load_arrays
from talker.encoders.base import Choice
from talker.errors import UserError


@dataclass(frozen=True)
class Statistics:
    """How an encoder's features become those of an avatar; learned from its training frames.

    mean is [D], components are orthonormal rows [C, D], scale is [C]: the standard deviations of
    the components. sha256 identifies the encoder's weights. level is the loudness of the speech in
    dBFS (nan: unknown), silence [C] the features of a pause that lasts `pause` seconds or more.
    """

    encoder: str
    model: str
    layer: int
    sha256: str
    look_ahead: int
    level: float
    pause: float
    mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray
    silence: np.ndarray

    @property
    def choice(self) -> Choice:
        return Choice(self.encoder, self.model, self.layer)

    def reduce(self, slots: np.ndarray) -> np.ndarray:
        """Map encoder features [K, D] to whitened components float32 [K, C]."""
        return ((slots - self.mean) @ self.components.T / self.scale).astype(np.float32)

    @classmethod
    def load(cls, path: Path | zipfile.Path) -> "Statistics":
        """Read what `save` wrote; UserError if it is missing or damaged."""
        try:
            archive = load_arrays(path)
            return cls(
                encoder=str(archive["encoder"]),
                model=str(archive["model"]),
                layer=int(archive["layer"]),
                sha256=str(archive["sha256"]),
                look_ahead=int(archive["look_ahead"]),
                level=float(archive["level"]),
                pause=float(archive["pause"]),
                mean=archive["mean"],
                components=archive["components"],
                scale=archive["scale"],
                silence=archive["silence"],
            )
        except (UserError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: expected the statistics that `talker speech --clip` writes ({error})"
            ) from error

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))
