import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from talker.backends import landmarks_mediapipe
from talker.backends.landmarks_mediapipe import LONG_PART, SHORT_PART, WARM_UP, parts
from talker.clip import Clip, Source, load_per_frame
from talker.core import parallel
from talker.errors import UserError
from talker.head.follow import follow_face, interpolate_frames, rival_area
from talker.head.landmarks68 import landmarks68
from talker.landmarks import Config, find_landmarks, main
from talker.media.images import write_image
from talker.media.mediapipe import detect_faces, segment_person, track_meshes

CONFIG = Config()


def write_clip(folder: Path, images: list[np.ndarray]) -> Clip:
    """Write images as the frames of a clip to `folder`, and its clip.json."""
    for i, image in enumerate(images):
        write_image(folder / f"{i}.jpg", image)
    height, width = images[0].shape[:2]
    source = Source("me.mp4", width, height, 25.0, False, 0, len(images) / 25, 0.0, 0.0, "h264")
    clip = Clip(len(images), height, width, source)
    clip.save(folder / "clip.json")
    return clip


def boxes(*rows: tuple[float, float, float]) -> np.ndarray:
    """Square boxes from x, y and size."""
    return np.array([(x, y, x + size, y + size) for x, y, size in rows], float).reshape(-1, 4)


def follow(candidates: list[np.ndarray]) -> np.ndarray:
    """Follow a face with the default options."""
    return follow_face(candidates, CONFIG.min_overlap, CONFIG.patience)


def test_the_largest_face_is_followed_even_when_another_grows():
    candidates = [boxes((0, 0, 50), (100 + i, 0, 60 - i), (200, 0, 20 + 5 * i)) for i in range(20)]
    assert (follow(candidates) == 1).all()


def test_order_of_the_candidates_does_not_matter():
    candidates = [boxes((0, 0, 50), (100, 0, 60))[:: 1 if i % 2 else -1] for i in range(6)]
    assert follow(candidates).tolist() == [0, 1, 0, 1, 0, 1]


def test_a_lost_face_is_waited_for():
    both, other = boxes((0, 0, 50), (100, 0, 60)), boxes((0, 0, 50))
    short = [both, *[other] * (CONFIG.patience - 1), both]
    assert follow(short).tolist() == [1, *[-1] * (CONFIG.patience - 1), 1]
    lost = [both, *[boxes()] * 5, *[other] * CONFIG.patience]
    assert follow(lost).tolist() == [1, *[-1] * CONFIG.patience, *[0] * 5]


def test_no_face_at_all_is_followed_nowhere():
    assert (follow([boxes()] * 3) == -1).all()


def test_rival_is_the_largest_other_face():
    boxes = np.array([[0, 0, 10, 10], [50, 0, 55, 10], [80, 0, 82, 2]], np.float32)
    assert rival_area(boxes, 0) == pytest.approx(0.5)
    assert rival_area(boxes, 1) == pytest.approx(2.0)
    assert rival_area(boxes[:1], 0) == 0.0 and rival_area(boxes, -1) == 0.0


def test_interpolation_is_linear_and_holds_the_ends():
    line = np.arange(10.0)[:, None, None] * np.array([[1.0, 2.0], [-1.0, 0.5]])
    valid = np.array([0, 0, 1, 1, 0, 0, 0, 1, 1, 0], bool)
    damaged = np.where(valid[:, None, None], line, np.nan)
    damaged[~valid] = 999
    filled = interpolate_frames(damaged, valid)
    assert filled[2:9] == pytest.approx(line[2:9])
    assert filled[0] == pytest.approx(line[2])
    assert filled[9] == pytest.approx(line[8])


