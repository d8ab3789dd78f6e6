"""Write a page that plays an avatar in the browser, rendered live in 3D.

    talker player --avatar me.avatar --speech hello.npy --wav hello.wav --page hello.html

The page is one file without external requests. It contains the avatar's deformation as blendshapes
(talker/avatar/compact.py), their weights and the head pose in every frame, and a video with the
audio and the layers behind the head. docs/player.md describes all of it.
"""

import base64
import gzip
import logging
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from pydantic import Field
from safetensors.numpy import save
from scipy.spatial.transform import Rotation
from torch import Tensor

from talker import __version__
from talker.avatar.bake import Camera, Conditions, bake
from talker.avatar.blendshapes import Blendshapes
from talker.avatar.bundle import Replay, disclosure_of, load_subject, predicted_expression
from talker.avatar.compact import compact, visible
from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, head_inputs
from talker.clip import FPS
from talker.core.config import AtLeast0, AtLeast1, validated
from talker.core.files import Output, atomic_write
from talker.core.progress import progress
from talker.dataset import Dataset
from talker.media.video_writer import video_writer
from talker.render import Config as RenderConfig
from talker.render import read_speech, speech_drive

logger = logging.getLogger(__name__)


ORBIT = 10.0, 8.0
"""Largest yaw and pitch in degrees by which the view can be turned away from the recorded one.
Training frames rarely show the head from larger angles."""
CORNERS = [(x * ORBIT[0], y * ORBIT[1]) for x in (-1, 1) for y in (-1, 1)]
"""Largest angles of a view, in degrees."""
SAMPLED = 6
"""Number of frames that are sampled from the drive; a Gaussian is kept if it is visible in at least
one of them."""


@validated
class Config:
    """Options of `talker player`."""

    components: AtLeast1 = 32
    """Number of blendshapes. More blendshapes reproduce the network more closely, but each adds
    about 0.3 MB to the page (with 30,000 Gaussians). Those that
    `talker train` stored with the avatar are used if there are enough of them."""
    crf: Annotated[int, Field(ge=0, le=51)] = 23
    """Constant rate factor of the video that the page shows behind the head (the torso and the
    background), from 0 (best quality) to 51. Larger values give smaller pages of lower quality."""
    blinks: Literal["natural", "recorded", "none"] = "natural"
    """Blinks: `natural` samples the subject's own blinks at random, `recorded` repeats the blinks
    of the recorded frames from which the torso is taken, and `none` keeps the eyes open."""
    seed: AtLeast0 = 0
    """Seed of the random numbers of the `natural` blinks."""
    title: str = ""
    """Title of the page. By default, it is the name of the audio file."""


def training_conditions(avatar: Avatar, dataset: Dataset) -> Conditions:
    """Return the conditions of the training frames."""
    ids = dataset.train_ids
    if isinstance(dataset, Replay):
        expression = dataset.train_expression
    else:
        expression = predicted_expression(avatar, dataset, ids)
    parts = (expression, dataset.eye[ids], dataset.viewmats[ids])
    return Conditions(*(torch.from_numpy(part).to(avatar.device) for part in parts))


def blendshapes_of(avatar: Avatar, dataset: Dataset, count: int) -> Blendshapes:
    """Return `count` blendshapes of an avatar, and compute them if fewer are stored with it."""
    stored = avatar.blendshapes
    if stored is not None and len(stored.shapes) >= count:
        return stored.first(count)
    camera = Camera(torch.from_numpy(dataset.K).to(avatar.device), dataset.height, dataset.width)
    return bake(avatar, training_conditions(avatar, dataset), camera, count)


def container(
    avatar: Avatar, dataset: Dataset, drive: Drive, components: int, notes: Mapping[str, str]
) -> bytes:
    """Return everything that a player needs except the video, as a safetensors file.

    It has the arrays of `compact`, first the Gaussians that are visible in the recorded view, then
    those that are visible in another view within `ORBIT`. In addition, it has

    - `weights` [N, B], the weights of the blendshapes in every frame,
    - `views` [N, 4, 4], the world-to-camera matrices of the frames,
    - `lens` [4], the focal lengths and the principal point in pixels,
    - `pivot` [3], the mean position of the head in camera space.

    Args:
        components: number of blendshapes B.
        notes: texts that are stored in the file's metadata.
    """
    blendshapes = blendshapes_of(avatar, dataset, components)
    with torch.no_grad():
        expression, eye, viewmats, Ks = head_inputs(avatar, dataset, drive, slice(None))
        tokens = avatar.tokens(expression, eye, avatar.pose_vector(viewmats))
        weights = avatar.blendshape_weights(blendshapes, tokens, eye[:, 1], avatar.shared())
        center = blendshapes.mean[:, :3].mean(0)
        pivot = (viewmats[:, :3, :3] @ center + viewmats[:, :3, 3]).mean(0)
    some = torch.linspace(0, len(drive) - 1, min(len(drive), SAMPLED), device=avatar.device).long()
    show = partial(visible, blendshapes, K=Ks[0], width=dataset.width, height=dataset.height)
    straight = show(weights[some], viewmats[some])
    views = torch.cat([turned(viewmats[some], pivot, *angles) for angles in CORNERS])
    aside = show(weights[some].repeat(len(CORNERS), 1), views) & ~straight
    order = np.concatenate([np.flatnonzero(straight), np.flatnonzero(aside)])
    arrays = {
        name: array if name == "steps" else array[..., order]
        for name, array in compact(blendshapes).items()
    }
    arrays |= {
        "weights": weights.cpu().numpy(),
        "views": viewmats.cpu().numpy(),
        "lens": dataset.K[[0, 1, 0, 1], [0, 1, 2, 2]].astype(np.float32),
        "pivot": pivot.cpu().numpy(),
    }
    numbers = {"width": dataset.width, "height": dataset.height, "fps": FPS}
    numbers |= {"yaw": ORBIT[0], "pitch": ORBIT[1], "straight": int(straight.sum())}
    metadata = {name: str(value) for name, value in numbers.items()} | dict(notes)
    content = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(content, metadata)


