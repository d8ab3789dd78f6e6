from pathlib import Path

import cv2
import numpy as np
import pytest

from talker.background import Config, clean_plate, fill, main
from talker.clip import Clip
from talker.data.layout import BACKGROUND, COLORS, HEAD
from talker.errors import UserError
from talker.media.images import read_image, write_image

SIZE = 48, 64
CLEARANCE = 4.0


@pytest.fixture
def moving() -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """A plate and four frames of a disc that moves in front of it."""
    random = np.random.default_rng(0)
    plate = random.integers(0, 256, (*SIZE, 3), np.uint8)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    frames = []
    for centre in (20, 26, 32, 38):
        mask = np.where(np.hypot(y - 24, x - centre) < 14, HEAD, BACKGROUND).astype(np.uint8)
        image = np.where((mask == HEAD)[..., None], np.uint8(255), plate)
        frames.append((image, mask))
    return plate, frames


def test_pixels_that_were_clear_of_the_person_are_exact_and_no_others_count(moving):
    plate, frames = moving
    found, seen = clean_plate(frames, SIZE, CLEARANCE)
    everywhere = np.argwhere(np.ones(SIZE))
    farthest = np.zeros(len(everywhere))
    for _, mask in frames:
        person = np.argwhere(mask == HEAD)
        to_person = np.linalg.norm(everywhere[:, None] - person[None], axis=-1).min(1)
        farthest = np.maximum(farthest, to_person)
    assert (seen.ravel() == (farthest > CLEARANCE)).all()
    assert 0.3 < seen.mean() < 0.95
    assert (found[seen] == plate[seen]).all()


def test_each_pixel_comes_from_the_frame_where_the_person_is_farthest():
    far, near = np.full((8, 30), BACKGROUND, np.uint8), np.full((8, 30), BACKGROUND, np.uint8)
    near[:, 12], far[:, 0] = HEAD, HEAD
    frames = [(np.full((8, 30, 3), value, np.uint8), m) for value, m in ((10, near), (20, far))]
    found, _ = clean_plate(frames, (8, 30), 2.0)
    assert (found[:, 8] == 20).all()
    assert (found[:, 3] == 10).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_of_frames_with_the_same_mask_the_first_is_used(threads):
    """Distances must not vary from call to call, which they do in some builds of OpenCV."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:320, :320]
    discs = [np.hypot(y - a, x - b) < 40 for a, b in random.integers(0, 320, (6, 2))]
    mask = np.where(np.any(discs, 0), HEAD, BACKGROUND).astype(np.uint8)
    images = [np.full((320, 320, 3), k, np.uint8) for k in range(1, 9)]
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        plate, visible = clean_plate([(image, mask) for image in images], mask.shape, CLEARANCE)
    finally:
        cv2.setNumThreads(before)
    assert (plate[visible] == 1).all()


def test_unseen_pixels_continue_their_surroundings():
    x = np.mgrid[:64, :64][1]
    plate = np.repeat((100 + x)[..., None], 3, 2).astype(np.uint8)
    seen = np.ones((64, 64), bool)
    seen[20:40, 24:40] = False
    holed = plate * seen[..., None]
    filled = fill(holed, seen)
    assert (filled[seen] == plate[seen]).all()
    assert abs(filled[~seen].astype(int) - plate[~seen]).max() <= 9


def test_plate_of_the_synthetic_clip(synthetic, dataset: Path, tmp_path: Path):
    plate = tmp_path / "bc.jpg"

    def run() -> bytes:
        main(
            clip=dataset / "clip.json",
            images=dataset / "ori_imgs",
            masks=dataset / "parsing",
            plate=plate,
        )
        return plate.read_bytes()

    assert run() == run()
    clear = (synthetic.truth.masks[::20] == BACKGROUND).any(0)
    error = read_image(plate)[clear].astype(float) - synthetic.truth.plate[clear]
    assert np.sqrt((error**2).mean()) < 4


def test_person_everywhere_is_refused(dataset: Path, tmp_path: Path):
    clip = Clip.load(dataset / "clip.json")
    for i in range(0, clip.frames, clip.frames // Config().least):
        mask = np.full((clip.height, clip.width), HEAD, np.uint8)
        write_image(tmp_path / f"{i}.png", COLORS[mask])
    with pytest.raises(UserError, match="contains no mask with background"):
        main(
            clip=dataset / "clip.json",
            images=dataset / "ori_imgs",
            masks=tmp_path,
            plate=tmp_path / "bc.jpg",
        )
    assert not (tmp_path / "bc.jpg").exists()
