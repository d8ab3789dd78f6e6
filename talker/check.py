"""Prove that a dataset folder is complete and consistent, and that it can give a good avatar.

Lists all faults at once; reads folders of the published AD-NeRF-family scripts too. A clip beyond
the limits of `talker.measure.gate` is refused with reasons and advice, unless forced.
`talker check --data data/me --quality data/me/quality.json`
"""

import json
import logging
import wave
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from talker.clip import (
    FPS,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    Clip,
    load_array,
    load_json,
    load_per_frame,
    runs,
    train_length,
)
from talker.core.config import validated
from talker.core.files import Output, atomic_write
from talker.data import layout
from talker.data.formats import AU45_SATURATION, read_au45, read_track_params, read_transforms
from talker.data.masks import COLORS, HEAD, to_classes
from talker.dataset import SPARE_ROWS, speech_file
from talker.encoders import ENCODERS, load_encoder
from talker.encoders.base import Choice
from talker.encoders.features import extract_clip, windows
from talker.errors import UserError
from talker.head.camera import transform_matrices
from talker.head.landmarks68 import mouth_opening, read_lms
from talker.measure.gate import (
    FACE,
    Limits,
    background_change,
    judge,
    lag_of,
    sync_curve,
)
from talker.media.audio import SOUND_TOLERANCE, clip_sound
from talker.media.images import image_header, read_image

logger = logging.getLogger(__name__)

IMAGES = {
    "ori_imgs": (".jpg", 3, "frames"),
    "parsing": (".png", 3, "parsing"),
    "gt_imgs": (".jpg", 3, "layers"),
    "torso_imgs": (".png", 4, "layers"),
}
"""Folders of images, one a frame: suffix, channels, the stage that writes them."""

POSE_TOLERANCE = 1e-5
MEASURES = (
    "valid_percent",
    "usable_seconds",
    "residual_percent_of_face",
    "c1_px",
    "c5_px",
    "rival_percent",
    "blinks",
    "mouth_range",
    "sync_correlation",
    "sync_lag_frames",
    "background_change_percent",
)
"""Facts that the log shows."""


@validated
class Config:
    """How closely a folder is looked at."""

    sample: int = 12
    """masks whose every pixel is checked; of all others the size only"""
    listed: int = 5
    """frame numbers that are named in a message"""
    threads: int = 8
    """files that are read at a time"""
    force: bool = False
    """go on with a clip beyond the limits"""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Folder:
    """A dataset folder and the length and size that its files should have."""

    path: Path
    frames: int
    height: int
    width: int
    own: bool
    """made by talker: clip.json and landmarks.npz are there"""
    config: Config

    @property
    def train_frames(self) -> int:
        return train_length(self.frames)

    @property
    def ids(self) -> range:
        return range(self.frames)

    def has_spare(self, rows: int) -> bool:
        """Return whether a per-frame file of other scripts has the rows beyond the frames that
        their readers ignore."""
        return not self.own and self.frames < rows <= self.frames + SPARE_ROWS

    def some(self, ids: Iterable[int]) -> str:
        """`frames 3, 4, 5 and 17 more`"""
        all_ids = sorted(ids)
        named = ", ".join(map(str, all_ids[: self.config.listed]))
        rest = len(all_ids) - self.config.listed
        more = f" and {rest} more" if rest > 0 else ""
        return f"frame{'s' if len(all_ids) > 1 else ''} {named}{more}"

    def each(self, function: Callable[[int], str | None]) -> dict[str, list[int]]:
        """Call `function` for every frame; {what it said: frames}."""
        said: dict[str, list[int]] = {}
        with ThreadPoolExecutor(self.config.threads) as pool:
            for i, text in enumerate(pool.map(function, self.ids)):
                if text is not None:
                    said.setdefault(text, []).append(i)
        return said


def open_folder(path: Path, config: Config) -> Folder:
    """Find out how many frames of which size a folder should hold.

    Raises:
        UserError: it holds no frames.
    """
    own = (path / "clip.json").exists() or (path / "landmarks.npz").exists()
    try:
        clip = Clip.load(path / "clip.json")
        own = not clip.adopted
    except UserError:
        numbers = [int(image.stem) for image in path.glob("ori_imgs/*.jpg") if image.stem.isdigit()]
        if not numbers:
            raise UserError(
                f"{path}: expected a dataset folder with clip.json or ori_imgs/0.jpg, found "
                "neither; `talker frames` makes both from a video"
            ) from None
        height, width, _ = image_header(path / "ori_imgs" / f"{min(numbers)}.jpg")
        return Folder(path, max(numbers) + 1, height, width, own, config)
    return Folder(path, clip.frames, clip.height, clip.width, own, config)