@pytest.fixture(scope="module")
def found(synthetic, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The result of the stage on the synthetic clip, whose frames 20 to 22 and 99 are empty."""
    folder = tmp_path_factory.mktemp("landmarks")
    images = list(synthetic.images)
    for i in (20, 21, 22, 99):
        images[i] = synthetic.truth.plate
    write_clip(folder, images)
    main(clip=folder / "clip.json", images=folder, landmarks=folder / "landmarks.npz")
    return folder, load_per_frame(folder / "landmarks.npz", len(images))


def test_points_lie_on_the_synthetic_face(synthetic, found):
    points = found[1]["points"][..., :2]
    truth = synthetic.truth.landmarks
    face_width = np.ptp(truth[0, :, 0])
    error = np.linalg.norm(points - truth, axis=-1)
    assert np.median(error) < 0.03 * face_width
    motion = np.linalg.norm((points - points.mean(0)) - (truth - truth.mean(0)), axis=-1)
    assert np.median(motion) < 0.01 * face_width


def test_frames_without_a_face_are_marked_and_bridged(synthetic, found):
    arrays = found[1]
    lost = [20, 21, 22, 99]
    assert np.flatnonzero(~arrays["valid"]).tolist() == lost
    assert (arrays["n_faces"][lost] == 0).all()
    assert (np.delete(arrays["n_faces"], lost) == 1).all()
    assert np.isfinite(arrays["points"]).all()
    before, after = arrays["points"][19], arrays["points"][23]
    assert arrays["points"][21] == pytest.approx((before + after) / 2, abs=1e-3)
    assert (arrays["points"][99] == arrays["points"][98]).all()


def test_files_hold_every_frame(found):
    folder, arrays = found
    shapes = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    assert shapes == {
        "valid": ("bool", (100,)),
        "points": ("float32", (100, 478, 3)),
        "n_faces": ("int32", (100,)),
        "rival": ("float32", (100,)),
        "box": ("float32", (100, 4)),
    }
    for i in (0, 21, 99):
        written = np.loadtxt(folder / f"{i}.lms")
        assert written == pytest.approx(landmarks68(arrays["points"][i]), abs=1e-5)
    assert len(list(folder.glob("*.lms"))) == 100


def test_same_bytes_again(synthetic, tmp_path: Path):
    write_clip(tmp_path, list(synthetic.images[:8]))
    made = []
    for name in ("first", "second"):
        main(clip=tmp_path / "clip.json", images=tmp_path, landmarks=tmp_path / f"{name}.npz")
        made.append([(tmp_path / f"{name}.npz").read_bytes(), (tmp_path / "5.lms").read_bytes()])
    assert made[0] == made[1]


def test_parts_cover_a_clip_and_hardly_depend_on_its_length():
    for frames in (*range(1, 1500), 8208, 90_000):
        found = parts(frames)
        own = [part.ids[part.warm_up :] for part in found]
        assert [i for ids in own for i in ids] == list(range(frames))
        assert all(part.warm_up == WARM_UP for part in found[1:]) and not found[0].warm_up
        assert all(min(frames, SHORT_PART) <= len(ids) <= LONG_PART for ids in own)
        assert frames < 8 * SHORT_PART or len(found) % 8 == 0


def test_parts_of_a_clip_are_tracked_like_the_whole(
    synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also where a part starts in a gap, and for any number of threads."""
    images = list(synthetic.images)
    for i in (*range(30, 36), 50, 51, 99):
        images[i] = synthetic.truth.plate
    clip = write_clip(tmp_path, images)
    whole = find_landmarks(clip, tmp_path, CONFIG)
    monkeypatch.setattr(landmarks_mediapipe, "SHORT_PART", 16)
    made = []
    for threads in (1, 3):
        monkeypatch.setattr(parallel, "job_threads", lambda count=threads: count)
        made.append(find_landmarks(clip, tmp_path, CONFIG))
    assert [part.ids.start for part in parts(100)] == [0, 0, 17, 34, 50, 67]
    for name, values in made[0].items():
        assert values.tobytes() == made[1][name].tobytes()
        assert name in ("points", "box") or (values == whole[name]).all()
    error = np.linalg.norm((made[0]["points"] - whole["points"])[..., :2], axis=-1)
    steps = np.linalg.norm(np.diff(whole["points"], axis=0)[..., :2], axis=-1)
    assert 0 < np.sqrt((error**2).mean()) < 0.1 * np.sqrt((steps**2).mean())
    assert error.max() < 1


def test_images_can_be_processed_at_the_same_time(synthetic):
    images = [*synthetic.images[:20], synthetic.truth.plate]
    for network in (detect_faces, segment_person):
        one, several = list(network(images)), list(network(images, threads=3))
        assert [each.tobytes() for each in one] == [each.tobytes() for each in several]


def test_the_networks_do_not_import_matplotlib_until_it_is_used():
    code = """if True:
        import sys
        import numpy as np
        from talker.media.mediapipe import track_meshes
        list(track_meshes([np.zeros((64, 64, 3), np.uint8)]))
        assert not [name for name in sys.modules if name.startswith("matplotlib")]
        from mediapipe.python.solutions.drawing_utils import plt
        assert plt.colormaps()
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_networks_are_quiet(synthetic, capfd: pytest.CaptureFixture[str]):
    for network in (detect_faces, track_meshes, segment_person):
        assert len(list(network(synthetic.images[:2]))) == 2
    assert capfd.readouterr().err == ""


def canvas(*faces: tuple[np.ndarray, int, int, int]) -> np.ndarray:
    """A grey 640 x 360 frame with pictures in it: image, x, y, size."""
    picture = np.full((360, 640, 3), 90, np.uint8)
    for image, x, y, size in faces:
        small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        picture[y : y + size, x : x + size] = small
    return picture


def test_a_graph_that_fails_is_explained(monkeypatch: pytest.MonkeyPatch):
    """As MediaPipe does when memory runs out."""
    from mediapipe.python.solutions.face_mesh import FaceMesh

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("CalculatorGraph::Run() failed:\nsource location trace")

    monkeypatch.setattr(FaceMesh, "process", fail)
    with pytest.raises(UserError, match=r"^MediaPipe stopped: CalculatorGraph::Run\(\) failed:\. "):
        list(track_meshes([np.zeros((64, 64, 3), np.uint8)]))


def test_small_faces_are_found_where_they_are(synthetic, tmp_path: Path):
    size, x, y = 110, 400, 200
    clip = write_clip(tmp_path, [canvas((image, x, y, size)) for image in synthetic.images[:8]])
    arrays = find_landmarks(clip, tmp_path, CONFIG)
    truth = synthetic.truth.landmarks[:8] * size / synthetic.images.shape[2] + [x, y]
    face_width = np.ptp(truth[0, :, 0])
    assert face_width < 64
    assert arrays["valid"].all()
    error = np.linalg.norm(arrays["points"][..., :2] - truth, axis=-1)
    assert np.median(error) < 0.04 * face_width


def test_the_larger_of_two_faces_is_taken(synthetic, tmp_path: Path):
    images = synthetic.images[:8]
    clip = write_clip(
        tmp_path, [canvas((image, 20, 100, 200), (image, 300, 30, 320)) for image in images]
    )
    arrays = find_landmarks(clip, tmp_path, CONFIG)
    assert arrays["valid"].all()
    assert (arrays["n_faces"] == 2).all()
    assert (arrays["box"][:, 0] > 300).all()
    assert (np.ptp(arrays["box"][:, [0, 2]], axis=1) > 100).all()


def test_a_video_without_a_face_is_refused(synthetic, tmp_path: Path):
    write_clip(tmp_path, [synthetic.truth.plate] * 4)
    with pytest.raises(UserError, match=r"shows a face in 0 of 4 frames.*looks towards"):
        main(clip=tmp_path / "clip.json", images=tmp_path, landmarks=tmp_path / "landmarks.npz")
    assert not (tmp_path / "landmarks.npz").exists()
    assert not list(tmp_path.glob("*.lms"))


def test_a_frame_of_another_size_is_named(synthetic, tmp_path: Path):
    write_clip(tmp_path, list(synthetic.images[:4]))
    write_image(tmp_path / "2.jpg", np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(UserError, match=r"2\.jpg has 20x10 pixels.*256x256"):
        main(clip=tmp_path / "clip.json", images=tmp_path, landmarks=tmp_path / "landmarks.npz")


@pytest.mark.clips
def test_a_real_clip(clips: Path, tmp_path: Path):
    with av.open(clips / "grid_3s.mpg") as video:
        images = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    arrays = find_landmarks(write_clip(tmp_path, images), tmp_path, CONFIG)
    assert arrays["valid"].all()
    steps = abs(np.diff(arrays["points"][..., :2], axis=0)).max((1, 2))
    assert steps.max() < 0.1 * np.ptp(arrays["points"][0, :, 0])
