"""Interchangeable algorithms for landmarks, parsing, blinks and the head model, one module each.

The module `talker.backends.STEP_NAME` implements one backend. Stages load it by name, so that a
stage depends only on the code of the backend that it uses. docs/backends.md compares the backends.
"""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

BACKENDS = {
    "landmarks": ("mediapipe", "fan", "dlib"),
    "parsing": ("color", "bisenet", "multiclass"),
    "blink": ("ear", "openface", "pyfeat", "blendshapes"),
    "head": ("anny", "bfm2009", "ict"),
}
"""Names of the backends of each step; the first one is the default."""

OPTIONS = {
    "landmarks": ("landmarks", "backend"),
    "parsing": ("parsing", "backend"),
    "blink": ("blink", "backend"),
    "fit": ("head", "model"),
}
"""For each stage with backends: the step that they implement, and the option that selects one."""


def backend_module(stage: str, options: Mapping[str, Any]) -> str | None:
    """Return the dotted name of the module that a stage loads, or None if it has no backends.

    Args:
        stage: name of the stage, such as "fit".
        options: options of the stage as the configuration gives them; missing ones are defaults.
    """
    if stage not in OPTIONS:
        return None
    step, option = OPTIONS[stage]
    return f"talker.backends.{step}_{options.get(option, BACKENDS[step][0])}"


def load_backend(step: str, name: str) -> ModuleType:
    """Import the backend `name` of a step; both are keys of `BACKENDS`."""
    return importlib.import_module(f"talker.backends.{step}_{name}")
