"""Check that a dataset folder is complete and consistent, and that it can give a good avatar.

All faults are listed at once, including files that belong to another frame or clip. A clip beyond
the limits of `talker.measure.gate` is refused with reasons and advice, unless `--force` is given.

    talker check --data data/me --quality data/me/quality.json
"""

import json
import logging
from dataclasses import field
from pathlib import Path
from typing import Any

from talker.core.config import AtLeast1, validated
from talker.core.files import Output, atomic_write
from talker.errors import UserError, counted
from talker.measure.content import content_faults, edited_files
from talker.measure.faults import FolderSpec, folder_faults
from talker.measure.gate import Limits, assess
from talker.measure.quality import dataset_facts

logger = logging.getLogger(__name__)

LOGGED_FACTS = (
    "valid_percent",
    "usable_seconds",
    "residual_percent_of_face",
    "c1_px",
    "c5_px",
    "rival_percent",
    "blinks",
    "mouth_range",
    "sync_correlation",
    "sync_z",
    "sync_lag_frames",
    "background_change_percent",
)


@validated
class Config:
    """Options of `talker check`."""

    sample: AtLeast1 = 12
    """Number of frames whose mask and background are checked pixel by pixel. For all other frames,
    only the size of the images is checked."""
    force: bool = False
    """Accept the clip even if it violates limits, and log the violated limits as warnings."""
    limits: Limits = field(default_factory=Limits)


def check(path: Path, config: Config) -> dict[str, Any]:
    """Check the dataset folder `path`.

    Returns:
        Facts about it, as JSON values.

    Raises:
        UserError: the folder has faults; the message has one line for each.
    """
    folder = FolderSpec.of(path, config.sample)
    if faults := folder_faults(folder) or content_faults(folder):
        count = counted(len(faults), "fault")
        raise UserError(
            "\n  ".join([f"{path} is not a complete and consistent dataset ({count})", *faults])
        )
    return dataset_facts(folder) | {"edited": list(edited_files(folder))}


def main(*, data: Path, quality: Output, config: Config = Config()) -> None:
    """Check that a dataset folder is complete, consistent and suitable for training.

    Args:
        data: Dataset folder.
        quality: JSON file to write: the measurements, the reasons to refuse the clip, and the
            warnings.
        config: Options.
    """
    facts = check(data, config)
    assessment = assess(facts, config.limits)
    warnings = [*assessment.warnings, *facts.pop("edited")]
    facts |= {
        "accepted": not assessment.failures or config.force,
        "failures": assessment.failures,
        "warnings": warnings,
    }
    with atomic_write(quality) as (scratch,):
        scratch.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    for name in LOGGED_FACTS:
        if facts.get(name) is not None:
            logger.info("%-26s %8.3f", name, facts[name])
    for warning in warnings:
        logger.warning("warning: %s", warning)
    if assessment.failures and not config.force:
        reasons = "\n  ".join(assessment.failures)
        raise UserError(
            f"{data}: This clip is unlikely to give a good avatar. To train with it anyway, use "
            "--force (or `check: {force: true}` in the `options` of the configuration).\n  "
            f"{reasons}"
        )
    for failure in assessment.failures:
        logger.warning("Warning (ignored because of --force): %s", failure)
    logger.info(
        "%s is complete and consistent. It has %d frames, and the head is tracked in "
        "%.0f %% of them.",
        data,
        facts["frames"],
        facts["valid_percent"],
    )
