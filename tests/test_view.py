"""The viewer renders what `talker render` renders, follows its controls, and speaks in time."""

import dataclasses
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import open_page
from fake_avatar import save_untrained_avatar
from scipy.spatial.transform import Rotation
from websockets.sync.client import connect

from talker.avatar.bundle import read_bundle, write_bundle
from talker.avatar.checkpoint import Origin, save_checkpoint
from talker.avatar.renderer import Drive, render_frames
from talker.clip import FPS
from talker.core.parallel import one_thread
from talker.dataset import Dataset
from talker.errors import UserError
from talker.tools.view import Config, Viewer
from talker.tools.view_scene import FREE_ON_PHONE, GRAY, Subject
from talker.tools.view_sound import Clock

SIZE = 64


@pytest.fixture(scope="module")
def data(mel_only: Path) -> Dataset:
    return Dataset.load(mel_only, SIZE, "mel")


@pytest.fixture(scope="module")
def folder(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("avatar")
    save_untrained_avatar(folder, data)
    return folder


@pytest.fixture(scope="module")
def file(data: Dataset, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "me.avatar"
    write_bundle(path, folder, data)
    return path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return min(free.getsockname()[1], 65534)


@pytest.fixture
def viewer(file: Path, tmp_path: Path) -> Iterator[Viewer]:
    own = shutil.copy(file, tmp_path / "me.avatar")
    viewer = Viewer(Path(own), None, Config(port=free_port()))
    with one_thread(), torch.inference_mode():
        yield viewer
    viewer.close()


def recording_camera(viewer: Viewer) -> SimpleNamespace:
    """The camera of a page that looks at the head as the recording camera did."""
    dataset = viewer.scene.subject.dataset
    viewmat = dataset.viewmats[viewer.scene.subject.path[0]].astype(float)
    return SimpleNamespace(
        wxyz=Rotation.from_matrix(viewmat[:3, :3].T).as_quat(scalar_first=True),
        position=-viewmat[:3, :3].T @ viewmat[:3, 3],
        fov=2 * np.arctan(dataset.height / 2 / dataset.K[1, 1]),
        image_width=800,
        image_height=800 * dataset.height // dataset.width,
    )


def shown(viewer: Viewer, seconds: float = 0.0) -> np.ndarray:
    camera, style = recording_camera(viewer), viewer.controls.style()
    return viewer.scene.image(camera, viewer.moment(seconds), style).astype(int)


def rendered(viewer: Viewer, transparent: bool) -> np.ndarray:
    """The picture of `talker render` at rest."""
    subject = viewer.scene.subject
    drive = Drive(
        background_frame_ids=subject.path[:1],
        windows=subject.rest[None],
        window_ids=np.zeros(1, int),
        eye=np.array([[0, np.median(subject.dataset.eye[:, 1])]], np.float32),
    )
    frames = render_frames(subject.avatar, subject.dataset, drive, 1, transparent=transparent)
    return next(frames).astype(int)


def test_the_recorded_view_is_the_rendered_frame(viewer: Viewer) -> None:
    viewer.controls.body.value = True
    assert np.abs(shown(viewer) - rendered(viewer, transparent=False)).max() <= 1


def test_the_camera_of_the_page_is_that_of_the_renderer(viewer: Viewer) -> None:
    """The head covers the same pixels; the torso is missing in front of the gray."""
    image = shown(viewer)
    subject = viewer.scene.subject
    moment = viewer.moment(0)
    expected = viewer.scene.render(
        moment,
        moment.viewmat,
        subject.dataset.K,
        np.full_like(image, GRAY, dtype=np.uint8),
        viewer.controls.style(),
    )
    assert np.abs(image - expected.astype(int)).max() <= 2
    assert (np.abs(image - GRAY) > 8).any(-1).mean() > 0.05


@pytest.mark.parametrize("body", [False, True])
def test_a_phone_shows_the_head_above_its_panel(viewer: Viewer, body: bool) -> None:
    phone = recording_camera(viewer)
    phone.image_width, phone.image_height = 390, 844
    phone.fov = 2 * np.arctan(np.tan(phone.fov / 2) / FREE_ON_PHONE)
    viewer.controls.body.value = body
    image = viewer.scene.image(phone, viewer.moment(0.0), viewer.controls.style()).astype(int)
    rows = np.flatnonzero((np.abs(image - GRAY) > 8).any((1, 2)))
    assert len(rows) > 5 and rows.max() < 0.45 * len(image)


@pytest.mark.parametrize("control", ["yaw", "blink", "brows", "mouth", "scale", "colors", "size"])
def test_each_control_changes_the_picture(viewer: Viewer, control: str) -> None:
    before = shown(viewer)
    controls = viewer.controls
    with torch.no_grad():  # an untrained network ignores its inputs
        viewer.scene.subject.avatar.heads.weight.mul_(100)
    before = shown(viewer)
    handle, value = {
        "yaw": (controls.pose[0], 20),
        "blink": (controls.eye, 1.0),
        "brows": (controls.brows, 1.0),
        "mouth": (controls.mouth[0], 3.0),
        "scale": (controls.scale, 0.3),
        "colors": (controls.colors, "speech"),
        "size": (controls.size, 96),
    }[control]
    viewer.changed.clear()
    handle.value = value
    assert viewer.changed.is_set()
    after = shown(viewer)
    assert after.shape != before.shape or np.abs(after - before).mean() > 0.02


def test_the_brows_of_the_recording_are_the_relaxed_ones(viewer: Viewer, monkeypatch) -> None:
    """At rest they have the median raise, and the slider covers the recorded range."""
    subject = viewer.scene.subject
    eye = subject.dataset.eye.copy()
    eye[:, 1] = np.linspace(0.1, 0.6, len(eye)) ** 2
    dataset = dataclasses.replace(subject.dataset, eye=eye)
    monkeypatch.setattr(viewer.scene, "subject", dataclasses.replace(subject, dataset=dataset))

    def brows(value: float) -> float:
        viewer.controls.brows.value = value
        return float(viewer.moment(0.0).eye[0, 1])

    expected = [0.01, (0.01 + 0.35**2) / 2, 0.35**2, (0.35**2 + 0.36) / 2, 0.36]
    assert [brows(value) for value in (-1, -0.5, 0, 0.5, 1)] == pytest.approx(expected, abs=1e-3)


def test_brows_that_cannot_move_have_no_slider(viewer: Viewer, folder: Path, data: Dataset) -> None:
    """It appears as soon as the file contains an avatar whose brows move."""
    still = dataclasses.replace(data, eye=data.eye * np.float32([1, 0]))
    assert viewer.controls.brows.visible
    for dataset in (still, data):
        write_bundle(viewer.scene.file, folder, dataset)
        viewer.look()
        assert viewer.controls.brows.visible == (dataset is data)


def test_the_head_turns_to_the_side_of_its_slider(viewer: Viewer) -> None:
    """Positive yaw moves the nose to the right of the picture, positive pitch moves it down."""
    nose = np.array([0, 0, 1.0])
    for handle, axis in zip(viewer.controls.pose[:2], (0, 1), strict=True):
        handle.value = 30
        moved = viewer.controls.turn().apply(nose)
        assert (moved[0] > 0.4) if axis == 0 else (moved[1] < -0.4)
        handle.value = 0


def test_it_reads_a_changed_avatar_again(viewer: Viewer, folder: Path, data: Dataset) -> None:
    before = shown(viewer)
    viewer.look()
    assert not viewer.changed.is_set()
    viewer.scene.file.write_bytes(b"half a file")
    viewer.look()
    assert np.array_equal(shown(viewer), before)
    write_bundle(viewer.scene.file, folder, data)
    read_bundle(viewer.scene.file)
    viewer.scene.subject.avatar.canonical["sh"].data.add_(1)
    viewer.look()
    assert viewer.changed.is_set()
    assert np.array_equal(shown(viewer), before)


def test_it_speaks_the_sound_that_the_page_sends(viewer: Viewer, synthetic) -> None:
    port = viewer.server.get_port() + 1
    with connect(f"ws://127.0.0.1:{port}", max_size=None) as page:
        page.send(b"no sound at all")
        page.recv(10)
        assert "The file cannot be read" in page.recv(10)
        page.send("no JSON")
        page.send('{"time": "late"}')
        page.send(synthetic.wav.read_bytes())
        assert page.recv(10) == "Extracting the speech features"
        sound = page.recv(30)
        assert sound[:4] == b"RIFF" and len(sound) == 44 + 2 * 640 * 100
        page.send('{"time": 2.0, "playing": false}')
        page.recv(10)
        wait_until(lambda: viewer.clock.time() == 2.0)
    assert viewer.sound.speech is not None and len(viewer.sound.speech.windows) == 100
    viewer.clock.set(2.0, False)
    path = viewer.scene.subject.path
    assert viewer.moment(2.0).frame == path[50 % len(path)]
    viewer.controls.motion.value = False
    assert viewer.moment(2.0).frame == path[0]
    with connect(f"ws://127.0.0.1:{port}", max_size=None) as second:
        assert second.recv(10) == sound


def test_the_clock_runs_while_the_player_plays() -> None:
    clock = Clock()
    clock.set(1.0, False)
    assert clock.time() == 1.0
    clock.set(1.0, True)
    time.sleep(0.05)
    assert 1.04 < clock.time() < 2


def test_a_frame_of_the_speech_is_drawn_once(viewer: Viewer, monkeypatch) -> None:
    """Drawing as fast as possible would keep a page too busy to answer."""
    drawn: list[float] = []
    monkeypatch.setattr(viewer, "draw", lambda: drawn.append(time.monotonic()))
    running = threading.Thread(target=viewer.run)
    viewer.clock.set(0.0, True)
    running.start()
    wait_until(lambda: len(drawn) > 10)
    viewer.closed = True
    running.join(5)
    assert len(drawn) <= FPS * (drawn[-1] - drawn[0]) + 3


def test_a_training_is_viewed_from_its_checkpoint(data: Dataset, folder: Path, tmp_path) -> None:
    subject = Subject.load(folder, data.folder)
    state = {
        "config": vars(subject.avatar.config),
        "avatar": subject.avatar.state_dict(),
    }
    path = tmp_path / "latest.pt"
    shutil.copy(folder / "speech.npz", tmp_path)
    save_checkpoint(path, state, Origin("", "", ""))
    found = Subject.load(path, data.folder)
    assert torch.equal(found.avatar.canonical["means"], subject.avatar.canonical["means"])
    with pytest.raises(UserError, match="--data"):
        Subject.load(path, None)
    path.write_bytes(b"half")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        Subject.load(path, data.folder)


@pytest.mark.browser
def test_the_page_in_a_browser(viewer: Viewer, synthetic) -> None:
    """Move a slider, let a file speak, and see the picture change; nothing leaves the machine."""
    running = threading.Thread(target=viewer.run)
    running.start()
    with open_page(f"http://127.0.0.1:{viewer.server.get_port()}", width=800, height=500) as page:
        canvas = page.locator("canvas").first
        page.get_by_text("Gaussians)").wait_for()
        page.wait_for_timeout(1000)
        before = canvas.screenshot()
        yaw = page.locator("div", has=page.get_by_text("Yaw", exact=True)).last.locator("..")
        yaw.locator("input[inputmode]").fill("30")
        wait_until(lambda: viewer.controls.pose[0].value == 30)
        wait_until(lambda: canvas.screenshot() != before)
        panel = page.frame_locator("iframe")
        panel.locator("input").set_input_files(synthetic.wav)
        panel.get_by_text("Press play").wait_for(timeout=30_000)
        panel.locator("audio").evaluate("audio => { audio.play(); }")
        wait_until(lambda: viewer.clock.playing and viewer.clock.time() > 0.5)
    viewer.close()
    running.join(10)
    assert not running.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
