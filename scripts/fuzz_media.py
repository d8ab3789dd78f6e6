"""Run `talker frames` and `talker audio` on many damaged media files, and count what happens.

`python scripts/fuzz_media.py --count 1000 --seed 0` makes small media files, mutates them and runs
both stages on each mutation, see `scripts/fuzzing.py`. The exit status is 1 if there is a fault.
"""

import os
import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import cast

import av
import cv2
import mediapipe.python.solutions.face_detection  # noqa: F401 - imported once, before the forks
import mutations
import numpy as np
from av.error import FFmpegError
from fuzzing import Case, Run, arguments, fuzz

from talker import audio, frames
from talker.clip import FPS, Clip, Source
from talker.media.audio import WavFile

WIDTH, HEIGHT, RATE = 80, 64, 44_100

Mutation = Callable[[random.Random, Path, Path], Path]
"""Makes a file in a folder (second) from a seed file (first), and returns its path."""


# ---- seeds ------------------------------------------------------------------------------------

SEEDS = {
    "a.mp4": ("libx264", "aac"),
    "b.mkv": ("libx264", "pcm_s16le"),
    "c.avi": ("mpeg4", "libmp3lame"),
    "d.ts": ("libx264", "aac"),
    "e.webm": ("libvpx", "libopus"),
    "f.mov": ("prores_ks", "pcm_s16le"),
    "g.mpg": ("mpeg2video", "mp2"),
    "h.flv": ("flv", "libmp3lame"),
    "i.wav": ("", "pcm_s16le"),
    "j.mp3": ("", "libmp3lame"),
    "k.flac": ("", "flac"),
    "l.ogg": ("", "libopus"),
    "m.m4a": ("", "aac"),
    "n.aiff": ("", "pcm_s16be"),
}
"""Small media files to mutate: codecs of video and audio."""

PIXEL_FORMATS = {"prores_ks": "yuv422p10le", "mjpeg": "yuvj420p"}


