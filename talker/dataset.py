"""Reading a prepared dataset folder: poses, speech, blinks and images of a clip.

Works on folders that the published AD-NeRF-family scripts made as well as on talker's own, and on
the one file that `talker pack` makes of such a folder.
"""

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, load_array, load_arrays
from talker.core.progress import progress
from talker.data.masks import COLOURS, HEAD
from talker.errors import UserError
from talker.head.camera import intrinsics, viewmats_from_pose
from talker.media.audio import decode_audio
from talker.media.images import read_image

Folder = Path | zipfile.Path

SOUND_TOLERANCE = 1.0
"""seconds by which the sound of folders that talker did not make may differ from their frames"""
PUBLISHED_SPEECH = "aud_ds.npy"
"""DeepSpeech windows as the scripts of the AD-NeRF family write them; taken as they are"""


@dataclass(frozen=True)
class Images:
    """Images of B frames, uint8: the frame, what lies behind the head, and the head's mask."""

    frame: np.ndarray
    """[B, H, W, 3]"""
    background: np.ndarray
    """[B, H, W, 3], the torso over the plate"""
    head_mask: np.ndarray
    """[B, H, W], 0..255"""


@dataclass(frozen=True)
class Dataset:
    """A prepared clip of T frames, its images scaled so that the longer side has `size` pixels."""

    folder: Folder
    height: int
    width: int
    valid: np.ndarray
    """bool [T]"""
    viewmats: np.ndarray
    """float32 [T, 4, 4], world to OpenCV camera, dm"""
    K: np.ndarray
    """float32 [3, 3], pixels of the scaled image"""
    speech: np.ndarray
    """float32 [T, 16, C]"""
    silence: np.ndarray | None
    """float32 [C], the features of a pause; None where the speech stage did not run"""
    eye: np.ndarray
    """float32 [T], 0 open .. 1 closed: clip(AU45, 0, 2) / 2"""
    landmarks: np.ndarray
    """float32 [T, 68, 2], pixels of the scaled image"""
    expression: np.ndarray
    """float32 [T, E], the tracker's expression coefficients"""
    vertices: np.ndarray
    """float32 [V, 3], mean head mesh, dm"""
    faces: np.ndarray | None
    """int64 [F, 3], or None where the tracker stored none"""
    train_ids: np.ndarray
    """int64, valid frames of the training split"""
    val_ids: np.ndarray
    """int64, valid frames of the held-out split"""

    @property
    def frames(self) -> int:
        return len(self.valid)

    @classmethod
    def load(cls, folder: Folder, size: int, encoder: str = "hama") -> "Dataset":
        """Read everything but the images.

        Raises:
            UserError: a file is missing or does not have one row for each frame; `talker check`
                lists every fault of a folder at once.
        """
        folder = open_folder(folder)
        params = load_params(folder / "track_params.pt")
        euler, trans = params["euler"].numpy(), params["trans"].numpy()
        frames = len(euler)
        train, val = (load_json(folder / f"transforms_{split}.json") for split in ("train", "val"))
        full_height, full_width = read_image(_image(folder, "ori_imgs/0.jpg")).shape[:2]
        scale = size / max(full_height, full_width)
        height, width = round(full_height * scale), round(full_width * scale)
        valid = params["valid"].numpy().copy() if "valid" in params else np.ones(frames, bool)
        K = intrinsics(train["focal_len"], full_width, full_height)
        K[:2] *= scale
        speech_path = speech_file(folder, encoder)
        learned = statistics_file(folder, encoder)
        speech = _rows(load_array(speech_path), frames, speech_path)
        au45 = _rows(load_au45(folder / "au.csv"), frames, folder / "au.csv")
        landmarks = np.stack([load_lms(folder / "ori_imgs" / f"{i}.lms") for i in range(frames)])
        return cls(
            folder=folder,
            height=height,
            width=width,
            valid=valid,
            viewmats=viewmats_from_pose(euler, trans).astype(np.float32),
            K=K.astype(np.float32),
            speech=speech.astype(np.float32),
            silence=_load_silence(learned) if learned.exists() else None,
            eye=(np.clip(au45, 0, 2) / 2).astype(np.float32),
            landmarks=landmarks * np.float32(scale),
            expression=params["exp"].numpy().astype(np.float32),
            vertices=params["vertices"].float().mean(0).numpy(),
            faces=params["faces"].long().numpy().copy() if "faces" in params else None,
            train_ids=_frame_ids(train, valid),
            val_ids=_frame_ids(val, valid),
        )

    def training_files(self, encoder: str) -> Iterator[Folder]:
        """What a training on features of `encoder` reads: of the clip and of each of its frames."""
        folder = self.folder
        for name in ("track_params.pt", "transforms_train.json", "au.csv", "bc.jpg"):
            yield folder / name
        yield speech_file(folder, encoder)
        if (learned := statistics_file(folder, encoder)).exists():
            yield learned
        for i in map(int, self.train_ids):
            yield folder / "ori_imgs" / f"{i}.lms"
            yield folder / "parsing" / f"{i}.png"
            yield _image(folder, f"ori_imgs/{i}.jpg")
            yield _image(folder, f"torso_imgs/{i}.png")

    def frame(self, i: int) -> np.ndarray:
        """The real frame i, uint8 [H, W, 3]."""
        return self._scaled(read_image(_image(self.folder, f"ori_imgs/{i}.jpg")))

    def background(self, i: int) -> np.ndarray:
        """What lies behind the head in frame i: the torso over the plate, uint8 [H, W, 3]."""
        torso = read_image(_image(self.folder, f"torso_imgs/{i}.png"))
        colours, alpha = cv2.cvtColor(torso, cv2.COLOR_RGBA2RGB), cv2.extractChannel(torso, 3)
        return self._scaled(over(colours, self._plate, alpha))

    @cached_property
    def _plate(self) -> np.ndarray:
        return read_image(self.folder / "bc.jpg")

    @cached_property
    def sound(self) -> np.ndarray:
        """What is heard, of `load_sound`."""
        return load_sound(self.folder, self.frames)

    @cached_property
    def cuts(self) -> np.ndarray:
        """First frames of new shots, int64, as far as track_report.json tells them."""
        report = self.folder / "track_report.json"
        shots = load_json(report)["segments"] if report.exists() else []
        return np.array([shot["first"] for shot in shots[1:]], np.int64)

    def torso(self, i: int) -> np.ndarray:
        """The torso alone, premultiplied RGBA uint8 [H, W, 4]."""
        torso = read_image(_image(self.folder, f"torso_imgs/{i}.png"))
        return self._scaled(cv2.cvtColor(torso, cv2.COLOR_RGBA2mRGBA))

    def head_mask(self, i: int) -> np.ndarray:
        """How much of each pixel of frame i is head, uint8 [H, W], 0..255."""
        parsing = read_image(self.folder / "parsing" / f"{i}.png")
        return self._scaled(np.all(parsing == COLOURS[HEAD], axis=-1).astype(np.uint8) * 255)

    def images(self, ids: np.ndarray, name: str = "images") -> Images:
        """Decode the frames `ids` [B] on all cores."""
        made = Images(
            np.empty((len(ids), self.height, self.width, 3), np.uint8),
            np.empty((len(ids), self.height, self.width, 3), np.uint8),
            np.empty((len(ids), self.height, self.width), np.uint8),
        )

        def fill(row: int) -> None:
            i = int(ids[row])
            made.frame[row] = self.frame(i)
            made.background[row] = self.background(i)
            made.head_mask[row] = self.head_mask(i)

        with ThreadPoolExecutor() as pool:
            for _ in progress(pool.map(fill, range(len(ids))), name, total=len(ids)):
                pass
        return made

    def _scaled(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] == (self.height, self.width):
            return image
        shrinks = self.height < image.shape[0]
        mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(image, (self.width, self.height), interpolation=mode)