def clip_faults(folder: Folder) -> Iterable[str]:
    """clip.json can be read, in a folder that talker made."""
    if folder.own:
        Clip.load(folder.path / "clip.json")
    return ()


def image_faults(folder: Folder) -> Iterator[str]:
    """Every frame has its image of every kind, whole and of the clip's size."""
    for name, (suffix, channels, stage) in IMAGES.items():
        images = folder.path / name
        if not images.is_dir():
            yield f"{images}: missing; `talker {stage}` writes it"
            continue
        expected = folder.height, folder.width, channels

        def look(i: int, images=images, suffix=suffix, expected=expected) -> str | None:
            path = images / f"{i}{suffix}"
            return "missing" if not path.exists() else _header_fault(path, expected)

        for text, ids in folder.each(look).items():
            yield f"{images}: {folder.some(ids)}: {text}; run `talker {stage}` again"
        wanted = {f"{i}{suffix}" for i in folder.ids}
        extra = sorted(path.name for path in images.glob(f"*{suffix}") if path.name not in wanted)
        if extra:
            yield (
                f"{images}: holds {len(extra)} images, {extra[0]} among them, beyond the clip's "
                f"{folder.frames} frames; run `talker {stage}` again"
            )
    plate = folder.path / "bc.jpg"
    if not plate.exists():
        yield f"{plate}: missing; `talker background` writes it"
    elif text := _header_fault(plate, (folder.height, folder.width, 3)):
        yield f"{plate}: {text}; run `talker background` again"


def _header_fault(path: Path, expected: tuple[int, int, int]) -> str | None:
    try:
        found = image_header(path)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    if found == expected:
        return None
    (height, width, channels), (h, w, c) = found, expected
    return f"{width}x{height} pixels of {channels} channels, expected {w}x{h} of {c}"


def colour_faults(folder: Folder) -> Iterator[str]:
    """A sample of masks holds the four exact colours and no other, and a head."""
    known = _code(COLORS).tolist()
    sample = np.unique(np.linspace(0, folder.frames - 1, folder.config.sample).astype(int))
    for i in sample:
        path = folder.path / "parsing" / f"{i}.png"
        if not path.exists():
            continue
        codes = set(np.unique(_code(read_image(path)[..., :3])).tolist())
        if foreign := codes - set(known):
            yield (
                f"{path}: {len(foreign)} colours are none of the four of a mask, "
                f"#{min(foreign):06x} among them; masks must not be resized or compressed"
            )
        elif known[HEAD] not in codes:
            yield f"{path}: shows no head; run `talker parsing` again"


def _code(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.int64) @ np.array([65536, 256, 1])


def landmark_faults(folder: Folder) -> Iterator[str]:
    """Every frame has 68 finite landmarks."""

    def look(i: int) -> str | None:
        try:
            points = read_lms(folder.path / "ori_imgs" / f"{i}.lms")
        except UserError as error:
            return str(error).partition(": ")[2]
        return None if np.isfinite(points).all() else "landmarks that are no numbers"

    for text, ids in folder.each(look).items():
        yield f"{folder.path / 'ori_imgs'}: .lms of {folder.some(ids)}: {text}"


def mesh_faults(folder: Folder) -> Iterator[str]:
    """The mesh points have a finite row for each frame, in a folder that talker made."""
    path = folder.path / "landmarks.npz"
    if folder.own:
        points = load_per_frame(path, folder.frames, "points")["points"]
        if points.shape[1:] != (478, 3):
            yield f"{path}: expected points [{folder.frames}, 478, 3]; run `talker landmarks` again"
        elif not np.isfinite(points).all():
            yield f"{path}: points that are no numbers in {_bad_rows(folder, points)}"


def _bad_rows(folder: Folder, values: np.ndarray) -> str:
    bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    return folder.some(np.flatnonzero(bad).tolist())


def sound_faults(folder: Folder) -> Iterator[str]:
    """The sound and its two parts last exactly as long as their frames."""
    split = folder.train_frames
    lengths = {"aud": folder.frames, "aud_train": split, "aud_novel": folder.frames - split}
    for name, frames in lengths.items():
        path = folder.path / f"{name}.wav"
        if not path.exists():
            if folder.own or name == "aud":
                yield f"{path}: missing; `talker audio` writes it"
            continue
        try:
            with wave.open(str(path)) as file:
                rate, samples = file.getframerate(), file.getnframes()
                kind = rate, file.getnchannels(), 8 * file.getsampwidth()
        except (wave.Error, EOFError, OSError) as error:
            yield f"{path}: cannot be read as .wav ({error})"
            continue
        size = path.stat().st_size - kind[1] * kind[2] // 8 * samples
        wanted = frames * SAMPLES_PER_FRAME
        if size < 0:
            yield f"{path}: is cut off: {-size} bytes of its sound are missing"
        elif folder.own and kind != (SAMPLE_RATE, 1, 16):
            yield f"{path}: {rate} Hz, {kind[1]} channels, {kind[2]} bit; expected 16000, 1, 16"
        elif folder.own and samples != wanted:
            yield (
                f"{path}: {samples} samples, expected {wanted} for {frames} frames; "
                "run `talker audio` again"
            )
        elif not folder.own and abs(samples / rate - frames / FPS) > SOUND_TOLERANCE:
            yield f"{path}: lasts {samples / rate:.2f} s, its frames {frames / FPS:.2f} s"


