"""Files that backends need and talker does not ship: networks, tables and head models."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talker.backends import BACKENDS, OPTIONS
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
    sha256: str | None = None
    """SHA-256 of the published file, if known."""

    def hint(self) -> str:
        """Return a clause that says where to get the file."""
        return f"get {self.name} from {self.source}"


GOOGLE = "https://storage.googleapis.com/mediapipe-models"
WEIGHTS = {
    ("landmarks", "fan"): Weights(
        name="2DFAN4-11f355bf06.pth.tar",
        source="https://www.adrianbulat.com/downloads/python-fan/2DFAN4-11f355bf06.pth.tar",
        licence="code BSD-3-Clause; trained on 300W-LP, for non-commercial research only",
    ),
    ("landmarks", "dlib"): Weights(
        name="shape_predictor_68_face_landmarks.dat",
        source="the package face-recognition-models on PyPI, or "
        "http://dlib.net/files/shape_predictor_68_face_landmarks.dat.bz2 (to be unpacked)",
        licence="code BSL-1.0; trained on iBUG 300-W, which excludes commercial use",
        size=99_693_937,
    ),
    ("parsing", "bisenet"): Weights(
        name="79999_iter.pth",
        source="https://github.com/zllrunning/face-parsing.PyTorch (section Demo)",
        licence="code MIT; trained on CelebAMask-HQ, for non-commercial research only",
        size=53_289_463,
        sha256="468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
    ),
    ("parsing", "multiclass"): Weights(
        name="selfie_multiclass_256x256.tflite",
        source=f"{GOOGLE}/image_segmenter/selfie_multiclass_256x256/float32/1/"
        "selfie_multiclass_256x256.tflite",
        licence="Apache-2.0",
    ),
    ("blink", "blendshapes"): Weights(
        name="face_landmarker.task",
        source=f"{GOOGLE}/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
        licence="Apache-2.0",
    ),
}
"""The published weights of each backend that needs some, by step and name."""


FILES = {
    ("landmarks", "fan"): "weights",
    ("parsing", "bisenet"): "weights",
    ("parsing", "multiclass"): "weights",
    ("blink", "openface"): "table",
    ("blink", "pyfeat"): "table",
    ("blink", "blendshapes"): "weights",
    ("head", "bfm2009"): "model_files",
    ("head", "ict"): "model_files",
}
"""Option that names the file or folder which a backend of a step needs."""


def require_weights(path: str | None, backend: str, weights: Weights) -> Path:
    """Return the path of a weights file that exists and is not truncated.

    Args:
        path: value of the option `weights`.
        backend: name of the backend, for the message.
        weights: the published file.

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


def missing_file(stage: str, options: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the file that the chosen backend needs, or None.

    Only names and sizes are checked; the stage checks the content.

    Args:
        stage: name of the stage, such as "parsing".
        options: options of the stage as the configuration gives them; missing ones are defaults.
    """
    if stage not in OPTIONS:
        return None
    step, option = OPTIONS[stage]
    name = options.get(option, BACKENDS[step][0])
    key = FILES.get((step, name))
    if key is None:
        return None
    path = options.get(key)
    if key == "weights":
        try:
            require_weights(path, name, WEIGHTS[step, name])
        except UserError as error:
            return f"{stage}: {error}"
    elif not path or not Path(path).exists():
        found = f"{path}: missing" if path else "not set"
        return f"{stage}: {key}: {found}; {option} '{name}' needs it (see docs/backends.md)"
    return None
