"""Train a table of subjects and configurations, and compare the quality of the avatars.

Each clip has several held-out stretches, which are measured separately. Differences are paired: an
avatar is compared with that of the first configuration on the same stretch of the same clip.
"""

import copy
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int64
from pydantic import Field
from scipy.stats import t as student_t

from talker.avatar.model import Avatar
from talker.avatar.options import Config as TrainConfig
from talker.avatar.renderer import Drive, render_frames
from talker.avatar.trainer import fit
from talker.avatar.training_set import training_set
from talker.core.config import AtLeast1, from_mapping, read_yaml, validated
from talker.core.files import atomic_write
from talker.core.presets import update
from talker.dataset import Dataset
from talker.errors import UserError
from talker.evaluate import Config as EvaluateConfig
from talker.evaluate import plain
from talker.head.landmarks68 import mouth_shape
from talker.measure.heldout import GAP, RealFrames, compare
from talker.measure.metrics import correlation, std_ratio
from talker.measure.networks import load_networks
from talker.measure.regions import compare_regions
from talker.measure.responses import measure_responses
from talker.train import pick_device

logger = logging.getLogger(__name__)

CONFIDENCE = 0.95
"""Coverage of the confidence intervals."""
SHAPE = ("opening", "width", "jaw")
"""Numbers that describe a mouth, in the order of `mouth_shape`."""
SHOWN = {
    "psnr_head": "head, dB",
    "psnr_mouth": "mouth, dB",
    "psnr_eyes": "eyes, dB",
    "psnr_brows": "brows, dB",
    "opening_correlation": "mouth r",
    "opening_std_ratio": "mouth amplitude",
    "eye_correlation": "eye r",
    "eye_std_ratio": "eye amplitude",
    "brow_correlation": "brow r",
    "brow_std_ratio": "brow amplitude",
    "sharpness_mouth": "sharpness",
    "head_shake": "shake, px",
}
"""Metrics of the printed table, and their headings; the JSON file has all of them."""


@validated
class Table:
    """The avatars that `talker bench quality` trains and measures."""

    subjects: dict[str, str]
    """Dataset folders, or files of `talker pack`, by name."""
    rows: dict[str, dict[str, Any]]
    """Options of `talker train` that differ between the rows, by name. The other rows are compared
    with the first one."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of `talker train` that all rows share."""
    networks: dict[str, Any] = field(default_factory=dict)
    """Options of `talker evaluate` that name networks, such as `stlpips: published`."""
    stretches: AtLeast1 = 4
    """Number of held-out stretches of each clip. They are evenly spaced."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Fraction of a clip that is held out, in all stretches together."""


def bench_quality(file: Path, json_file: Path, device: str) -> None:
    """Train and measure every avatar of a table, and log and write the results.

    Results that `json_file` already contains for the same options are kept, so that an interrupted
    run continues.

    Args:
        file: YAML file with the fields of `Table`.
        json_file: JSON file to write.
        device: cpu, cuda or auto.

    Raises:
        UserError: a file is invalid, or a clip is too short for the held-out stretches.
    """
    table = from_mapping(Table, read_yaml(file), str(file))
    configs = {
        name: from_mapping(
            TrainConfig, update(copy.deepcopy(table.options), row), f"{file}: rows: {name}"
        )
        for name, row in table.rows.items()
    }
    networks = load_networks(from_mapping(EvaluateConfig, table.networks, f"{file}: networks"))
    results = _finished(json_file, table)
    for subject, folder in table.subjects.items():
        for row, config in configs.items():
            if any((one["subject"], one["row"]) == (subject, row) for one in results):
                continue
            logger.info("Training %s with the options of %s.", subject, row)
            data = Dataset.load(Path(folder), config.image_size, config.encoder)
            data, stretches = split(data, table.stretches, table.held_out)
            avatar, seconds = _trained(data, config, device)
            for k, part in enumerate(_measured(avatar, data, stretches, networks)):
                one = {"subject": subject, "row": row, "stretch": k, "seconds": seconds}
                results.append(one | {"metrics": part})
            record = {"table": file.read_text(encoding="utf-8"), "options": _keys(table)}
            record |= {"results": results, "summary": summary(results, list(configs))}
            with atomic_write(json_file) as (scratch,):
                scratch.write_text(json.dumps(plain(record), indent=1) + "\n", encoding="utf-8")
    logger.info("%s", text(summary(results, list(configs))))


def split(
    data: Dataset, stretches: int, share: float
) -> tuple[Dataset, list[Int64[np.ndarray, "N"]]]:
    """Hold out evenly spaced stretches instead of the end of the clip.

    Frames whose speech windows overlap a held-out stretch are in neither part.

    Args:
        stretches: number of stretches.
        share: fraction of the clip that is held out, in all stretches together.

    Raises:
        UserError: no frame remains for training, or a stretch has fewer than 3 valid frames.
    """
    valid = np.flatnonzero(data.valid)
    length = share * data.frames / stretches
    middles = (np.arange(stretches) + 0.5) * data.frames / stretches
    held_out = [valid[np.abs(valid - middle) <= length / 2] for middle in middles]
    apart = np.abs(valid[:, None] - middles).min(1) > length / 2 + GAP
    if not apart.any() or min(map(len, held_out)) < 3:
        raise UserError(
            f"{data.folder} has {data.frames} frames, which are too few for {stretches} held-out "
            "stretches. Use fewer stretches or a smaller `held_out`."
        )
    return replace(data, train_ids=valid[apart], val_ids=np.concatenate(held_out)), held_out