def speech_faults(folder: Folder) -> Iterator[str]:
    """The speech features that are there have a window for each frame."""
    for path in {speech_file(folder.path, name): None for name in ENCODERS}:
        if not path.exists():
            continue
        try:
            features = load_array(path)
        except UserError as error:
            yield str(error)
            continue
        if features.ndim == 3 and folder.has_spare(len(features)):
            features = features[: folder.frames]
        if features.ndim != 3 or features.shape[:2] != (folder.frames, 16):
            yield f"{path}: shape {list(features.shape)}, expected [{folder.frames}, 16, C]"
        elif not np.isfinite(features).all():
            yield f"{path}: features that are no numbers in {_bad_rows(folder, features)}"


def blink_faults(folder: Folder) -> Iterator[str]:
    """au.csv has a finite AU45 for each frame."""
    path = folder.path / "au.csv"
    au45 = read_au45(path)
    if len(au45) != folder.frames and not folder.has_spare(len(au45)):
        yield f"{path}: {len(au45)} rows, expected one for each of {folder.frames} frames"
    elif not np.isfinite(au45).all():
        yield f"{path}: AU45 is no number in {_bad_rows(folder, au45)}"


def pose_faults(folder: Folder) -> Iterator[str]:
    """track_params.pt has a row for each frame, the transforms files say the same poses."""
    path = folder.path / "track_params.pt"
    params = read_track_params(path)
    if len(params.euler) != folder.frames:
        yield f"{path}: euler has {len(params.euler)} rows, expected {folder.frames}"
        return
    if params.vertices is None:
        yield f"{path}: vertices is missing"
    matrices = transform_matrices(params.euler.astype(float), params.trans.astype(float))
    split = folder.train_frames
    for name, ids in (("train", range(split)), ("val", range(split, folder.frames))):
        tracked = {i for i in ids if params.valid[i]}
        file = folder.path / f"transforms_{name}.json"
        try:
            yield from transforms_faults(folder, file, tracked, matrices, params.focal)
        except UserError as error:
            yield str(error)


def transforms_faults(
    folder: Folder, path: Path, expected: set[int], matrices: np.ndarray, focal: float
) -> Iterator[str]:
    """A transforms file lists the `expected` frames once each, with the tracked poses [T, 4, 4]."""
    content = read_transforms(path, folder.frames)
    camera = (content.focal, *content.center)
    ids, poses = content.ids.tolist(), content.matrices
    if not np.allclose(camera, (focal, folder.width / 2, folder.height / 2), rtol=1e-4):
        yield (
            f"{path}: focal_len, cx, cy are {camera}, expected the {focal:.2f} of track_params.pt "
            "and the middle of the image"
        )
    if ids != content.audio_ids.tolist():
        yield f"{path}: img_id and aud_id differ"
    if foreign := set(ids) - expected:
        yield f"{path}: holds {folder.some(foreign)}, which do not belong there or are not valid"
    if missing := expected - set(ids):
        yield f"{path}: lacks {folder.some(missing)}"
    if len(set(ids)) < len(ids):
        yield f"{path}: lists a frame twice"
    rows = [row for row, i in enumerate(ids) if i in expected]
    known = np.array([ids[row] for row in rows], int)
    off = np.abs(poses[rows] - matrices[known]).max(axis=(1, 2), initial=0.0)
    if (wrong := ~(off <= POSE_TOLERANCE)).any():
        yield (
            f"{path}: {folder.some(known[wrong].tolist())}: pose differs from track_params.pt "
            f"by up to {off.max():.2g}"
        )


CHECKS = (
    clip_faults,
    image_faults,
    colour_faults,
    landmark_faults,
    mesh_faults,
    sound_faults,
    speech_faults,
    blink_faults,
    pose_faults,
)


def check(path: Path, config: Config) -> dict[str, Any]:
    """Check the dataset folder `path`.

    Returns:
        What is worth knowing of it, as JSON values.

    Raises:
        UserError: it breaks the contract; the message has a line for every fault.
    """
    folder = open_folder(path, config)
    faults: list[str] = []
    for look in CHECKS:
        try:
            for fault in look(folder):
                faults.append(fault)
        except UserError as error:
            faults.append(str(error))
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise UserError("\n  ".join([f"{path}: {count} in this dataset", *faults]))
    return quality(folder)


