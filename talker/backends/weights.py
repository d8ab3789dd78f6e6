"""Files of pretrained networks that a backend needs and talker does not ship."""

from dataclasses import dataclass
from pathlib import Path

from talker.errors import UserError


@dataclass(frozen=True)
class Weights:
    """A file that the user downloads."""

    name: str
    """File name under which it is published."""
    source: str
    """Where to get it."""
    licence: str
    """Terms of use, including those of the training data."""
    size: int | None = None
    """Size of the published file in bytes, if known."""

    def hint(self) -> str:
        """Return a clause that says where to get the file."""
        return f"get {self.name} from {self.source}"


def require_weights(path: str | None, backend: str, weights: Weights) -> Path:
    """Return the path of a weights file that exists and is not truncated.

    Args:
        path: value of the option `weights`.
        backend: name of the backend, for the message.
        weights: the expected file.

    Raises:
        UserError: the option is not set, the file is missing, or it is a shortened copy of the
            published file.
    """
    if not path:
        raise UserError(f"weights: not set; the backend '{backend}' needs it: {weights.hint()}")
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: missing; the backend '{backend}' needs it: {weights.hint()}")
    size = file.stat().st_size
    if file.name == weights.name and weights.size is not None and size < weights.size:
        raise UserError(
            f"{file}: has {size:,} bytes, expected {weights.size:,}; the download was probably "
            f"interrupted: {weights.hint()}"
        )
    return file


def wrong_weights(file: Path, reason: str, weights: Weights) -> UserError:
    """Return the error of a file that does not hold the expected network."""
    return UserError(f"{file}: does not hold {weights.name} ({reason}); {weights.hint()}")