def speech_file(folder: Folder, encoder: str) -> Folder:
    """Where the speech features of an encoder are, or should be."""
    own, published = folder / f"aud_{encoder}.npy", folder / PUBLISHED_SPEECH
    foreign = encoder == "deepspeech" and published.exists() and not own.exists()
    return published if foreign else own


def statistics_file(folder: Folder, encoder: str) -> Folder:
    """Where the statistics of those features are, if `talker speech` made them."""
    return folder / f"aud_{encoder}.npz"


def _load_silence(statistics: Folder) -> np.ndarray:
    """Read the features of silence, float32 [C]; UserError if the statistics hold none."""
    arrays = load_arrays(statistics)
    if "silence" not in arrays:
        raise UserError(
            f"{statistics}: expected an array 'silence', found {', '.join(arrays) or 'nothing'}; "
            "run `talker speech` again"
        )
    return arrays["silence"]


def open_folder(path: Folder) -> Folder:
    """A dataset folder, or the inside of the file that `talker pack` made of one.

    Raises:
        UserError: a file that is no pack.
    """
    if not (isinstance(path, Path) and path.is_file()):
        return path
    try:
        return zipfile.Path(zipfile.ZipFile(path))
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: expected a dataset folder or a file of `talker pack` ({error})"
        ) from error


