"""Unusual inputs and situations that users reported to work, and that must keep working.

docs/reliability.md lists all of them, with those that other tests cover.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import DEMO, Synthetic
from fake_workflow import TALKER, WRITING_TALKER, Workflow
from flash import onsets, write_flashes, write_media
from scipy.signal import butter, resample_poly, sosfilt
from test_video import even_times, numbered, numbers_shown

from talker import audio, landmarks
from talker.clip import Clip, load_per_frame
from talker.data import layout
from talker.encoders import Choice, load_encoder
from talker.encoders.features import extract
from talker.encoders.loudness import slot_levels
from talker.frames import plan_clip
from talker.head.landmarks68 import landmarks68, outer_eye_distance, read_lms
from talker.measure.gate import STEADY_RANGE
from talker.media.audio import read_wav
from talker.media.images import write_image
from talker.media.video_reader import frame_count, probe, read_frames

# ---- videos -------------------------------------------------------------------------------------


def test_an_edit_list_hides_the_first_frames(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", even_times(Fraction(25), 50), numbered(50))
    content = bytearray(path.read_bytes())
    scale = int.from_bytes(content[(at := content.index(b"mdhd") + 16) : at + 4])
    place = content.index(b"elst") + 16
    start = int.from_bytes(content[place : place + 4]) + 10 * scale // 25
    content[place : place + 4] = start.to_bytes(4)
    path.write_bytes(content)
    assert numbers_shown(path).tolist() == list(range(10, 50))


@pytest.mark.slow
def test_ntsc_does_not_drift_within_three_minutes(tmp_path: Path) -> None:
    times = even_times(Fraction(30_000, 1001), 5400)
    flashes = [60, 2700, 5300]
    path = write_flashes(tmp_path / "a.mp4", times, flashes)
    clip = plan_clip(probe(path), None, 512)
    levels = np.array([frame.mean() for frame in read_frames(path, clip.source)])
    sound = audio.clip_sound(path, clip, audio.Config())
    seen = onsets(levels, 128, quiet=3) / 25
    heard = onsets(sound, 3000, quiet=1600) / 16_000
    assert np.abs(seen - heard).max() <= 0.025
    assert heard == pytest.approx([float(times[f]) for f in flashes], abs=0.002)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "sound"),
    [
        ("a.mkv", "libsvtav1", "yuv420p10le", "libopus"),
        ("a.mp4", "libx265", "yuv420p10le", "aac"),
        ("a.mov", "prores_ks", "yuv422p10le", "pcm_s16le"),
        ("a.mov", "libx264", "yuv422p10le", "aac"),
        ("a.ts", "libx264", "yuv420p", "aac"),
        ("a.webm", "libvpx-vp9", "yuv420p", "libopus"),
    ],
)
def test_common_codecs_and_containers_are_read(
    tmp_path: Path, name: str, codec: str, pixels: str, sound: str
) -> None:
    beep = 0.5 * np.sin(np.arange(2 * 44_100) / 10)[None]
    path = write_media(
        tmp_path / name,
        even_times(Fraction(25), 50),
        numbered(50),
        beep,
        codecs=(codec, sound),
        pixels=pixels,
    )
    assert numbers_shown(path).tolist() == list(range(50))
    clip = plan_clip(probe(path), None, 512)
    heard = audio.clip_sound(path, clip, audio.Config())
    assert len(heard) == clip.samples
    assert np.abs(heard).max() > 8000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such policies")
def test_an_encoder_of_the_tests_does_not_make_them_real_time(tmp_path: Path) -> None:
    """Tests that followed ran 40 times slower, because other threads of the process starved."""
    before = os.sched_getscheduler(0)
    write_media(
        tmp_path / "a.mkv",
        even_times(Fraction(25), 5),
        numbered(5),
        codecs=("libsvtav1", "aac"),
        pixels="yuv420p10le",
    )
    assert os.sched_getscheduler(0) == before


def test_4k_at_60_fps_is_read(tmp_path: Path) -> None:
    pictures = (np.repeat(np.repeat(p[:36], 60, 0), 60, 1) for p in numbered(12))
    path = write_media(tmp_path / "a.mp4", even_times(Fraction(60), 12), pictures)
    source = probe(path)
    assert (source.width, source.height, source.fps) == (3840, 2160, 60)
    assert [frame.shape for frame in read_frames(path, source)] == [(2160, 3840, 3)] * 5
    assert frame_count(source) == 5


# ---- sound --------------------------------------------------------------------------------------


def music(sound: np.ndarray) -> np.ndarray:
    """Add a slow sequence of chords at -12 dB."""
    clock = np.arange(len(sound)) / 16_000
    roots = np.array([220, 262, 196, 247])[(clock / 1.5).astype(int) % 4]
    chords = sum(np.sin(2 * np.pi * roots * ratio * clock) for ratio in (1, 1.25, 1.5))
    level = np.sqrt((sound**2).mean() / (chords**2).mean())
    return sound + 0.25 * level * chords


def telephone(sound: np.ndarray) -> np.ndarray:
    """Keep 300 to 3400 Hz at 8 kHz, in 8-bit samples of A-law's resolution."""
    narrow = sosfilt(butter(4, (300, 3400), "bandpass", fs=16_000, output="sos"), sound)
    low = resample_poly(narrow, 1, 2) / np.abs(sound).max()
    packed = np.sign(low) * np.round(127 * np.log1p(255 * np.abs(low)) / np.log(256)) / 127
    return resample_poly(np.sign(packed) * (256 ** np.abs(packed) - 1) / 255, 2, 1) * 20_000


SOUNDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "-40 dB": lambda sound: sound / 100,
    "clipped": lambda sound: sound * 5,
    "telephone": telephone,
    "music": music,
}


@pytest.mark.parametrize("name", [*SOUNDS, "reversed"])
def test_features_survive_bad_sound(name: str) -> None:
    """The features of changed speech resemble those of the speech, and those of reversed do not."""
    recorded = read_wav(DEMO / "speech.wav")[: 10 * 16_000]
    choice = Choice()
    encoder = load_encoder(choice)
    expected = np.concatenate(list(extract(encoder, recorded)))
    change = SOUNDS.get(name, lambda sound: sound[::-1])
    changed = np.clip(change(recorded.astype(float)), -32_768, 32_767).astype(np.int16)
    quiet, loud = np.percentile(slot_levels(changed), [5, 95])
    assert loud - quiet > STEADY_RANGE, "it counts as speech"
    found = np.concatenate(list(extract(encoder, changed)))
    middle = expected.mean(0)
    similarity = np.sum((found - middle) * (expected - middle)) / (
        np.linalg.norm(found - middle) * np.linalg.norm(expected - middle)
    )
    assert similarity > 0.6 if name in SOUNDS else similarity < 0.3


# ---- people -------------------------------------------------------------------------------------

Paint = Callable[[np.ndarray, np.ndarray], None]
"""Paints on an image (first argument), given its 68 landmarks."""
DARK = (40, 30, 30)


def glasses(image: np.ndarray, points: np.ndarray) -> None:
    centers = [points[36:42].mean(0).round().astype(int), points[42:48].mean(0).round().astype(int)]
    radius = int(np.linalg.norm(centers[1] - centers[0]) * 0.36)
    for center in centers:
        cv2.circle(image, center.tolist(), radius, DARK, 3, cv2.LINE_AA)
    left, right = ((centers[k] + (side * radius, 0)).tolist() for k, side in ((0, 1), (1, -1)))
    cv2.line(image, left, right, DARK, 3, cv2.LINE_AA)


def beard(image: np.ndarray, points: np.ndarray) -> None:
    outline = np.concatenate([points[2:15], points[[35, 33, 31]]]).round().astype(int)
    skin = image.copy()
    noise = np.random.default_rng(0).integers(20, 75, image.shape[:2], np.uint8)
    inside = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(inside, [outline], 1)
    image[inside == 1] = noise[inside == 1, None]
    lips = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(lips, [points[48:60].round().astype(int)], 1)
    image[lips == 1] = skin[lips == 1]


