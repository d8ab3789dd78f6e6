"""Write the 3D Gaussians of an avatar for viewers and editors of Gaussian splatting.

    talker splats --avatar me.avatar --out me.ply
    talker splats --avatar me.avatar --out me.spz
    talker splats --avatar me.avatar --out me.glb
    talker splats --avatar me.avatar --speech hello.npy --wav hello.wav --out hello

The last command writes a folder with one file for each frame, 25 per second, which editors such as
SuperSplat play as an animation.
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from talker.avatar.bundle import disclosure_of, load_subject
from talker.avatar.drive import longest_stretch, relaxed_brows
from talker.avatar.expression import EXPRESSIONS
from talker.avatar.gaussians import Gaussians, save_ply, sh_basis
from talker.avatar.gltf import save_glb
from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, head_inputs
from talker.avatar.spz import save_spz
from talker.core.config import validated
from talker.core.files import Output, atomic_write
from talker.core.progress import progress
from talker.dataset import Dataset
from talker.errors import UserError
from talker.media.disclosure import Disclosure
from talker.render import read_speech, speech_drive

logger = logging.getLogger(__name__)

UP = {".ply": False, ".spz": True, ".glb": True}
"""Whether readers of a format expect the y-axis to point up, by the suffix of the format."""


@validated
class Config:
    """Options of `talker splats`."""

    orientation: Literal["usual", "y-up", "y-down"] = "usual"
    """Direction of the y-axis: `y-up` (z points out of the face) or `y-down` (z points into the
    face). The default, `usual`, is the direction that other programs expect: `y-down` for .ply, as
    in the original 3D Gaussian splatting, and `y-up` for .spz and .glb."""
    format: Literal["ply", "spz", "glb"] = "ply"
    """Format of the files if a folder is written."""


@torch.inference_mode()
def deformed(
    avatar: Avatar, expression: torch.Tensor, eye: torch.Tensor, viewmats: torch.Tensor
) -> Gaussians:
    """Return the raw parameters [B, G, ...] in B frames; the arguments are those of `deform`."""
    tokens = avatar.tokens(expression, eye, avatar.pose_vector(viewmats))
    return avatar.deformed(tokens, eye[:, 1], avatar.shared())


def half_turned(gaussians: Gaussians) -> Gaussians:
    """Rotate Gaussians [(B,) G, ...] by 180 degrees around the x-axis."""
    flip = torch.tensor([1.0, -1.0, -1.0], device=gaussians.means.device)
    direction = torch.tensor([0.36, 0.48, 0.8], device=gaussians.means.device)
    count = gaussians.sh.shape[-2]
    signs = (sh_basis(flip * direction, count) / sh_basis(direction, count)).sign()
    return Gaussians(
        means=gaussians.means * flip,
        # mirroring y and z on both sides of a rotation gives the same ellipsoid
        quats=gaussians.quats * torch.tensor([1.0, 1.0, -1.0, -1.0], device=flip.device),
        scales=gaussians.scales,
        opacities=gaussians.opacities,
        sh=gaussians.sh * signs[:, None],
    )


def write_splats(
    path: Path, gaussians: Gaussians, orientation: str, disclosure: Disclosure
) -> None:
    """Write Gaussians [G, ...] as a .ply, .spz or .glb file.

    Args:
        disclosure: what the metadata of .ply and .glb state; .spz has none.
    """
    up = UP[path.suffix] if orientation == "usual" else orientation == "y-up"
    if not up:
        gaussians = half_turned(gaussians)
    if path.suffix == ".ply":
        save_ply(path, gaussians, disclosure.text)
    elif path.suffix == ".glb":
        save_glb(path, gaussians, disclosure)
    else:
        save_spz(path, gaussians)


def neutral(avatar: Avatar, dataset: Dataset) -> Gaussians:
    """Return the Gaussians [G, ...] with the mean expression, open eyes and relaxed brows."""
    view = dataset.viewmats[longest_stretch(dataset)[:1]]
    eye = torch.tensor([[0.0, relaxed_brows(dataset)]])
    inputs = (torch.zeros(1, EXPRESSIONS), eye, torch.from_numpy(view))
    return _one(deformed(avatar, *(part.to(avatar.device) for part in inputs)))


def _one(gaussians: Gaussians) -> Gaussians:
    return Gaussians(**{name: value[0] for name, value in vars(gaussians).items()})


def write_sequence(
    folder: Path, avatar: Avatar, dataset: Dataset, drive: Drive, config: Config
) -> None:
    """Write a file for each frame of a drive: 00000.ply, 00001.ply, ..."""
    disclosure = disclosure_of(avatar, dataset, "3D model")
    for i in progress(range(len(drive)), "splats", len(drive)):
        inputs = head_inputs(avatar, dataset, drive, np.array([i]))[:3]
        path = folder / f"{i:05d}.{config.format}"
        write_splats(path, _one(deformed(avatar, *inputs)), config.orientation, disclosure)


def main(
    *,
    avatar: Path,
    data: Path | None = None,
    speech: Path | None = None,
    wav: Path | None = None,
    out: Output,
    config: Config = Config(),
) -> None:
    """Write the Gaussians of an avatar to a .ply, .spz or .glb file, or to one file per frame.

    The files contain the motion of the mouth and the eyes. The head always faces in the same
    direction, but its shape changes slightly with the recorded head poses, as predicted by the
    network.

    Args:
        avatar: File written by `talker bundle`, or avatar folder written by `talker train`.
        data: Dataset folder. It is not needed if the avatar is a file.
        speech: Features of new speech, written by `talker speech`. By default, one file with the
            mean expression is written.
        wav: Audio of the new speech, written by `talker audio`.
        out: File to write (.ply, .spz or .glb). With `--speech`, a folder for one file per frame.
        config: Options.

    Raises:
        UserError: The avatar cannot be read, or `out` has a suffix that does not fit.
    """
    if (speech is None) != (wav is None):
        raise UserError("Give --speech and --wav together, or neither of them.")
    if speech is None and out.suffix not in UP:
        raise UserError(f"{out} must end in {', '.join(UP)}, unless `--speech` is given.")
    if speech is not None and out.suffix:
        raise UserError(
            f"{out} has the suffix {out.suffix}. With `--speech`, the output is a folder with one "
            "file for each frame. Give a name without a suffix."
        )
    model, dataset = load_subject(avatar, data)
    with atomic_write(out) as (scratch,):
        if speech is None or wav is None:
            disclosure = disclosure_of(model, dataset, "3D model")
            write_splats(scratch, neutral(model, dataset), config.orientation, disclosure)
        else:
            scratch.mkdir()
            drive = speech_drive(dataset, read_speech(speech, wav, dataset))
            write_sequence(scratch, model, dataset, drive, config)
    logger.info("Wrote %s with %d Gaussians.", out, len(model.canonical["means"]))