def over(front: np.ndarray, behind: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """An image over another, uint8 [H, W, 3], by alpha uint8 [H, W], rounded to the nearest."""
    share = alpha.astype(np.float32)
    return cv2.blendLinear(front, behind, share, 255 - share)


def _image(folder: Folder, name: str) -> Folder:
    """The file of a layer; a pack keeps them as WebP."""
    return folder / (name if isinstance(folder, Path) else name.rsplit(".", 1)[0] + ".webp")


def load_params(path: Folder) -> dict[str, Any]:
    """Read a track_params.pt onto the CPU; UserError if it is missing or unsafe to unpickle."""
    try:
        content = io.BytesIO(path.read_bytes())
        return torch.load(content, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; `talker track` writes it") from error
    except Exception as error:
        raise UserError(f"{path}: cannot be read by torch.load ({error})") from error


def load_sound(folder: Folder, frames: int) -> np.ndarray:
    """The sound of a clip of T frames, int16 [640 T] at 16 kHz, whatever its aud.wav holds.

    Its end is cut, or filled with silence.

    Raises:
        UserError: there is none, or it is more than `SOUND_TOLERANCE` too short or too long.
    """
    path, samples = folder / "aud.wav", frames * SAMPLES_PER_FRAME
    sound = decode_audio(path)
    if abs(len(sound) - samples) > SOUND_TOLERANCE * SAMPLE_RATE:
        raise UserError(
            f"{path}: lasts {len(sound) / SAMPLE_RATE:.2f} s, its frames {frames / FPS:.2f} s"
        )
    return np.pad(sound[:samples], (0, max(0, samples - len(sound))))


def load_json(path: Folder) -> dict[str, Any]:
    """Read a JSON object; UserError if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error


def load_au45(path: Folder) -> np.ndarray:
    """Read the AU45 intensities [T] of an OpenFace csv; UserError if they are not there."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = [
                {str(key).strip(): value for key, value in row.items()}
                for row in csv.DictReader(handle)
            ]
        return np.array([float(row["AU45_r"]) for row in rows], np.float32)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: expected a column AU45_r of numbers ({error})") from error


def load_lms(path: Folder) -> np.ndarray:
    """Read 68 landmarks [68, 2]; UserError if the file does not hold 68 lines of two numbers."""
    try:
        return np.array(path.read_text().split(), np.float32).reshape(68, 2)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected 68 lines of 'x y' ({error})") from error


def _rows(array: np.ndarray, frames: int, path: Folder) -> np.ndarray:
    if len(array) != frames:
        raise UserError(
            f"{path}: has {len(array)} rows, expected one for each of the {frames} tracked frames"
        )
    return array


def _frame_ids(transforms: dict[str, Any], valid: np.ndarray) -> np.ndarray:
    ids = np.array([frame["img_id"] for frame in transforms["frames"]], np.int64)
    return ids[valid[ids]]
