"""The page that plays an avatar: what it contains, and that a browser shows what `render` shows."""

import base64
import dataclasses
import gzip
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.numpy
import torch
from browser import open_page
from fake_avatar import untrained_avatar

from talker.avatar.bundle import read_bundle, write_bundle
from talker.avatar.compact import expand
from talker.avatar.gaussians import Gaussians, to_view
from talker.avatar.model import Avatar
from talker.avatar.rasterize import rasterize
from talker.avatar.renderer import Drive, render_frames
from talker.clip import SAMPLES_PER_FRAME
from talker.dataset import Dataset
from talker.encoders import Choice, load_encoder
from talker.encoders.features import extract_clip
from talker.media.audio import read_wav, write_wav
from talker.media.disclosure import SOURCE_TYPE
from talker.render import speech_drive
from talker.tools.api import TalkingAvatar
from talker.tools.player import ORBIT, Config, main, turned

SIZE, FRAMES = 96, 25
CONSENT = "</script><script>throw Error('consent')</script> given on paper"


@pytest.fixture(scope="module")
def data(mel_only: Path) -> Dataset:
    return Dataset.load(mel_only, SIZE, "mel")


@pytest.fixture(scope="module")
def avatar(data: Dataset) -> Avatar:
    """A head in many colors, that moves with speech, blinks and pose."""
    plain = untrained_avatar(data)
    gaussians = vars(plain.gaussians())
    random = torch.Generator().manual_seed(0)
    gaussians["sh"] = torch.randn(3000, 4, 3, generator=random) * torch.tensor(
        [0.8, 0.2, 0.2, 0.2]
    ).view(4, 1)
    gaussians["scales"] = gaussians["scales"] + 0.3 * torch.randn(3000, 3, generator=random)
    gaussians["quats"] = torch.randn(3000, 4, generator=random)
    gaussians["opacities"] = torch.full((3000,), 2.0)
    config = dataclasses.replace(plain.config, encoder="mel", sh_degree=1)
    torch.manual_seed(0)
    avatar = Avatar(
        config, Gaussians(**gaussians), plain.planes.bounds, torch.from_numpy(data.viewmats)
    )
    return avatar.eval()