def turned(viewmats: Tensor, pivot: Tensor, yaw: float, pitch: float) -> Tensor:
    """Turn the views [N, 4, 4] around a point in camera space, by angles in degrees."""
    turn = Rotation.from_euler("YX", [yaw, pitch], degrees=True).inv().as_matrix()
    rotation = torch.from_numpy(turn).to(viewmats)
    motion = torch.eye(4).to(viewmats)
    motion[:3, :3], motion[:3, 3] = rotation, pivot - rotation @ pivot
    return motion @ viewmats


def layers(dataset: Dataset, drive: Drive, sound: Path, crf: int) -> bytes:
    """Return an .mp4 with the torso and the background of every frame, and the audio."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.mp4"
        with video_writer(path, sound, crf=crf) as write:
            for i in progress(drive.background_frame_ids, "layers", len(drive)):
                write(dataset.background(int(i)))
        return path.read_bytes()


def write_player(
    page: Path,
    avatar: Avatar,
    dataset: Dataset,
    drive: Drive,
    sound: Path,
    config: Config = Config(),
) -> None:
    """Write the page of a drive, or only its container.

    Args:
        page: HTML file, or .safetensors file for the container.
        sound: audio of the drive, a file of any format.
    """
    disclosure = disclosure_of(avatar, dataset)
    notes = {"consent": disclosure.consent, "license": disclosure.license}
    metadata = notes | disclosure.tags() | {"talker": __version__}
    arrays = container(avatar, dataset, drive, config.components, metadata)
    if page.suffix == ".safetensors":
        with atomic_write(page) as (scratch,):
            scratch.write_bytes(arrays)
        logger.info("Wrote %s: %.1f MB for %d frames.", page, len(arrays) / 1e6, len(drive))
        return
    arrays = gzip.compress(arrays, mtime=0)
    video = layers(dataset, drive, sound, config.crf)
    here = files("talker.tools")
    template = here.joinpath("player.html.jinja").read_text(encoding="utf-8")
    html = (
        jinja2.Environment(autoescape=True)
        .from_string(template)
        .render(
            title=config.title or sound.stem,
            version=__version__,
            width=dataset.width,
            height=dataset.height,
            avatar=base64.b64encode(arrays).decode(),
            layers=base64.b64encode(video).decode(),
            library=Markup(here.joinpath("three.min.js").read_text(encoding="utf-8")),
            script=Markup(here.joinpath("player.js").read_text(encoding="utf-8")),
            tags=disclosure.tags(),
            **notes,
        )
    )
    with atomic_write(page) as (scratch,):
        scratch.write_text(html, encoding="utf-8")
    logger.info(
        "Wrote %s: %.1f MB, with %.1f MB for %d Gaussians and %.1f MB for %d frames of video.",
        *(page, page.stat().st_size / 1e6, len(arrays) / 1e6, len(avatar.canonical["means"])),
        *(len(video) / 1e6, len(drive)),
    )


def main(
    *,
    avatar: Path,
    data: Path | None = None,
    speech: Path,
    wav: Path,
    sound: Path | None = None,
    page: Output,
    config: Config = Config(),
) -> None:
    """Write a web page that plays new speech, with an avatar that the viewer can turn.

    Args:
        avatar: File written by `talker bundle`, or avatar folder written by `talker train`.
        data: Dataset folder. It is not needed if the avatar is a file.
        speech: Features of the speech, written by `talker speech`.
        wav: Audio of the speech, written by `talker audio`.
        sound: Original file from which `--wav` was extracted. The page plays it with the original
            sample rate and channels. By default, the page plays `--wav`.
        page: HTML file to write. With the extension .safetensors, the file contains only the
            blendshapes of the avatar, their weights and the head poses, for other players.
        config: Options.
    """
    model, dataset = load_subject(avatar, data)
    motion = RenderConfig(blinks=config.blinks, seed=config.seed)
    drive = speech_drive(dataset, read_speech(speech, wav, dataset), motion)
    write_player(page, model, dataset, drive, sound or wav, config)
