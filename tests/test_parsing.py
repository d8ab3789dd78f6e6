from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import read_mask

from talker.backends.color_model import Pose, align_heads, color_bins, learn, posterior
from talker.backends.parsing_color import label, parse, smooth, with_neighbors
from talker.clip import Clip, Source, load_per_frame
from talker.core import parallel
from talker.data.layout import BACKGROUND, COLORS, HEAD, NECK, TORSO
from talker.errors import UserError
from talker.head.landmarks68 import landmarks68
from talker.media.images import read_image, write_image
from talker.media.mediapipe import track_meshes
from talker.parsing import Config, main


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def flicker(masks: np.ndarray) -> float:
    """Return the fraction of pixels that differ from both neighboring frames, which agree."""
    return ((masks[1:-1] != masks[:-2]) & (masks[:-2] == masks[2:])).mean()


@pytest.fixture(scope="module")
def parsed(dataset: Path) -> np.ndarray:
    clip = Clip.load(dataset / "clip.json")
    points = load_per_frame(dataset / "landmarks.npz", clip.frames)["points"]
    return np.stack(list(parse(clip, dataset / "ori_imgs", points, Config())))


@pytest.mark.parametrize(("part", "least"), [(HEAD, 0.95), (TORSO, 0.9), (NECK, 0.75)])
def test_parts_of_the_synthetic_clip(synthetic, parsed: np.ndarray, part: int, least: float):
    assert overlap(parsed == part, synthetic.truth.masks == part) > least


def test_outline_of_the_synthetic_clip(synthetic, parsed: np.ndarray):
    assert overlap(parsed > 0, synthetic.truth.masks > 0) > 0.97


def test_masks_do_not_flicker(parsed: np.ndarray):
    assert flicker(parsed) < 0.0005


def test_every_frame_has_one_head(parsed: np.ndarray):
    assert ((parsed == HEAD).mean((1, 2)) > 0.1).all()


def few_frames(dataset: Path, folder: Path, frames: int) -> tuple[Path, Path]:
    """The clip and landmarks of the dataset's first frames."""
    clip = Clip.load(dataset / "clip.json")
    Clip(frames, clip.height, clip.width, clip.source).save(folder / "clip.json")
    arrays = load_per_frame(dataset / "landmarks.npz", clip.frames)
    np.savez(folder / "landmarks.npz", **{name: a[:frames] for name, a in arrays.items()})
    return folder / "clip.json", folder / "landmarks.npz"


def test_files_have_the_exact_colours_and_the_same_bytes_again(dataset: Path, tmp_path: Path):
    clip, landmarks = few_frames(dataset, tmp_path, 6)
    masks = tmp_path / "parsing"

    def run() -> dict[str, bytes]:
        main(clip=clip, images=dataset / "ori_imgs", landmarks=landmarks, masks=masks)
        return {path.name: path.read_bytes() for path in masks.iterdir()}

    first = run()
    assert first == run()
    assert set(first) == {f"{i}.png" for i in range(6)}
    colours = np.unique(read_image(masks / "3.png").reshape(-1, 3), axis=0).tolist()
    assert sorted(colours) == [[0, 0, 255], [0, 255, 0], [255, 0, 0], [255, 255, 255]]


