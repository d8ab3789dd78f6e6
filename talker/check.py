"""Judge whether a dataset folder can give a good avatar, by what was measured in it.

A clip beyond the limits of `talker.measure.gate` is refused with reasons and advice, unless
`--force` is given. `talker verify` and `talker lipsync` write the measurements.

    talker check --data data/me --quality data/me/quality.json
"""

import json
import logging
from dataclasses import field
from pathlib import Path
from typing import Any

from talker.clip import LipSync, Verified
from talker.core.config import AtLeast1, validated
from talker.core.files import Output, atomic_write
from talker.data import layout
from talker.data.formats import read_track_report
from talker.errors import UserError
from talker.measure.gate import Limits, assess
from talker.measure.quality import background_percent, clip_facts, edited_files

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
    """Number of frames whose background is compared with the background plate."""
    force: bool = False
    """Accept the clip even if it violates limits, and log the violated limits as warnings."""
    limits: Limits = field(default_factory=Limits)


def collect(folder: Path, sample: int) -> dict[str, Any]:
    """Return the facts about a dataset folder that `talker verify` has verified, as JSON values.

    Args:
        folder: the dataset folder.
        sample: number of frames whose background is compared with the plate.

    Raises:
        UserError: a stage that measures facts has not been run, or its file is damaged.
    """
    verified = Verified.load(folder / layout.VERIFIED)
    lipsync = LipSync.load(folder / layout.LIPSYNC)
    path = folder / layout.TRACK_REPORT
    report = read_track_report(path) if path.exists() else None
    change = background_percent(folder, verified.frames, sample)
    return clip_facts(verified, report, lipsync, change)


def main(*, data: Path, quality: Output, config: Config = Config()) -> None:
    """Judge whether a dataset folder can give a good avatar.

    Args:
        data: Dataset folder that `talker verify` and `talker lipsync` have measured.
        quality: JSON file to write: the measurements, the reasons to refuse the clip, and the
            warnings.
        config: Options.
    """
    facts = collect(data, config.sample)
    assessment = assess(facts, config.limits)
    warnings = [*assessment.warnings, *edited_files(data)]
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
        logger.warning("Warning (the clip would be refused without --force): %s", failure)
    logger.info(
        "%s is accepted. It has %d frames, and the head is tracked in %.0f %% of them.",
        data,
        facts["frames"],
        facts["valid_percent"],
    )
