"""Weights in the published form: the names and shapes of their parameters, and wrong files.

The real files are large or restricted, so files of the same form with random values take their
place. `.ci/backends.txt` lists the packages that some tests need.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from talker import landmarks, parsing
from talker.backends import load_backend
from talker.backends.bisenet import BiSeNet
from talker.backends.parsing_bisenet import classify
from talker.backends.torch_weights import load_state
from talker.data.weights import WEIGHTS
from talker.errors import UserError

Shapes = dict[str, tuple[int, ...]]


def normalization(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def convolution(
    name: str, inputs: int, outputs: int, size: int, norm: str = ""
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs, size, size)
    if norm:
        yield from normalization(norm, outputs)


def bisenet_shapes() -> Shapes:
    """Return the parameters of the published 79999_iter.pth, listed independently of our code."""
    rows: list[tuple[str, tuple[int, ...]]] = []

    def add(name: str, inputs: int, outputs: int, size: int, norm: str = "") -> None:
        rows.extend(convolution(name, inputs, outputs, size, norm))

    def unit(name: str, inputs: int, outputs: int, size: int = 3) -> None:
        add(f"{name}.conv", inputs, outputs, size, f"{name}.bn")

    net = "cp.resnet"
    add(f"{net}.conv1", 3, 64, 7, f"{net}.bn1")
    widths = (64, 64, 128, 256, 512)
    for k in range(1, 5):
        for block, inputs in ((0, widths[k - 1]), (1, widths[k])):
            name = f"{net}.layer{k}.{block}"
            add(f"{name}.conv1", inputs, widths[k], 3, f"{name}.bn1")
            add(f"{name}.conv2", widths[k], widths[k], 3, f"{name}.bn2")
            if inputs != widths[k]:
                add(f"{name}.downsample.0", inputs, widths[k], 1, f"{name}.downsample.1")
    for name, inputs in (("cp.arm16", 256), ("cp.arm32", 512)):
        unit(f"{name}.conv", inputs, 128)
        add(f"{name}.conv_atten", 128, 128, 1, f"{name}.bn_atten")
    unit("cp.conv_head32", 128, 128)
    unit("cp.conv_head16", 128, 128)
    unit("cp.conv_avg", 512, 128, 1)
    unit("ffm.convblk", 256, 256, 1)
    add("ffm.conv1", 256, 64, 1)
    add("ffm.conv2", 64, 256, 1)
    for name, inputs, hidden in (
        ("conv_out", 256, 256),
        ("conv_out16", 128, 64),
        ("conv_out32", 128, 64),
    ):
        unit(f"{name}.conv", inputs, hidden)
        add(f"{name}.conv_out", hidden, 19, 1)
    return dict(rows)


def random_state(shapes: Shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(0) if not shape else torch.rand(shape, generator=generator)
        for name, shape in shapes.items()
    }


def test_bisenet_accepts_exactly_the_published_parameters(tmp_path: Path):
    """Also with the prefix of DataParallel and in the older file format of the published file."""
    shapes = bisenet_shapes()
    assert {name: tuple(v.shape) for name, v in BiSeNet().state_dict().items()} == shapes
    state = {f"module.{name}": value for name, value in random_state(shapes).items()}
    path = tmp_path / "79999_iter_copy.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    network = load_state(BiSeNet(), path, WEIGHTS["bisenet"])
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name].cpu(), state[f"module.{name}"]) for name in shapes)
    assert not network.training


def test_bisenet_gets_normalized_rgb_and_returns_the_size_of_the_frame():
    """Red, green and blue are scaled by the mean and deviation of ImageNet, in this order."""
    inputs = []

    def network(image: torch.Tensor) -> torch.Tensor:
        inputs.append(image)
        scores = torch.zeros(1, 19, 512, 512)
        scores[:, 17, :, :256] = scores[:, 14, :, 256:] = 9
        return scores

    image = np.zeros((90, 160, 3), np.uint8)
    image[:] = (255, 128, 0)
    mask = classify(network, image)  # type: ignore
    assert (
        mask.shape == (90, 160) and set(mask[:, :78].flat) == {1} and set(mask[:, 82:].flat) == {2}
    )
    (given,) = inputs
    assert given.shape == (1, 3, 512, 512)
    expected = (np.array([1, 128 / 255, 0]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert given[0, :, 5, 5].cpu().numpy() == pytest.approx(expected, abs=1e-5)


class Net(nn.Module):
    """A small network in place of a large one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)


