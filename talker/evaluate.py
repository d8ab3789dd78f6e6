"""Evaluate an avatar and two controls, frozen mouth and shuffled audio, on held-out frames.

    talker evaluate --data data/me --avatar results/me/avatar --metrics results/me/metrics.json
    talker evaluate --data data/me --avatar results/me/avatar --metrics hello.json --video hello.mp4

The second form measures a video of new speech, which has no real counterpart: how well the mouth
follows the audio, and whether it closes in silence.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from talker.avatar.renderer import avatar_dataset, load_avatar
from talker.core.config import AtLeast0, AtLeast1, validated
from talker.core.files import Output, atomic_write
from talker.encoders import sync_encoder
from talker.measure.definitions import DEFINITIONS
from talker.measure.heldout import evaluate_held_out
from talker.measure.networks import load_networks
from talker.measure.new_speech import evaluate_new_speech
from talker.measure.sync import fit_predictor
from talker.measure.verdict import grade_avatar

logger = logging.getLogger(__name__)


@validated
class Config:
    """Options of `talker evaluate`."""

    batch: AtLeast0 = 0
    """Number of frames rendered at once. The default of 0 means 32 on a GPU and 8 on a CPU."""
    shuffles: AtLeast1 = 8
    """Number of control renderings. For each, the audio of the clip is shifted circularly by a
    different duration, so that it does not match the video. The control `shuffled_audio` is the
    mean over these renderings."""
    lpips: str = ""
    """TorchScript file of LPIPS, or `published` for the file that `talker weights fetch lpips`
    downloads. By default, LPIPS is not computed."""
    lpips_sha256: str = ""
    """SHA-256 checksum of the file given with `lpips`. Required if a path is given."""
    stlpips: str = ""
    """Weights of ST-LPIPS (alex_shift_tolerant.pth), or `published` for the file that `talker
    weights fetch stlpips` downloads. By default, ST-LPIPS is not computed."""
    stlpips_sha256: str = ""
    """SHA-256 checksum of the file given with `stlpips`. Required if a path is given."""
    inception: str = ""
    """TorchScript file of the Inception features for FID, or `published` for the file that `talker
    weights fetch inception` downloads. By default, FID is not computed."""
    inception_sha256: str = ""
    """SHA-256 checksum of the file given with `inception`. Required if a path is given."""
    identity: str = ""
    """TorchScript file of a face recognition network (ArcFace) for the metric CSIM, the similarity
    of the identities of the rendered and the real face. By default, CSIM is not computed."""
    identity_sha256: str = ""
    """SHA-256 checksum of the file given with `identity`. Required if a path is given."""
    syncnet: str = ""
    """Weights of SyncNet (syncnet_v2.model) for Sync-C and Sync-D, or `published` for the file that
    `talker weights fetch syncnet` downloads. By default, neither is computed."""
    syncnet_sha256: str = ""
    """SHA-256 checksum of the file given with `syncnet`. Required if a path is given."""
    second_detector: Literal["none", "fan", "dlib"] = "none"
    """Landmark detector that measures the mouth in addition to MediaPipe, as an independent check:
    `fan` (of face-alignment) or `dlib`. By default, there is none."""
    second_detector_weights: str = ""
    """Weights of the second detector. By default, the file that `talker weights fetch` downloads is
    used."""


def main(
    *,
    data: Path,
    avatar: Path,
    metrics: Output,
    video: Path | None = None,
    config: Config = Config(),
) -> None:
    """Evaluate an avatar on held-out frames, or measure a video of new speech.

    Args:
        data: Dataset folder.
        avatar: Avatar folder written by `talker train`.
        metrics: JSON file to write.
        video: Video of new speech to measure instead of the held-out frames.
        config: Options.
    """
    networks = load_networks(config)
    model = load_avatar(avatar)
    dataset = avatar_dataset(data, model)
    encoder = model.config.encoder
    if video is not None:
        predictor = fit_predictor(dataset, sync_encoder(encoder))
        results = evaluate_new_speech(video, dataset, predictor, networks)
        logger.info("%s: %s", video, sync_text(results["sync"]))
    else:
        results = evaluate_held_out(
            model, dataset, networks, encoder, config.batch, config.shuffles
        )
        results = {"verdict": grade_avatar(results).as_dict()} | results
        logger.info("%s\n%s", table(results), sync_text(results["sync"]))
        for name, value in results["responses"].items():
            logger.info("%s: %s", name, _shown(value))
    for name, reason in results["not_computed"].items():
        logger.info("%s was not computed, because it %s.", name, reason)
    for subject, row in results["network_metrics"].items():
        for name, value in row.items():
            logger.info("%s of the %s video: %.4f", name, subject, value)
    if "verdict" in results:
        logger.info("%s", results["verdict"]["text"])
    with atomic_write(metrics) as (scratch,):
        scratch.write_text(json.dumps(plain(results), indent=1) + "\n", encoding="utf-8")


def table(results: dict[str, Any]) -> str:
    """Return the rows of the avatar, its controls and the detector floor as an aligned table."""
    rows = {
        "avatar": results["held_out"],
        **{name.replace("_", " "): row for name, row in results["controls"].items()},
        "detector floor": results["detector_floor"],
    }
    lines = [["", *rows]]
    lines += [[name, *(_shown(row[name]) for row in rows.values())] for name in DEFINITIONS]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def sync_text(sync: dict[str, Any]) -> str:
    """Return one line about a sync score, its null distribution and the real video's score."""
    row, real = sync["avatar"], sync["real"]
    return (
        f"Sync score ({sync['features']} features): correlation {_shown(row['correlation'])} "
        f"({_shown(row['null_mean'])} ± {_shown(row['null_sd'])} with shifted audio), best lag "
        f"{_shown(row['best_lag'])} frames; real video: correlation {_shown(real['correlation'])}, "
        f"best lag {_shown(real['best_lag'])} frames"
    )


def plain(value: Any) -> Any:
    """Convert arrays to lists, nan to null, and floats to five decimals, for JSON."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(one) for one in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), 5) if math.isfinite(value) else None
    return value


def _shown(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return str(int(value)) if value == int(value) else f"{value:.3f}"