def quality(folder: Folder) -> dict[str, Any]:
    """Facts about a folder without faults; None: not to be known from these files."""
    valid = read_track_params(folder.path / "track_params.pt").valid
    au45 = read_au45(folder.path / "au.csv")[: folder.frames]
    landmarks = np.stack([read_lms(folder.path / "ori_imgs" / f"{i}.lms") for i in folder.ids])
    starts, ends = runs(valid)
    longest = int((ends - starts).max(initial=0))
    closing = au45 > AU45_SATURATION
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
        "longest_valid_seconds": longest / FPS,
        "held_out_frames": int(valid[folder.train_frames :].sum()),
        "face_width_px": float(np.median(np.ptp(landmarks[valid, :, 0], axis=1))),
        **tracking,
        "rival_percent": rival_share(folder),
        "blinks": int((closing[1:] & ~closing[:-1]).sum() + closing[0]),
        "blink_range": float(np.ptp(au45)),
        **mouth_facts(mouth_opening(landmarks), valid, spoken(folder)),
        "background_change_percent": background_share(folder),
    }


def spoken(folder: Folder) -> np.ndarray:
    """Speech windows [T, 16, C] of the default encoder, whichever drives the avatar.

    So the limits mean the same for all, and another encoder needs no other verdict.
    """
    choice, sound = Choice(), clip_sound(folder.path / layout.SOUND, folder.frames)
    learned, slots = extract_clip(load_encoder(choice), choice, sound, folder.train_frames)
    return np.concatenate(list(windows([slots], learned.look_ahead)))


def tracking_facts(folder: Folder) -> dict[str, Any]:
    """What track_report.json says, in folders that talker made."""
    path = folder.path / "track_report.json"
    if not path.exists():
        return {"rejected": {}}
    report = load_json(path)
    scale = FACE / report["face_width_px"]
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
    }


def rival_share(folder: Folder) -> float | None:
    """Percent of the frames in which another face is more than half as large."""
    if not folder.own:
        return None
    rival = load_per_frame(folder.path / "landmarks.npz", folder.frames).get("rival")
    return None if rival is None else 100.0 * float((rival > 0.5).mean())


def mouth_facts(
    mouth: np.ndarray, valid: np.ndarray, speech: np.ndarray
) -> dict[str, float | None]:
    """How far the mouth opens and how the sound goes with it."""
    low, high = np.percentile(mouth[valid], [2, 98])
    curve = sync_curve(speech, mouth, valid)
    lag, peak = lag_of(curve) if np.isfinite(curve).any() else (None, None)
    return {
        "mouth_range": float(high - low),
        "sync_correlation": peak,
        "sync_lag_frames": lag,
    }


def background_share(folder: Folder) -> float:
    """How much of the background changes, in percent, in a sample of frames."""
    sample = np.unique(np.linspace(0, folder.frames - 1, folder.config.sample).astype(int))
    paths = [folder.path / "parsing" / f"{i}.png" for i in sample]
    return background_change(
        (read_image(folder.path / "ori_imgs" / f"{i}.jpg") for i in sample),
        (to_classes(read_image(path), path) for path in paths),
        read_image(folder.path / "bc.jpg"),
    )


def main(*, data: Path, quality: Output, config: Config = Config()) -> None:
    """Prove that a dataset folder is complete and consistent, and that training is worth it.

    Args:
        data: the dataset folder.
        quality: JSON to write: what was measured, the reasons to refuse the clip, warnings.
        config: options.
    """
    facts = check(data, config)
    verdict = judge(facts, config.limits)
    facts |= {
        "accepted": not verdict.failures or config.force,
        "failures": verdict.failures,
        "warnings": verdict.warnings,
    }
    with atomic_write(quality) as (scratch,):
        scratch.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    for name in MEASURES:
        if facts.get(name) is not None:
            logger.info("%-26s %8.3f", name, facts[name])
    for warning in verdict.warnings:
        logger.warning("warning: %s", warning)
    if verdict.failures and not config.force:
        raise UserError(
            "\n  ".join(
                [
                    f"{data}: this clip will not make a good avatar; --force goes on nevertheless "
                    "(`check: {force: true}` among the workflow's options)",
                    *verdict.failures,
                ]
            )
        )
    for failure in verdict.failures:
        logger.warning("forced: %s", failure)
    logger.info(
        "%s: complete and consistent, %d frames, %.0f %% of them tracked",
        data,
        facts["frames"],
        facts["valid_percent"],
    )
