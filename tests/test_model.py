"""The avatar network: shapes, conditions, storage."""

import gc
import json
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from talker.avatar import live as live_module
from talker.avatar.gaussians import initial_gaussians, mean_colors, sample_surface, to_view
from talker.avatar.live import LiveAvatar
from talker.avatar.model import FORMAT_VERSION, WITHOUT_BROWS, Avatar, AvatarConfig
from talker.avatar.rasterize import rasterize
from talker.errors import UserError

CONFIG = AvatarConfig(
    image_size=48,
    speech_features=6,
    encoder="hama",
    sh_degree=1,
    plane_resolutions=(8, 16),
    plane_channels=4,
    features=16,
    heads=2,
    layers=2,
    hidden=16,
)
K = torch.tensor([[100.0, 0, 24], [0, 100, 24], [0, 0, 1]])


def views(count: int) -> torch.Tensor:
    viewmats = torch.eye(4).repeat(count, 1, 1)
    viewmats[:, 2, 3] = 8.0
    viewmats[:, 0, 3] = torch.linspace(-0.2, 0.2, count)
    return viewmats


@pytest.fixture
def avatar() -> Avatar:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 3)) * 0.5
    gaussians = initial_gaussians(points, rng.random((200, 3)), CONFIG.sh_degree)
    return Avatar(CONFIG, gaussians, torch.tensor([[-2.0] * 3, [2.0] * 3]), views(5))


def inputs(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "expression": torch.randn(batch, 10, generator=generator),
        "eye": torch.rand(batch, 2, generator=generator),
        "viewmats": views(batch),
        "Ks": K.expand(batch, 3, 3),
    }


def test_renders_a_batch_as_it_renders_each_frame(avatar: Avatar) -> None:
    together = avatar.render_from_expression(**inputs(3), height=48, width=40)
    assert together[0].shape == (3, 48, 40, 3)
    assert together[1].shape == (3, 48, 40, 1)
    for i in range(3):
        alone = avatar.render_from_expression(
            **{k: v[i : i + 1] for k, v in inputs(3).items()}, height=48, width=40
        )
        torch.testing.assert_close(alone[0][0], together[0][i], atol=1e-5, rtol=0)


