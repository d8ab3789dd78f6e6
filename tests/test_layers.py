from pathlib import Path

import numpy as np
import pytest
from conftest import read_mask

from talker.clip import Clip
from talker.core import parallel
from talker.data.layout import BACKGROUND, HEAD, NECK, TORSO
from talker.errors import UserError
from talker.layers import Config, main, split
from talker.media.images import read_image, write_image

Layers = tuple[np.ndarray, np.ndarray]


def scene(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the image, mask and plate [size, size] of a head, a neck and clothes."""
    random = np.random.default_rng(0)
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    mask = np.full((size, size), BACKGROUND, np.uint8)
    mask[(y > 0.7) & (abs(x - 0.5) < 0.4)] = TORSO
    mask[(y > 0.5) & (y < 0.75) & (abs(x - 0.5) < 0.12)] = NECK
    mask[((x - 0.5) / 0.25) ** 2 + ((y - 0.35) / 0.37) ** 2 < 1] = HEAD
    image, plate = random.integers(0, 256, (2, size, size, 3), np.uint8)
    return image, mask, plate


def column_by_column(image: np.ndarray, mask: np.ndarray, plate: np.ndarray) -> Layers:
    """The published algorithm at 512 pixels, slow and without blur; the background is unchanged."""
    truth = image.copy()
    truth[mask == BACKGROUND] = plate[mask == BACKGROUND]
    torso = truth.copy()
    torso[mask == HEAD] = plate[mask == HEAD]
    opaque = (mask == NECK) | (mask == TORSO)
    head = mask == HEAD
    grown = mask == NECK
    for _ in range(3):
        grown = grown | np.roll(grown, 1, 0) | np.roll(grown, -1, 0)
    grown &= mask != BACKGROUND
    for part, length, down in ((mask == TORSO, 9, 0), (grown, 53, 4)):
        for column in range(mask.shape[1]):
            rows = np.flatnonzero(part[:, column])
            if not len(rows) or not head[rows[0] - 1, column]:
                continue
            start = rows[0] + min(down, len(rows) - 1)
            colour = torso[start, column].astype(float)
            for step in range(length):
                row = start - step
                if row >= 0 and (head | part)[row, column]:
                    torso[row, column] = colour * 0.98**step
                    opaque[row, column] = True
    return truth, np.dstack([torso * opaque[..., None], np.uint8(255) * opaque])


def test_the_published_recipe_column_by_column():
    image, mask, plate = scene(512)
    truth, torso = split(image, mask, plate, Config(blur=1))
    expected_truth, expected_torso = column_by_column(image, mask, plate)
    assert (truth == expected_truth).all()
    assert (torso == expected_torso).all()
    assert (torso[mask == HEAD, 3] == 255).mean() > 0.05


def test_lengths_follow_the_size_of_the_image():
    heights = {}
    for size in (256, 512):
        _, mask, _ = scene(size)
        flat = np.full((size, size, 3), 200, np.uint8)
        _, torso = split(flat, mask, flat, Config(blur=1))
        column = torso[:, size // 2]
        continued = (column[:, 3] > 0) & (mask[:, size // 2] == HEAD)
        heights[size] = continued.sum()
        assert column[continued, 0].min() == pytest.approx(200 * 0.98**52, abs=4)
    assert heights[256] == pytest.approx(heights[512] / 2, abs=1)


def test_only_the_continued_neck_is_blurred():
    image, mask, plate = scene(512)
    _, sharp = split(image, mask, plate, Config(blur=1))
    _, soft = split(image, mask, plate, Config())
    changed = (sharp != soft).any(-1)
    near_chin = np.mgrid[:512, :512][0] < np.flatnonzero((mask == NECK).any(1))[0] + 40
    assert changed.any()
    assert (mask[changed] != TORSO).all()
    assert (mask[changed & ~near_chin] == HEAD).all()
    assert (sharp[..., 3] == soft[..., 3]).all()


def test_layers_of_the_synthetic_clip(synthetic, dataset: Path, tmp_path: Path, monkeypatch):
    folders = tmp_path / "gt_imgs", tmp_path / "torso_imgs"

    def run(threads: int) -> list[bytes]:
        monkeypatch.setattr(parallel, "job_threads", lambda: threads)
        main(
            clip=dataset / "clip.json",
            images=dataset / "ori_imgs",
            masks=dataset / "parsing",
            plate=dataset / "bc.jpg",
            truth=folders[0],
            torso=folders[1],
        )
        return [path.read_bytes() for folder in folders for path in sorted(folder.iterdir())]

    first = run(threads=1)
    assert first == run(threads=5)
    assert len(first) == 2 * Clip.load(dataset / "clip.json").frames
    for i in (0, 50, 99):
        mask = read_mask(dataset / "parsing" / f"{i}.png")
        frame = read_image(dataset / "ori_imgs" / f"{i}.jpg").astype(int)
        truth = read_image(folders[0] / f"{i}.jpg").astype(int)
        torso = read_image(folders[1] / f"{i}.png").astype(int)
        assert torso.shape == (*mask.shape, 4)
        assert set(np.unique(torso[..., 3])) == {0, 255}
        assert (torso[torso[..., 3] == 0] == 0).all()
        body = (mask == NECK) | (mask == TORSO)
        assert (torso[body, 3] == 255).all()
        assert (torso[mask == BACKGROUND, 3] == 0).all()
        assert (torso[mask == TORSO, :3] == frame[mask == TORSO]).all()
        assert abs(truth - frame)[mask != BACKGROUND].mean() < 3
        plate = synthetic.truth.plate.astype(int)
        assert abs(truth - plate)[mask == BACKGROUND].mean() < 3


def test_plate_of_another_size_is_refused(dataset: Path, tmp_path: Path):
    write_image(tmp_path / "bc.jpg", np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(UserError, match=r"has 20x10 pixels.*256x256"):
        main(
            clip=dataset / "clip.json",
            images=dataset / "ori_imgs",
            masks=dataset / "parsing",
            plate=tmp_path / "bc.jpg",
            truth=tmp_path / "gt_imgs",
            torso=tmp_path / "torso_imgs",
        )
    assert not (tmp_path / "gt_imgs").exists()
