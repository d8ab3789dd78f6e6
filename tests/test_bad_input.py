"""Clips that cannot give an avatar: each ends with one clear message, before any training."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import FRAMES, SIZE, Synthetic, track_files
from gated import measure
from scipy.spatial.transform import Rotation

from talker import check, landmarks, layers, parsing
from talker.clip import Clip, load_json
from talker.data.layout import IMAGES
from talker.errors import UserError
from talker.measure.gate import Limits
from talker.media.images import write_image

SHORT = Limits(max_background=100.0)
"""Limits for the synthetic clip, which lasts 4 s. The cases change its frames but not its plate."""


def prepare(dataset: Path, images: np.ndarray, folder: Path) -> None:
    """Run the face stages on `images` [T, H, W, 3] instead of the frames of the dataset."""
    made = {"clip.json", "landmarks.npz", "track_params.pt", *(kind.folder for kind in IMAGES)}
    for path in dataset.iterdir():
        if path.name not in made and not path.name.startswith("transforms"):
            (folder / path.name).symlink_to(path)
    (folder / "ori_imgs").mkdir()
    for i, image in enumerate(images):
        write_image(folder / "ori_imgs" / f"{i}.jpg", image)
    source = Clip.load(dataset / "clip.json").source
    height, width = images.shape[1:3]
    Clip(len(images), height, width, source).save(folder / "clip.json")
    clip, frames, found = (folder / name for name in ("clip.json", "ori_imgs", "landmarks.npz"))
    patient = landmarks.Config(min_valid=0.3)
    landmarks.main(clip=clip, images=frames, landmarks=found, config=patient)
    track_files(folder, frames)
    parsing.main(clip=clip, images=frames, landmarks=found, masks=folder / "parsing")
    layers.main(
        clip=clip,
        images=frames,
        masks=folder / "parsing",
        plate=folder / "bc.jpg",
        truth=folder / "gt_imgs",
        torso=folder / "torso_imgs",
    )


def refusal(dataset: Path, images: np.ndarray, folder: Path) -> str:
    """Return the message that stops a clip, and check that only `force` continues."""
    with pytest.raises(UserError) as caught:
        prepare(dataset, images, folder)
        measure(folder)
        check.main(data=folder, quality=folder / "quality.json", config=check.Config(limits=SHORT))
    message = str(caught.value)
    assert str(folder) in message
    return message


def without_a_face(synthetic: Synthetic) -> np.ndarray:
    return np.repeat(synthetic.truth.plate[None], FRAMES, axis=0)


def black(synthetic: Synthetic) -> np.ndarray:
    return np.zeros_like(synthetic.images)


def twenty_frames(synthetic: Synthetic) -> np.ndarray:
    return synthetic.images[:20]


def small_face(synthetic: Synthetic) -> np.ndarray:
    """Scale the picture to 43 %, so that the face is 40 pixels wide."""
    small = np.repeat(synthetic.truth.plate[None], FRAMES, axis=0)
    side = round(0.43 * SIZE)
    for i, image in enumerate(synthetic.images):
        shrunk = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        small[i, -side:, 70 : 70 + side] = shrunk
    return small


def two_faces(synthetic: Synthetic) -> np.ndarray:
    """Copy the face, slightly smaller, to the upper left corner."""
    images = synthetic.images.copy()
    face = synthetic.truth.landmarks[0]
    x0, y0 = (face.min(axis=0) - np.array([4, 30])).astype(int)
    x1, y1 = (face.max(axis=0) + np.array([4, 6])).astype(int)
    for i, image in enumerate(synthetic.images):
        copy = cv2.resize(image[y0:y1, x0:x1], None, fx=0.78, fy=0.78)
        images[i, 4 : 4 + len(copy), 2 : 2 + copy.shape[1]] = copy
    return images


def cut(synthetic: Synthetic) -> np.ndarray:
    images = synthetic.images.copy()
    images[55:] = np.roll(images[55:] // 2, 20, axis=2)
    return images


def leaving(synthetic: Synthetic) -> np.ndarray:
    images = synthetic.images.copy()
    for i in range(40, FRAMES):
        images[i] = np.roll(images[i], min(6 * (i - 40), SIZE // 2), axis=1)
        images[i, :, : min(6 * (i - 40), SIZE // 2)] = 90
    return images


def freezing(synthetic: Synthetic) -> np.ndarray:
    images = synthetic.images.copy()
    images[40:85] = images[40]
    return images


def profile(synthetic: Synthetic) -> np.ndarray:
    """Turn the head by 85 degrees and back within 40 frames."""
    images = synthetic.images.copy()
    subject = synthetic.subject
    for i in range(30, 70):
        turn = np.eye(4)
        yaw = 85 * np.sin(np.pi * (i - 30) / 40)
        turn[:3, :3] = Rotation.from_euler("y", yaw, degrees=True).as_matrix()
        view = subject.viewmats[30] @ turn
        images[i] = subject.renderer.render(subject.vertices(i), view, subject.viewmats[30])[0]
    return images


CASES = {
    "no face": (without_a_face, ["shows a face in 0 of 100 frames", "one person looks"]),
    "all black": (black, ["shows a face in 0 of 100 frames"]),
    "20 frames": (twenty_frames, ["At least 25 such frames", "Only 20 of the 20", "longer clip"]),
    "face of 40 pixels": (small_face, ["64 pixels wide", "Only 0 of the 100", "median face is"]),
    "two faces": (two_faces, ["Another face", "Crop the video so that it shows only one person"]),
    "cut": (cut, ["Only 2.2 s of the clip are tracked", "all_segments"]),
    "leaving": (leaving, ["for these reasons: ", "the face leaves the image ("]),
    "freezing": (freezing, ["for these reasons: the image is frozen (44 frames)"]),
    "profile": (profile, ["for these reasons: ", "the head is turned away ("]),
}


@pytest.mark.parametrize(("make", "words"), CASES.values(), ids=CASES)
def test_bad_clip_is_refused(make, words, dataset: Path, synthetic: Synthetic, tmp_path: Path):
    message = refusal(dataset, make(synthetic), tmp_path)
    assert all(word in message for word in words), message


def test_hand_over_the_face_is_left_out(dataset: Path, synthetic: Synthetic, tmp_path: Path):
    """2 s of 8 s are covered: those frames are not used for training, the others are."""
    images = np.concatenate([synthetic.images, synthetic.images[::-1]])
    places = np.concatenate([synthetic.truth.landmarks, synthetic.truth.landmarks[::-1]])
    for i in range(100, 150):
        x, y = places[i, 13].astype(int).tolist()
        cv2.ellipse(images[i], (x, y), (34, 20), 15, 0, 360, (150, 105, 85), -1)
        for finger in range(4):
            start = x - 34 + 18 * finger, y + 10
            cv2.line(images[i], start, (x - 24 + 16 * finger, y - 22), (120, 80, 60), 2)
    prepare(dataset, images, tmp_path)
    report = load_json(tmp_path / "track_report.json")
    covered = [row["frame"] for row in report["rejected"] if "covers" in row["reason"]]
    assert set(range(103, 147)) <= set(covered) <= set(range(98, 152))


def test_force_goes_on(dataset: Path, synthetic: Synthetic, tmp_path: Path):
    prepare(dataset, freezing(synthetic), tmp_path)
    measure(tmp_path)
    quality = tmp_path / "quality.json"
    check.main(data=tmp_path, quality=quality, config=check.Config(force=True, limits=SHORT))
    facts = load_json(quality)
    assert facts["accepted"] and "image is frozen" in facts["failures"][0]
