"""The baked deformation against the network that it replaces."""

import dataclasses
from pathlib import Path

import pytest
import torch
from fake_avatar import untrained_avatar

from talker.avatar.baked import BakedAvatar, Conditions, training_conditions
from talker.avatar.bundle import read_bundle, write_bundle
from talker.avatar.compact import LEVELS, compact, expand
from talker.avatar.gaussians import Gaussians, to_view
from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, head_inputs, render_frames
from talker.dataset import Dataset

SIZE = 64


@pytest.fixture(scope="module")
def data(mel_only: Path) -> Dataset:
    return Dataset.load(mel_only, SIZE, "mel")


@pytest.fixture(scope="module")
def avatar(data: Dataset) -> Avatar:
    """An avatar that deforms strongly, with speech, blinks and pose."""
    avatar = untrained_avatar(data).eval()
    with torch.no_grad():
        avatar.heads.weight.mul_(3)
        avatar.speech_token[-1].weight.mul_(10)
    return avatar


@pytest.fixture(scope="module")
def conditions(avatar: Avatar, data: Dataset) -> Conditions:
    return training_conditions(avatar, data)


def error(baked: BakedAvatar, avatar: Avatar, conditions: Conditions) -> float:
    """The squared error of the centers, relative to their variance between frames."""
    with torch.inference_mode():
        truth = avatar.deform(*conditions).means
        difference = baked.deform(*conditions).means - truth
        return float(difference.square().sum() / (truth - truth.mean(0)).square().sum())


def test_with_as_many_components_as_frames_nothing_is_lost(
    avatar: Avatar, data: Dataset, conditions: Conditions
) -> None:
    few = Conditions(*(part[::6] for part in conditions))
    baked = BakedAvatar(avatar, few, components=len(few.eye))
    with torch.inference_mode():
        for one, other in zip(baked.deform(*few), avatar.deform(*few), strict=True):
            assert torch.allclose(one, other, atol=2e-4), (one - other).abs().max()
    # ... and the pictures are the same, through the renderer that all videos use
    ids = data.train_ids[::6][:4]
    drive = Drive(ids, data.speech, ids)
    pictures = [
        torch.stack(
            [
                torch.from_numpy(f).int()
                for f in render_frames(avatar, data, drive, 2, render_head=head)
            ]
        )
        for head in (None, baked.render_from_expression)
    ]
    assert (pictures[0] - pictures[1]).abs().max() <= 1
    assert (pictures[0][0] != pictures[0][-1]).any()


def test_more_components_lose_less_on_other_frames(
    avatar: Avatar, data: Dataset, conditions: Conditions
) -> None:
    held_out = Conditions(
        *head_inputs(avatar, data, Drive(data.val_ids, data.speech, data.val_ids), slice(None))[:3]
    )
    errors = [error(BakedAvatar(avatar, conditions, k), avatar, held_out) for k in (1, 4, 16)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2], errors
    assert errors[2] < 0.01


def test_weights_have_unit_size_and_the_anchors_give_those_of_all_gaussians(
    avatar: Avatar, conditions: Conditions
) -> None:
    baked = BakedAvatar(avatar, conditions, components=6)
    with torch.inference_mode():
        weights = baked.weights(*conditions)
        tokens = avatar.tokens(
            conditions.expression, conditions.eye, avatar.pose_vector(conditions.viewmats)
        )
        x = avatar.offsets(avatar.shared().features, tokens) + avatar.gaussians().flat()
        shapes = baked.blendshapes.flatten(1)
        exact = (x - baked.mean).flatten(1) @ torch.linalg.pinv(shapes)
    assert torch.allclose(exact.square().mean(0), torch.ones(6), atol=1e-3)
    assert (weights - exact).square().mean(0).max() < 0.02
    products = shapes @ shapes.T
    assert torch.allclose(products, torch.diag(products.diag()), atol=1e-3 * float(products.max()))
    assert 0.9 < baked.explained <= 1


def test_an_avatar_that_does_not_move_is_baked_exactly(data: Dataset) -> None:
    still = untrained_avatar(data).eval()
    with torch.no_grad():
        still.heads.weight.zero_()
    conditions = training_conditions(still, data)
    baked = BakedAvatar(still, conditions, components=3)
    with torch.inference_mode():
        ours, theirs = baked.deform(*conditions), still.deform(*conditions)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def test_flat_parameters_are_those_of_the_gaussians(avatar: Avatar) -> None:
    gaussians = avatar.gaussians()
    again = Gaussians.from_flat(gaussians.flat())
    for field in dataclasses.fields(Gaussians):
        assert torch.equal(getattr(gaussians, field.name), getattr(again, field.name))


def test_the_avatar_file_gives_the_conditions_of_its_dataset(
    avatar: Avatar, data: Dataset, tmp_path: Path
) -> None:
    avatar.save(tmp_path / "avatar")
    (tmp_path / "avatar" / "speech.npz").write_bytes(b"unused")
    write_bundle(tmp_path / "me.avatar", tmp_path / "avatar", data)
    read, replay = read_bundle(tmp_path / "me.avatar")
    ours, theirs = training_conditions(read, replay), training_conditions(avatar, data)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_compact_copy_is_within_half_a_step(avatar: Avatar, conditions: Conditions) -> None:
    baked = BakedAvatar(avatar, conditions, components=4)
    arrays = compact(baked, conditions.viewmats)
    size = len(baked.mean)
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "mean": ("float16", (14, size)),
        "harmonics": ("float16", (0, size)),
        "blendshapes": ("int8", (4, 14, size)),
        "steps": ("float32", (4, 14)),
    }
    weights = torch.eye(4)
    with torch.inference_mode():
        exact, ours = baked.gaussians(weights).flat(), expand(arrays, weights).flat()
    bound = torch.from_numpy(arrays["steps"])[:, None] * 0.51 + baked.mean.abs() * 2**-11 + 1e-6
    assert ((ours - exact).abs() <= bound).all()
    assert (torch.from_numpy(arrays["blendshapes"]).abs().amax(2) == LEVELS).all()


def test_harmonics_of_the_compact_copy_are_right_in_the_mean_direction(data: Dataset) -> None:
    """With harmonics, its colors are exact for a camera in the mean direction."""
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
    still = Conditions(
        conditions.expression, conditions.eye, viewmats[:1].expand(len(conditions.eye), 4, 4)
    )
    baked = BakedAvatar(avatar, still, components=4)
    weights = torch.randn(3, 4, generator=random)
    arrays = compact(baked, still.viewmats)
    points = avatar.canonical["means"].detach()
    with torch.inference_mode():
        exact, ours = (
            to_view(one, points, still.viewmats[:3]).colors
            for one in (baked.gaussians(weights), expand(arrays, weights))
        )
    moved = (exact[0] - exact[1]).abs().max()
    assert (exact - ours).abs().max() < 0.1 * moved
