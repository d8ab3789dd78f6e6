"""The options of the stages as the workflow's configuration gives them: preset, options, encoder.

The workflow reads this at every start, so it imports nothing heavy.
"""

import copy
import shutil
from collections.abc import Mapping
from typing import Any

DEFAULT_ENCODER = "hama"
ENCODER_STAGES = ("speech", "train")
"""Stages whose option `encoder` is set by the key `encoder` of the configuration."""


def choose_preset(name: str) -> str:
    """Resolve the preset `auto`: `full` where `nvidia-smi` is found, else `draft`."""
    if name != "auto":
        return name
    return "full" if shutil.which("nvidia-smi") else "draft"


def merge_options(preset: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return {stage: options}: those of the preset, overridden by those of the configuration.

    Args:
        preset: content of a file in config/presets.
        config: the workflow's configuration, with the keys `options` and `encoder`.
    """
    options = update(copy.deepcopy(dict(preset)), config.get("options") or {})
    for stage in ENCODER_STAGES:
        options.setdefault(stage, {})["encoder"] = config.get("encoder", DEFAULT_ENCODER)
    return options


def update(options: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Override nested options in place; return them."""
    for key, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(options.get(key), dict):
            update(options[key], value)
        else:
            options[key] = copy.deepcopy(value)
    return options
