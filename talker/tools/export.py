"""Export a dataset folder for another method, in the layout that its reader opens.

    talker export --data data/me --for gaussiantalker --out exports/me

The folder is not changed; a copy is written. What talker cannot compute, such as DeepSpeech
features or additional action units, is listed with the tool that computes it.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
import tyro

from talker.avatar.gaussians import sample_surface
from talker.clip import check_regular, load_array, load_json
from talker.core.config import AtLeast1, validated
from talker.core.files import Output, atomic_write
from talker.data import layout
from talker.data.formats import read_au45, read_table, read_track_params
from talker.dataset import Dataset
from talker.errors import UserError
from talker.head.camera import transform_matrices
from talker.head.landmarks68 import OUTER_LIPS, read_lms
from talker.media.images import read_image, write_image

logger = logging.getLogger(__name__)

MethodName = Literal["gaussiantalker", "talkinggaussian", "ernerf", "radnerf", "synctalk"]
"""Names of the methods that a folder can be exported for."""


@dataclass(frozen=True)
class Method:
    """The files that the reader of a method opens in addition to those that all methods share."""

    speech: dict[str, tuple[int, int]]
    """file names of the speech features that it accepts, with the shape of a window; none if it
    computes them from the audio"""
    extractor: str
    """the tool that computes the speech features"""
    action_units: tuple[int, ...] = (45,)
    """numbers of the action units that it reads from au.csv"""
    needs: tuple[str, ...] = ()
    """sentences about files that the method also reads, but that talker does not write"""


DEEPSPEECH = {layout.DEEPSPEECH_FEATURES: (16, 29)}
ESPERANTO = {"aud_eo.npy": (16, 44)}
HUBERT = {"aud_hu.npy": (2, 1024)}

METHODS: dict[MethodName, Method] = {
    "gaussiantalker": Method(DEEPSPEECH, "data_utils/deepspeech_features of GaussianTalker"),
    "talkinggaussian": Method(
        DEEPSPEECH | ESPERANTO | HUBERT,
        "data_utils/deepspeech_features, wav2vec.py or hubert.py of TalkingGaussian",
        (1, 4, 5, 6, 7, 25, 45),
        ("teeth_mask/%d.npy is missing. Run create_teeth_mask.py of TalkingGaussian to write it.",),
    ),
    "ernerf": Method(
        DEEPSPEECH | ESPERANTO | HUBERT,
        "data_utils/deepspeech_features, nerf_triplane/asr.py or hubert.py of ER-NeRF",
    ),
    "radnerf": Method(ESPERANTO | DEEPSPEECH, "nerf/asr.py of RAD-NeRF"),
    "synctalk": Method(
        {},
        "",
        needs=(
            "bs.npy is missing. Run data_utils/blendshape_capture of SyncTalk to write it, or "
            "train SyncTalk with its option --au45.",
        ),
    ),
}
"""The methods, by name."""

NOSE_TOP, CHIN, INNER_LIPS = 27, 8, slice(60, 68)
"""Indices of landmarks among the 68."""

MOUTH_COLOR = 100
"""Gray level of the mouth in the masks of TalkingGaussian."""

TABLE_HEADER = "frame, timestamp, confidence, success"


@validated
class Config:
    """How a folder is exported."""

    vertices: AtLeast1 = 34_650
    """Minimum number of points of the head mesh in track_params.pt. If the mesh has fewer vertices,
    further points are sampled on its surface. GaussianTalker starts training with one Gaussian at
    each point. The default is the number of vertices of the Basel Face Model as cropped by
    AD-NeRF."""


def export(data: Path, name: MethodName, out: Path, config: Config) -> list[str]:
    """Write the folder `out` for a method.

    Returns:
        A sentence for each thing that the method needs in addition.

    Raises:
        UserError: the dataset is incomplete or damaged.
    """
    method = METHODS[name]
    params = read_track_params(data / layout.TRACK_PARAMS)
    frames = len(params.euler)
    Dataset.load(data, 64, _any_encoder(data))  # raises if the folder is incomplete
    _copy(data, out, frames)
    _write_params(data, out, config.vertices)
    for file in (layout.TRANSFORMS_TRAIN, layout.TRANSFORMS_VAL):
        _write_transforms(data, out, file)
    missing = _write_speech(data, out, method, frames)
    missing += _write_action_units(data, out, method, frames)
    if name == "talkinggaussian":
        _paint_mouths(out, frames)
    missing += method.needs
    return missing


def _any_encoder(data: Path) -> str:
    """Return an encoder whose features exist, since export does not use them."""
    files = sorted(data.glob(layout.speech_features("*")))
    names = [file.stem.removeprefix("aud_") for file in files]
    return "deepspeech" if names == ["ds"] else next((n for n in names if n != "ds"), "deepspeech")


def _copy(data: Path, out: Path, frames: int) -> None:
    for name in (layout.PLATE, layout.SOUND, layout.TRAIN_SOUND, layout.NOVEL_SOUND):
        if (data / name).exists():
            check_regular(data / name)
            shutil.copyfile(data / name, out / name)
    for kind in (*layout.IMAGES, layout.FRAME_LANDMARKS):
        (out / kind.folder).mkdir(exist_ok=True)
        for i in range(frames):
            check_regular(kind.path(data, i))
            shutil.copyfile(kind.path(data, i), kind.path(out, i))


def _write_params(data: Path, out: Path, count: int) -> None:
    """Write track_params.pt with the same `count` points on the head mesh for every frame.

    Readers average the points over the frames. They are stored only once, in a tensor that repeats
    them.
    """
    import torch

    params = read_track_params(data / layout.TRACK_PARAMS)
    if params.vertices is None:
        raise UserError(f"{data / layout.TRACK_PARAMS} has no vertices. Run `talker track`.")
    points = params.vertices
    if len(points) < count:
        rng = np.random.default_rng(0)
        points = sample_surface(params.vertices, params.faces, count, rng)
    frames = len(params.euler)
    fields = {
        "id": torch.zeros(1, 100),
        "exp": torch.from_numpy(params.expression),
        "euler": torch.from_numpy(params.euler),
        "trans": torch.from_numpy(params.trans),
        "focal": torch.tensor([params.focal]),
        "vertices": torch.from_numpy(points.astype(np.float32)).expand(frames, -1, -1),
    }
    torch.save(fields, out / layout.TRACK_PARAMS)


def _write_transforms(data: Path, out: Path, name: str) -> None:
    """Write a transforms file with the rectangles of the face and the lips of every frame.

    The poses are those of track_params.pt, with translations in m.
    """
    params = read_track_params(data / layout.TRACK_PARAMS)
    matrices = transform_matrices(params.euler.astype(float), params.trans.astype(float))
    content = load_json(data / name)
    width, height = round(2 * content["cx"]), round(2 * content["cy"])
    for frame in content["frames"]:
        frame["transform_matrix"] = matrices[frame["img_id"]].tolist()
        landmarks = read_lms(layout.FRAME_LANDMARKS.path(data, frame["img_id"]))
        frame["face_rect"] = face_rectangle(landmarks, width, height)
        frame["lips_rect"] = _rectangle(landmarks[OUTER_LIPS])
    text = json.dumps(content, indent=2) + "\n"
    (out / name).write_text(text, encoding="utf-8")


def face_rectangle(points: np.ndarray, width: int, height: int) -> list[int]:
    """Return x, y, width and height of the region from which AD-NeRF samples most pixels.

    Its center is midway between the outermost landmarks, at the height of the upper end of the
    nose. It extends down to the chin and equally far up.

    Args:
        points: landmarks [68, 2] in pixels.
        width: width of the image.
        height: height of the image.
    """
    left, right = points[:, 0].min(), points[:, 0].max()
    x, y = int((left + right) / 2), int(points[NOSE_TOP, 1])
    half_width, half_height = int(1.5 * (right - x)), int(1.15 * (points[CHIN, 1] - y))
    x0, y0 = max(x - half_width, 0), max(y - half_height, 0)
    return [x0, y0, min(2 * half_width, width - 1 - x0), min(2 * half_height, height - 1 - y0)]


def _paint_mouths(out: Path, frames: int) -> None:
    """Paint the area between the lips into the masks, in the color that TalkingGaussian reads."""
    for i in range(frames):
        path = layout.MASKS.path(out, i)
        mask = read_image(path).copy()
        lips = read_lms(layout.FRAME_LANDMARKS.path(out, i))[INNER_LIPS]
        cv2.fillPoly(mask, [np.round(lips).astype(np.int32)], (MOUTH_COLOR,) * 3)
        write_image(path, mask)


def _rectangle(points: np.ndarray) -> list[int]:
    """Return x, y, width and height of the bounding box of points [P, 2], in whole pixels."""
    low, high = np.floor(points.min(0)).astype(int), np.ceil(points.max(0)).astype(int)
    return [*low.tolist(), *(high - low).tolist()]


def _write_speech(data: Path, out: Path, method: Method, frames: int) -> list[str]:
    """Copy the speech features that the method accepts; return what is missing."""
    copied = False
    for name, window in method.speech.items():
        if not (data / name).exists():
            continue
        features = load_array(data / name)
        if features.shape[1:] != window or len(features) < frames:
            raise UserError(
                f"{data / name} has the shape {list(features.shape)}. It must be [{frames}, "
                f"{window[0]}, {window[1]}]. Compute it again from {layout.SOUND}, or delete it."
            )
        np.save(out / name, features[:frames].astype(np.float32))
        copied = True
    if copied or not method.speech:
        return []
    names = " or ".join(
        f"{name} [{frames}, {window[0]}, {window[1]}]" for name, window in method.speech.items()
    )
    return [f"{names} is missing. To write it, run {method.extractor} on {layout.SOUND}."]


def _write_action_units(data: Path, out: Path, method: Method, frames: int) -> list[str]:
    """Write au.csv with the action units of the method; return which ones are missing."""
    path = data / layout.ACTION_UNITS
    table = read_table(path)
    columns = {"AU45_r": [f"{value:.3f}" for value in read_au45(path)]}
    columns |= {name: values for name, values in table.items() if name not in columns}
    needed = [f"AU{number:02d}_r" for number in method.action_units]
    present = [name for name in needed if name in columns]
    rows = [", ".join([TABLE_HEADER, *present])]
    for i in range(frames):
        values = [columns[name][i].strip() for name in present]
        rows.append(", ".join([f"{i + 1}", f"{i / 25:.2f}", "1.00", "1", *values]))
    (out / layout.ACTION_UNITS).write_text("\n".join(rows) + "\n", encoding="utf-8")
    absent = [name for name in needed if name not in columns]
    return (
        [f"{layout.ACTION_UNITS} lacks the columns {', '.join(absent)}. Run OpenFace to get them."]
        if absent
        else []
    )


def main(
    *,
    data: Path,
    method: Annotated[MethodName, tyro.conf.arg(name="for")],
    out: Output,
    config: Config = Config(),
) -> None:
    """Copy a dataset folder, and convert it to the layout of another project.

    Args:
        data: Dataset folder.
        method: Project whose scripts will read the copy.
        out: Folder to write.
        config: Options.

    Raises:
        UserError: the dataset is incomplete or damaged.
    """
    with atomic_write(out) as (folder,):
        folder.mkdir()
        missing = export(data, method, folder, config)
    logger.info("Wrote %s for %s.", out, method)
    for text in missing:
        logger.warning("The copy is not complete yet: %s", text)
