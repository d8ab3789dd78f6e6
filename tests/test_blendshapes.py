"""The blendshapes of an avatar against the network that they replace."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_avatar import untrained_avatar

from talker.avatar import bake as module
from talker.avatar.bake import (
    Camera,
    Conditions,
    add_blendshapes,
    bake,
    principal_components,
)
from talker.avatar.blendshapes import FILE, PARAMETERS, Blendshapes
from talker.avatar.bundle import read_bundle, write_bundle
from talker.avatar.compact import LEVELS, compact, expand
from talker.avatar.gaussians import Gaussians, to_view
from talker.avatar.live import live_avatar
from talker.avatar.model import Avatar
from talker.avatar.rasterize import Splats
from talker.avatar.renderer import Drive, head_inputs, render_frames
from talker.avatar.training_set import TrainingSet, training_set
from talker.dataset import Dataset
from talker.errors import UserError
from talker.measure.heldout import _deformation
from talker.tools.player import blendshapes_of, training_conditions

SIZE = 64


@pytest.fixture(scope="module")
def data(mel_only: Path) -> Dataset:
    return Dataset.load(mel_only, SIZE, "mel")


@pytest.fixture(scope="module")
def subset(data: Dataset) -> TrainingSet:
    return training_set(data, torch.device("cpu"))


def lively(data: Dataset) -> Avatar:
    """Return an avatar that deforms strongly, with speech, blinks and pose."""
    avatar = untrained_avatar(data).eval()
    with torch.no_grad():
        avatar.heads.weight.mul_(3)
        next(avatar.speech_token[-1].parameters()).mul_(10)
    return avatar


@pytest.fixture(scope="module")
def avatar(data: Dataset) -> Avatar:
    return lively(data)


@pytest.fixture(scope="module")
def conditions(avatar: Avatar, data: Dataset) -> Conditions:
    return training_conditions(avatar, data)


@pytest.fixture(scope="module")
def camera(data: Dataset) -> Camera:
    return Camera(torch.from_numpy(data.K), data.height, data.width)


@pytest.fixture(scope="module")
def baked(avatar: Avatar, conditions: Conditions, camera: Camera) -> Blendshapes:
    return bake(avatar, conditions, camera, 8)


@torch.inference_mode()
def deform(avatar: Avatar, blendshapes: Blendshapes | None, conditions: Conditions) -> Splats:
    avatar.blendshapes = blendshapes
    splats = avatar.deform(*conditions)
    avatar.blendshapes = None
    return splats


def unweighted(avatar: Avatar, conditions: Conditions, components: int) -> Blendshapes:
    ones = torch.ones(len(avatar.canonical["means"]), PARAMETERS)
    return principal_components(avatar, conditions, ones, components)


def error(blendshapes: Blendshapes, avatar: Avatar, conditions: Conditions) -> float:
    """Return the squared error of the centers, relative to their variance between frames."""
    truth = deform(avatar, None, conditions).means
    difference = deform(avatar, blendshapes, conditions).means - truth
    return float(difference.square().sum() / (truth - truth.mean(0)).square().sum())


def test_with_as_many_components_as_frames_nothing_is_lost(
    avatar: Avatar, data: Dataset, conditions: Conditions
) -> None:
    few = Conditions(*(part[::6] for part in conditions))
    complete = unweighted(avatar, few, components=len(few.eye))
    pairs = zip(deform(avatar, complete, few), deform(avatar, None, few), strict=True)
    for one, other in pairs:
        assert torch.allclose(one, other, atol=1e-3), (one - other).abs().max()
    # ... and the pictures are the same, through the renderers that all videos use
    ids = data.train_ids[::6][:4]
    drive = Drive(ids, data.speech, ids)

    def pictures(blendshapes: Blendshapes | None, live: bool = False) -> np.ndarray:
        avatar.blendshapes = blendshapes
        head = live_avatar(avatar, 2) if live else None
        frames = np.stack(list(render_frames(avatar, data, drive, 2, render_head=head)))
        avatar.blendshapes = None
        return frames.astype(int)

    exact, ours, live = pictures(None), pictures(complete), pictures(complete, live=True)
    assert np.abs(exact - ours).max() <= 1
    assert np.array_equal(ours, live)
    assert (exact[0] != exact[-1]).any()


def test_more_components_lose_less_on_other_frames(
    avatar: Avatar, data: Dataset, conditions: Conditions
) -> None:
    held_out = Conditions(
        *head_inputs(avatar, data, Drive(data.val_ids, data.speech, data.val_ids), slice(None))[:3]
    )
    errors = [error(unweighted(avatar, conditions, k), avatar, held_out) for k in (1, 4, 16)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2], errors
    assert errors[2] < 0.01


def test_blinks_that_no_training_frame_shows_are_kept(
    data: Dataset, conditions: Conditions, camera: Camera
) -> None:
    """New speech combines any degree of eye closure with any expression."""
    avatar = lively(data)
    with torch.no_grad():
        next(avatar.eye_token[-1].parameters()).mul_(10)
    open_eyes = conditions._replace(eye=torch.zeros_like(conditions.eye))
    closed = conditions._replace(eye=torch.ones_like(conditions.eye) * torch.tensor([1.0, 0.0]))
    errors = [
        error(one, avatar, closed)
        for one in (bake(avatar, open_eyes, camera, 4), unweighted(avatar, open_eyes, 4))
    ]
    assert errors[0] < errors[1] / 4, errors
    mixed = module._mixed(conditions.eye)
    assert mixed[::3, 0].sort().values == pytest.approx(
        np.linspace(0, 1, len(mixed[::3])), abs=1e-6
    )
    assert mixed[:, 1].aminmax() == conditions.eye[:, 1].aminmax()
    assert not torch.equal(mixed[1::3, 1], conditions.eye[1::3, 1])


def test_weights_have_unit_size_and_the_anchors_give_those_of_all_gaussians(
    avatar: Avatar, conditions: Conditions
) -> None:
    blendshapes = unweighted(avatar, conditions, components=6)
    with torch.inference_mode():
        tokens = avatar.tokens(
            conditions.expression, conditions.eye, avatar.pose_vector(conditions.viewmats)
        )
        shared = avatar.shared()
        weights = avatar.blendshape_weights(blendshapes, tokens, conditions.eye[:, 1], shared)
        x = (
            avatar.offsets(shared.features, tokens, conditions.eye[:, 1])
            + avatar.gaussians().flat()
        )
        shapes = blendshapes.shapes.flatten(1)
        exact = (x - blendshapes.mean).flatten(1) @ torch.linalg.pinv(shapes)
    assert torch.allclose(exact.square().mean(0), torch.ones(6), atol=2e-3)
    assert (weights - exact).square().mean(0).max() < 0.02
    products = shapes @ shapes.T
    assert torch.allclose(products, torch.diag(products.diag()), atol=1e-2 * float(products.max()))


def test_an_avatar_that_does_not_move_is_reproduced_exactly(data: Dataset) -> None:
    still = untrained_avatar(data).eval()
    with torch.no_grad():
        still.heads.weight.zero_()
        next(still.brow_shape[-1].parameters()).zero_()
    conditions = training_conditions(still, data)
    blendshapes = unweighted(still, conditions, components=3)
    ours, theirs = deform(still, blendshapes, conditions), deform(still, None, conditions)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def test_flat_parameters_are_those_of_the_gaussians(avatar: Avatar) -> None:
    gaussians = avatar.gaussians()
    again = Gaussians.from_flat(gaussians.flat())
    for field in dataclasses.fields(Gaussians):
        assert torch.equal(getattr(gaussians, field.name), getattr(again, field.name))


def test_an_avatar_gets_blendshapes_only_if_they_lower_the_psnr_little(
    data: Dataset,
    subset: TrainingSet,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    avatar = lively(data)
    caplog.set_level(logging.INFO)
    assert _deformation(avatar) == "network"
    add_blendshapes(avatar, subset, 8)
    assert avatar.blendshapes is not None
    assert avatar.blendshapes.loss <= module.MAX_LOSS
    assert "8 blendshapes, which lower the PSNR" in _deformation(avatar)
    assert "the blendshapes lower the PSNR on training frames by" in caplog.text
    add_blendshapes(avatar, subset, 0)
    assert avatar.blendshapes is None
    monkeypatch.setattr(module, "MAX_LOSS", -1)
    add_blendshapes(avatar, subset, 8)
    assert avatar.blendshapes is None
    assert "the avatar is saved without blendshapes" in caplog.text


def test_blendshapes_are_stored_with_the_avatar_and_in_its_file(
    avatar: Avatar, data: Dataset, conditions: Conditions, baked: Blendshapes, tmp_path: Path
) -> None:
    avatar.blendshapes = dataclasses.replace(baked, loss=0.02)
    avatar.save(tmp_path / "avatar")
    avatar.blendshapes = None
    (tmp_path / "avatar" / "speech.npz").write_bytes(b"unused")
    write_bundle(tmp_path / "me.avatar", tmp_path / "avatar", data)
    expected = deform(avatar, baked, conditions)
    for read in (Avatar.load(tmp_path / "avatar"), read_bundle(tmp_path / "me.avatar")[0]):
        assert read.blendshapes is not None and read.blendshapes.loss == 0.02
        ours = deform(read, read.blendshapes, conditions)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
        read.blendshapes = baked
        assert len(blendshapes_of(read, data, 5).shapes) == 5
        assert torch.equal(blendshapes_of(read, data, 5).shapes, baked.shapes[:5])


def test_the_avatar_file_gives_the_conditions_of_its_dataset(
    avatar: Avatar, data: Dataset, tmp_path: Path
) -> None:
    avatar.save(tmp_path / "avatar")
    assert not (tmp_path / "avatar" / FILE).exists()
    (tmp_path / "avatar" / "speech.npz").write_bytes(b"unused")
    write_bundle(tmp_path / "me.avatar", tmp_path / "avatar", data)
    read, replay = read_bundle(tmp_path / "me.avatar")
    assert read.blendshapes is None
    ours, theirs = training_conditions(read, replay), training_conditions(avatar, data)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("format_version", np.array(9), "format version 9"),
        ("weights", np.array("0" * 64), "other weights"),
        ("mean", np.zeros((5, 14), np.float32), "damaged .*'mean'"),
        ("shapes", np.zeros((0, 3000, 14), np.float16), "damaged .*'shapes'"),
        ("shapes", np.full((1, 3000, 14), np.nan, np.float16), "damaged .*'shapes'"),
        ("shapes", np.array("text"), "damaged"),
        ("camera", np.zeros(4, np.float32), "damaged .*'camera'"),
        ("anchors", np.array([3000]), "damaged"),
        ("influence", np.zeros((2, 14), np.float32), "damaged .*'influence'"),
        ("loss", np.zeros(2), "damaged"),
        ("loss", None, "damaged .*loss"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    avatar: Avatar,
    baked: Blendshapes,
    tmp_path: Path,
    name: str,
    value: np.ndarray | None,
    reason: str,
) -> None:
    avatar.blendshapes = baked.first(1)
    avatar.save(tmp_path)
    avatar.blendshapes = None
    with np.load(tmp_path / FILE) as file:
        arrays = dict(file)
    arrays.pop(name)
    if value is not None:
        arrays[name] = value
    np.savez(tmp_path / FILE, **arrays)
    with pytest.raises(UserError, match=f"{FILE}.*{reason}.*Train the avatar again"):
        Avatar.load(tmp_path)
    (tmp_path / FILE).write_bytes(b"damaged")
    with pytest.raises(UserError, match=FILE):
        Avatar.load(tmp_path)
    (tmp_path / FILE).unlink()
    assert Avatar.load(tmp_path).blendshapes is None


def test_the_compact_copy_is_within_half_a_step(baked: Blendshapes) -> None:
    arrays = compact(baked)
    size, count = len(baked.mean), len(baked.shapes)
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "mean": ("float16", (14, size)),
        "harmonics": ("float16", (0, size)),
        "blendshapes": ("int8", (count, 14, size)),
        "steps": ("float32", (count, 14)),
    }
    weights = torch.eye(count)
    exact, ours = baked.gaussians(weights).flat(), expand(arrays, weights).flat()
    bound = torch.from_numpy(arrays["steps"])[:, None] * 0.51 + baked.mean.abs() * 2**-11 + 1e-6
    assert ((ours - exact).abs() <= bound).all()
    assert (torch.from_numpy(arrays["blendshapes"]).abs().amax(2) == LEVELS).all()


def test_colors_are_right_in_the_mean_direction(data: Dataset) -> None:
    """With harmonics, the colors are exact for a camera in the mean direction."""
    plain = untrained_avatar(data)
    config = dataclasses.replace(plain.config, sh_degree=1)
    gaussians = plain.gaussians()
    random = torch.Generator().manual_seed(0)
    further = 0.1 * torch.randn(len(gaussians.sh), 3, 3, generator=random)
    sh = torch.cat([gaussians.sh, further], dim=1)
    gaussians = dataclasses.replace(gaussians, sh=sh)
    viewmats = torch.from_numpy(data.viewmats[data.train_ids])
    torch.manual_seed(0)
    avatar = Avatar(config, gaussians, plain.planes.bounds, viewmats).eval()
    with torch.no_grad():
        avatar.heads.weight.mul_(3)
    conditions = training_conditions(avatar, data)
    still = conditions._replace(viewmats=viewmats[:1].expand(len(conditions.eye), 4, 4))
    few = Conditions(*(part[::6] for part in still))
    blendshapes = unweighted(avatar, few, components=len(few.eye))
    ours, truth = deform(avatar, blendshapes, few).colors, deform(avatar, None, few).colors
    moved = (truth - truth.mean(0)).abs().max()
    assert (ours - truth).abs().max() < 0.02 * moved
    # the copy for players has the same colors
    tokens = avatar.tokens(few.expression, few.eye, avatar.pose_vector(few.viewmats))
    with torch.inference_mode():
        weights = avatar.blendshape_weights(blendshapes, tokens, few.eye[:, 1], avatar.shared())
        copy = expand(compact(blendshapes), weights)
        points = avatar.canonical["means"].detach()
        assert (to_view(copy, points, few.viewmats).colors - truth).abs().max() < 0.2 * moved
