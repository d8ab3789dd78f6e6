"""Check that the annotations of array shapes are enforced while the tests run."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import COMPILED, ROOT, SHAPES_CHECKED
from jaxtyping import TypeCheckError

from talker.avatar.drive import head_speed, nearest_valid
from talker.avatar.gaussians import Gaussians, camera_centers, evaluate_sh
from talker.encoders.loudness import silence_of, speech_level
from talker.head.camera import project
from talker.head.poses import procrustes
from talker.measure.metrics import correlation
from talker.measure.sync import sync_score


def test_right_shapes_are_accepted() -> None:
    assert camera_centers(torch.eye(4).repeat(2, 1, 1)).shape == (2, 3)
    assert head_speed(np.eye(4)[None]).shape == (1,)


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="viewmats"):
        camera_centers(torch.zeros(2, 3, 4))
    with pytest.raises(TypeCheckError, match="viewmats"):
        head_speed(np.eye(4))


def test_dimensions_of_one_name_must_agree() -> None:
    with pytest.raises(TypeCheckError):
        evaluate_sh(torch.zeros(5, 4, 3), torch.zeros(6, 3))
    count = torch.zeros(7, 3)
    with pytest.raises(TypeCheckError):
        Gaussians(count, torch.zeros(6, 4), count, torch.zeros(7), torch.zeros(7, 1, 3))


def test_a_wrong_type_of_number_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="frames"):
        nearest_valid(np.zeros(3), np.ones(3, bool))


@pytest.mark.parametrize(
    "call",
    [
        lambda: project(np.zeros((5, 2)), np.eye(4)[None], np.eye(3)),
        lambda: procrustes(np.zeros((3, 7, 3)), np.zeros((6, 3))),
        lambda: correlation(np.zeros(4), np.zeros(5)),
        lambda: sync_score(np.zeros((9, 3)), np.zeros((8, 68, 2))),
        lambda: speech_level(np.zeros((4, 2))),
        lambda: silence_of(np.zeros(4), 0.1),
    ],
    ids=["head", "head by name", "measure", "measure by name", "encoders", "encoders by type"],
)
def test_wrong_arrays_are_refused_in_every_room(call: Callable[[], object]) -> None:
    with pytest.raises(TypeCheckError):
        call()


@pytest.mark.parametrize("room", ["avatar", "head", "measure", "encoders"])
def test_every_module_of_a_room_is_checked(room: str) -> None:
    names = {f"talker.{room}.{path.stem}" for path in (ROOT / "talker" / room).glob("[!_]*.py")}
    assert names - COMPILED <= set(SHAPES_CHECKED)
    assert len(names) > 5
