"""Read a dictionary of arrays that numpy pickled into an .npy file, without running its code."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from talker.errors import UserError

ALLOWED = {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{package}.multiarray", "_reconstruct"),
        (f"{package}.multiarray", "scalar"),
        (f"{package}.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )
}
"""Names that the pickle of a numpy array may refer to; they build arrays and nothing else."""


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that refuses everything but built-in containers, numbers, text and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a global of `ALLOWED`; raise UnpicklingError for any other."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f"it contains a pickled {module}.{name}, which is not loaded"
            )
        return super().find_class(module, name)


def read_mapping(path: Path) -> dict[str, np.ndarray]:
    """Read a dictionary of arrays from an .npy file.

    Raises:
        UserError: the file is missing, damaged, or holds anything but a dictionary of arrays.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                header = np.lib.format.read_array_header_1_0(file)
            else:
                header = np.lib.format.read_array_header_2_0(file)
            if not header[2].hasobject:
                raise ValueError(f"it contains an array of {header[2]}")
            content = ArrayUnpickler(file).load().item()
        return {str(key): np.asarray(value) for key, value in content.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    # A damaged pickle raises almost any exception.
    except Exception as error:
        raise UserError(
            f"{path} is not an .npy file with a dictionary of arrays ({error})."
        ) from error