def write_media(
    path: Path,
    codecs: tuple[str, str],
    times: list[Fraction] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    layouts: tuple[str, ...] = ("stereo",),
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write 2.4 s of moving noise and tones; `times` are those of the frames in seconds."""
    random_values = np.random.default_rng(0)
    times = [Fraction(i, FPS) for i in range(60)] if times is None else times
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {"title": "a title"})
        if codecs[0]:
            video = cast(av.VideoStream, container.add_stream(codecs[0], rate=FPS))
            video.width, video.height = size
            video.pix_fmt = PIXEL_FORMATS.get(codecs[0], "yuv420p")
        rate = 48_000 if codecs[1] == "libopus" else RATE
        sounds = [
            cast(av.AudioStream, container.add_stream(codecs[1], rate=rate, layout=layout))
            for layout in layouts
            if codecs[1]
        ]
        for i, when in enumerate(times if codecs[0] else ()):
            noise = random_values.integers(0, 256, (max(1, size[1] // 8), max(1, size[0] // 8), 3))
            picture = cv2.resize(np.roll(noise, i, axis=1).astype(np.uint8), size)
            frame = av.VideoFrame.from_ndarray(np.asarray(picture, np.uint8), format="rgb24")
            frame.time_base = Fraction(1, FPS)
            frame.pts = round(when * FPS)
            container.mux(video.encode(frame))
        if codecs[0]:
            container.mux(video.encode())
        clock = np.arange(round(2.4 * rate)) / rate
        for sound in sounds:
            channels = np.stack(
                [0.4 * np.sin(1500 * (c + 1) * clock) for c in range(sound.channels)]
            )
            block = av.AudioFrame.from_ndarray(
                channels.astype(np.float32), format="fltp", layout=sound.layout.name
            )
            block.sample_rate, block.pts, block.time_base = rate, 0, Fraction(1, rate)
            container.mux(sound.encode(block))
            container.mux(sound.encode())
    return path


# ---- mutations --------------------------------------------------------------------------------

EXTREMES = [0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
BOXES = [
    *(b"tkhd", b"mvhd", b"mdhd", b"stts", b"stsz", b"stco", b"ctts", b"elst", b"stsd", b"stsc"),
    *(b"hdlr", b"avcC", b"esds", b"moov", b"trak", b"strh", b"strf", b"avih", b"fmt ", b"data"),
    *(b"idx1", b"\x2a\xd7\xb1", b"\x44\x89", b"\x15\x49\xa9\x66", b"\xb0", b"\xba", b"\xe0"),
]
"""Marks of headers in mp4, avi, wav and mkv near which numbers are overwritten."""
TEXTS = {
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{0}\n#EXT-X-ENDLIST\n",
    "live.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{0}\n",
    "self.m3u8": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nself.m3u8\n",
    "remote.m3u8": "#EXTM3U\n#EXTINF:2,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile '{0}'\n",
    "many.ffconcat": "ffconcat version 1.0\n" + "file '{0}'\n" * 1000,
    "passwd.ffconcat": "ffconcat version 1.0\nfile /etc/passwd\n",
    "a.sdp": "v=0\no=- 0 0 IN IP4 ::1\ns=x\nc=IN IP4 ::1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "a.mpd": '<?xml version="1.0"?><MPD><Period><BaseURL>{0}</BaseURL></Period></MPD>',
    "a.pls": "[playlist]\nFile1={0}\nNumberOfEntries=1\n",
    "a.html": "<html><body>no video</body></html>",
    "a.srt": "1\n00:00:00,000 --> 00:00:02,000\nno video\n",
    "a.svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{0}"/></svg>',
    "a.json": "[" * 5000,
}
CONTENTS = mutations.FOREIGN | {
    "id3": b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(500),
    "ogg": b"OggS" + bytes(300),
    "ebml": b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff" + bytes(100),
    "ftyp": b"\x00\x00\x00\x18ftypisom" + bytes(200),
}
"""Contents of other formats, and headers of media that describe more than they hold."""


def truncate(rng: random.Random, seed: Path, folder: Path) -> Path:
    return _save(folder, seed.name, mutations.truncate(rng, seed.read_bytes()))


def flip(rng: random.Random, seed: Path, folder: Path) -> Path:
    return _save(folder, seed.name, mutations.flip(rng, seed.read_bytes(), ends=(256, 2048)))


def overwrite(rng: random.Random, seed: Path, folder: Path) -> Path:
    return _save(folder, seed.name, mutations.overwrite(rng, seed.read_bytes()))


def splice(rng: random.Random, seed: Path, folder: Path) -> Path:
    content, other = seed.read_bytes(), rng.choice(sorted(seed.parent.iterdir())).read_bytes()
    a, b = sorted(rng.randrange(len(content)) for _ in range(2))
    variants = [content + other, content[:a] + content[b:], content[:b] + content[a:]]
    variants += [content[:a] + other + content[a:], other[: len(other) // 2] + content[a:]]
    return _save(folder, seed.name, rng.choice(variants))


def rename(rng: random.Random, seed: Path, folder: Path) -> Path:
    name = rng.choice(
        [*SEEDS, "a.jpg", "a.txt", "a.m3u8", "a", "%d.png", "a.yuv", "a.h264", "a.sw"]
    )
    return _save(folder, name, seed.read_bytes())


def header_numbers(rng: random.Random, seed: Path, folder: Path) -> Path:
    content = bytearray(seed.read_bytes())
    for _ in range(rng.choice([1, 1, 3])):
        places = [content.find(mark) for mark in BOXES if content.find(mark) >= 0]
        start = rng.choice(places or [0])
        at = min(start + rng.randrange(4, 64), len(content) - 8)
        value, order = rng.choice(EXTREMES), rng.choice("<>")
        width = rng.choice("HIQ")
        size = struct.calcsize(width)
        content[at : at + size] = struct.pack(order + width, value & (256**size - 1))
    return _save(folder, seed.name, content)


def wrong_kind(rng: random.Random, seed: Path, folder: Path) -> Path:
    name = rng.choice(sorted(SEEDS))
    if rng.random() < 0.3:
        return _save(folder, name, rng.randbytes(rng.choice([10, 1000, 100_000])))
    return _save(folder, name, rng.choice(list(CONTENTS.values())) + rng.randbytes(50))


def playlist(rng: random.Random, seed: Path, folder: Path) -> Path:
    name = rng.choice(sorted(TEXTS))
    target = rng.choice(
        [str(seed), "/etc/passwd", "http://127.0.0.1:9/a.mp4", "pipe:0", "x" * 9999]
    )
    suffix = rng.choice([Path(name).suffix, ".mp4", ".wav", ".ts"])
    return _save(folder, Path(name).stem + suffix, TEXTS[name].format(target).encode())


def special(rng: random.Random, seed: Path, folder: Path) -> Path:
    path = folder / seed.name
    kind = rng.choice(["fifo", "device", "folder", "missing", "loop", "null", "unreadable", "link"])
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "unreadable":
        path.touch(0o000)
    elif kind != "missing":
        targets = {"device": "/dev/zero", "null": "/dev/null", "loop": path, "link": seed}
        path.symlink_to(targets[kind])
    return path


def times(rng: random.Random, seed: Path, folder: Path) -> Path:
    steps = [1] * 59
    kind = rng.choice(["gap", "many gaps", "slow", "jitter", "burst", "late", "long"])
    if kind == "gap":
        steps[rng.randrange(59)] = rng.choice([50, 500, 5000, 10**6, 10**9])
    elif kind == "many gaps":
        steps = [rng.choice([1, 100, 1000]) for _ in steps]
    elif kind == "slow":
        steps = [rng.choice([25, 250, 2500])] * 59
    elif kind == "jitter":
        steps = [rng.randrange(1, 9) for _ in steps]
    elif kind == "long":
        steps[-1] = 10**7
    start = rng.choice([0, 100, 10**6]) if kind == "late" else 0
    ticks = np.cumsum([start, *steps])
    name = rng.choice(["a.mkv", "a.mp4", "a.mov", "a.ts"])
    return write_media(folder / name, ("libx264", "aac"), [Fraction(int(t), FPS) for t in ticks])


def sizes(rng: random.Random, seed: Path, folder: Path) -> Path:
    size = rng.choice(
        [(2, 2), (16, 16), (4096, 16), (16, 4096), (66, 34), (640, 360), (1920, 1088)]
    )
    codec = rng.choice(["mpeg4", "libx264", "mjpeg"])
    if rng.random() < 0.3:
        first = write_media(folder / "1.ts", ("libx264", "aac"), size=(96, 64)).read_bytes()
        size = rng.choice([(48, 32), (64, 96), (192, 128), (16, 16)])
        second = write_media(folder / "2.ts", ("libx264", "aac"), size=size).read_bytes()
        return _save(folder, "a.ts", first + second)
    count = 60 if size[0] * size[1] < 500_000 else 55
    return write_media(
        folder / "a.mkv", (codec, "aac"), [Fraction(i, FPS) for i in range(count)], size
    )


def tracks(rng: random.Random, seed: Path, folder: Path) -> Path:
    layouts = rng.choice([(), ("mono",), ("5.1",), ("4.0",), ("mono", "stereo"), ("mono",) * 20])
    codecs = rng.choice([("libx264", "aac"), ("", "aac"), ("libx264", "flac"), ("mjpeg", "aac")])
    if not layouts:
        codecs = "libx264", ""
    name = "a.mkv" if codecs[1] == "flac" else rng.choice(["a.mkv", "a.mov"])
    return write_media(folder / name, codecs, layouts=layouts)


def metadata(rng: random.Random, seed: Path, folder: Path) -> Path:
    mark = "Q" * rng.choice([4, 40, 4000])
    name = rng.choice(["a.mp4", "b.mkv", "j.mp3", "k.flac", "l.ogg", "f.mov"])
    path = write_media(
        folder / name, SEEDS[name], metadata={"title": mark, "artist": mark, "comment": mark}
    )
    garbage = rng.choice([b"\xff", b"\xc3", b"\x00", b"\xed\xa0\x80", b"\xe9"])
    noise = (garbage * len(mark))[: len(mark)]
    return _save(folder, name, path.read_bytes().replace(mark.encode(), noise))


def wav_header(rng: random.Random, seed: Path, folder: Path) -> Path:
    fields = {"tag": 1, "channels": 1, "rate": RATE, "bytes": 2 * RATE, "align": 2, "bits": 16}
    values = {
        "tag": [0, 3, 6, 17, 0xFFFE],
        "channels": [0, 2, 64, 65535],
        "rate": [0, 1, 100, 8000, 16_000, 192_000, 2**32 - 1],
        "bytes": [0, 32_000, 2**32 - 1],
        "align": [0, 1, 4, 65535],
        "bits": [0, 1, 7, 8, 24, 32, 64, 65535],
    }
    for name in rng.sample(sorted(values), rng.choice([0, 1, 2])):
        fields[name] = rng.choice(values[name])
    size = rng.choice([0, 1, 2, 999, 2**32 - 1])
    head = struct.pack(
        "<4sI4s4sI", rng.choice([b"RIFF"] * 6 + [b"RF64", b"RIFX"]), size, b"WAVE", b"fmt ", 16
    )
    body = struct.pack("<HHIIHH", *fields.values())
    return _save(
        folder, "a.wav", head + body + struct.pack("<4sI", b"data", size) + rng.randbytes(9000)
    )


MUTATIONS: dict[str, Mutation] = {
    "truncation": truncate,
    "flipped bits": flip,
    "overwritten part": overwrite,
    "spliced files": splice,
    "wrong suffix": rename,
    "header numbers": header_numbers,
    "wrong kind": wrong_kind,
    "playlist": playlist,
    "special file": special,
    "times": times,
    "sizes": sizes,
    "tracks": tracks,
    "metadata": metadata,
    "wav header": wav_header,
}
HEAVY = {"flipped bits": 4, "header numbers": 6, "overwritten part": 2, "spliced files": 2}
"""How many times more often than the others a kind of mutation is drawn."""


def _save(folder: Path, name: str, content: bytes | bytearray) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def cases(seeds: Path, count: int) -> Iterator[Case]:
    """Yield `count` cases, kinds in turn."""
    kinds = [kind for kind in MUTATIONS for _ in range(HEAVY.get(kind, 1))]
    files = sorted(seeds.iterdir())
    for number, kind in enumerate(islice(cycle(kinds), count)):
        yield Case(kind, number, files[number // len(kinds) % len(files)])


def prepare(case: Case, folder: Path, seed: int) -> tuple[Path, list[Run]]:
    """Make the mutation of a case in a folder; return it and the two stages that read it."""
    rng = random.Random(f"{seed} {case.number}")
    try:
        path = MUTATIONS[case.kind](rng, case.seed, folder)
    except FFmpegError:  # the muxer refuses these times or tracks: take what it has written
        path = next(folder.iterdir())
    crop = frames.Config(crop=(0, 0, 16)) if rng.random() < 0.8 else frames.Config()

    def run_frames(out: Path) -> None:
        clip, images = out / "clip.json", out / "images"
        frames.main(video=path, clip=clip, images=images, config=crop)
        about = Clip.load(clip)
        assert len(list(images.iterdir())) == about.frames

    def run_audio(out: Path) -> None:
        audio.main(source=path, wav=out / "a.wav")
        assert len(WavFile(out / "a.wav")) > 0
        source = Source("a", 64, 64, 25.0, False, 0, 2.4, 0.0, 0.0, "h264")
        samples = audio.clip_sound(path, Clip(60, 64, 64, source), audio.Config())
        assert len(samples) == 60 * 640

    return path, [Run("frames", run_frames), Run("audio", run_audio, leaves_nothing=False)]


def main() -> None:
    """Parse the arguments, run all cases and print the table and the faults."""
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as name:
        for file, codecs in SEEDS.items():
            write_media(Path(name) / file, codecs)
        chosen = islice(cases(Path(name), args.count), args.first, None)
        groups = {"mutation": lambda result: result.case.kind}
        fuzz(chosen, partial(prepare, seed=args.seed), groups, args)


if __name__ == "__main__":
    main()
