"""Check that the annotations of array shapes are enforced while the tests run."""

import numpy as np
import pytest
import torch
from conftest import SHAPES_CHECKED
from jaxtyping import TypeCheckError

from talker.avatar.drive import head_speed, nearest_valid
from talker.avatar.gaussians import Gaussians, camera_centers, evaluate_sh


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


def test_modules_of_the_avatar_are_checked() -> None:
    assert {"talker.avatar.model", "talker.avatar.trainer"} <= set(SHAPES_CHECKED)