def _trained(data: Dataset, config: TrainConfig, device: str) -> tuple[Avatar, float]:
    """Train an avatar; return it and the training time in seconds."""
    with TemporaryDirectory() as folder:
        subset = training_set(data, pick_device(device))
        trainer = fit(data, subset, config, Path(folder, "latest.pt"))
    return trainer.avatar.eval(), round(trainer.seconds, 1)


def _measured(
    avatar: Avatar,
    data: Dataset,
    stretches: list[Int64[np.ndarray, "N"]],
    networks: Mapping[str, Any],
) -> Iterator[dict[str, float]]:
    """Yield the metrics of each held-out stretch."""
    for ids in stretches:
        real = RealFrames.load(data, ids)
        images = list(render_frames(avatar, data, Drive(ids, data.speech, ids), 0))
        measured = compare(images, real)
        shapes, truth = mouth_shape(measured.detected), mouth_shape(real.detected)
        mouth = {}
        for k, name in enumerate(SHAPE):
            mouth[f"{name}_correlation"] = correlation(shapes[:, k], truth[:, k])
            mouth[f"{name}_std_ratio"] = std_ratio(shapes[:, k], truth[:, k])
        heads = [data.head_mask(int(i)) for i in ids]
        network = networks.get("stlpips")
        parts = compare_regions(images, list(real.frames), ids, real.landmarks, heads, network)
        responses = measure_responses(avatar, data, ids, measured.detected, real.detected)
        yield measured.row | mouth | parts | responses


def summary(results: list[dict[str, Any]], rows: list[str]) -> dict[str, Any]:
    """Return {row: {metric: statistics}} of all results.

    The statistics are the mean over subjects, the half-widths of its confidence intervals over
    subjects and over stretches, and the same of the differences from the first row.
    """
    cells = {(one["row"], one["subject"], one["stretch"]): one["metrics"] for one in results}
    names = sorted({name for metrics in cells.values() for name in metrics})
    table: dict[str, Any] = {}
    for row in rows:
        keys = [key[1:] for key in cells if key[0] == row]
        table[row] = {}
        for name in names:
            values = {key: cells[(row, *key)].get(name) for key in keys}
            base = {key: cells.get((rows[0], *key), {}).get(name) for key in keys}
            difference = {
                key: value - base[key]
                for key, value in values.items()
                if value is not None and base[key] is not None
            }
            table[row][name] = statistics(values) | {"difference": statistics(difference)}
    return table


def statistics(values: Mapping[tuple[str, int], float | None]) -> dict[str, float]:
    """Return the mean over subjects and its confidence intervals.

    Args:
        values: values by subject and stretch.
    """
    known = {key: v for key, v in values.items() if v is not None and math.isfinite(v)}
    subjects = [
        float(np.mean([v for key, v in known.items() if key[0] == subject]))
        for subject in dict.fromkeys(key[0] for key in known)
    ]
    return {
        "mean": float(np.mean(subjects)) if subjects else float("nan"),
        "subjects": len(subjects),
        "stretches": len(known),
        "over_subjects": half_width(subjects),
        "over_stretches": half_width(list(known.values())),
    }


def half_width(values: list[float]) -> float:
    """Return half the width of the confidence interval of a mean (t distribution)."""
    if len(values) < 2:
        return float("nan")
    quantile = float(student_t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1))
    return quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def text(table: Mapping[str, Any]) -> str:
    """Return the most important metrics as a Markdown table: means, then paired differences."""
    lines = ["| row | " + " | ".join(SHOWN.values()) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    first = next(iter(table), None)
    for part in ("mean", "difference"):
        for row, metrics in table.items():
            if part == "difference" and row == first:
                continue
            cells = []
            for name in SHOWN:
                one = metrics.get(name, {})
                one = one.get("difference", {}) if part == "difference" else one
                mean, half = one.get("mean", math.nan), one.get("over_stretches", math.nan)
                sign = "+" if part == "difference" else ""
                cells.append(f"{mean:{sign}.2f} ± {half:.2f}" if math.isfinite(mean) else "-")
            label = row if part == "mean" else f"{row} - {first}"
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _keys(table: Table) -> dict[str, Any]:
    """Return what the results of each row depend on."""
    shared = [table.subjects, table.options, table.stretches, table.held_out]
    return {name: [*shared, row] for name, row in table.rows.items()}


def _finished(json_file: Path, table: Table) -> list[dict[str, Any]]:
    """Return the results in `json_file` of rows whose options have not changed."""
    if not json_file.exists():
        return []
    record = json.loads(json_file.read_text(encoding="utf-8"))
    expected, found = _keys(table), record.get("options", {})
    return [one for one in record["results"] if found.get(one["row"]) == expected.get(one["row"])]