@pytest.fixture(scope="module")
def speech(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("speech")
    np.save(folder / "hello.npy", data.speech[:FRAMES])
    sound = read_wav(data.folder / "aud.wav")[: FRAMES * SAMPLES_PER_FRAME]
    write_wav(folder / "hello.wav", sound)
    return folder / "hello.npy", folder / "hello.wav"


@pytest.fixture(scope="module")
def page(
    avatar: Avatar,
    data: Dataset,
    speech: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("player")
    avatar.save(folder / "avatar")
    (folder / "avatar" / "speech.npz").write_bytes(b"unused")
    write_bundle(folder / "me.avatar", folder / "avatar", data, consent=CONSENT)
    config = Config(components=6, crf=4, title="Hello <b>there</b>")
    main(
        avatar=folder / "me.avatar",
        speech=speech[0],
        wav=speech[1],
        page=folder / "hello.html",
        config=config,
    )
    return folder / "hello.html"


@pytest.fixture(scope="module")
def drive(data: Dataset) -> Drive:
    return speech_drive(data, data.speech[:FRAMES])


def embedded(page: Path, name: str) -> bytes:
    found = re.search(rf'id="{name}">([^<]*)<', page.read_text(encoding="utf-8"))
    assert found
    return base64.b64decode(found[1])


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    error = np.square(image.astype(float) - truth.astype(float)).mean()
    return float(10 * np.log10(255**2 / error))


def test_the_container_is_a_public_format_and_renders_as_the_avatar_does(
    page: Path, avatar: Avatar, data: Dataset, drive: Drive
) -> None:
    arrays = safetensors.numpy.load(gzip.decompress(embedded(page, "avatar")))
    assert arrays["weights"].shape == (FRAMES, 6)
    assert np.array_equal(arrays["views"], data.viewmats[drive.background_frame_ids])
    shapes = {name: arrays[name] for name in ("mean", "harmonics", "blendshapes", "steps")}
    assert arrays["mean"].shape[1] < 3000  # those that no view shows are left out
    truth = list(render_frames(avatar, data, drive, 1))
    for i in (0, 12, 24):
        view = torch.from_numpy(arrays["views"][i : i + 1])
        gaussians = expand(shapes, torch.from_numpy(arrays["weights"][i : i + 1]))
        splats = to_view(gaussians, gaussians.means[0], view)
        K = torch.from_numpy(data.K)[None]
        rgb, alpha, *_ = rasterize(splats, view, K, data.width, data.height)
        behind = torch.from_numpy(data.background(int(drive.background_frame_ids[i]))) / 255
        image = (rgb + (1 - alpha) * behind)[0].clamp(0, 1).mul(255).round().numpy()
        assert psnr(image, truth[i]) > 40


def test_the_container_is_also_written_as_a_file(
    page: Path, speech: tuple[Path, Path], tmp_path: Path
) -> None:
    file, bundle = tmp_path / "hello.safetensors", page.with_name("me.avatar")
    main(avatar=bundle, speech=speech[0], wav=speech[1], page=file, config=Config(components=6))
    arrays = safetensors.numpy.load_file(file)
    inside = safetensors.numpy.load(gzip.decompress(embedded(page, "avatar")))
    assert arrays.keys() == inside.keys()
    assert all(np.array_equal(arrays[name], inside[name]) for name in inside)


def test_the_page_is_complete_and_its_notes_are_only_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert f'<meta name="digital_source_type" content="{SOURCE_TYPE}">' in text
    content = gzip.decompress(embedded(page, "avatar"))
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    assert metadata["digital_source_type"] == SOURCE_TYPE and CONSENT in metadata["comment"]
    assert "throw Error('consent')</script>" not in text
    assert "Hello &lt;b&gt;there&lt;/b&gt;" in text
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)=|@import|url\(", markup)
    assert "default-src 'none'" in markup and "Synthetic" in markup
    assert embedded(page, "layers")[4:8] == b"ftyp"


@pytest.mark.browser
def test_the_browser_shows_what_render_shows(
    page: Path, avatar: Avatar, data: Dataset, drive: Drive, tmp_path: Path
) -> None:
    truth = list(render_frames(avatar, data, drive, 1))
    with open_page(page.as_uri(), width=390, height=844) as browser:
        browser.wait_for_function("player.then(p => p.frame === 0)")
        for i in (12, 24, 0):
            picture = browser.evaluate(
                """async (i) => {
                  const p = await player;
                  await p.seek(i);
                  for (let k = 0; p.frame !== i && k < 600; k++)
                    await new Promise(requestAnimationFrame);
                  p.pixelRatio = 1;
                  p.draw();
                  return p.stage.canvas.toDataURL("image/png");
                }""",
                i,
            )
            content = np.frombuffer(base64.b64decode(picture.partition(",")[2]), np.uint8)
            image = cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1]
            assert image.shape == (data.height, data.width, 3)
            assert psnr(image, truth[i]) > 33, i
            others = [psnr(image, truth[j]) for j in (0, 12, 24) if j != i]
            assert psnr(image, truth[i]) > max(others)
        assert "given on paper" in browser.inner_text("main")
        wide = browser.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390


@pytest.mark.browser
def test_the_controls_play_turn_and_seek(page: Path) -> None:
    with open_page(page.as_uri()) as browser:
        browser.wait_for_function("player.then(p => p.frame === 0)")

        def look() -> dict[str, float]:
            return browser.evaluate("player.then(p => p.look)")

        def picture() -> str:
            return browser.evaluate(
                "player.then(p => { p.draw(); return p.stage.canvas.toDataURL(); })"
            )

        straight = picture()
        browser.focus("#canvas")
        browser.keyboard.press("ArrowRight")
        assert look()["yaw"] == 5 and picture() != straight
        box = browser.locator("#canvas").bounding_box()
        assert box
        browser.mouse.move(box["x"] + 50, box["y"] + 50)
        browser.mouse.down()
        browser.mouse.move(box["x"] + 400, box["y"] + 50)
        browser.mouse.up()
        assert look()["yaw"] == ORBIT[0]  # the limit
        browser.get_by_role("button", name="Zoom in").click()
        assert look()["zoom"] > 1
        browser.get_by_role("button", name="Reset view").click()
        assert picture() == straight
        browser.get_by_role("slider", name="Position").fill("10")
        browser.wait_for_function("player.then(p => p.frame === 10)")
        for _ in range(100):  # a busy browser decodes the frame of the video later
            if picture() != straight:
                break
            browser.wait_for_timeout(100)
        assert picture() != straight, "the picture of frame 10 is that of frame 0"
        browser.get_by_role("button", name="Play").click()
        browser.wait_for_function("player.then(p => p.frame > 12 && !p.video.paused)")
        browser.wait_for_function("player.then(p => p.video.ended)")
        browser.get_by_role("button", name="Play").wait_for()


@pytest.mark.browser
def test_a_damaged_page_says_what_is_wrong(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(re.sub(r'id="layers">[^<]*<', 'id="layers">AAAA<', text), encoding="utf-8")
    with open_page(broken.as_uri()) as browser:
        browser.wait_for_selector("#message:not([hidden])")
        assert "H.264" in browser.inner_text("#message")
        assert browser.locator("#play").is_disabled()


def test_turned_views_keep_the_pivot() -> None:
    views = torch.eye(4).repeat(2, 1, 1)
    views[:, :3, 3] = torch.tensor([0.1, 0.2, 9.0])
    pivot = torch.tensor([0.3, -0.2, 10.0])
    moved = turned(views, pivot, 10, -8)
    point = torch.linalg.solve(views[0, :3, :3], pivot - views[0, :3, 3])
    assert torch.allclose(moved[0, :3, :3] @ point + moved[0, :3, 3], pivot, atol=1e-5)
    assert not torch.allclose(moved, views)


def test_the_python_interface_writes_the_page(
    data: Dataset, speech: tuple[Path, Path], page: Path, tmp_path: Path
) -> None:
    """It reads a sound directly; the consent is that of the file."""
    choice = Choice("mel")
    sound = read_wav(data.folder / "aud.wav")
    stats, _ = extract_clip(load_encoder(choice), choice, sound, 90, data.speech.shape[-1])
    avatar, _ = read_bundle(page.with_name("me.avatar"))
    me = TalkingAvatar(avatar, data, stats)
    mine = me.player(speech[1], tmp_path / "mine.html", Config(components=2))
    assert "Consent: &lt;/script&gt;" in mine.read_text(encoding="utf-8")
    assert (
        len(safetensors.numpy.load(gzip.decompress(embedded(mine, "avatar")))["weights"]) == FRAMES
    )
