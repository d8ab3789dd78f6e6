"""Write and read an avatar as one file, which is rendered without its dataset folder.

The file is an uncompressed zip archive. It holds the files that `talker train` wrote, the torsos
and the background plate of the recorded frames, their poses, eyes, brows and predicted expression
(replay.npz), and bundle.json: the format version, the license, the consent, and how the avatar was
made.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talker import __version__
from talker.avatar import blendshapes
from talker.avatar.expression import EXPRESSIONS
from talker.avatar.model import Avatar
from talker.avatar.renderer import avatar_dataset, load_avatar
from talker.clip import MAX_SIZE, check_regular, load_arrays, load_json
from talker.core.files import atomic_write
from talker.core.parallel import ordered_map, usable_cores
from talker.data import layout
from talker.data.formats import StoredArrays, are_rigid
from talker.data.layout import Folder
from talker.dataset import MAX_FEATURE, Dataset
from talker.errors import UserError
from talker.media.disclosure import Disclosure
from talker.media.images import read_image, webp_bytes
from talker.media.signature import Signature

BUNDLE_VERSION = 1
"""Version of the file format, stored in bundle.json. Files of another version are refused."""
MANIFEST, REPLAY = "bundle.json", "replay.npz"
AVATAR_FILES = ("config.json", "weights.safetensors", "point_cloud.ply", "speech.npz")
"""Files of the avatar folder that the bundle holds, in addition to the blendshapes, if any."""
REPLAYED = ("valid", "viewmats", "K", "eye", "train_ids", "val_ids")
"""Arrays of the dataset that rendering needs."""
RIGID = 1e-4
"""Largest deviation of a stored rotation matrix times its transpose from the identity."""
QUALITY = 90
"""Quality of the torsos as WebP images, 1 to 100."""


def write_bundle(
    file: Path, avatar: Path, dataset: Dataset, license: str = "", consent: str = ""
) -> None:
    """Write an avatar folder and what rendering needs of its dataset into one file.

    Args:
        avatar: folder that `talker train` wrote.
        dataset: dataset of the same subject, at the image size of the avatar.
        license: terms under which the avatar may be used.
        consent: how the person agreed to it.

    Raises:
        UserError: a file of the avatar or of the dataset is missing or damaged.
    """
    if not isinstance(dataset.folder, Path):
        raise UserError(
            f"{dataset.folder} is a packed file. An avatar file can only be written from a "
            "dataset folder."
        )
    missing = [name for name in AVATAR_FILES if not (avatar / name).exists()]
    if missing:
        raise UserError(
            f"{avatar} has no {missing[0]}. A complete avatar folder has the files "
            f"{', '.join(AVATAR_FILES)}. Run `talker speech`, and then train the avatar again with "
            "`talker train`."
        )
    names = [*AVATAR_FILES, *(path.name for path in avatar.glob(blendshapes.FILE))]
    for name in names:
        check_regular(avatar / name)
    read_image(dataset.folder / layout.PLATE)  # raises if it is damaged
    manifest = {
        "bundle_version": BUNDLE_VERSION,
        "license": license,
        "consent": consent,
        "talker_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "image_size": [dataset.height, dataset.width],
        "original_size": list(dataset.original_size),
    }
    replay = io.BytesIO()
    np.savez(
        replay,
        cuts=dataset.cuts,
        train_expression=predicted_expression(load_avatar(avatar), dataset, dataset.train_ids),
        **{name: getattr(dataset, name) for name in REPLAYED},
    )
    with atomic_write(file) as (scratch,), zipfile.ZipFile(scratch, "w") as archive:
        archive.writestr(MANIFEST, json.dumps(manifest, indent=2) + "\n")
        for name in names:
            archive.write(avatar / name, name)
        archive.writestr(REPLAY, replay.getvalue())
        archive.write(dataset.folder / layout.PLATE, layout.PLATE)
        for name, content in _torsos(dataset.folder, np.flatnonzero(dataset.valid)):
            archive.writestr(name, content)


def _torsos(folder: Path, ids: np.ndarray) -> Iterator[tuple[str, bytes]]:
    def encode(i: int) -> tuple[str, bytes]:
        path = layout.TORSOS.path(folder, i)
        name = Path(layout.TORSOS.relative(i)).with_suffix(".webp").as_posix()
        return name, webp_bytes(read_image(path), QUALITY)

    yield from ordered_map(encode, map(int, ids), usable_cores())


class Replay(Dataset):
    """The part of a dataset that a bundle contains; it has no frames, masks, speech or audio."""

    @property
    def cuts(self) -> np.ndarray:
        return load_arrays(self.folder / REPLAY)["cuts"]

    @property
    def train_expression(self) -> np.ndarray:
        """float32 [N, 10], expression that the avatar predicts from the speech of `train_ids`.

        Raises:
            UserError: an older version of talker wrote the file, without this array.
        """
        arrays = load_arrays(self.folder / REPLAY)
        if "train_expression" not in arrays:
            raise UserError(
                f"{self.folder} does not contain the expressions of the training frames, because "
                "an older version of talker wrote it. Write it again with `talker bundle`."
            )
        return arrays["train_expression"]


class BundledAvatar(Avatar):
    """An avatar that was read from a file, with the notes of this file."""

    consent = ""
    license = ""


@torch.inference_mode()
def predicted_expression(avatar: Avatar, dataset: Dataset, ids: np.ndarray) -> np.ndarray:
    """Return the expression [N, 10] that an avatar predicts for the speech of frames [N]."""
    windows = torch.from_numpy(np.asarray(dataset.speech[ids], np.float32))
    return avatar.speech_to_expression(windows.to(avatar.device)).cpu().numpy()


def read_manifest(file: Path) -> dict[str, Any]:
    """Return the content of bundle.json.

    Raises:
        UserError: the file is missing, is not an avatar, or has another format version.
    """
    try:
        archive = zipfile.Path(zipfile.ZipFile(file))
        manifest = load_json(archive / MANIFEST)
    except (OSError, zipfile.BadZipFile, UserError) as error:
        raise UserError(
            f"{file} cannot be read as an avatar file ({error}). Give a file that `talker "
            "bundle` wrote."
        ) from error
    if (version := manifest.get("bundle_version")) != BUNDLE_VERSION:
        raise UserError(
            f"{file} has format version {version}, but this version of talker reads "
            f"version {BUNDLE_VERSION}. Write the file again with `talker bundle`, or use "
            "the version of talker that wrote it "
            f"({manifest.get('talker_version', 'unknown')})."
        )
    return manifest


def read_bundle(file: Path, device: torch.device | str = "cpu") -> tuple[BundledAvatar, Replay]:
    """Read an avatar and the part of its dataset that rendering needs.

    Raises:
        UserError: the file is missing, damaged, or of another format version.
    """
    manifest = read_manifest(file)
    folder = zipfile.Path(zipfile.ZipFile(file))
    avatar = BundledAvatar.load(folder, device)
    assert isinstance(avatar, BundledAvatar)
    avatar.consent, avatar.license = (
        _line(manifest.get(key, "")) for key in ("consent", "license")
    )
    replayed = _read_replay(folder / REPLAY)
    try:
        height, width = manifest["image_size"]
        original_height, original_width = manifest["original_size"]
        if not all(type(side) is int and 1 <= side <= MAX_SIZE for side in (height, width)):
            raise ValueError(f"image_size is {height} x {width}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is damaged ({error!r}). Write it again with `talker bundle`."
        ) from error
    features = avatar.config.speech_features
    replay = Replay(
        folder=folder,
        height=height,
        width=width,
        original_size=(original_height, original_width),
        speech=np.empty((0, 16, features), np.float32),
        silence=None,
        speech_scale=None,
        landmarks=np.empty((0, 68, 2), np.float32),
        expression=np.empty((0, 0), np.float32),
        vertices=np.empty((0, 3), np.float32),
        faces=None,
        **replayed,
    )
    return avatar, replay


def _read_replay(file: zipfile.Path) -> dict[str, np.ndarray]:
    """Read the arrays `REPLAYED`, and check them and all others of the file.

    Raises:
        UserError: an array is missing, or has another type or shape than that of a `Dataset`, or
            values that are NaN or out of range.
    """
    stored = StoredArrays(file, "talker bundle")
    if (eye := stored.arrays.get("eye")) is not None and eye.ndim == 1:  # older, without brows
        stored.arrays["eye"] = np.pad(eye[:, None], ((0, 0), (0, 1)))
    valid = stored.booleans("valid")
    frames = len(valid)
    viewmats = stored.numbers("viewmats", (frames, 4, 4))
    if not are_rigid(viewmats, RIGID):
        stored.refuse("must have rotations and translations in the array 'viewmats'")
    K = stored.numbers("K", (3, 3), 0, 1e6)
    if not (K[[0, 1], [0, 1]] > 0).all() or (K[2] != [0, 0, 1]).any():
        stored.refuse("must have a camera matrix in the array 'K'")
    train_ids, val_ids = (
        stored.numbers(name, (None,), 0, frames - 1, "iu") for name in ("train_ids", "val_ids")
    )
    stored.numbers("cuts", (None,), 0, frames, "iu")
    if "train_expression" in stored.arrays:  # older files have none
        stored.numbers("train_expression", (len(train_ids), EXPRESSIONS), -MAX_FEATURE, MAX_FEATURE)
    return {
        "valid": valid,
        "viewmats": viewmats.astype(np.float32),
        "K": K.astype(np.float32),
        "eye": stored.numbers("eye", (frames, 2), -1, 1).astype(np.float32),
        "train_ids": train_ids,
        "val_ids": val_ids,
    }


def _line(text: object) -> str:
    """Return a text as one line of printable characters, which all metadata can store."""
    return "".join(one if one.isprintable() else " " for one in str(text))


def disclosure_of(
    avatar: Avatar, dataset: Dataset, kind: str = "video", signature: Signature | None = None
) -> Disclosure:
    """Return what the metadata of a file with an avatar state, with the notes of the avatar's file.

    Args:
        kind: what the file is.
        signature: certificate that .mp4 and .mov files are signed with.
    """
    bundled = isinstance(avatar, BundledAvatar)
    return Disclosure(
        avatar=Path(str(dataset.folder)).name,
        digest=hashlib.sha256(avatar.serialized()).hexdigest(),
        consent=avatar.consent if bundled else "",
        license=avatar.license if bundled else "",
        kind=kind,
        signature=signature,
    )


def load_subject(avatar: Path, data: Path | None) -> tuple[Avatar, Dataset]:
    """Read an avatar and its dataset, onto the GPU if there is one.

    Args:
        avatar: folder that `talker train` wrote, or file that `talker bundle` wrote.
        data: dataset folder, or None for the recording inside the avatar's file.

    Raises:
        UserError: a file is missing, damaged, or belongs to another avatar.
    """
    if avatar.is_file():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, replay = read_bundle(avatar, device)
        return model, replay if data is None else avatar_dataset(data, model)
    if data is None:
        raise UserError(
            f"{avatar} is not a file that `talker bundle` wrote. If it is an avatar "
            "folder, also give its dataset folder with `--data`."
        )
    model = load_avatar(avatar)
    return model, avatar_dataset(data, model)


def speech_statistics(avatar: Path, dataset: Dataset, encoder: str) -> Folder:
    """Return the path of the statistics of the avatar's speech features, a file or a zip entry."""
    if avatar.is_file():
        return zipfile.Path(zipfile.ZipFile(avatar)) / "speech.npz"
    own = avatar / "speech.npz"
    return own if own.exists() else dataset.folder / layout.speech_statistics(encoder)
