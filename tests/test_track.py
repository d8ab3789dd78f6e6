"""The stages shots, fit and track on the synthetic subject: poses, head, files, refusals."""

import dataclasses
import functools
import itertools
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEMO, track_files
from gated import gate
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from talker import fit as fit_stage
from talker import shots as shots_stage
from talker import track as track_stage
from talker.clip import Clip, Source, load_per_frame, save_per_frame
from talker.core import parallel
from talker.core.config import from_mapping
from talker.data.formats import read_fit, read_shots, write_fit
from talker.errors import UserError
from talker.head.camera import intrinsics, project, transform_matrices, viewmats_from_pose
from talker.head.fitting import stable_points
from talker.head.morphable import MorphableHead
from talker.head.poses import procrustes
from talker.media.images import read_image, write_image
from talker.media.video_reader import probe, read_frames
from talker.synthetic.acting import read_timings
from talker.synthetic.subject import GroundTruth, SyntheticSubject
from talker.track import Track

INNER_LIPS = 13, 14
SOURCE = Source("synthetic.mp4", 256, 256, 25.0, False, 0, 6.0, 0.0, 0.0, "h264")


def noisy(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """Meshes [T, 478, 3] with 0.3 px of white noise and 0.2 px that a frame's points share."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.3, points.shape) + rng.normal(0, 0.2, (len(points), 1, 3))
    return (points + noise).astype(np.float32)


def given(dataset: Path) -> tuple[Clip, np.ndarray, np.ndarray]:
    """The clip, its true meshes with noise, and which are valid."""
    clip = Clip.load(dataset / "clip.json")
    landmarks = load_per_frame(dataset / "landmarks.npz", clip.frames)
    return clip, noisy(landmarks["points"]), landmarks["valid"]


def options_of(stage: ModuleType, options: dict) -> Any:
    """Return the options of a stage that are among `options` of several stages."""
    names = {field.name for field in dataclasses.fields(stage.Config)}
    return stage.Config(**{name: value for name, value in options.items() if name in names})


def track(
    clip: Clip, images: Path, points: np.ndarray, valid: np.ndarray, head: MorphableHead, **options
) -> Track:
    """Run the three stages in memory."""
    config = functools.partial(options_of, options=options)
    shots = shots_stage.find_shots(clip, images, points, valid, config(shots_stage))
    fitted = fit_stage.fit_clip(clip, points, shots, head, config(fit_stage))
    return track_stage.track(clip, images, points, fitted, config(track_stage))


def follow(dataset: Path, head: MorphableHead, **options) -> Track:
    clip, points, valid = given(dataset)
    return track(clip, dataset / "ori_imgs", points, valid, head, **options)


@pytest.fixture(scope="module")
def head() -> MorphableHead:
    return MorphableHead.load()


@pytest.fixture(scope="module")
def found(dataset: Path, head: MorphableHead) -> Track:
    return follow(dataset, head)


def run(
    folder: Path,
    dataset: Path,
    clip: Clip,
    points: np.ndarray,
    valid: np.ndarray,
    **options,
) -> Path:
    """Run the three stages in `folder` on the frames of `dataset`."""
    folder.mkdir(exist_ok=True)
    clip.save(folder / "clip.json")
    save_per_frame(folder / "landmarks.npz", valid, points=points)
    config = functools.partial(options_of, options=options)
    track_files(folder, dataset / "ori_imgs", *map(config, (shots_stage, fit_stage, track_stage)))
    return folder


def angles(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Angles [T] in degrees between the rotations of poses [T, 4, 4]."""
    turn = found[:, :3, :3] @ true[:, :3, :3].transpose(0, 2, 1)
    return np.degrees(np.linalg.norm(Rotation.from_matrix(turn).as_rotvec(), axis=1))


def rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def test_poses_follow_the_truth(found: Track, synthetic):
    """The comparison ignores the frontal direction and the size, which images do not determine."""
    truth = synthetic.truth
    mean = truth.mesh.mean(axis=0)
    stable = stable_points(mean)
    size, front, _ = procrustes(mean[None, stable], found.mesh[stable])
    assert abs(size[0] - 1) < 0.06 and rms(angles(found.viewmats, truth.viewmats)) <= 4.0
    assert found.valid.all()
    assert rms(angles(found.viewmats[:, :3, :3] @ front[0].T, truth.viewmats)) <= 1.5
    place, true = (
        viewmats[:, :3, :3] @ mesh[stable].mean(axis=0) + viewmats[:, :3, 3]
        for viewmats, mesh in ((found.viewmats, found.mesh), (truth.viewmats, mean))
    )
    seen, expected = place / place[:, 2:] * found.focal, true / true[:, 2:] * truth.focal
    lateral = np.linalg.norm((seen - expected)[:, :2], axis=1) * true[:, 2] / truth.focal
    assert 100 * rms(lateral) <= 3.0
    depth = place[:, 2] * size * truth.focal / found.focal
    assert 100 * rms(depth - true[:, 2]) <= 8.0
    face = np.ptp(truth.landmarks[..., 0], axis=1).mean()
    assert np.median(found.residual) <= 0.008 * face


def test_frame_of_the_head_is_the_published_one(found: Track):
    """Origin in the middle of the face, which looks along +z, upright."""
    np.testing.assert_allclose(found.mesh.mean(axis=0), 0, atol=1e-9)
    nose, chin, forehead = found.mesh[[4, 152, 10]]
    assert nose[2] > 0.1 and chin[1] < -0.5 and forehead[1] > 0.5
    right_eye, left_eye = found.mesh[[33, 263]]
    assert right_eye[0] < -0.3 and left_eye[0] > 0.3
    assert abs(right_eye[1] - left_eye[1]) < 0.05 and abs(right_eye[2] - left_eye[2]) < 0.08
    assert 6 < np.median(found.viewmats[:, 2, 3]) < 11


def test_whole_head_is_found(found: Track, synthetic):
    truth = synthetic.truth
    vertices = truth.vertices - truth.mesh.mean(axis=(0, 1))
    above_neck = vertices[vertices[:, 1] > -0.6]
    distance, _ = KDTree(found.vertices).query(above_neck)
    assert np.median(distance) < 0.05 and np.percentile(distance, 95) < 0.2
    assert np.ptp(found.vertices[:, 2]) > 1.7 and found.vertices[:, 1].max() > 1.1
    assert found.faces.max() == len(found.vertices) - 1 and found.faces.min() == 0


def test_expressions_open_the_mouth(found: Track, synthetic):
    shapes = found.mesh + np.tensordot(found.expression, found.basis, 1)
    upper, lower = INNER_LIPS
    opening = np.linalg.norm(shapes[:, upper] - shapes[:, lower], axis=1)
    assert np.corrcoef(opening, synthetic.truth.mouth_open)[0, 1] > 0.95
    assert 0.8 < opening.std() / synthetic.truth.mouth_open.std() < 1.2


def test_files_keep_the_contract(dataset: Path, tmp_path: Path):
    """The outputs replace the files of a dataset that was written from the ground truth."""
    folder = tmp_path / "me"
    folder.mkdir()
    for path in dataset.iterdir():
        (folder / path.name).symlink_to(path)
    for name in ("clip.json", "landmarks.npz"):
        (folder / name).unlink()
    run(folder, dataset, *given(dataset))
    shutil.copyfile(dataset / "landmarks.npz", folder / "landmarks.npz")  # those of the .lms files
    assert gate(folder)["valid_percent"] == 100.0
    params = torch.load(folder / "track_params.pt", weights_only=True)
    clip = Clip.load(dataset / "clip.json")
    shapes = {name: tuple(value.shape) for name, value in params.items() if name[0] not in "mu"}
    assert shapes["id"] == (1, 100) and shapes["exp"] == (clip.frames, 79)
    assert shapes["euler"] == shapes["trans"] == (clip.frames, 3) and shapes["focal"] == (1,)
    assert shapes["vertices"][0] == 1 and shapes["exp_basis"] == (79, 478, 3)
    assert params["units"] == "dm" and params["model"] == "anny"
    assert params["frame_ids"].tolist() == list(range(clip.frames))
    train = json.loads((folder / "transforms_train.json").read_text())
    assert (train["w"], train["h"], train["fl_x"]) == (clip.width, clip.height, train["focal_len"])


def test_files_follow_the_published_formulas(found: Track, dataset: Path, tmp_path: Path):
    """Poses that are read as in GaussianTalker project the head to where it was tracked."""
    folder = run(tmp_path / "me", dataset, *given(dataset))
    params = torch.load(folder / "track_params.pt", weights_only=True)
    document = json.loads((folder / "transforms_val.json").read_text())
    points = params["vertices"].mean(0).double().numpy()
    K = intrinsics(document["focal_len"], 2 * document["cx"], 2 * document["cy"])
    for frame in document["frames"]:
        euler = params["euler"][frame["img_id"]].double().numpy()
        (a, b, c), (p, q, r) = np.sin(euler), np.cos(euler)
        x = np.array([[1, 0, 0], [0, p, a], [0, -a, p]])
        y = np.array([[q, 0, -b], [0, 1, 0], [b, 0, q]])
        z = np.array([[r, -c, 0], [c, r, 0], [0, 0, 1]])
        # Its routine stacks these as columns, so each factor is the transpose of how it reads.
        rotation = x.T @ y.T @ z.T
        camera = points @ rotation.T + params["trans"][frame["img_id"]].double().numpy()
        u = document["cx"] - document["focal_len"] * camera[:, 0] / camera[:, 2]
        v = document["cy"] + document["focal_len"] * camera[:, 1] / camera[:, 2]
        expected = project(found.vertices, found.viewmats[frame["img_id"]][None], K)[0]
        assert np.abs(np.column_stack([u, v]) - expected).max() <= 1e-3
        pose = np.linalg.inv(frame["transform_matrix"])
        np.testing.assert_allclose(pose[:3, :3], rotation, atol=1e-6)
        np.testing.assert_allclose(10 * pose[:3, 3], params["trans"][frame["img_id"]], atol=1e-5)


def test_missed_frames_keep_their_row(dataset: Path, tmp_path: Path, synthetic):
    clip, points, valid = given(dataset)
    missed = [0, 30, 31, 95]
    valid[missed] = False
    points[missed] = 0
    points[60, :, :2] = np.random.default_rng(1).normal(128, 25, (478, 2))
    folder = run(tmp_path / "me", dataset, clip, points, valid)
    params = torch.load(folder / "track_params.pt", weights_only=True)
    rejected_ids = [*missed[:3], 60, 95]
    assert np.flatnonzero(~params["valid"].numpy()).tolist() == rejected_ids
    viewmats = viewmats_from_pose(
        params["euler"].double().numpy(), params["trans"].double().numpy()
    )
    assert angles(viewmats, synthetic.truth.viewmats).max() < 3.0
    matrices = transform_matrices(
        params["euler"].double().numpy(), params["trans"].double().numpy()
    )
    kept = []
    for name in ("train", "val"):
        for frame in json.loads((folder / f"transforms_{name}.json").read_text())["frames"]:
            assert frame["img_id"] == frame["aud_id"]
            kept.append(frame["img_id"])
            expected = matrices[frame["img_id"]]
            np.testing.assert_allclose(frame["transform_matrix"], expected, atol=1e-6)
    assert kept == [i for i in range(clip.frames) if i not in rejected_ids]
    report = json.loads((folder / "track_report.json").read_text())
    reasons = {row["frame"]: row["reason"] for row in report["rejected"]}
    assert list(reasons) == rejected_ids
    assert reasons[60] == "the landmarks do not fit the head" and reasons[30] == "no face"


def test_any_number_of_threads_gives_the_same_bytes(dataset: Path, tmp_path: Path, monkeypatch):
    folders = []
    for threads in (1, 5):
        monkeypatch.setattr(parallel, "job_threads", lambda threads=threads: threads)
        folders.append(run(tmp_path / str(threads), dataset, *given(dataset)))
    for name in ("fit.npz", "track_params.pt", "transforms_train.json", "track_report.json"):
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second, name


def test_given_focal_length_is_kept(dataset: Path, tmp_path: Path):
    folder = run(tmp_path / "me", dataset, *given(dataset), focal_px=555.0)
    assert json.loads((folder / "transforms_val.json").read_text())["focal_len"] == 555.0


def test_too_few_faces_are_refused(dataset: Path, tmp_path: Path):
    clip, points, valid = given(dataset)
    valid[20:] = False
    with pytest.raises(
        UserError, match=r"^Only 20 of the 100 frames in .*ori_imgs .*25 such frames"
    ):
        run(tmp_path / "me", dataset, clip, points, valid)
    assert not (tmp_path / "me" / "track_params.pt").exists()


def test_a_missing_frame_is_named_alone(dataset: Path, tmp_path: Path):
    (tmp_path / "ori_imgs").mkdir()
    with pytest.raises(UserError, match=rf"^{tmp_path}/ori_imgs/0\.jpg"):
        run(tmp_path / "me", tmp_path, *given(dataset))


@pytest.mark.parametrize(
    "options",
    [
        {"focal_px": -5.0},
        {"focal_range": (6.0, 0.8)},
        {"keyframes": 0},
        {"distance": 0.0},
        {"distance_sigma": -1.0},
    ],
)
def test_impossible_options_are_refused(options: dict):
    with pytest.raises(UserError, match=f"^fit: {next(iter(options))}(:| must be)"):
        from_mapping(fit_stage.Config, options, "fit")


def test_small_faces_are_refused(dataset: Path, tmp_path: Path):
    clip, points, valid = given(dataset)
    with pytest.raises(UserError, match=r"64 pixels wide.*median face is \d\d pixels wide"):
        run(tmp_path / "me", dataset, clip, points / 3, valid)


def detected(
    folder: Path, images: Iterable[np.ndarray], source: Source
) -> tuple[Clip, Path, np.ndarray, np.ndarray]:
    """Return the inputs of `track` from the real detector."""
    from talker.media.mediapipe import track_meshes

    kept = list(images)
    for i, image in enumerate(kept):
        write_image(folder / f"{i}.jpg", image)
    meshes = list(track_meshes(kept))
    points = np.zeros((len(meshes), 478, 3), np.float32)
    valid = np.array([len(mesh) == 1 for mesh in meshes])
    points[valid] = [mesh[0] for mesh in meshes if len(mesh)]
    return Clip(len(meshes), source.height, source.width, source), folder, points, valid


def jitter(found: Track, truth: GroundTruth) -> float:
    """RMS over frames of the second difference of (tracked - true) projected head points, px."""
    stable = stable_points(truth.mesh.mean(axis=0))
    height, width = truth.masks.shape[1:]
    places = [
        project(mesh[stable], viewmats, intrinsics(focal, width, height))
        for mesh, viewmats, focal in (
            (found.mesh, found.viewmats, found.focal),
            (truth.mesh.mean(axis=0), truth.viewmats, truth.focal),
        )
    ]
    return rms(np.linalg.norm(np.diff(places[0] - places[1], 2, axis=0), axis=-1))


def test_head_does_not_shake(found: Track, dataset: Path, head: MorphableHead, synthetic):
    """Optical flow removes the jitter of the detector, and landmarks alone keep it."""
    alone = follow(dataset, head, flow_points=0.0)
    assert jitter(found, synthetic.truth) <= 0.1
    assert jitter(found, synthetic.truth) <= 0.4 * jitter(alone, synthetic.truth)
    assert found.motion["final"][1] <= 0.05 and found.motion["final"][5] <= 0.2
    assert found.motion["final"][1] < 0.3 * found.motion["landmarks"][1]


def test_detected_meshes_are_good_enough(synthetic, head: MorphableHead, tmp_path: Path):
    given = detected(tmp_path, synthetic.images, probe(synthetic.video))
    found = track(*given, head)
    assert found.valid.mean() > 0.95 and not found.cuts
    assert rms(angles(found.viewmats, synthetic.truth.viewmats)[found.valid]) <= 4.0
    assert np.nanmedian(found.residual) <= 1.5
    assert jitter(found, synthetic.truth) <= 0.35


def two_shots(dataset: Path, folder: Path, first: int) -> tuple[Clip, Path, np.ndarray, np.ndarray]:
    """A clip that is cut after `first` frames to a darker room where the head is elsewhere."""
    clip, points, valid = given(dataset)
    for i in range(clip.frames):
        image = read_image(dataset / "ori_imgs" / f"{i}.jpg")
        if i >= first:
            image = np.roll(image // 2, 20, axis=1)
        write_image(folder / f"{i}.jpg", image)
    points[first:, :, 0] += 20
    return clip, folder, points, valid


def test_cut_is_found_and_the_longest_shot_kept(dataset: Path, head: MorphableHead, tmp_path: Path):
    shots = two_shots(dataset, tmp_path, 35)
    found = track(*shots, head)
    assert found.cuts == [35]
    assert list(found.rejected) == list(range(35))
    assert set(found.rejected.values()) == {"another shot"}
    both = track(*shots, head, all_segments=True)
    assert both.cuts == [35] and both.valid.all()
    assert both.motion["final"][1] < 0.05
    shift = project(np.zeros((1, 3)), both.viewmats[34:36], np.diag([both.focal, 1, 1.0]))
    assert 15 < shift[1, 0, 0] - shift[0, 0, 0] < 25


def test_jump_cut_limits_shots_and_loses_nothing(
    dataset: Path, head: MorphableHead, tmp_path: Path
):
    """Ten frames are missing, and the head is a few pixels away when the take goes on."""
    clip, points, valid = given(dataset)
    kept = np.delete(np.arange(clip.frames), np.arange(40, 50))
    step = np.linalg.norm(points[50] - points[39], axis=-1).mean() / np.ptp(points[39, :, 0])
    assert 0.01 < step < 0.08
    for i, frame in enumerate(kept):
        (tmp_path / f"{i}.jpg").symlink_to(dataset / "ori_imgs" / f"{frame}.jpg")
    clip = dataclasses.replace(clip, frames=len(kept))
    found = track(clip, tmp_path, points[kept], valid[kept], head)
    assert found.cuts == [40]
    assert found.valid.all()


def test_exposure_step_is_no_cut(dataset: Path, head: MorphableHead, tmp_path: Path):
    clip, points, valid = given(dataset)
    for i in range(clip.frames):
        image = read_image(dataset / "ori_imgs" / f"{i}.jpg")
        write_image(tmp_path / f"{i}.jpg", (image * (0.8 if i >= 50 else 1.0)).astype(np.uint8))
    assert not track(clip, tmp_path, points, valid, head).cuts


def test_chin_below_the_border_is_kept_with_a_warning(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    clip, points, valid = given(dataset)
    shift = clip.height - int(points[..., 1].max()) + 6
    images = tmp_path / "ori_imgs"
    images.mkdir()
    for i in range(clip.frames):
        image = read_image(dataset / "ori_imgs" / f"{i}.jpg")
        write_image(
            images / f"{i}.jpg", np.pad(image, ((shift, 0), (0, 0), (0, 0)), "edge")[:-shift]
        )
    points[..., 1] += shift
    folder = run(tmp_path / "me", tmp_path, clip, points, valid)
    report = json.loads((folder / "track_report.json").read_text())
    assert report["valid"] == clip.frames and not report["rejected"]
    assert 10 < report["cut_by_border"] <= clip.frames
    assert "The image border cuts off a part of the face in" in caplog.text


def test_picture_that_stands_still_is_rejected(dataset: Path, head: MorphableHead, tmp_path: Path):
    clip, points, valid = given(dataset)
    for i in range(clip.frames):
        shown = 50 if 50 <= i < 80 else i
        (tmp_path / f"{i}.jpg").symlink_to(dataset / "ori_imgs" / f"{shown}.jpg")
    points[50:80] = points[50]
    found = track(clip, tmp_path, points, valid, head)
    assert list(found.rejected) == list(range(51, 80))
    assert set(found.rejected.values()) == {"the image is frozen"}


def test_useless_faces_are_rejected(dataset: Path, head: MorphableHead):
    clip, points, valid = given(dataset)
    points[10:14, :, 0] += clip.width / 2
    turned = points[20:24] - points[20:24].mean(axis=1, keepdims=True)
    turned = turned @ Rotation.from_euler("y", 65, degrees=True).as_matrix().T
    points[20:24] = turned + points[20:24].mean(axis=1, keepdims=True)
    found = track(clip, dataset / "ori_imgs", points, valid, head)
    assert set(found.rejected) == {*range(10, 14), *range(20, 24)}
    assert found.rejected[10] == "the face leaves the image"
    assert found.rejected[20] in {"the head is turned away", "the landmarks do not fit the head"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_rendered_people_do_not_shake(seed: int, head: MorphableHead, tmp_path: Path):
    """Acceptance: the real detector on 6 s of larger renders."""
    subject = SyntheticSubject.create(read_timings(DEMO / "timings.json"), 150, 384, seed)
    images, masks = map(np.stack, zip(*subject.render(), strict=True))
    source = dataclasses.replace(SOURCE, width=384, height=384)
    found = track(*detected(tmp_path, images, source), head)
    truth = subject.ground_truth(masks)
    assert rms(angles(found.viewmats, truth.viewmats)) <= 4.0
    assert jitter(found, truth) <= 0.35
    assert np.nanmedian(found.residual) <= 1.5
    assert found.motion["final"][1] <= 0.1 and found.motion["final"][5] <= 0.4


@pytest.mark.clips
@pytest.mark.parametrize("name", ["grid_3s.mpg", "office_5s.mp4"])
def test_real_faces_fit(clips: Path, head: MorphableHead, name: str, tmp_path: Path):
    source = probe(clips / name)
    clip, images, points, valid = detected(tmp_path, read_frames(clips / name, source), source)
    found = track(clip, images, points, valid, head)
    assert found.valid.mean() > 0.95 and not found.cuts
    face = np.median(np.ptp(points[valid][..., 0], axis=1))
    assert np.nanmedian(found.residual) <= 0.006 * face
    assert found.motion["final"][1] <= 0.1 and found.motion["final"][5] <= 0.4
    assert 1.0 <= found.focal / max(clip.width, clip.height) <= 5.0
    shapes = found.mesh + np.tensordot(found.expression, found.basis, 1)
    K = intrinsics(found.focal, clip.width, clip.height)
    off = np.linalg.norm(project(shapes, found.viewmats, K) - points[..., :2], axis=-1)
    assert np.median(off[found.valid]) <= 0.006 * face


def test_model_without_its_files_is_refused(dataset: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"head model 'bfm2009' needs .*`model_files` is not set"):
        run(tmp_path / "me", dataset, *given(dataset), model="bfm2009")


@pytest.mark.clips
def test_cut_between_people_who_look_alike_is_found(
    clips: Path, head: MorphableHead, tmp_path: Path
):
    """Both shots were cropped in the same way, so the face hardly moves at the cut."""
    source = probe(clips / "newsreader_20s.mp4")
    images = []
    for name, count in (("newsreader_20s.mp4", 30), ("presenter_45s.mp4", 50)):
        images += itertools.islice(read_frames(clips / name, probe(clips / name)), count)
    found = track(*detected(tmp_path, images, source), head)
    assert found.cuts == [30]
    assert np.flatnonzero(found.valid).tolist() == list(range(30, 80))


@pytest.fixture(scope="module")
def intermediate_files(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("intermediate") / "me", dataset, *given(dataset))


@pytest.mark.parametrize(
    ("name", "key", "change", "message"),
    [
        ("fit.npz", "viewmats", lambda a: a[1:], r"real numbers of shape \[100, 4, 4\]"),
        ("fit.npz", "viewmats", lambda a: 2 * a, "a pose in front of the camera"),
        ("fit.npz", "viewmats", lambda a: a * [[1], [1], [-1], [1]], "in front of the camera"),
        ("fit.npz", "focal", lambda a: 0 * a, "'focal' that are NaN or outside of 0.001"),
        ("fit.npz", "mesh", lambda a: a * np.nan, "'mesh' that are NaN"),
        ("fit.npz", "stable", lambda a: a[::-1].copy(), "four increasing indices"),
        ("fit.npz", "stable", lambda a: a.astype(float), "whole numbers of shape"),
        ("fit.npz", "faces", lambda a: a + 10**6, "'faces' that are NaN or outside of 0"),
        ("fit.npz", "model", None, "has no array 'model'"),
        ("fit.npz", "reasons", lambda a: a[:-1], r"text of shape \[100\]"),
        ("fit.npz", "cuts", lambda a: np.array([100]), "outside of 1 to 99"),
        ("shots.npz", "cuts", lambda a: np.array([9, 9]), "increasing frame numbers"),
        ("shots.npz", "reasons", lambda a: np.ones(100), r"text of shape \[100\]"),
    ],
)
def test_damaged_intermediate_files_are_refused(
    intermediate_files: Path, tmp_path: Path, name: str, key: str, change: Any, message: str
):
    shutil.copytree(intermediate_files, tmp_path / "me")
    file = tmp_path / "me" / name
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    value = arrays.pop(key)
    np.savez(file, **arrays, **({key: change(value)} if change else {}))
    read = read_fit if name == "fit.npz" else read_shots
    with pytest.raises(UserError, match=rf"^{file} .*{message}.* Run `talker \w+` again\.$"):
        read(file, 100)


def test_intermediate_files_keep_full_precision(intermediate_files: Path, tmp_path: Path):
    fitted = read_fit(intermediate_files / "fit.npz", 100)
    write_fit(tmp_path / "fit.npz", fitted)
    assert (tmp_path / "fit.npz").read_bytes() == (intermediate_files / "fit.npz").read_bytes()
    assert fitted.viewmats.dtype == fitted.expression.dtype == np.float64
    with pytest.raises(UserError, match=r"absent\.npz does not exist. Run `talker fit`"):
        read_fit(tmp_path / "absent.npz", 100)
