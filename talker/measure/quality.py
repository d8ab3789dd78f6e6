"""Facts about a dataset folder that `talker.measure.gate` compares with its limits."""

from collections import Counter
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from talker.clip import FPS, load_json, load_per_frame, runs
from talker.data import layout
from talker.data.formats import AU45_BLINK, read_au45, read_track_params
from talker.data.layout import to_classes
from talker.encoders import Choice, load_encoder
from talker.encoders.features import extract_clip, windows
from talker.encoders.loudness import slot_levels
from talker.head.landmarks68 import mouth_opening, read_lms
from talker.measure.faults import FolderSpec
from talker.measure.gate import background_change, sync_facts
from talker.media.audio import clip_sound
from talker.media.images import read_image

REFERENCE_FACE = 250.0
"""Width of a face in pixels to which motion errors are scaled before they are compared."""
RIVAL_SIZE = 0.5
"""Size of another face, relative to that of the subject, from which it counts as a rival."""


def dataset_facts(folder: FolderSpec) -> dict[str, Any]:
    """Measure a folder without faults. Facts that its files do not contain are None."""
    path = folder.path
    valid = read_track_params(path / layout.TRACK_PARAMS).valid
    au45 = read_au45(path / layout.ACTION_UNITS)[: folder.frames]
    landmarks = np.stack([read_lms(layout.FRAME_LANDMARKS.path(path, i)) for i in folder.ids])
    starts, ends = runs(valid)
    closed = au45 > AU45_BLINK
    tracking = tracking_facts(folder)
    other_shots = tracking["rejected"].get("another shot", 0)
    return {
        "frames": folder.frames,
        "seconds": folder.frames / FPS,
        "width": folder.width,
        "height": folder.height,
        "train_frames": folder.train_frames,
        "valid_percent": 100.0 * int(valid.sum()) / max(folder.frames - other_shots, 1),
        "usable_seconds": int(valid.sum()) / FPS,
        "longest_valid_seconds": int((ends - starts).max(initial=0)) / FPS,
        "held_out_frames": int(valid[folder.train_frames :].sum()),
        "face_width_px": float(np.median(np.ptp(landmarks[valid, :, 0], axis=1))),
        **tracking,
        "rival_percent": rival_percent(folder),
        "blinks": int((closed[1:] & ~closed[:-1]).sum() + closed[0]),
        "blink_range": float(np.ptp(au45)),
        **mouth_facts(folder, mouth_opening(landmarks), valid),
        "background_change_percent": background_percent(folder),
    }


def tracking_facts(folder: FolderSpec) -> dict[str, Any]:
    """Return the facts of track_report.json, in folders that talker made."""
    path = folder.path / layout.TRACK_REPORT
    if not path.exists():
        return {"rejected": {}}
    report = load_json(path)
    scale = REFERENCE_FACE / report["face_width_px"]
    motion = report["motion_px"]["final"]
    shots = [shot["residual_px"] for shot in report["segments"] if shot["residual_px"] is not None]
    return {
        "rejected": dict(Counter(row["reason"] for row in report["rejected"])),
        "shots": len(report["segments"]),
        "worst_shot_ratio": max(shots) / min(shots),
        "residual_percent_of_face": report["residual"]["percent_of_face"],
        "c1_px": motion["c1"],
        "c5_px": motion["c5"],
        "c1_px_at_250": None if motion["c1"] is None else scale * motion["c1"],
        "c5_px_at_250": None if motion["c5"] is None else scale * motion["c5"],
        "yaw_range_degrees": report["degrees"]["yaw_high"] - report["degrees"]["yaw_low"],
        "focal_at_bound": report["focal"]["at_bound"],
        "cut_by_border": report.get("cut_by_border"),
    }


def rival_percent(folder: FolderSpec) -> float | None:
    """Return the percentage of frames that show another face of at least half the size."""
    if not folder.own:
        return None
    rival = load_per_frame(folder.path / layout.LANDMARKS, folder.frames).get("rival")
    return None if rival is None else 100.0 * float((rival > RIVAL_SIZE).mean())


def mouth_facts(
    folder: FolderSpec, opening: Float[np.ndarray, "T"], valid: Bool[np.ndarray, "T"]
) -> dict[str, float | None]:
    """Measure how far the mouth opens [T], and how well the audio predicts it.

    The default encoder is used for all avatars, so that the limits remain comparable.
    """
    low, high = np.percentile(opening[valid], [2, 98])
    sound = clip_sound(folder.path / layout.SOUND, folder.frames)
    choice = Choice()
    statistics, slots = extract_clip(load_encoder(choice), choice, sound, folder.train_frames)
    speech = np.concatenate(list(windows([slots], statistics.look_ahead)))
    quiet, loud = np.percentile(slot_levels(sound), [5, 95])
    return {
        "mouth_range": float(high - low),
        "level_range_db": float(loud - quiet),
        **sync_facts(speech, opening, valid),
    }


def background_percent(folder: FolderSpec) -> float:
    """Return the percentage of the background that changes, in a sample of frames."""
    ids = np.unique(np.linspace(0, folder.frames - 1, folder.sample).astype(int)).tolist()
    masks = [layout.MASKS.path(folder.path, i) for i in ids]
    return background_change(
        (read_image(layout.FRAMES.path(folder.path, i)) for i in ids),
        (to_classes(read_image(path), path) for path in masks),
        read_image(folder.path / layout.PLATE),
    )
