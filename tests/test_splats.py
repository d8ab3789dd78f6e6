"""Gaussians for other programs, read back by readers that share no code with the writers."""

import dataclasses
import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_avatar import untrained_avatar
from test_disclosure import TYPE

from talker import __version__
from talker.avatar.drive import longest_stretch
from talker.avatar.expression import EXPRESSIONS
from talker.avatar.gaussians import Gaussians, load_ply, to_view
from talker.avatar.gltf import save_glb
from talker.avatar.rasterize import rasterize
from talker.avatar.spz import save_spz
from talker.dataset import Dataset
from talker.errors import UserError
from talker.media.disclosure import Disclosure
from talker.tools.splats import Config, deformed, half_turned, main, neutral

FLIP = np.array([1, -1, -1])


def read_ply(path: Path) -> np.ndarray:
    """The vertices of a binary .ply as a structured array, by the names in its header."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    names = [line.split()[2] for line in header.decode().splitlines() if "property float" in line]
    return np.frombuffer(body, [(name, "<f4") for name in names])


def read_glb(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The JSON of a binary glTF file, and the attributes of its only primitive."""
    content = path.read_bytes()
    magic, version, length, size, kind = struct.unpack("<4sII I4s", content[:20])
    assert (magic, version, length, kind) == (b"glTF", 2, len(content), b"JSON")
    scene, chunk = json.loads(content[20 : 20 + size]), content[20 + size :]
    assert chunk[4:8] == b"BIN\0" and size % 4 == 0
    assert struct.unpack("<I", chunk[:4])[0] == len(chunk) - 8 == scene["buffers"][0]["byteLength"]
    (mesh,) = scene["meshes"]
    (primitive,) = mesh["primitives"]
    attributes = {}
    for name, index in primitive["attributes"].items():
        accessor = scene["accessors"][index]
        view = scene["bufferViews"][accessor["bufferView"]]
        body = chunk[8 + view["byteOffset"] :][: view["byteLength"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        assert accessor["componentType"] == 5126
        attributes[name] = np.frombuffer(body, "<f4").reshape(accessor["count"], width)
    return scene, attributes


def read_spz(path: Path) -> dict[str, np.ndarray]:
    """Follow the description at github.com/nianticlabs/spz for version 2, array after array."""
    content = gzip.decompress(path.read_bytes())
    magic, version, count, degree, bits, flags, _ = struct.unpack("<IIIBBBB", content[:16])
    assert (magic, version, flags) == (0x5053474E, 2, 0)
    body = np.frombuffer(content, np.uint8, offset=16)
    rest = 3 * ((degree + 1) ** 2 - 1)
    columns = np.split(body, np.cumsum(count * np.array([9, 1, 3, 3, 3])))
    assert len(columns[5]) == count * rest
    low, mid, high = columns[0].reshape(count, 3, 3).transpose(2, 0, 1).astype(int)
    fixed = low + 256 * mid + 65536 * high
    fixed[fixed >= 2**23] -= 2**24
    xyz = columns[4].reshape(count, 3) / 127.5 - 1
    w = np.sqrt(np.clip(1 - np.square(xyz).sum(1), 0, None))
    return {
        "means": fixed / 2**bits,
        "alphas": columns[1] / 255,
        "colors": (columns[2].reshape(count, 3) / 255 - 0.5) / 0.15,
        "scales": columns[3].reshape(count, 3) / 16 - 10,
        "quats": np.concatenate([w[:, None], xyz], 1),
        "harmonics": (columns[5].reshape(count, -1, 3) - 128.0) / 128,
    }


def covariances(quats: np.ndarray, scales: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    axes = Rotation.from_quat(quats, scalar_first=True).as_matrix() * np.exp(scales)[:, None]
    return axes @ axes.transpose(0, 2, 1)


@pytest.fixture(scope="module")
def gaussians() -> Gaussians:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    return Gaussians(
        means=normal(50, 3),
        quats=normal(50, 4),
        scales=normal(50, 3) * 0.5 - 3,
        opacities=normal(50),
        sh=normal(50, 16, 3) * 0.2,
    )


def test_spz_is_read_back(gaussians: Gaussians, tmp_path: Path) -> None:
    arrays = {name: value.numpy() for name, value in vars(gaussians).items()}
    save_spz(tmp_path / "a.spz", gaussians)
    read = read_spz(tmp_path / "a.spz")
    assert np.abs(read["means"] - arrays["means"]).max() <= 2**-13 + 1e-6
    assert np.abs(read["alphas"] - 1 / (1 + np.exp(-arrays["opacities"]))).max() <= 0.5 / 255 + 1e-6
    assert np.abs(read["colors"] - arrays["sh"][:, 0]).max() <= 0.5 / 255 / 0.15 + 1e-6
    assert np.abs(read["scales"] - arrays["scales"]).max() <= 0.5 / 16 + 1e-6
    assert np.abs(read["harmonics"][:, :3] - arrays["sh"][:, 1:4]).max() <= 4.5 / 128
    assert np.abs(read["harmonics"] - arrays["sh"][:, 1:].clip(-1, 1)).max() <= 8.5 / 128
    unit = arrays["quats"] / np.linalg.norm(arrays["quats"], axis=1, keepdims=True)
    assert np.abs((read["quats"] * unit).sum(1)).min() > 0.99


def test_glb_is_read_back(gaussians: Gaussians, tmp_path: Path) -> None:
    """As the text of KHR_gaussian_splatting, ratified in 2026, requires."""
    arrays = {name: value.numpy() for name, value in vars(gaussians).items()}
    note = Disclosure("me.avatar", "ab12", 'by "letter" é', "CC BY 4.0", "3D model")
    save_glb(tmp_path / "a.glb", gaussians, note)
    scene, read = read_glb(tmp_path / "a.glb")
    assert scene["asset"]["version"] == "2.0"
    assert set(scene["extensionsUsed"]) == {"KHR_gaussian_splatting", "KHR_xmp_json_ld"}
    primitive = scene["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0  # POINTS
    assert primitive["extensions"] == {
        "KHR_gaussian_splatting": {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    }
    prefix = "KHR_gaussian_splatting:"
    degrees = [f"SH_DEGREE_{d}_COEF_{n}" for d in range(4) for n in range(2 * d + 1)]
    named = [f"{prefix}{name}" for name in ("ROTATION", "SCALE", "OPACITY", *degrees)]
    assert set(read) == {"POSITION", *named}
    meters = arrays["means"] / 10
    assert np.allclose(read["POSITION"], meters)
    low, high = (scene["accessors"][primitive["attributes"]["POSITION"]][k] for k in ("min", "max"))
    assert np.allclose([low, high], [meters.min(0), meters.max(0)])
    quats, scales = read[prefix + "ROTATION"], read[prefix + "SCALE"]
    assert np.allclose(np.linalg.norm(quats, axis=1), 1, atol=1e-6) and scales.min() > 0
    shapes = covariances(np.roll(quats, 1, axis=1), np.log(10 * scales))
    assert np.allclose(shapes, covariances(arrays["quats"], arrays["scales"]), atol=1e-6)
    assert np.allclose(read[prefix + "OPACITY"][:, 0], torch.sigmoid(gaussians.opacities))
    for k, name in enumerate(degrees):
        assert np.array_equal(read[prefix + name], arrays["sh"][:, k])
    packet = scene["extensions"]["KHR_xmp_json_ld"]["packets"][
        scene["asset"]["extensions"]["KHR_xmp_json_ld"]["packet"]
    ]
    assert packet["Iptc4xmpExt:DigitalSourceType"] == TYPE
    assert packet["photoshop:Instructions"].startswith("Synthetic 3D model.")
    assert 'by "letter" é' in packet["photoshop:Instructions"]
    assert {name.partition(":")[0] for name in packet if name[0] != "@"} == set(packet["@context"])


def test_trimesh_reads_the_points_of_a_glb(gaussians: Gaussians, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh", reason="trimesh comes with viser, a part of `dev`")
    save_glb(tmp_path / "a.glb", gaussians, Disclosure("me", ""))
    (points,) = trimesh.load_scene(tmp_path / "a.glb").geometry.values()
    assert np.allclose(points.vertices, gaussians.means / 10)


def test_a_half_turn_shows_the_same_head_to_a_turned_camera(gaussians: Gaussians) -> None:
    view = torch.eye(4)[None].clone()
    view[:, 2, 3] = 8
    turned = view @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    K = torch.tensor([[[60.0, 0, 32], [0, 60, 32], [0, 0, 1]]])
    images = [
        rasterize(to_view(one, one.means, camera), camera, K, 64, 64).rgb
        for one, camera in ((gaussians, view), (half_turned(gaussians), turned))
    ]
    assert torch.allclose(images[0], images[1], atol=2e-5)
    assert images[0].std() > 0.02
    again = half_turned(half_turned(gaussians))
    assert torch.allclose(again.sh, gaussians.sh) and torch.allclose(again.means, gaussians.means)


@pytest.fixture(scope="module")
def data(mel_only: Path) -> Dataset:
    return Dataset.load(mel_only, 64, "mel")


@pytest.fixture(scope="module")
def avatar(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("avatar")
    model = untrained_avatar(data)
    with torch.no_grad():
        model.speech_token[-1].weight.mul_(20)
    model.config = dataclasses.replace(model.config, encoder="mel")
    model.save(folder)
    return folder


def test_the_neutral_face_has_relaxed_brows(data: Dataset) -> None:
    """Their raise is the median of the recording, which is not 0 in a table of OpenFace."""
    model = untrained_avatar(data).eval()
    frame = dataclasses.replace(data, eye=data.eye + np.float32([0, 0.3]))
    expression, view = torch.zeros(1, EXPRESSIONS), data.viewmats[longest_stretch(data)[:1]]
    relaxed, other = (
        deformed(model, expression, torch.tensor([[0, raised]]), torch.from_numpy(view)).means[0]
        for raised in (float(np.median(frame.eye[:, 1])), 0.0)
    )
    found = neutral(model, frame).means
    assert torch.equal(found, relaxed) and not torch.equal(found, other)


def test_orientations(avatar: Path, data: Dataset, tmp_path: Path) -> None:
    """Viewers of .ply expect y down: the top of the head has the smallest y."""
    for name, orientation in (
        ("usual.ply", "usual"),
        ("up.ply", "y-up"),
        ("usual.spz", "usual"),
        ("usual.glb", "usual"),
        ("down.glb", "y-down"),
    ):
        config = Config(orientation=orientation)
        main(avatar=avatar, data=data.folder, out=tmp_path / name, config=config)
    down, up = read_ply(tmp_path / "usual.ply"), read_ply(tmp_path / "up.ply")
    places = [np.stack([one[name] for name in "xyz"], 1) for one in (down, up)]
    assert np.array_equal(places[0], places[1] * FLIP)
    assert np.abs(read_spz(tmp_path / "usual.spz")["means"] - places[1]).max() < 2**-12
    for name, place in (("usual.glb", places[1]), ("down.glb", places[0])):
        assert np.allclose(read_glb(tmp_path / name)[1]["POSITION"], place / 10)
    header = (tmp_path / "usual.ply").read_bytes().partition(b"end_header")[0].decode("ascii")
    assert f"\ncomment Synthetic 3D model. The face was generated by talker {__version__}" in header
    assert np.array_equal(load_ply(tmp_path / "usual.ply").means, places[0])
    # in the recording camera (y down), the top of the head is above its center
    top = places[1][places[1][:, 1].argmax()]
    view = data.viewmats[data.train_ids[0]]
    assert (view @ [*top, 1])[1] < (view @ [*places[1].mean(0), 1])[1]
    # and the same shapes
    quats, scales = (
        [np.stack([one[f"{name}_{k}"] for k in range(n)], 1) for one in (down, up)]
        for name, n in (("rot", 4), ("scale", 3))
    )
    one, other = (covariances(q, s) for q, s in zip(quats, scales, strict=True))
    assert np.allclose(one, other * np.outer(FLIP, FLIP), atol=1e-9)


def test_a_speech_gives_one_file_for_each_frame(
    avatar: Path, data: Dataset, tmp_path: Path
) -> None:
    from talker.clip import SAMPLES_PER_FRAME
    from talker.media.audio import write_wav

    np.save(tmp_path / "hello.npy", data.speech[:5])
    write_wav(tmp_path / "hello.wav", np.zeros(5 * SAMPLES_PER_FRAME, np.int16))
    speech = {"speech": tmp_path / "hello.npy", "wav": tmp_path / "hello.wav"}
    main(avatar=avatar, data=data.folder, out=tmp_path / "hello", **speech)
    files = sorted(path.name for path in (tmp_path / "hello").iterdir())
    assert files == [f"{i:05d}.ply" for i in range(5)]
    first, last = (read_ply(tmp_path / "hello" / files[i]) for i in (0, 4))
    assert len(first) == 3000 and not np.array_equal(first["y"], last["y"])
    with pytest.raises(UserError, match="suffix"):
        main(avatar=avatar, data=data.folder, out=tmp_path / "hello.ply", **speech)


def test_what_cannot_be_written_is_refused(avatar: Path, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.ply, \.spz, \.glb"):
        main(avatar=avatar, data=data.folder, out=tmp_path / "me.obj")
    with pytest.raises(UserError, match="together"):
        main(avatar=avatar, data=data.folder, out=tmp_path / "me.ply", wav=tmp_path / "a.wav")
    assert not list(tmp_path.glob("me.*"))
