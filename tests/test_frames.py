"""Frames: every one of them, cut to a square that holds the head, or a refusal that says why."""

from fractions import Fraction

import numpy as np
import pytest
from flash import onsets, write_flashes, write_media

from talker import audio, frames
from talker.clip import Clip, Crop, Source
from talker.core import parallel
from talker.core.config import from_mapping
from talker.errors import UserError
from talker.frames import Config, choose_crop, crop_and_resize, detect_speaker, plan_clip
from talker.media.audio import read_wav
from talker.media.images import read_image
from talker.media.video_reader import probe
from talker.media.video_writer import video_writer

WHOLE = Config(crop=(0, 0, 64))  # looks for no face


def source(width: int = 640, height: int = 480, duration: float = 4.0) -> Source:
    return Source("me.mp4", width, height, 25.0, False, 0, duration, 0.0, 0.0, "h264")


def boxes(x: float, y: float, size: float, count: int = 20) -> np.ndarray:
    return np.tile(np.array([x, y, x + size, y + size], np.float32), (count, 1))


def contains(crop: Crop, box: np.ndarray) -> bool:
    return (
        crop.x <= box[0]
        and crop.y <= box[1]
        and box[2] <= crop.x + crop.size
        and box[3] <= crop.y + crop.size
    )


def test_a_portrait_is_kept_whole():
    assert choose_crop(boxes(120, 140, 260), 512, 512) is None
    assert choose_crop(boxes(180, 200, 160), 512, 512) is None


def test_a_square_video_with_a_small_face_is_cut():
    crop = choose_crop(boxes(100, 300, 100), 1080, 1080)
    assert crop == Crop(x=50, y=242, size=200)


@pytest.mark.parametrize("width, height", [(1920, 1080), (720, 1280), (360, 288), (101, 77)])
@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.1, 0.2), (0.95, 0.9)])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_the_crop_is_even_inside_and_holds_the_face(width, height, centre, share):
    size = share * min(width, height)
    x = np.clip(centre[0] * width - size / 2, 0, width - size)
    y = np.clip(centre[1] * height - size / 2, 0, height - size)
    box = boxes(x, y, size)
    crop = choose_crop(box, width, height)
    assert crop is not None
    assert crop.size % 2 == 0
    assert 0 <= crop.x <= width - crop.size
    assert 0 <= crop.y <= height - crop.size
    assert contains(crop, box[0] + [1, 1, -1, -1])
    assert crop.size > min(2 * size, width, height) - 3


def test_the_crop_leaves_room_for_the_head_s_whole_range():
    moving = np.concatenate([boxes(600, 400, 200), boxes(900, 400, 200)])
    crop = choose_crop(moving, 1920, 1080)
    assert crop is not None
    assert crop.size == 700
    assert contains(crop, np.array([600, 400, 1100, 600]))


def test_one_false_face_does_not_move_the_crop():
    clean, outlier = boxes(600, 400, 200, 99), boxes(20, 20, 30, 1)
    assert choose_crop(np.concatenate([clean, outlier]), 1920, 1080) == choose_crop(
        clean, 1920, 1080
    )


@pytest.mark.parametrize(
    ("width", "height", "crop", "size", "expected"),
    [
        (512, 512, None, 512, (512, 512)),
        (1024, 1024, None, 512, (512, 512)),
        (450, 450, None, 512, (450, 450)),
        (1920, 1080, Crop(0, 0, 1080), 512, (512, 512)),
        (360, 288, Crop(10, 10, 270), 512, (270, 270)),
        (640, 480, None, 320, (240, 320)),
    ],
)
def test_images_are_even_and_never_enlarged(width, height, crop, size, expected):
    clip = plan_clip(source(width, height), crop, size)
    assert (clip.height, clip.width) == expected
    assert clip.frames == 100
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    assert crop_and_resize(image, clip).shape == (*expected, 3)


def test_the_options_are_read_from_yaml():
    assert from_mapping(Config, {"crop": [1, 2, 30], "size": 256}, "x").crop == (1, 2, 30)
    with pytest.raises(UserError, match="crop"):
        from_mapping(Config, {"crop": [1, 2]}, "x")


def test_a_clip_with_a_late_picture_keeps_its_sound(tmp_path):
    times = [Fraction(1, 5) + Fraction(1001 * i, 30_000) for i in range(90)]
    video = write_flashes(tmp_path / "a.mkv", times, [20, 40, 70], Fraction(1, 10))
    clip, images, wav = (tmp_path / name for name in ("clip.json", "ori_imgs", "aud.wav"))
    frames.main(video=video, clip=clip, images=images, config=WHOLE)
    audio.main(source=video, clip=clip, wav=wav)
    about = Clip.load(clip)
    assert (about.frames, about.height, about.width) == (75, 64, 64)
    assert sorted(int(path.stem) for path in images.iterdir()) == list(range(75))
    seen = [read_image(images / f"{i}.jpg").mean() for i in range(75)]
    flashes = onsets(np.array(seen), 128, quiet=3) / 25
    beeps = onsets(read_wav(wav), 3000, quiet=1600) / 16_000
    assert len(flashes) == 3
    assert np.abs(flashes - beeps).max() <= 0.025