def hat(image: np.ndarray, points: np.ndarray) -> None:
    brow = int(points[17:27, 1].min()) - 12
    left, right = int(points[:17, 0].min()) - 14, int(points[:17, 0].max()) + 14
    cv2.rectangle(image, (left, 0), (right, brow), DARK, cv2.FILLED)


def scarf(image: np.ndarray, points: np.ndarray) -> None:
    (x, y), (width, height) = points.mean(0), np.ptp(points, axis=0)
    axes = int(0.72 * width), int(0.82 * height)
    cv2.ellipse(image, (int(x), int(y)), axes, 0, 0, 360, (60, 90, 140), int(0.2 * width))


@pytest.mark.parametrize("paint", [glasses, beard, hat, scarf])
def test_a_face_with_things_on_it_is_followed(
    synthetic: Synthetic, dataset: Path, tmp_path: Path, paint: Paint
) -> None:
    ids = range(0, 100, 20)
    (tmp_path / "ori_imgs").mkdir()
    truth = np.stack([read_lms(layout.FRAME_LANDMARKS.path(dataset, i)) for i in ids])
    for number, (i, points) in enumerate(zip(ids, truth, strict=True)):
        image = synthetic.images[i].copy()
        paint(image, points)
        write_image(tmp_path / f"ori_imgs/{number}.jpg", image)
    clip = dataclasses.replace(Clip.load(dataset / layout.CLIP), frames=len(ids))
    clip.save(tmp_path / layout.CLIP)
    landmarks.main(
        clip=tmp_path / layout.CLIP,
        images=tmp_path / "ori_imgs",
        landmarks=tmp_path / layout.LANDMARKS,
    )
    found = load_per_frame(tmp_path / layout.LANDMARKS, len(ids), "points")
    assert found["valid"].all()
    error = np.linalg.norm(landmarks68(found["points"]) - truth, axis=-1).mean(1)
    assert (error < 0.1 * outer_eye_distance(truth)).all()


# ---- projects -----------------------------------------------------------------------------------


def project(folder: Path, talker: str = TALKER) -> Workflow:
    folder.mkdir()
    return Workflow(folder, talker)


def test_a_video_may_be_a_symbolic_link(tmp_path: Path) -> None:
    workflow = project(tmp_path / "project")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/long name.mp4").write_bytes(b"video")
    (workflow.folder / "me.mp4").symlink_to(tmp_path / "elsewhere/long name.mp4")
    workflow.run("--config", "video=me.mp4")
    assert (workflow.folder / "results/me/report.html").exists()
    assert workflow.planned("--config", "video=me.mp4") == set()


def test_a_moved_project_with_a_difficult_name_is_complete(tmp_path: Path) -> None:
    workflow = project(tmp_path / "Café mein Projekt (1)")
    workflow.run()
    moved = workflow.folder.rename(tmp_path / "moved # über $HOME")
    workflow.folder = moved
    assert workflow.planned() == set()


def test_a_second_run_at_the_same_time_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    workflow = project(tmp_path / "project", WRITING_TALKER)
    environment = os.environ | workflow.environment
    runs = [
        subprocess.Popen(
            workflow.command(),
            cwd=workflow.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [run.communicate()[0] for run in runs]
    statuses = sorted(run.returncode for run in runs)
    assert statuses in ([0, 0], [0, 1]), outputs
    for run, output in zip(runs, outputs, strict=True):
        assert run.returncode == 0 or "--unlock" in output
        assert "Traceback" not in output
    assert workflow.planned() == set()


@pytest.mark.slow
def test_many_subjects_are_planned_in_seconds(tmp_path: Path) -> None:
    workflow = project(tmp_path / "project", TALKER)
    (workflow.folder / "me.mp4").write_bytes(b"video")
    rows = ["subject\tvideo", *(f"s{i}\tme.mp4" for i in range(200))]
    (workflow.folder / "config/subjects.tsv").write_text("\n".join(rows) + "\n")
    started = time.perf_counter()
    plan = workflow.run("-n")
    assert "train 200" in " ".join(plan.split())
    assert time.perf_counter() - started < 120, "6 s on an idle machine"
