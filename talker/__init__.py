"""talker: one command turns a video of a person talking into an audio-driven 3D Gaussian avatar."""

import importlib

__version__ = "0.1.0"

_API = {
    "load": "talker.tools.api",
    "TalkingAvatar": "talker.tools.api",
    "Dataset": "talker.dataset",
}
"""Public names and the modules that define them; they are imported at first use."""


def __getattr__(name: str) -> object:
    if name not in _API:
        raise AttributeError(f"module 'talker' has no attribute {name!r}")
    return getattr(importlib.import_module(_API[name]), name)