def test_any_number_of_threads_gives_the_same_bytes(tmp_path, monkeypatch):
    video = write_flashes(tmp_path / "a.mp4", [Fraction(i, 30) for i in range(90)], [20])
    for name, threads in (("a", 1), ("b", 5)):
        monkeypatch.setattr(parallel, "job_threads", lambda threads=threads: threads)
        folder = tmp_path / name
        frames.main(video=video, clip=folder / "clip.json", images=folder / "imgs", config=WHOLE)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("[!.]*.j*"))
    assert len(files) == 75 + 1
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def refuse(tmp_path, video, config=WHOLE):
    with pytest.raises(UserError) as error:
        frames.main(
            video=video, clip=tmp_path / "clip.json", images=tmp_path / "imgs", config=config
        )
    assert not (tmp_path / "clip.json").exists()
    assert not (tmp_path / "imgs").exists()
    return str(error.value)


def test_a_video_without_sound_is_refused(tmp_path):
    times = [Fraction(i, 25) for i in range(60)]
    video = write_media(tmp_path / "a.mp4", times, [np.zeros((64, 64, 3), np.uint8)] * 60)
    assert "a.mp4 has no audio track" in refuse(tmp_path, video)


def test_a_single_picture_is_refused(tmp_path):
    with video_writer(tmp_path / "a.mp4") as write:
        write(np.zeros((64, 64, 3), np.uint8))
    message = refuse(tmp_path, tmp_path / "a.mp4")
    assert "a.mp4 is a single image" in message


def test_a_short_video_is_refused(tmp_path):
    video = write_flashes(tmp_path / "a.mp4", [Fraction(i, 25) for i in range(40)], [20])
    assert "lasts 1.60 s. Use a video of at least 2 s" in refuse(tmp_path, video)


def test_a_crop_outside_the_picture_is_refused(tmp_path):
    video = write_flashes(tmp_path / "a.mp4", [Fraction(i, 25) for i in range(60)], [20])
    message = refuse(tmp_path, video, Config(crop=(10, 0, 60)))
    assert "The crop 10 0 60 (left, top, size) is not inside the frame of 64 x 64 pixels" in message


def test_a_video_without_a_face_is_refused(tmp_path):
    video = write_flashes(tmp_path / "a.mp4", [Fraction(i, 25) for i in range(60)], [20])
    assert "shows a face in only 0 of 6 examined frames" in refuse(tmp_path, video, Config())


def test_a_face_that_is_there_half_the_time_is_refused(tmp_path, synthetic):
    video = tmp_path / "a.mp4"
    with video_writer(video, synthetic.wav) as write:
        for i in range(100):
            write(synthetic.images[i] if i < 40 else np.zeros_like(synthetic.images[i]))
    assert "shows a face in only 4 of 10 examined frames" in refuse(tmp_path, video, Config())


def test_a_tiny_face_is_refused(tmp_path, synthetic):
    video = tmp_path / "a.mp4"
    with video_writer(video, synthetic.wav) as write:
        for image in synthetic.images[:60]:
            small = np.full((256, 256, 3), 90, np.uint8)
            small[100:164, 100:164] = image[::4, ::4]
            write(small)
    assert "must be at least 48 pixels wide" in refuse(tmp_path, video, Config())


def test_a_portrait_video_keeps_its_frames_and_size(tmp_path, synthetic):
    frames.main(video=synthetic.video, clip=tmp_path / "clip.json", images=tmp_path / "imgs")
    about = Clip.load(tmp_path / "clip.json")
    assert about.crop is None
    assert (about.frames, about.height, about.width) == synthetic.images.shape[:3]
    for i in range(0, about.frames, 9):
        image = read_image(tmp_path / "imgs" / f"{i}.jpg").astype(int)
        errors = [np.abs(image - other).mean() for other in synthetic.images[max(0, i - 2) : i + 3]]
        assert np.argmin(errors) == min(i, 2)
        assert min(errors) < 4


def test_the_face_is_found_in_a_wide_picture_beside_a_smaller_one(tmp_path, synthetic, caplog):
    video = tmp_path / "a.mp4"
    landmarks = synthetic.truth.landmarks68
    with video_writer(video, synthetic.wav, crf=16) as write:
        for image in synthetic.images[:60]:
            wide = np.full((360, 640, 3), 90, np.uint8)
            wide[60:316, 340:596] = image
            wide[100:228, 60:188] = image[::2, ::2]
            write(wide)
    found = detect_speaker(video, probe(video), every=10)
    crop = choose_crop(found, 640, 360)
    assert crop is not None
    assert "shows several faces" in caplog.text
    points = landmarks[:60].reshape(-1, 2) + np.array([340, 60])
    assert (points > [crop.x, crop.y]).all()
    assert (points < [crop.x + crop.size, crop.y + crop.size]).all()
    face_width = np.ptp(points[:, 0])
    assert 1.3 * face_width < crop.size < 3 * face_width


@pytest.mark.clips
def test_an_old_small_clip_is_cut_around_the_face(tmp_path, clips):
    video = clips / "grid_3s.mpg"
    frames.main(video=video, clip=tmp_path / "clip.json", images=tmp_path / "imgs")
    about = Clip.load(tmp_path / "clip.json")
    assert about.frames == len(list((tmp_path / "imgs").iterdir())) == 75
    assert about.crop is not None
    assert about.height == about.width == about.crop.size
    assert 250 <= about.crop.size <= 288


@pytest.mark.clips
@pytest.mark.parametrize("name", ["office_5s.mp4", "overlay_5s.mp4"])
def test_real_portraits_are_kept_whole(clips, name):
    about = probe(clips / name)
    assert choose_crop(detect_speaker(clips / name, about, every=25), 512, 512) is None
