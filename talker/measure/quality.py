"""Facts about a verified dataset folder that `talker.measure.gate` compares with its limits."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from talker.clip import FPS, LipSync, Verified, runs
from talker.core.ownership import differing_files
from talker.data import layout
from talker.data.formats import AU45_BLINK, TrackReport
from talker.encoders import ENCODERS
from talker.media.images import read_image

REFERENCE_FACE = 250.0
"""Width of a face in pixels to which motion errors are scaled before they are compared."""
RIVAL_SIZE = 0.5
"""Size of another face, relative to that of the subject, from which it counts as a rival."""
CHANGED_LEVELS = 24
"""Difference in gray levels from which a background pixel counts as changed."""
CLEARANCE = 8
"""Distance from the person within which the background is not compared, in pixels of an image whose
longer side is 512 pixels."""


def clip_facts(
    verified: Verified, report: TrackReport | None, lipsync: LipSync, background_change: float
) -> dict[str, Any]:
    """Return the facts of a clip. Facts that its files do not contain are None.

    Args:
        verified: facts of each frame.
        report: facts about the tracking; None in folders that other scripts prepared.
        lipsync: how well the mouth moves with the audio.
        background_change: percentage of the background that changes.
    """
    valid, au45 = np.array(verified.valid), verified.array("au45")
    starts, ends = runs(valid)
    closed = au45 > AU45_BLINK
    tracking = {"rejected": {}} if report is None else tracking_facts(report)
    other_shots = tracking["rejected"].get("another shot", 0)
    rival = verified.rival
    low, high = np.percentile(verified.array("mouth_opening")[valid], [2, 98])
    return {
        "frames": verified.frames,
        "seconds": verified.frames / FPS,
        "width": verified.width,
        "height": verified.height,
        "train_frames": verified.train_frames,
        "valid_percent": 100.0 * int(valid.sum()) / max(verified.frames - other_shots, 1),
        "usable_seconds": int(valid.sum()) / FPS,
        "longest_valid_seconds": int((ends - starts).max(initial=0)) / FPS,
        "held_out_frames": int(valid[verified.train_frames :].sum()),
        "face_width_px": float(np.median(verified.array("face_width")[valid])),
        **tracking,
        "rival_percent": rival and 100.0 * float((np.array(rival) > RIVAL_SIZE).mean()),
        "blinks": int((closed[1:] & ~closed[:-1]).sum() + closed[0]),
        "blink_range": float(np.ptp(au45)),
        "mouth_range": float(high - low),
        **dataclasses.asdict(lipsync),
        "background_change_percent": background_change,
    }


def tracking_facts(report: TrackReport) -> dict[str, Any]:
    """Return the facts about the tracking."""
    scale = REFERENCE_FACE / report.face_width
    return {
        "rejected": dict(Counter(report.reasons)),
        "shots": report.shots,
        "worst_shot_ratio": max(report.shot_residuals) / min(report.shot_residuals),
        "residual_percent_of_face": report.residual_percent,
        "c1_px": report.c1,
        "c5_px": report.c5,
        "c1_px_at_250": None if report.c1 is None else scale * report.c1,
        "c5_px_at_250": None if report.c5 is None else scale * report.c5,
        "yaw_range_degrees": report.yaw_range,
        "focal_at_bound": report.focal_at_bound,
        "cut_by_border": report.cut_by_border,
    }


def background_percent(folder: Path, frames: int, sample: int) -> float:
    """Return the percentage of the background that changes, in a sample of the frames."""
    ids = np.unique(np.linspace(0, frames - 1, sample).astype(int)).tolist()
    masks = [layout.MASKS.path(folder, i) for i in ids]
    return background_change(
        (read_image(layout.FRAMES.path(folder, i)) for i in ids),
        (layout.to_classes(read_image(path)[..., :3], path) for path in masks),
        read_image(folder / layout.PLATE),
    )


def background_change(
    images: Iterable[np.ndarray], masks: Iterable[np.ndarray], plate: UInt8[np.ndarray, "H W 3"]
) -> float:
    """Return the percentage of the background that differs from the plate, median over frames.

    Args:
        images: RGB uint8 [H, W, 3].
        masks: their classes uint8 [H, W].
        plate: RGB uint8 [H, W, 3].
    """
    size = 2 * round(max(plate.shape) * CLEARANCE / 512) + 1
    percentages = []
    for image, mask in zip(images, masks, strict=True):
        person = cv2.dilate((mask != layout.BACKGROUND).astype(np.uint8), np.ones((size, size)))
        difference = cv2.absdiff(cv2.blur(image, (3, 3)), cv2.blur(plate, (3, 3))).max(axis=-1)
        if not person.all():
            changed = difference[person == 0] > CHANGED_LEVELS
            percentages.append(100.0 * float(changed.mean()))
    return float(np.median(percentages)) if percentages else 0.0


def edited_files(folder: Path) -> Iterator[str]:
    """Yield a sentence for every output of talker that was changed after talker wrote it."""
    names = (
        *(layout.CLIP, layout.SOUND, layout.TRAIN_SOUND, layout.NOVEL_SOUND, layout.LANDMARKS),
        *(layout.ACTION_UNITS, layout.TRACK_PARAMS, layout.TRANSFORMS_TRAIN),
        *(layout.TRANSFORMS_VAL, layout.TRACK_REPORT, layout.PLATE),
        *(layout.speech_features(encoder) for encoder in ENCODERS),
        *(layout.speech_statistics(encoder) for encoder in ENCODERS),
        *(kind.folder for kind in layout.IMAGES),
    )
    for name in names:
        path = folder / name
        if path.exists() and (changed := differing_files(path)):
            if not path.is_dir():
                yield (
                    f"{path} was changed after talker wrote it. Training uses the changed file. To "
                    "restore the original, delete the file and run the workflow again."
                )
                continue
            names = ", ".join(sorted(changed)[:5])
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            yield (
                f"These files were changed or added after talker wrote {path}: {names}{more}. "
                "Training uses them. To restore the original folder, delete the folder and run the "
                "workflow again."
            )