def test_masks_do_not_depend_on_the_number_of_threads(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clip, landmarks = few_frames(dataset, tmp_path, 12)
    opencv = cv2.getNumThreads()
    made = []
    for threads in (1, 3):
        monkeypatch.setattr(parallel, "job_threads", lambda count=threads: count)
        masks = tmp_path / f"{threads}"
        main(clip=clip, images=dataset / "ori_imgs", landmarks=landmarks, masks=masks)
        made.append([(masks / f"{i}.png").read_bytes() for i in range(12)])
    assert made[0] == made[1]
    assert cv2.getNumThreads() == opencv


def test_missing_frame_is_named(dataset: Path, tmp_path: Path):
    clip, landmarks = few_frames(dataset, tmp_path, 2)
    write_image(tmp_path / "0.jpg", read_image(dataset / "ori_imgs" / "0.jpg"))
    with pytest.raises(UserError, match=r"1\.jpg does not exist"):
        main(clip=clip, images=tmp_path, landmarks=landmarks, masks=tmp_path / "parsing")
    assert not (tmp_path / "parsing").exists()


def test_wrong_colour_is_named(tmp_path: Path):
    mask = np.array([[BACKGROUND, HEAD], [NECK, TORSO]], np.uint8)
    write_image(tmp_path / "good.png", COLORS[mask])
    assert (read_mask(tmp_path / "good.png") == mask).all()
    colours = read_image(tmp_path / "good.png")
    colours[1, 0] = 0, 254, 0
    write_image(tmp_path / "bad.png", colours)
    with pytest.raises(UserError, match=r"bad\.png has the color \(0, 254, 0\) at pixel \(0, 1\)"):
        read_mask(tmp_path / "bad.png")


def test_alignment_maps_the_mean_head_onto_each_head():
    random = np.random.default_rng(0)
    shape = random.uniform(0, 100, (478, 2))
    turns = 1.0 + 0.1 * random.standard_normal(20) + 0.1j * random.standard_normal(20)
    moved = turns[:, None] * (shape[:, 0] + 1j * shape[:, 1]) + 5 * random.standard_normal((20, 1))
    points = np.stack([moved.real, moved.imag], -1)
    found = [pose.to_frame[:, :2] for pose in align_heads(points, 0.5)]
    scales = np.sqrt([np.linalg.det(turn) for turn in found])
    angles = np.array([np.arctan2(turn[1, 0], turn[0, 0]) for turn in found])
    assert np.ptp(scales / abs(turns)) < 1e-9
    assert np.ptp(angles - np.angle(turns)) < 1e-9


def test_specks_join_what_is_near():
    person = np.zeros((64, 64), np.float32)
    person[8:, 16:48] = 1
    person[2, 60] = 1
    belief = np.zeros((4, 64, 64), np.float32)
    belief[0, :24], belief[1, 24:40], belief[2, 40:48], belief[3, 48:] = 1, 1, 1, 1
    clean = label(person, belief)
    belief[:, 20, 30] = 0, 0, 0, 1
    belief[:, 60, 30] = 1, 0, 0, 0
    belief[:, 12, 20] = 0, 0, 1, 0
    assert (label(person, belief) == clean).all()
    assert clean[2, 60] == BACKGROUND
    assert [clean[row, 30] for row in (20, 30, 44, 60)] == [HEAD, HEAD, NECK, TORSO]


def test_a_dark_collar_that_meets_the_cheek_is_no_hair():
    belief = np.zeros((4, 60, 60), np.float32)
    belief[3] = 1
    belief[:, 10:40, 20:40] = np.array([0, 1, 0, 0])[:, None, None]  # the face
    for rows, columns in (
        (slice(5, 12), slice(18, 42)),  # hair over it,
        (slice(12, 45), slice(16, 20)),  # a lock that hangs from there,
        (slice(35, 45), slice(40, 44)),  # and a collar
    ):
        belief[:, rows, columns] = np.array([0.6, 0, 0, 0.4])[:, None, None]
    person = np.zeros((60, 60), np.float32)
    person[5:, 16:44] = 1
    mask = label(person, belief)
    assert (mask[5:45, 16:20] == HEAD).mean() > 0.9
    assert (mask[35:45, 40:44] == TORSO).all()


def test_smoothing_keeps_what_moves_evenly_and_has_no_lag():
    ramp = [(np.full(3, float(i)), np.array(2.0 * i)) for i in range(6)]
    smoothed = [smooth(three) for three in with_neighbors(iter(ramp))]
    assert len(smoothed) == 6
    for given, made in zip(ramp[1:-1], smoothed[1:-1], strict=True):
        assert made[0] == pytest.approx(given[0])
        assert made[1] == pytest.approx(given[1])
    assert smoothed[0][1] == pytest.approx(0.5)
    assert len(list(with_neighbors(iter(ramp[:1])))) == 1


def drawn_person() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A face with hair to below its chin: RGB, classes [256, 256], and the face oval [36, 2].

    One lock of hair is as dark as the collar, the other has the color of shadowed skin.
    """
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    oval = np.stack([128 + 38 * np.sin(angle), 110 - 52 * np.cos(angle)], 1)
    image = np.full((256, 256, 3), (90, 130, 160), np.uint8)
    classes = np.zeros((256, 256), np.uint8)

    def fill(points: list[tuple[int, int]] | np.ndarray, colour: tuple[int, ...], part: int):
        corners = np.round(points).astype(np.int32)
        cv2.fillPoly(image, [corners], colour)
        cv2.fillPoly(classes, [corners], (part,))

    fill([(10, 256), (30, 215), (95, 195), (161, 195), (226, 215), (246, 256)], (40, 40, 70), TORSO)
    fill(128 + 1.35 * (oval - 128), (150, 115, 85), HEAD)
    fill([(102, 110), (154, 110), (154, 200), (128, 225), (102, 200)], (216, 176, 142), NECK)
    fill([(154, 256), (154, 196), (161, 196), (170, 256)], (58, 42, 26), TORSO)
    fill([(77, 110), (94, 110), (104, 172), (82, 180)], (58, 42, 26), HEAD)
    fill([(162, 110), (179, 110), (172, 180), (154, 172)], (105, 82, 62), HEAD)
    fill(oval, (240, 200, 160), HEAD)
    noise = np.random.default_rng(0).normal(0, 3, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), classes, oval


@pytest.mark.parametrize("caption", [0, 30])
def test_locks_beside_the_neck_are_hair(caption: int):
    """This also works if the lowest rows show no person."""
    image, classes, oval = drawn_person()
    image[256 - caption :], classes[256 - caption :] = 255, BACKGROUND
    skin = oval.mean(0) + 12 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    pose = Pose(np.eye(2, 3), oval, (skin,))
    person = (classes > 0).astype(np.float32)
    model = learn([image] * 8, [person] * 8, [pose] * 8, Config().rounds)
    found = label(person, posterior(model, color_bins(image), person, pose))
    for part, least in ((HEAD, 0.98), (NECK, 0.95), (TORSO, 0.98)):
        assert overlap(found == part, classes == part) > least


@pytest.mark.clips
def test_a_real_clip(clips: Path, tmp_path: Path):
    with av.open(clips / "grid_3s.mpg") as video:
        images = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    for i, image in enumerate(images):
        write_image(tmp_path / f"{i}.jpg", image)
    height, width = images[0].shape[:2]
    source = Source("grid_3s.mpg", width, height, 25.0, False, 0, 3.0, 0.0, 0.0, "mpeg1video")
    points = np.concatenate(list(track_meshes(images)))
    masks = np.stack(
        list(parse(Clip(len(images), height, width, source), tmp_path, points, Config()))
    )
    assert flicker(masks) < 0.0005
    inner = landmarks68(points)[:, 17:].round().astype(int)
    for mask, landmarks, mesh in zip(masks, inner, points, strict=True):
        assert (mask[landmarks[:, 1], landmarks[:, 0]] == HEAD).all()
        x, chin = mesh[152, :2].round().astype(int)
        face = chin - mesh[10, 1]
        assert mask[int(chin + 0.15 * face), x] == NECK
        assert mask[int(mesh[10, 1] - 0.15 * face), x] == HEAD
        assert (mask[:20, :20] == BACKGROUND).all()
        assert (mask[-1] == TORSO).mean() > 0.3
