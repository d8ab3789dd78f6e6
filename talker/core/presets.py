"""Combine a preset and the workflow's configuration into the options of the stages.

The workflow imports this module at every start, so it only imports modules that load fast.
"""

import copy
import shutil
from collections.abc import Mapping
from typing import Any

from talker.core.config import DEFAULT_ENCODER
from talker.core.gpu import visible_gpus
from talker.errors import UserError

ENCODER_STAGES = ("speech", "train")
"""Stages whose option `encoder` is set by the key `encoder` of the configuration."""


def choose_preset(name: str) -> str:
    """Resolve the preset `auto`: `full` if the driver lists a visible GPU, else `draft`."""
    if name != "auto":
        return name
    return "full" if shutil.which("nvidia-smi") and visible_gpus() else "draft"


def merge_options(preset: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return {stage: options}: those of the preset, overridden by the configuration.

    Args:
        preset: content of a file in config/presets.
        config: content of the workflow's configuration; its keys `options` and `encoder` are used.

    Raises:
        UserError: `options` or the section of a stage is not a mapping.
    """
    given = config.get("options") or {}
    if not isinstance(given, Mapping):
        raise UserError(
            "options: The value must map stages to their options, for example `train: {seed: 1}`, "
            f"but its type is {type(given).__name__}."
        )
    for stage, section in given.items():
        if section is not None and not isinstance(section, Mapping):
            raise UserError(
                f"options: The section `{stage}` must contain `option: value` pairs, but its type "
                f"is {type(section).__name__}."
            )
    options = update(copy.deepcopy(dict(preset)), given)
    for stage in ENCODER_STAGES:
        if options.get(stage) is None:
            options[stage] = {}
        options[stage]["encoder"] = config.get("encoder", DEFAULT_ENCODER)
    return options


def update(options: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Override nested options in place, and return them."""
    for key, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(options.get(key), dict):
            update(options[key], value)
        else:
            options[key] = copy.deepcopy(value)
    return options
