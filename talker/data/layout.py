"""Names of the files of a dataset folder, each defined only once, and the colors of its masks.

The names and formats are those of the AD-NeRF family, with additional files that only talker uses.
docs/conventions.md describes the contents; the other modules of this package read and write them.
Names are relative to the dataset folder. A mask has four classes, stored as exact colors.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from talker.errors import UserError

Folder = Path | zipfile.Path
"""A dataset folder, or the contents of the file that `talker pack` makes from one."""

CLIP = "clip.json"
"""Length, size, crop and source of the clip; written by `talker frames`."""
SOURCE = "source.txt"
"""Path of the video that the clip was made from; written by the workflow."""
SOUND = "aud.wav"
"""Audio of the whole clip, 16 kHz mono; written by `talker audio`."""
TRAIN_SOUND = "aud_train.wav"
"""Audio of the training frames; written by `talker audio`."""
NOVEL_SOUND = "aud_novel.wav"
"""Audio of the held-out frames; written by `talker audio`."""
DEEPSPEECH_FEATURES = "aud_ds.npy"
"""DeepSpeech windows [T, 16, 29] as the scripts of the AD-NeRF family write them."""
LANDMARKS = "landmarks.npz"
"""Face mesh of every frame, 478 points; written by `talker landmarks`."""
ACTION_UNITS = "au.csv"
"""OpenFace table with one row for each frame, of which the eye closure (AU45) and
the brows (AU01, AU02 and AU04) are used."""
SHOTS = "shots.npz"
"""Cuts of the clip, and the frames whose face cannot be used; written by `talker shots`."""
FIT = "fit.npz"
"""Head, focal length, expressions and poses fitted to the landmarks; written by `talker fit`."""
TRACK_PARAMS = "track_params.pt"
"""Head poses, expressions and head geometry; written by `talker track`."""
TRACK_REPORT = "track_report.json"
"""Focal length, residuals, shots and rejected frames; written by `talker track`."""
TRACK_OVERLAY = "track_overlay.mp4"
"""Video of the tracked head drawn over the frames; written by `talker overlay`."""
TRANSFORMS_TRAIN = "transforms_train.json"
"""Cameras of the training frames; written by `talker track`."""
TRANSFORMS_VAL = "transforms_val.json"
"""Cameras of the held-out frames; written by `talker track`."""
PLATE = "bc.jpg"
"""Background plate, the scene without the person; written by `talker background`."""
VERIFIED = "verified.json"
"""Facts of each frame of a folder without faults; written by `talker verify`."""
LIPSYNC = "lipsync.json"
"""How well the mouth moves with the audio; written by `talker lipsync`."""
QUALITY = "quality.json"
"""Measurements and verdict of `talker check`."""
NOVEL = "novel"
"""Folder of new speech: one subfolder for each speech, with its audio and features."""


@dataclass(frozen=True)
class FrameFiles:
    """A kind of file that exists once per frame: `folder/0.suffix`, `folder/1.suffix`, ..."""

    folder: str
    suffix: str
    channels: int | None
    """channels of the image; None if the file is not an image"""
    stage: str
    """command that writes the files"""

    def file_name(self, frame: int) -> str:
        """Return the name of a frame's file inside its folder, such as `12.jpg`."""
        return f"{frame}{self.suffix}"

    def relative(self, frame: int) -> str:
        """Return the name of a frame's file inside the dataset, such as `ori_imgs/12.jpg`."""
        return f"{self.folder}/{self.file_name(frame)}"

    def path(self, dataset: Path, frame: int) -> Path:
        """Return the path of a frame's file in the dataset folder `dataset`."""
        return dataset / self.folder / self.file_name(frame)


FRAMES = FrameFiles("ori_imgs", ".jpg", 3, "frames")
"""The frames of the clip."""
FRAME_LANDMARKS = FrameFiles("ori_imgs", ".lms", None, "landmarks")
"""The 68 landmarks of each frame, as text, next to the frame."""
MASKS = FrameFiles("parsing", ".png", 3, "parsing")
"""Masks of head, neck, torso and background, as colors."""
COMPOSITES = FrameFiles("gt_imgs", ".jpg", 3, "layers")
"""The frames with their background replaced by the plate, which other methods train on."""
TORSOS = FrameFiles("torso_imgs", ".png", 4, "layers")
"""Neck and clothes, continued upward behind the head, as RGBA."""

IMAGES = (FRAMES, MASKS, COMPOSITES, TORSOS)
"""All kinds of images that exist once per frame."""


def speech_features(encoder: str) -> str:
    """Return the name of the speech windows of an encoder, such as `aud_hama.npy`."""
    return f"aud_{encoder}.npy"


def speech_statistics(encoder: str) -> str:
    """Return the name of the statistics of an encoder's features, such as `aud_hama.npz`."""
    return f"aud_{encoder}.npz"


def speech_file(folder: Folder, encoder: str) -> Folder:
    """Return the path of the speech features of an encoder, whether or not they exist.

    Published DeepSpeech features are used where talker's own do not exist.
    """
    own, published = folder / speech_features(encoder), folder / DEEPSPEECH_FEATURES
    use_published = encoder == "deepspeech" and published.exists() and not own.exists()
    return published if use_published else own


def novel_folder(speech: str) -> str:
    """Return the name of the folder of a new speech, such as `novel/hello`."""
    return f"{NOVEL}/{speech}"


SPARE_ROWS = 1
"""Number of extra rows that a published per-frame file may have; its readers ignore them too."""

BACKGROUND, HEAD, NECK, TORSO = range(4)
"""Classes of a parsing mask."""
COLORS = np.array([(255, 255, 255), (0, 0, 255), (0, 255, 0), (255, 0, 0)], np.uint8)
"""RGB color of each class, so that `COLORS[mask]` is the image of a mask. The AD-NeRF family writes
them with OpenCV, as BGR."""


def to_classes(colors: np.ndarray, path: Path) -> np.ndarray:
    """Convert mask colors, RGB uint8 [H, W, 3], to classes uint8 [H, W].

    Args:
        colors: the decoded image.
        path: the file that it was read from, for the error message.

    Raises:
        UserError: a pixel has none of the four colors.
    """
    unknown = len(COLORS)
    mask = np.full(colors.shape[:2], unknown, np.uint8)
    for label in range(len(COLORS)):
        mask[class_mask(colors, label) > 0] = label
    if mask.max(initial=0) == unknown:
        y, x = np.argwhere(mask == unknown)[0]
        raise UserError(
            f"{path} has the color {tuple(colors[y, x].tolist())} at pixel ({x}, {y}). Only these "
            f"mask colors are allowed: {[tuple(color) for color in COLORS.tolist()]}."
        )
    return mask


def class_mask(colors: np.ndarray, label: int) -> np.ndarray:
    """Return the pixels of one class, uint8 [H, W]: 255 inside, 0 outside.

    Args:
        colors: mask colors, RGB uint8 [H, W, 3].
        label: the class.
    """
    return cv2.inRange(colors, COLORS[label], COLORS[label])
