"""Dataset folders as the scripts of the published methods leave them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talker.data import layout
from talker.media.audio import read_wav, write_wav

FRAMES = 100
FIELDS = ("id", "exp", "euler", "trans", "focal", "vertices")
"""What the published tracker stores in track_params.pt."""

FEATURES = {
    "AD-NeRF": ("aud.npy", (16, 29)),
    "RAD-NeRF": ("aud_eo.npy", (16, 44)),
    "ER-NeRF": ("aud_hu.npy", (2, 1024)),
    "GaussianTalker": ("aud_ds.npy", (16, 29)),
    "TalkingGaussian": ("aud_ds.npy", (16, 29)),
    "SyncTalk": ("aud_hu.npy", (2, 1024)),
}
"""File name and shape of the speech windows of each method."""


def publish(dataset: Path, folder: Path, method: str = "GaussianTalker") -> Path:
    """Write a copy of the test dataset in the layout of a method, with none of talker's own files.

    As after the published scripts, the sound is not cut to whole frames, the tables of blinks and
    speech have one row too many, and there is one mesh per frame.
    """
    shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns(".*", "aud_hama.np?"))
    for name in (layout.CLIP, layout.LANDMARKS, layout.TRAIN_SOUND, layout.NOVEL_SOUND):
        (folder / name).unlink()
    (folder / f"{folder.name}.mp4").write_bytes(b"the video")
    write_wav(folder / "aud.wav", np.pad(read_wav(folder / "aud.wav"), (0, 333)))
    name, window = FEATURES[method]
    np.save(folder / name, np.zeros((FRAMES + 1, *window), np.float32))
    blinks(folder, FRAMES + 1, 25)
    edit_params(folder, keep_published_fields)
    if method in ("AD-NeRF", "SyncTalk"):
        scale_transforms(folder, 10)
    {
        "AD-NeRF": only_composites,
        "TalkingGaussian": lambda folder: (folder / "teeth_mask").mkdir(),
        "SyncTalk": mediapipe_blendshapes,
    }.get(method, lambda folder: None)(folder)
    return folder


def blinks(folder: Path, rows: int, rate: float) -> None:
    """Write au.csv as OpenFace does on Windows, with blanks after the commas."""
    header = "frame, face_id, timestamp, confidence, success, AU25_r, AU45_r, AU45_c"
    lines = [
        f"{i + 1}, 0, {i / rate:.3f}, 0.98, 1, 0.50, {4.0 * (i % 40 == 20):.2f}, 0.00"
        for i in range(rows)
    ]
    (folder / "au.csv").write_text("\n".join([header, *lines]) + "\n")


def edit_params(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the fields of track_params.pt."""
    params = torch.load(folder / "track_params.pt", weights_only=True)
    edit(params)
    torch.save(params, folder / "track_params.pt")


def keep_published_fields(params: dict[str, Any]) -> None:
    for name in params.keys() - set(FIELDS):
        del params[name]
    params["vertices"] = params["vertices"].repeat(FRAMES, 1, 1)


def scale_transforms(folder: Path, factor: float) -> None:
    """Scale the translations in the transforms files."""
    for name in (layout.TRANSFORMS_TRAIN, layout.TRANSFORMS_VAL):
        content = json.loads((folder / name).read_text())
        for frame in content["frames"]:
            for row in frame["transform_matrix"][:3]:
                row[3] *= factor
        (folder / name).write_text(json.dumps(content))


def only_composites(folder: Path) -> None:
    """AD-NeRF: the composites have another name; there are no torso images and no blinks."""
    (folder / "gt_imgs").rename(folder / "com_imgs")
    shutil.rmtree(folder / "torso_imgs")
    (folder / "au.csv").unlink()
    (folder / "HeadNeRF_config.txt").write_text("expname = me_head\n")


def mediapipe_blendshapes(folder: Path) -> None:
    """SyncTalk: blendshapes in place of action units, and a second kind of masks."""
    for i in range(FRAMES):
        shutil.copy(folder / f"parsing/{i}.png", folder / f"parsing/{i}_face.png")
    (folder / "au.csv").unlink()
    np.save(folder / "bs.npy", np.zeros((FRAMES, 7)))