def without(*parts: str) -> dict[str, Any]:
    return {k: v for k, v in Net().state_dict().items() if not any(part in k for part in parts)}


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (without("conv"), "the file lacks 2 parameters, such as conv.bias"),
        (
            Net().state_dict() | {"conv2.weight": torch.zeros(1)},
            "the file has 1 unknown parameter, such as conv2.weight",
        ),
        (
            without() | {"conv.weight": torch.zeros(4, 1, 1, 1)},
            "conv.weight has the shape [4, 1, 1, 1] instead of [4, 3, 1, 1]",
        ),
        ([torch.zeros(2)], "the file contains a value of type list instead of a state dict"),
    ],
)
def test_other_parameters_are_named(tmp_path: Path, state: Any, reason: str):
    path = tmp_path / "net.pth"
    torch.save(state, path)
    with pytest.raises(UserError) as caught:
        load_state(Net(), path, WEIGHTS["bisenet"])
    assert str(caught.value) == (
        f"{path} does not contain 79999_iter.pth ({reason}). To obtain it, "
        f"{WEIGHTS['bisenet'].hint()}."
    )


def test_counters_of_batches_may_be_missing(tmp_path: Path):
    """As in checkpoints of PyTorch before 0.4.1."""
    torch.save(without("num_batches"), tmp_path / "net.pth")
    load_state(Net(), tmp_path / "net.pth", WEIGHTS["bisenet"])


def test_half_a_file_is_refused_before_a_frame_is_read(tmp_path: Path):
    """The message says where to get the whole one."""
    path = tmp_path / "79999_iter.pth"
    torch.save(random_state(bisenet_shapes()), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    options = parsing.Config(backend="bisenet", weights=str(path))
    with pytest.raises(UserError) as caught:
        load_backend("parsing", "bisenet").parse(SimpleNamespace(), tmp_path, np.zeros(0), options)
    assert f"instead of {WEIGHTS['bisenet'].size:,}" in str(caught.value)
    assert WEIGHTS["bisenet"].hint() in str(caught.value)
    path.rename(tmp_path / "mine.pth")
    options = parsing.Config(backend="bisenet", weights=str(tmp_path / "mine.pth"))
    with pytest.raises(UserError, match=r"mine\.pth does not contain 79999_iter\.pth"):
        load_backend("parsing", "bisenet").parse(SimpleNamespace(), tmp_path, np.zeros(0), options)


def test_fan_accepts_the_parameters_of_its_package(tmp_path: Path):
    """In the older file format, as published; half of the file and other networks are refused."""
    pytest.importorskip("face_alignment")
    from face_alignment.models import FAN

    fan = load_backend("landmarks", "fan")
    path = tmp_path / "2DFAN4.pth.tar"
    torch.manual_seed(0)
    state = FAN(4).state_dict()
    assert state["l3.weight"].shape == (68, 256, 1, 1)
    assert state["m0.b2_plus_1.conv1.weight"].shape == (128, 256, 3, 3)
    plain = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save(plain, path, _use_new_zipfile_serialization=False)
    network = fan.load(str(path))
    with torch.no_grad():
        maps = network(torch.zeros(1, 3, 256, 256, device=next(network.parameters()).device))
    assert [tuple(each.shape) for each in maps] == [(1, 68, 64, 64)] * 4
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"2DFAN4\.pth\.tar does not contain 2DFAN4-11f355bf06"):
        fan.load(str(path))
    torch.save(FAN(2).state_dict(), path)
    with pytest.raises(UserError, match=r"parameters, such as al1\.bias"):
        fan.load(str(path))


def test_dlib_with_five_points_is_refused(tmp_path: Path):
    """face-recognition-models contains both predictors."""
    pytest.importorskip("dlib")
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.origin:
        pytest.skip("face-recognition-models is not installed")
    models = Path(spec.origin).parent / "models"
    dlib = load_backend("landmarks", "dlib")
    assert dlib.packaged_weights() == str(models / "shape_predictor_68_face_landmarks.dat")
    assert Path(dlib.packaged_weights()).stat().st_size == WEIGHTS["dlib"].size
    five = models / "shape_predictor_5_face_landmarks.dat"
    options = landmarks.Config(backend="dlib", weights=str(five))
    with pytest.raises(UserError, match="it predicts 5 points instead of 68"):
        dlib.detect(SimpleNamespace(), tmp_path, options)
    cut = tmp_path / "cut.dat"
    cut.write_bytes(five.read_bytes()[:100_000])
    options = landmarks.Config(backend="dlib", weights=str(cut))
    with pytest.raises(UserError, match=r"cut\.dat does not contain shape_predictor_68"):
        dlib.detect(SimpleNamespace(), tmp_path, options)