def test_every_parameter_receives_a_gradient(avatar: Avatar) -> None:
    """In the published network, 109k parameters never get a gradient."""
    given = inputs(2)
    windows = torch.randn(2, 16, 6, generator=torch.Generator().manual_seed(2))
    given["expression"] = avatar.speech_to_expression(windows)
    rgb, alpha = avatar.render_from_expression(**given, height=48, width=48)
    (rgb.square().sum() + alpha.sum()).backward()
    starved = [
        name
        for name, parameter in avatar.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert starved == []


@pytest.mark.parametrize("name", ["expression", "eye", "viewmats"])
def test_each_condition_moves_the_gaussians(avatar: Avatar, name: str) -> None:
    avatar.double()
    given = {key: value.double() for key, value in inputs(2).items() if key != "Ks"}
    changed = {**given, name: given[name] + 0.5}
    means, moved = (avatar.deform(**some).means for some in (given, changed))
    assert (means - moved).abs().max() > 1e-8


def test_a_given_pose_replaces_that_of_the_camera(avatar: Avatar) -> None:
    given = {key: value for key, value in inputs(2).items() if key != "Ks"}
    usual = avatar.deform(**given)
    pose = avatar.pose_vector(given["viewmats"])
    assert torch.equal(avatar.deform(**given, pose=pose).means, usual.means)
    assert not torch.equal(avatar.deform(**given, pose=pose + 1).means, usual.means)


def test_a_small_blink_is_a_small_change_of_the_eye_token(avatar: Avatar) -> None:
    """In the published encoding, a change of 0.005 already gives an unrelated vector."""
    closed = torch.linspace(0, 1, 50)[:, None].expand(50, 2)
    rest = torch.zeros(50, 10), torch.zeros(50, 12)
    token, nudged = (avatar.tokens(rest[0], e, rest[1])[:, 1] for e in (closed, closed + 0.005))
    assert torch.cosine_similarity(token, nudged).min() > 0.999


def test_stored_avatar_renders_the_same(avatar: Avatar, tmp_path: Path) -> None:
    avatar.save(tmp_path / "avatar")
    loaded = Avatar.load(tmp_path / "avatar")
    assert loaded.config == CONFIG
    with torch.no_grad():
        before = avatar.eval().render_from_expression(**inputs(2), height=48, width=48)
        after = loaded.render_from_expression(**inputs(2), height=48, width=48)
    assert torch.equal(before[0], after[0])
    assert (tmp_path / "avatar" / "point_cloud.ply").stat().st_size > 0


def test_files_of_different_networks_are_refused(avatar: Avatar, tmp_path: Path) -> None:
    avatar.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.json", "point_cloud.ply", "weights.safetensors")
    }
    shape = tmp_path / "config.json"
    stored = json.loads(shape.read_text())
    shape.write_text(json.dumps({**stored, "hidden": 2 * stored["hidden"]}))
    with pytest.raises(UserError, match="does not belong to its config"):
        Avatar.load(tmp_path)
    shape.write_text(json.dumps({**stored, "layers": 10**30}))
    with pytest.raises(UserError, match=r"fewer tensors than layers \(10+\)"):
        Avatar.load(tmp_path)
    shape.write_text(json.dumps({**stored, "image_size": 10**7}))
    with pytest.raises(UserError, match=r"config\.json: image_size"):
        Avatar.load(tmp_path)
    shape.write_text(json.dumps({**stored, "wings": 2}))
    with pytest.raises(UserError, match=r"config\.json: wings: unknown option"):
        Avatar.load(tmp_path)
    shape.write_text(json.dumps(stored))
    state = load_file(tmp_path / "weights.safetensors")
    save_file(state | {"planes.bounds": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"planes\.bounds has the shape \[2, 2\], not \[2, 3\]"):
        Avatar.load(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="does not belong to its config"):
        Avatar.load(tmp_path)


@pytest.mark.parametrize("version", [None, WITHOUT_BROWS - 1, FORMAT_VERSION + 1])
def test_an_avatar_of_another_format_version_is_refused(
    avatar: Avatar, tmp_path: Path, version: int | None
) -> None:
    """A file without a version has version 1."""
    avatar.save(tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    assert stored.pop("format_version") == FORMAT_VERSION
    path.write_text(json.dumps(stored if version is None else stored | {"format_version": version}))
    with pytest.raises(UserError, match=f"has format version {version or 1}.*Train the avatar"):
        Avatar.load(tmp_path)


def save_without_brows(avatar: Avatar, folder: Path, version: int) -> None:
    """Write an avatar folder of a format version, without the tensors of the brows."""
    avatar.save(folder)
    path, weights = folder / "config.json", folder / "weights.safetensors"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": version}))
    state = load_file(weights)
    without = {name: value for name, value in state.items() if not name.startswith("brow_shape.")}
    assert len(without) < len(state)
    save_file(without, weights)


def test_an_avatar_that_lost_its_brows_is_refused(avatar: Avatar, tmp_path: Path) -> None:
    """Without these tensors, its brows would silently stand still."""
    save_without_brows(avatar, tmp_path, FORMAT_VERSION)
    with pytest.raises(UserError, match=r"(?s)does not belong to its config\.json .*brow_shape"):
        Avatar.load(tmp_path)


def test_an_avatar_without_brow_motion_still_blinks(avatar: Avatar, tmp_path: Path) -> None:
    save_without_brows(avatar, tmp_path, WITHOUT_BROWS)
    older = Avatar.load(tmp_path)
    given = {name: value for name, value in inputs(2).items() if name != "Ks"}
    moved = older.deform(**given).means
    raised = given | {"eye": given["eye"] + torch.tensor([0, 0.5])}
    assert torch.equal(older.deform(**raised).means, moved)
    closed = given | {"eye": given["eye"] + torch.tensor([0.5, 0])}
    assert not torch.equal(older.deform(**closed).means, moved)


def test_the_brows_are_a_linear_blendshape(avatar: Avatar) -> None:
    given = {name: value for name, value in inputs(2).items() if name != "Ks"}
    closure = given["eye"][:, :1]

    def deformed(brows: float) -> dict[str, torch.Tensor]:
        eye = torch.cat([closure, torch.full_like(closure, brows)], dim=1)
        return avatar.deform(**given | {"eye": eye})._asdict()

    relaxed, half, full = (deformed(value) for value in (0.0, 0.5, 1.0))
    assert not torch.equal(full["means"], relaxed["means"])
    torch.testing.assert_close(half["means"], (relaxed["means"] + full["means"]) / 2)
    for name in relaxed.keys() - {"means"}:
        assert torch.equal(relaxed[name], full[name])


@pytest.mark.gpu
def test_renders_on_the_gpu_as_on_the_cpu(avatar: Avatar, tmp_path: Path) -> None:
    avatar.save(tmp_path / "avatar")
    on_gpu = Avatar.load(tmp_path / "avatar", "cuda")
    with torch.no_grad():
        here = avatar.eval().render_from_expression(**inputs(2), height=48, width=48)
        there = on_gpu.render_from_expression(
            **{k: v.cuda() for k, v in inputs(2).items()}, height=48, width=48
        )
    for cpu, cuda in zip(here, there, strict=True):
        assert (cpu - cuda.cpu()).abs().mean() < 1e-4


@pytest.mark.gpu
def test_live_frames_are_those_of_the_batch(avatar: Avatar) -> None:
    avatar.cuda()
    given = {k: v.cuda() for k, v in inputs(3).items()}
    with torch.no_grad():
        together = avatar.eval().render_from_expression(**given, height=48, width=40)
    live = LiveAvatar(avatar)
    for i in (0, 2, 1):
        alone = live(**{k: v[i : i + 1] for k, v in given.items()}, height=48, width=40)
        assert (alone[0][0] - together[0][i]).abs().max() < 1e-3
        assert (alone[1][0] - together[1][i]).abs().max() < 1e-3
    live = LiveAvatar(avatar, batch=4)
    for count in (3, 1, 2):
        some = live(**{k: v[:count] for k, v in given.items()}, height=48, width=40)
        assert some[0].shape == (count, 48, 40, 3)
        assert (some[0] - together[0][:count]).abs().max() < 1e-3


@pytest.mark.gpu
def test_live_avatars_of_several_threads_do_not_disturb_each_other(avatar: Avatar) -> None:
    avatar.cuda()
    given = {k: v.cuda() for k, v in inputs(3).items()}
    with torch.no_grad():
        expected = avatar.eval().render_from_expression(**given, height=48, width=40)[0]
    start = threading.Barrier(3)

    def check(live: LiveAvatar, i: int) -> None:
        rgb, _ = live(**{k: v[i : i + 1] for k, v in given.items()}, height=48, width=40)
        assert (rgb[0] - expected[i]).abs().max() < 1e-3

    def session(i: int) -> LiveAvatar:
        live = LiveAvatar(avatar)
        start.wait()
        with torch.inference_mode():
            for _ in range(20):
                check(live, i)
        return live

    with ThreadPoolExecutor(3) as pool:
        sessions = list(pool.map(session, range(3)))
    with torch.no_grad():
        for i, live in enumerate([*sessions, LiveAvatar(avatar)]):
            for _ in range(3):
                check(live, i % 3)


def test_a_live_avatar_repeats_the_last_frame_and_leaves_no_graphs_behind(
    avatar: Avatar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of graphs must not wait for the garbage collector, which runs too rarely."""
    made: list[weakref.ref] = []

    class Graphs:
        def __init__(self, work: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
            self.work = work
            made.append(weakref.ref(self))

        def __call__(self, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            assert {len(tensor) for tensor in given} == {3}
            return self.work(*given)

    monkeypatch.setattr(live_module, "as_graphs", Graphs)
    given = inputs(2)
    live = LiveAvatar(avatar, batch=3)
    with torch.no_grad():
        for height, width in ((48, 40), (32, 40)):
            expected = avatar.render_from_expression(**given, height=height, width=width)
            found = live(**given, height=height, width=width)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="4 frames"):
        live(**inputs(4), height=48, width=40)
    gc.disable()
    try:
        del live
        assert len(made) > 1
        assert all(graphs() is None for graphs in made)
    finally:
        gc.enable()


def test_a_folder_without_an_avatar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        Avatar.load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="talker train"):
        Avatar.load(tmp_path)


def test_points_lie_on_the_mesh_and_take_the_picture_s_color() -> None:
    rng = np.random.default_rng(0)
    vertices = np.array([[-1.0, -1, 0], [1, -1, 0], [0, 1, 0]])
    points = sample_surface(vertices, np.array([[0, 1, 2]]), 500, rng)
    assert np.abs(points[:, 2]).max() == 0
    assert (points[:, 1] >= -1).all() and (np.abs(points[:, 0]) <= (1 - points[:, 1]) / 2).all()
    images = np.zeros((2, 48, 48, 3), np.uint8)
    images[:, :, :24] = (255, 0, 0)
    images[:, :, 24:] = (0, 0, 255)
    colors = mean_colors(points, images, views(1).repeat(2, 1, 1).numpy() * 1.0, K.numpy())
    left = points[:, 0] < 0.1
    assert (colors[left & (points[:, 0] < -0.3), 0] == 1).all()
    gaussians = initial_gaussians(points, colors, 0)
    splats = to_view(gaussians, gaussians.means, views(1))
    drawn = rasterize(splats, views(1), K[None], 48, 48)
    middle = drawn.rgb[0, 24]
    assert middle[18, 0] > 5 * middle[18, 2]
