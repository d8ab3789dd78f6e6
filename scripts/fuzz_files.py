"""Run stages on damaged files of a dataset folder and of an avatar, and count what happens.

`python scripts/fuzz_files.py --count 2000 --seed 0` makes a small subject and its avatar, mutates
one of their files at a time, and runs the gate and another stage that reads the file, see
`scripts/fuzzing.py`. The exit status is 1 if there is a fault.
"""

import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import mediapipe.python.solutions.selfie_segmentation  # noqa: F401 - imported before the forks
import mutations
import numpy as np
import onnx.numpy_helper  # noqa: F401 - imported before the forks
import torch
import torch._dynamo  # noqa: F401 - imported before the forks
from fuzzing import Case, Run, arguments, fuzz, run_limited
from safetensors.numpy import load_file, save_file

from talker import (
    audio,
    background,
    blink,
    check,
    evaluate,
    fit,
    landmarks,
    layers,
    lipsync,
    overlay,
    parsing,
    render,
    report,
    shots,
    speech,
    track,
    train,
    verify,
)
from talker.__main__ import _read_options
from talker.avatar.density import DensityConfig
from talker.avatar.gaussians import load_ply
from talker.avatar.options import Config as TrainConfig
from talker.clip import SAMPLES_PER_FRAME
from talker.data import layout
from talker.dataset import Dataset
from talker.media.audio import read_wav
from talker.synthetic.acting import read_timings
from talker.synthetic.dataset import write_dataset
from talker.synthetic.subject import SyntheticSubject
from talker.tools import adopt, bundle, export, pack

DEMO = Path(__file__).parents[1] / "demo"
FRAMES, SIZE = 60, 192
TINY = TrainConfig(
    image_size=48,
    gaussians=300,
    sh_degree=0,
    plane_resolutions=(8,),
    plane_channels=4,
    features=8,
    heads=2,
    hidden=8,
    canonical_steps=2,
    canonical_batch=1,
    deformation_steps=2,
    deformation_batch=1,
    density=DensityConfig(),
    device="cpu",
    checkpoint_seconds=0,
)
"""Training that takes less than a second."""
FORCED = check.Config(force=True)


# ---- the subject --------------------------------------------------------------------------------


def make_subject(folder: Path, first: int = 0) -> None:
    """Write a dataset folder `me`, an avatar and everything else that stages read to `folder`.

    Args:
        folder: existing folder.
        first: first frame of the demo's speech and acting, for a subject with other content.
    """
    me = folder / "me"
    subject = SyntheticSubject.create(read_timings(DEMO / "timings.json"), first + FRAMES, SIZE)
    images, masks = (np.stack(part) for part in zip(*subject.render(), strict=True))
    bodies = list(subject.render(body_only=True))
    sound = read_wav(DEMO / "speech.wav")[: (first + FRAMES) * SAMPLES_PER_FRAME]
    write_dataset(me, subject.ground_truth(masks), images, bodies, sound)
    layers.main(
        **_given(folder, "clip", "images", "masks", "plate"),
        truth=me / "gt_imgs",
        torso=me / "torso_imgs",
    )
    run_track(me, folder)
    speech.main(
        wav=me / "aud.wav",
        statistics=me / "aud_hama.npz",
        features=me / "aud_hama.npy",
        clip=me / "clip.json",
    )
    _gate(me)
    train.main(me, folder / "avatar", folder / "checkpoints", TINY)
    render.main(avatar=folder / "avatar", data=me, video=folder / "val.mp4", split="val")
    evaluate.main(data=me, avatar=folder / "avatar", metrics=folder / "metrics.json")
    pack.main(data=me, pack=folder / "me.zip")
    bundle.main(avatar=folder / "avatar", data=me, file=folder / "me.avatar")
    (folder / "options.yaml").write_text("train:\n  gaussians: 300\n", encoding="utf-8")
    (folder / "pose.csv").write_text("\n".join(["frame", *map(str, range(FRAMES))]) + "\n", "utf-8")
    np.savez(folder / "expression.npz", e0=np.linspace(-1, 1, FRAMES), e1=np.zeros(FRAMES))


def run_shots(me: Path, at: Path) -> None:
    """Run `talker shots` into the folder `at`."""
    shots.main(
        clip=me / "clip.json",
        images=me / "ori_imgs",
        landmarks=me / "landmarks.npz",
        shots=at / "shots.npz",
    )


def run_fit(me: Path, at: Path) -> None:
    """Run `talker fit` into the folder `at`."""
    fit.main(
        clip=me / "clip.json",
        landmarks=me / "landmarks.npz",
        shots=me / "shots.npz",
        fit=at / "fit.npz",
    )


def run_track(me: Path, out: Path) -> None:
    """Run `talker track` into `me`, or to `out` if that is another folder than the parent of it."""
    at = me if out == me.parent else out
    if at == me:
        run_shots(me, me)
        run_fit(me, me)
    track.main(
        clip=me / "clip.json",
        images=me / "ori_imgs",
        landmarks=me / "landmarks.npz",
        fit=me / "fit.npz",
        params=at / "track_params.pt",
        train=at / "transforms_train.json",
        val=at / "transforms_val.json",
        report=at / "track_report.json",
    )


# ---- stages -------------------------------------------------------------------------------------

Stage = Callable[[Path, Path], object]
"""Runs a stage on a subject (first folder); its outputs go to the second folder."""


def _given(s: Path, *names: str) -> dict[str, Any]:
    files = {
        "clip": layout.CLIP,
        "images": layout.FRAMES.folder,
        "landmarks": layout.LANDMARKS,
        "masks": layout.MASKS.folder,
        "plate": layout.PLATE,
        "wav": layout.SOUND,
    }
    return {name: s / "me" / files[name] for name in names}


def _load(s: Path, o: Path) -> None:
    """Read everything that training reads."""
    data = Dataset.load(s / "me", TINY.image_size)
    data.images(np.append(data.train_ids, data.val_ids))
    _ = data.cuts


def _speech(s: Path, o: Path) -> None:
    speech.main(
        wav=s / "me" / layout.SOUND,
        statistics=s / "me" / "aud_hama.npz",
        features=o / "new.npy",
    )


def _new_speech(s: Path, o: Path) -> None:
    render.main(
        avatar=s / "avatar",
        data=s / "me",
        video=o / "new.mp4",
        speech=s / "me" / "aud_hama.npy",
        wav=s / "me" / layout.SOUND,
    )


def _report(s: Path, o: Path) -> None:
    report.main(
        data=s / "me",
        avatar=s / "avatar",
        html=o / "report.html",
        metrics=s / "metrics.json",
        video=s / "val.mp4",
    )


def _gate(me: Path) -> None:
    """Run the three stages of the gate, each of which reads what the one before it wrote."""
    verify.main(data=me, verified=me / "verified.json")
    lipsync.main(data=me, lipsync=me / "lipsync.json")
    check.main(data=me, quality=me / "quality.json", config=FORCED)


def _linked(folder: Path, copy: Path) -> Path:
    """Return a copy of a folder in which a stage may replace files that others still have to read.

    Its files are hard links.
    """
    return shutil.copytree(folder, copy, symlinks=True, copy_function=os.link)


def _continue(s: Path, o: Path) -> None:
    """Train from a checkpoint, which is read only if nothing else has changed."""
    shutil.copytree(s / "checkpoints", o / ".checkpoints", symlinks=True)
    train.main(s / "me", o / "avatar", o / ".checkpoints", TINY)


def _landmarks(s: Path, o: Path) -> None:
    images = shutil.copytree(s / "me" / "ori_imgs", o / f".images{os.getpid()}", symlinks=True)
    landmarks.main(clip=s / "me/clip.json", images=images, landmarks=o / "landmarks.npz")


STAGES: dict[str, Stage] = {
    "gate": lambda s, o: _gate(_linked(s / "me", o / ".me")),
    "verify": lambda s, o: verify.main(data=s / "me", verified=o / "verified.json"),
    "lipsync": lambda s, o: lipsync.main(data=s / "me", lipsync=o / "lipsync.json"),
    "check": lambda s, o: check.main(data=s / "me", quality=o / "q.json", config=FORCED),
    "audio": lambda s, o: audio.main(
        source=s / "me/aud.wav",
        wav=o / "a.wav",
        clip=s / "me/clip.json",
        train=o / "t.wav",
        novel=o / "n.wav",
    ),
    "speech": _speech,
    "landmarks": _landmarks,
    "parsing": lambda s, o: parsing.main(
        **_given(s, "clip", "images", "landmarks"), masks=o / "parsing"
    ),
    "blink": lambda s, o: blink.main(**_given(s, "clip", "landmarks"), au=o / "au.csv"),
    "shots": lambda s, o: run_shots(s / "me", o),
    "fit": lambda s, o: run_fit(s / "me", o),
    "track": lambda s, o: run_track(s / "me", o),
    "overlay": lambda s, o: overlay.main(
        **_given(s, "clip", "images", "landmarks"),
        params=s / "me/track_params.pt",
        video=o / "overlay.mp4",
    ),
    "background": lambda s, o: background.main(
        **_given(s, "clip", "images", "masks"), plate=o / "bc.jpg"
    ),
    "layers": lambda s, o: layers.main(
        **_given(s, "clip", "images", "masks", "plate"), truth=o / "gt", torso=o / "torso"
    ),
    "load": _load,
    "train": lambda s, o: train.main(s / "me", o / "avatar", o / ".checkpoints", TINY),
    "continue": _continue,
    "render": lambda s, o: render.main(
        avatar=s / "avatar", data=s / "me", video=o / "v.mp4", split="val"
    ),
    "render speech": _new_speech,
    "render tracks": lambda s, o: render.main(
        avatar=s / "avatar",
        data=s / "me",
        video=o / "v.mp4",
        split="val",
        pose=s / "pose.csv",
        blink=s / "me/au.csv",
        brows=s / "me/au.csv",
        expression=s / "expression.npz",
    ),
    "render bundle": lambda s, o: render.main(
        avatar=s / "me.avatar",
        video=o / "v.mp4",
        speech=s / "me/aud_hama.npy",
        wav=s / "me/aud.wav",
    ),
    "load pack": lambda s, o: train.main(s / "me.zip", o / "avatar", o / ".checkpoints", TINY),
    "evaluate": lambda s, o: evaluate.main(
        data=s / "me", avatar=s / "avatar", metrics=o / "metrics.json"
    ),
    "report": _report,
    "pack": lambda s, o: pack.main(data=s / "me", pack=o / "me.zip"),
    "bundle": lambda s, o: bundle.main(avatar=s / "avatar", data=s / "me", file=o / "me.avatar"),
    "adopt": lambda s, o: adopt.main(data=s / "me", clip=o / "clip.json"),
    "export": lambda s, o: export.main(data=s / "me", method="ernerf", out=o / "exported"),
    "options": lambda s, o: _read_options(s / "options.yaml", "train", TrainConfig),
    "ply": lambda s, o: load_ply(s / "avatar/point_cloud.ply"),
}
"""Stages by name. They run in this process, on a copy of the subject."""


@dataclass(frozen=True)
class Target:
    """A file to mutate, its format, and the stages that read it."""

    file: str
    form: str
    stages: tuple[str, ...]


EVERY_FRAME = ("load", "train", "render", "pack", "report", "adopt", "export")
TARGETS = [
    Target("me/clip.json", "json", ("audio", "parsing", "blink", "track", "background", "layers")),
    Target(
        "me/ori_imgs/0.jpg", "image", ("landmarks", "parsing", "track", "background", *EVERY_FRAME)
    ),
    Target("me/ori_imgs/7.jpg", "image", ("landmarks", "track", "layers", *EVERY_FRAME)),
    Target("me/ori_imgs/7.lms", "text", EVERY_FRAME),
    Target("me/parsing/7.png", "image", ("background", "layers", *EVERY_FRAME)),
    Target("me/torso_imgs/7.png", "image", ("bundle", *EVERY_FRAME)),
    Target("me/torso_imgs/57.png", "image", ("render", "evaluate", "bundle", "pack")),
    Target("me/gt_imgs/7.jpg", "image", ("evaluate", "report", "adopt", "export")),
    Target("me/bc.jpg", "image", ("layers", "load", "render", "pack", "bundle", "adopt")),
    Target("me/shots.npz", "npz", ("fit",)),
    Target("me/fit.npz", "npz", ("track",)),
    Target("me/landmarks.npz", "npz", ("parsing", "blink", "shots", "fit", "track", "overlay")),
    Target("me/au.csv", "text", ("load", "train", "render tracks", "adopt", "export")),
    Target(
        "me/track_params.pt",
        "pt",
        ("load", "train", "render", "evaluate", "adopt", "export", "overlay"),
    ),
    Target("me/transforms_train.json", "json", ("load", "train", "adopt", "export")),
    Target("me/transforms_val.json", "json", ("load", "render", "evaluate")),
    Target("me/track_report.json", "json", ("load", "train", "evaluate", "report")),
    Target("me/verified.json", "json", ("lipsync", "check")),
    Target("me/lipsync.json", "json", ("check",)),
    Target("me/quality.json", "json", ("report",)),
    Target("me/aud.wav", "wav", ("audio", "speech", "render speech", "report", "adopt")),
    Target("me/aud_train.wav", "wav", ("adopt",)),
    Target("me/aud_hama.npy", "npy", ("load", "train", "render", "render speech", "export")),
    Target("me/aud_hama.npz", "npz", ("load", "speech", "train", "render speech")),
    Target("me.zip", "zip", ("load pack",)),
    Target("me.avatar", "zip", ("render bundle",)),
    Target("avatar/config.json", "json", ("render", "evaluate", "bundle", "report")),
    Target("avatar/weights.safetensors", "safetensors", ("render", "evaluate", "bundle")),
    Target("avatar/blendshapes.npz", "npz", ("render", "evaluate", "bundle", "report")),
    Target("avatar/point_cloud.ply", "ply", ("ply", "bundle", "report")),
    Target("avatar/speech.npz", "npz", ("bundle", "evaluate", "report", "render")),
    Target("avatar/log.jsonl", "text", ("report",)),
    Target("metrics.json", "json", ("report",)),
    Target("val.mp4", "bytes", ("report",)),
    Target("checkpoints/latest.pt", "pt", ("continue",)),
    Target("options.yaml", "yaml", ("options",)),
    Target("pose.csv", "text", ("render tracks",)),
    Target("expression.npz", "npz", ("render tracks",)),
]


# ---- mutations of bytes -------------------------------------------------------------------------

CONTENTS = mutations.FOREIGN | {
    "numpy": b"\x93NUMPY\x01\x00",
    "numpy 9": b"\x93NUMPY\x09\x00" + bytes(99),
    "deep": b"[" * 100_000,
    "deep yaml": b"{a: " * 20_000,
    "yaml bomb": b"a: &a [x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: [*c,*c,*c]\n",
    "null": b"null",
    "utf-16": "text, text\n1, 2\n".encode("utf-16"),
    "utf-8": b"\xff\xfe\xfa",
    "lines": b"\n" * 10_000,
    "long line": b"1" * 1_000_000,
    "nul": bytes(1000),
    "gif": b"GIF89a\xff\xff\xff\xff\xf7\0\0" + bytes(300),
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 30000, 30000, 1, 24, *[0] * 6),
    "tiff": b"II*\0\x08\0\0\0" + bytes(100),
    "pnm": b"P6 30000 30000 255\n" + bytes(100),
    "hdr": b"#?RADIANCE\n\n-Y 30000 +X 30000\n" + bytes(100),
    "exr": b"\x76\x2f\x31\x01\x02\0\0\0" + bytes(100),
}
"""Contents of other formats, and of formats that describe far more than they hold."""


def truncate(rng: random.Random, path: Path, subject: Path) -> None:
    _save(path, mutations.truncate(rng, path.read_bytes()))


def flip(rng: random.Random, path: Path, subject: Path) -> None:
    _save(path, mutations.flip(rng, path.read_bytes(), ends=(64, 512)))


def overwrite(rng: random.Random, path: Path, subject: Path) -> None:
    _save(path, mutations.overwrite(rng, path.read_bytes()))


def splice(rng: random.Random, path: Path, subject: Path) -> None:
    content = path.read_bytes()
    a, b = sorted(rng.randrange(len(content)) for _ in range(2))
    variants = [content + content, content[:a] + content[b:], content[:b] + content[a:]]
    _save(path, rng.choice([*variants, content[:a] + rng.randbytes(9) + content[a:]]))


def wrong_kind(rng: random.Random, path: Path, subject: Path) -> None:
    if rng.random() < 0.3:
        other = rng.choice([target.file for target in TARGETS])
        _save(path, (subject / other).read_bytes())
    else:
        _save(path, rng.choice(list(CONTENTS.values())))


def special(rng: random.Random, path: Path, subject: Path) -> None:
    path.unlink()
    kind = rng.choice(["fifo", "device", "folder", "missing", "loop", "null", "dangling"])
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        targets = {"device": "/dev/zero", "null": "/dev/null", "loop": path, "dangling": "/nowhere"}
        path.symlink_to(targets[kind])


def _save(path: Path, content: bytes | bytearray) -> None:
    path.unlink(missing_ok=True)  # the subject's files are hard links
    path.write_bytes(content)


# ---- mutations of values, shapes, types, sizes and names ----------------------------------------

NUMBERS = [
    *(float("nan"), float("inf"), -float("inf"), 1e308, 1e30, -1e30, 1e9, -1, 0, 0.5, 3),
    *(10**6, 10**7, 2**31, 2**63, -(2**63), 10**30),
]
VALUES = [*NUMBERS, None, True, "", "text", [], {}, [[]], "../../etc/passwd", "a\0b", "\ud800"]
VALUES += ["x" * 100_000, "<script>alert(1)</script>", "/dev/zero", "file:///etc/passwd"]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return all (container, key) pairs of nested lists and dictionaries."""
    pairs = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree))
    places = [(tree, key) for key, _ in pairs]
    for _, child in pairs:
        if isinstance(child, dict | list):
            places += _places(child)
    return places


def _edit_json(change: Callable[[random.Random, Any, Any], None]) -> Callable[..., None]:
    def mutate(rng: random.Random, path: Path, subject: Path) -> None:
        tree = json.loads(path.read_text(encoding="utf-8"))
        top = [(tree, key) for key in tree]
        places = _places(tree)
        container, key = rng.choice(top if rng.random() < 0.5 else places)
        change(rng, container, key)
        _save(path, json.dumps(tree).encode("utf-8", "surrogatepass"))

    return mutate


def _json_value(rng: random.Random, container: Any, key: Any) -> None:
    container[key] = rng.choice(VALUES)


def _json_shape(rng: random.Random, container: Any, key: Any) -> None:
    value = container[key]
    if isinstance(value, list) and value and rng.random() < 0.7:
        rows = [value[:-1], [*value, value[-1]], value[::-1], value * 2, value[:1]]
        container[key] = rng.choice(rows)
    else:
        del container[key]


def _json_type(rng: random.Random, container: Any, key: Any) -> None:
    value = container[key]
    container[key] = rng.choice([[value], {"a": value}, str(value), bool(value), None])


def _json_size(rng: random.Random, container: Any, key: Any) -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    container[key] = rng.choice([10**6, 10**7, 499_999, -(10**6), deep, [0] * 100_000, 32_768])


def _json_name(rng: random.Random, container: Any, key: Any) -> None:
    text = rng.choice([v for v in VALUES if isinstance(v, str)])
    if isinstance(container, dict):
        container[text] = container[key] if rng.random() < 0.5 else container.pop(key)
    else:
        container[key] = text


Arrays = dict[str, np.ndarray]


def _array_value(rng: random.Random, array: np.ndarray) -> np.ndarray:
    array = array.copy()
    if array.dtype.kind not in "fiu" or not array.size:
        return np.asarray(rng.choice(["", "text", "x" * 9999]))
    kind = rng.choice(["one", "row", "all"])
    value = rng.choice(NUMBERS)
    with np.errstate(all="ignore"):
        filling = np.asarray(value, float).astype(array.dtype)
    if kind == "all" or array.ndim == 0:
        array[...] = filling
    elif kind == "row":
        array[rng.randrange(len(array))] = filling
    else:
        array.reshape(-1)[rng.randrange(array.size)] = filling
    return array


def _array_shape(rng: random.Random, array: np.ndarray) -> np.ndarray:
    rows = array[None] if array.ndim == 0 else array
    shapes = [rows[:-1], np.concatenate([rows, rows[-1:]]), rows[:0], rows[None], rows[..., None]]
    shapes += [rows.reshape(-1), rows[..., :-1], np.repeat(rows, 2, axis=-1), np.asarray(1.0)]
    return rng.choice(shapes)


def _array_type(rng: random.Random, array: np.ndarray) -> np.ndarray:
    types = ["f2", ">f4", "f8", "i1", "i8", "u1", "?", "c8", "U3", "S3", "f4"]
    try:
        with np.errstate(all="ignore"):
            return array.astype(rng.choice(types))
    except ValueError:  # text
        return np.zeros(3, np.float32)


def _array_size(rng: random.Random, array: np.ndarray) -> np.ndarray:
    huge = [(30_000_000,), (len(np.atleast_1d(array)), 200_000), (50_000, 16, 32), (1, 0), (0,)]
    return np.zeros(rng.choice(huge), rng.choice(["f4", "u1"]))


def _edit_arrays(change: Callable[[random.Random, np.ndarray], np.ndarray]) -> Callable[..., None]:
    def mutate(rng: random.Random, path: Path, subject: Path) -> None:
        if path.suffix == ".npy":
            content = io.BytesIO()
            np.save(content, change(rng, np.load(path)))
            return _save(path, content.getvalue())
        with np.load(path) as archive:
            arrays = dict(archive)
        name = rng.choice(sorted(arrays))
        if rng.random() < 0.1:
            del arrays[name]
        else:
            arrays[name] = change(rng, arrays[name])
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        return _save(path, content.getvalue())

    return mutate


def _array_header(rng: random.Random, path: Path, subject: Path) -> None:
    """Write an array whose header claims anything, or a pickle."""
    headers = [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (0, 10000000000000)}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<U99999999', 'fortran_order': False, 'shape': (1,)}",
        "[" * 2000,
        "__import__('os').getcwd()",
    ]
    text = rng.choice(headers).ljust(118) + "\n"
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(4)
    if path.suffix == ".npy":
        return _save(path, body)
    content = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(content, "w") as archive:
        chosen = rng.choice(source.namelist())
        for name in source.namelist():
            archive.writestr(name, body if name == chosen else source.read(name))
    return _save(path, content.getvalue())


def _edit_tensors(change: Callable[[random.Random, Any], Any]) -> Callable[..., None]:
    """Edit an entry of a file of torch.save, or of a dictionary inside it."""

    def mutate(rng: random.Random, path: Path, subject: Path) -> None:
        fields = torch.load(path, weights_only=True)
        places = [
            (container, key)
            for container, key in _places(fields)
            if isinstance(container, dict) or isinstance(container[key], torch.Tensor)
        ]
        container, key = rng.choice(places)
        if rng.random() < 0.1 and isinstance(container, dict):
            del container[key]
        else:
            container[key] = change(rng, container[key])
        content = io.BytesIO()
        torch.save(fields, content)
        _save(path, content.getvalue())

    return mutate


def _on_tensors(
    change: Callable[[random.Random, np.ndarray], np.ndarray],
) -> Callable[[random.Random, Any], Any]:
    def apply(rng: random.Random, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype == torch.bfloat16:
            return rng.choice(VALUES[:20])
        changed = change(rng, value.numpy())
        kind = changed.dtype.newbyteorder("=")
        return torch.from_numpy(changed.astype(kind).copy()) if kind.kind in "biufc" else "text"

    return apply


def _tensor_type(rng: random.Random, value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return rng.choice(VALUES[:20])
    floats = value.float()
    return rng.choice(
        [
            value.bfloat16(),
            value.half(),
            value.double(),
            value.bool(),
            value.to("meta"),
            floats.to_sparse(),
            floats.requires_grad_(),
            torch.quantize_per_tensor(floats, 0.1, 0, torch.qint8),
            torch.nn.Parameter(floats),
            value.tolist(),
            value.to(torch.complex64),
            floats[:1].expand(10**6, *floats.shape[1:]) if floats.ndim else floats,
        ]
    )


def _edit_safetensors(
    change: Callable[[random.Random, np.ndarray], np.ndarray],
) -> Callable[..., None]:
    def mutate(rng: random.Random, path: Path, subject: Path) -> None:
        arrays = load_file(path)
        name = rng.choice(sorted(arrays))
        changed = change(rng, arrays.pop(name))
        if rng.random() < 0.9 and changed.dtype.kind in "biuf":
            arrays[name] = np.ascontiguousarray(changed.astype(changed.dtype.newbyteorder("=")))
        path.unlink()
        save_file(arrays, path)

    return mutate


def _safetensors_header(rng: random.Random, path: Path, subject: Path) -> None:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name = rng.choice([key for key in header if key != "__metadata__"])
    key = rng.choice(["dtype", "shape", "data_offsets"])
    values = {
        "dtype": ["F64", "BF16", "I8", "BOOL", "F8_E4M3", "X", 3],
        "shape": [[10**13], [-1], [], [0], ["a"], [2**40, 2**40]],
        "data_offsets": [[0, 10**13], [10, 0], [0], [-4, 4], "a"],
    }
    header[name][key] = rng.choice(values[key])
    text = json.dumps(header).encode()
    claimed = rng.choice([len(text), len(text), len(text), 2**63, 2**30])
    _save(path, claimed.to_bytes(8, "little") + text + content[8 + size :])


def _edit_cells(choices: list[str]) -> Callable[..., None]:
    """Replace a word of a text file (csv, landmarks, log)."""

    def mutate(rng: random.Random, path: Path, subject: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        row = rng.randrange(len(lines))
        words = lines[row].split(" ")
        words[rng.randrange(len(words))] = rng.choice(choices)
        lines[row] = " ".join(words)
        _save(path, ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))

    return mutate


def _text_shape(rng: random.Random, path: Path, subject: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    at = rng.randrange(len(lines))
    variants = [lines[:-1], [*lines, lines[-1]], lines[:at] + lines[at + 1 :], lines[:1], lines[1:]]
    variants += [
        lines * 2,
        [line + ",1" for line in lines],
        [line.replace(" ", "") for line in lines],
    ]
    _save(path, ("\n".join(rng.choice(variants)) + "\n").encode())


def _image(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def _encode(path: Path, pixels: np.ndarray, suffix: str | None = None) -> None:
    _save(path, cv2.imencode(suffix or path.suffix, pixels)[1].tobytes())


def _image_value(rng: random.Random, path: Path, subject: Path) -> None:
    pixels = _image(path)
    kind = rng.choice(["pixel", "half", "noise", "one color"])
    if kind == "pixel":
        pixels[rng.randrange(len(pixels)), 0] ^= 0x55
    elif kind == "half":
        pixels[len(pixels) // 2 :] = 128
    elif kind == "noise":
        pixels = np.random.default_rng(rng.randrange(99)).integers(0, 256, pixels.shape, np.uint8)
    else:
        pixels[:] = rng.choice([0, 128, 255])
    _encode(path, pixels)


def _image_shape(rng: random.Random, path: Path, subject: Path) -> None:
    pixels = _image(path)
    variants = [pixels[:-1], pixels[:, :-2], np.repeat(pixels, 2, axis=0), pixels[:1, :1]]
    variants += [pixels[..., 0], cv2.resize(pixels, None, fx=2, fy=2)]
    variants += [np.dstack([pixels[..., :3], pixels[..., 0]]), np.rot90(pixels[:-8])]
    _encode(path, np.ascontiguousarray(rng.choice(variants)), rng.choice([".png", None]))


def _image_type(rng: random.Random, path: Path, subject: Path) -> None:
    pixels = _image(path)[..., :3]
    wide = pixels.astype(np.uint16) * 257
    kinds = [(wide, ".png"), (pixels, ".bmp"), (pixels, ".webp"), (pixels, ".tiff")]
    kinds += [((pixels / np.float32(255)), ".tiff"), (pixels, ".ppm"), (pixels, ".jp2")]
    _encode(path, *rng.choice(kinds))


def _image_size(rng: random.Random, path: Path, subject: Path) -> None:
    """Write a real decompression bomb, or a header that claims a large image."""
    width, height = rng.choice([(30_000, 30_000), (100_000, 9_000), (2**31 - 1, 1), (65_535, 2)])
    channels, color = rng.choice([(3, 2), (4, 6), (1, 0)])
    if rng.random() < 0.3 and path.suffix == ".jpg":
        content = bytearray(path.read_bytes())
        at = content.find(b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
        return _save(path, content)
    bomb = bytearray(b"\x89PNG\r\n\x1a\n")
    rows = min(height, 30_000)
    packed = zlib.compressobj(1)
    row = bytes(1 + min(width, 100_000) * channels)
    data = b"".join(packed.compress(row) for _ in range(rows // 10)) + packed.flush()
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)),
        (b"IDAT", data),
        (b"IEND", b""),
    ):
        check_sum = zlib.crc32(kind + body)
        bomb += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check_sum)
    return _save(path, bomb)


def _wav_header(rng: random.Random, path: Path, subject: Path) -> None:
    content = bytearray(path.read_bytes())
    fields = [(20, "<H"), (22, "<H"), (24, "<I"), (28, "<I"), (32, "<H"), (34, "<H"), (40, "<I")]
    for at, kind in rng.sample(fields, rng.choice([1, 1, 2])):
        limit = 256 ** struct.calcsize(kind) - 1
        value = rng.choice([0, 1, 2, 3, 8, 24, 32, 8000, 44_100, limit, limit // 2])
        content[at : at + struct.calcsize(kind)] = struct.pack(kind, value & limit)
    _save(path, content)


def _write_wav(path: Path, samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> None:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((channels, samples.dtype.itemsize, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    _save(path, content.getvalue())


def _wav_shape(rng: random.Random, path: Path, subject: Path) -> None:
    sound = read_wav(path)
    parts = [sound[:-1], np.append(sound, sound[-1]), sound[:0], sound[:640], np.tile(sound, 50)]
    _write_wav(path, rng.choice([*parts, sound[: len(sound) // 2]]))


def _wav_type(rng: random.Random, path: Path, subject: Path) -> None:
    sound = read_wav(path)
    kinds: list[Any] = [(sound.astype(np.int32), 16_000, 1), (sound, 8000, 1), (sound, 16_000, 2)]
    kinds += [(sound, 1, 1), (sound.astype(np.uint8), 16_000, 1)]
    _write_wav(path, *rng.choice(kinds))


def _wav_value(rng: random.Random, path: Path, subject: Path) -> None:
    sound = read_wav(path)
    _write_wav(path, rng.choice([sound * 0, sound * 0 + 32_767, sound // 4000]))


def _zip_members(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _write_zip(
    path: Path, members: list[tuple[str, bytes]], kind: int = zipfile.ZIP_STORED
) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", kind) as archive:
        for name, data in members:
            archive.writestr(name, data)
    _save(path, content.getvalue())


def _zip_shape(rng: random.Random, path: Path, subject: Path) -> None:
    members = _zip_members(path)
    at = rng.randrange(len(members))
    variants = [
        members[:at] + members[at + 1 :],
        members[:at],
        members[at:],
        [*members, members[at]],
    ]
    _write_zip(path, rng.choice(variants))


def _zip_value(rng: random.Random, path: Path, subject: Path) -> None:
    """Mutate a member as a file of its own."""
    members = _zip_members(path)
    at = rng.choice([i for i, (name, _) in enumerate(members) if "imgs" not in name])
    name, data = members[at]
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder) / Path(name).name
        inner.write_bytes(data)
        forms = {".json": "json", ".npz": "npz", ".npy": "npy", ".pt": "pt", ".csv": "text"}
        forms |= {".safetensors": "safetensors", ".png": "image", ".wav": "wav", ".jpg": "image"}
        form = forms.get(inner.suffix, "bytes")
        kinds = [kind for kind, by_form in MUTATIONS.items() if form in by_form]
        kind = rng.choice([kind for kind in kinds if kind != "foreign content"])
        MUTATIONS[kind][form](rng, inner, subject)
        if inner.is_file():
            members[at] = name, inner.read_bytes()
        else:
            del members[at]
    _write_zip(path, members)


def _zip_size(rng: random.Random, path: Path, subject: Path) -> None:
    members = _zip_members(path)
    at = rng.randrange(len(members))
    members[at] = members[at][0], bytes(rng.choice([10**8, 10**7, 0]))
    _write_zip(path, members, zipfile.ZIP_DEFLATED)


def _zip_type(rng: random.Random, path: Path, subject: Path) -> None:
    """Set a field of the headers of a member: encryption, method, sizes, offsets."""
    content = bytearray(path.read_bytes())
    places = [i for i in range(len(content) - 46) if content[i : i + 4] == b"PK\x01\x02"]
    for at in rng.sample(places, min(len(places), rng.choice([1, 9]))):
        offset, kind = rng.choice(
            [(8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (42, "<I")]
        )
        limit = 256 ** struct.calcsize(kind) - 1
        value = rng.choice([1, 8, 12, 14, 99, limit, limit // 2])
        content[at + offset : at + offset + struct.calcsize(kind)] = struct.pack(kind, value)
    _save(path, content)


def _zip_name(rng: random.Random, path: Path, subject: Path) -> None:
    members = _zip_members(path)
    at = rng.randrange(len(members))
    names = ["../../etc/passwd", "/etc/passwd", "a\0b", "ori_imgs/../x", " ", "x" * 60_000, "a/"]
    members[at] = rng.choice(names), members[at][1]
    _write_zip(path, members)


def _ply_header(rng: random.Random, path: Path, subject: Path) -> None:
    content = path.read_bytes()
    changes = [(b"vertex ", b"vertex 9"), (b"vertex ", b"vertex -"), (b"float x", b"double x")]
    changes += [(b"little", b"big"), (b"end_header\n", b""), (b"ply\n", b"ply\r\n")]
    _save(path, content.replace(*rng.choice(changes), 1))


def _yaml_value(rng: random.Random, path: Path, subject: Path) -> None:
    texts = ["train:\n  gaussians: {}\n", "train: {}\n", "{}", "train:\n  {}: 3\n"]
    texts += ["options:\n  train: {}\n", "train:\n  rates:\n    means: {}\n"]
    values = [
        *map(str, NUMBERS),
        "text",
        "[]",
        "!!python/object/apply:os.getcwd []",
        "*a",
        "\t",
        "",
    ]
    _save(path, rng.choice(texts).format(rng.choice(values)).encode())


# ---- content of somewhere else ------------------------------------------------------------------


def foreign(rng: random.Random, path: Path, subject: Path) -> None:
    """Replace a file by the same file of another frame or of another subject."""
    other = subject.parent.parent / "other" / path.relative_to(subject)
    if path.suffix in (".jpg", ".png", ".lms") and path.stem.isdigit() and rng.random() < 0.5:
        frame = (int(path.stem) + rng.choice([11, 17, 23, 29])) % FRAMES
        other = path.with_name(f"{frame}{path.suffix}")
    _save(path, other.read_bytes())


# ---- cases --------------------------------------------------------------------------------------

Mutation = Callable[[random.Random, Path, Path], None]
"""Mutates a file (second) of a subject (third) in place."""
FORMS = sorted({target.form for target in TARGETS})
CELLS = ["nan", "inf", "1e30", "-1", "", "x", "1,2", '"', "0x1", "1_0", "\0", "\u0661", "9" * 5000]


def _by_form(**by_form: Mutation) -> dict[str, Mutation]:
    return by_form


MUTATIONS: dict[str, dict[str, Mutation]] = {
    "truncation": dict.fromkeys(FORMS, truncate),
    "flipped bits": dict.fromkeys(FORMS, flip),
    "overwritten part": dict.fromkeys(FORMS, overwrite),
    "spliced parts": dict.fromkeys(FORMS, splice),
    "wrong kind": dict.fromkeys(FORMS, wrong_kind),
    "special file": dict.fromkeys(FORMS, special),
    "values": _by_form(
        json=_edit_json(_json_value),
        npy=_edit_arrays(_array_value),
        npz=_edit_arrays(_array_value),
        pt=_edit_tensors(_on_tensors(_array_value)),
        safetensors=_edit_safetensors(_array_value),
        text=_edit_cells(CELLS),
        image=_image_value,
        wav=_wav_value,
        zip=_zip_value,
        yaml=_yaml_value,
    ),
    "shapes": _by_form(
        json=_edit_json(_json_shape),
        npy=_edit_arrays(_array_shape),
        npz=_edit_arrays(_array_shape),
        pt=_edit_tensors(_on_tensors(_array_shape)),
        safetensors=_edit_safetensors(_array_shape),
        text=_text_shape,
        image=_image_shape,
        wav=_wav_shape,
        zip=_zip_shape,
        ply=_ply_header,
    ),
    "types": _by_form(
        json=_edit_json(_json_type),
        npy=_edit_arrays(_array_type),
        npz=_edit_arrays(_array_type),
        pt=_edit_tensors(_tensor_type),
        safetensors=_edit_safetensors(_array_type),
        image=_image_type,
        wav=_wav_type,
        zip=_zip_type,
    ),
    "sizes": _by_form(
        json=_edit_json(_json_size),
        npy=_edit_arrays(_array_size),
        npz=_edit_arrays(_array_size),
        pt=_edit_tensors(_on_tensors(_array_size)),
        safetensors=_edit_safetensors(_array_size),
        image=_image_size,
        zip=_zip_size,
    ),
    "headers": _by_form(
        npy=_array_header,
        npz=_array_header,
        safetensors=_safetensors_header,
        wav=_wav_header,
        ply=_ply_header,
    ),
    "names": _by_form(json=_edit_json(_json_name), zip=_zip_name),
    "foreign content": dict.fromkeys(("json", "image", "text", "npz", "npy", "pt", "wav"), foreign),
}
"""Kinds of mutations, with a function for each format that they apply to."""


def cases(seeds: Path, count: int) -> Iterator[Case]:
    """Yield `count` cases: files in turn, and for each file the kinds of mutations in turn."""
    kinds = {
        target.file: cycle([kind for kind, forms in MUTATIONS.items() if target.form in forms])
        for target in TARGETS
    }
    for number, target in enumerate(islice(cycle(TARGETS), count)):
        yield Case(next(kinds[target.file]), number, seeds / "me" / target.file)


def prepare(case: Case, folder: Path, seed: int, seeds: Path) -> tuple[Path, list[Run]]:
    """Mutate a file of a copy of the subject; return it and the stages to run."""
    rng = random.Random(f"{seed} {case.number}")
    name = case.seed.relative_to(seeds / "me").as_posix()
    target = next(target for target in TARGETS if target.file == name)
    subject = folder / "me"
    (folder.parent / "other").symlink_to(seeds / "other")
    shutil.copytree(seeds / "me", subject, copy_function=os.link)
    path = subject / name
    MUTATIONS[case.kind][target.form](rng, path, subject)
    stages = [rng.choice(target.stages)]
    if name.startswith("me/"):
        stages.insert(0, "gate")
    must_refuse = (
        case.kind == "foreign content"
        and name not in SILENT
        and not _means_the_same(path, case.seed)
    )
    runs = [
        Run(
            stage,
            partial(STAGES[stage], subject),
            must_refuse=must_refuse and stage == "gate",
        )
        for stage in stages
    ]
    return path, runs


def _means_the_same(path: Path, original: Path) -> bool:
    """Return whether a file is equal to the original, or a mask of a head at the same place."""
    if path.read_bytes() == original.read_bytes():
        return True
    if path.parent.name != layout.MASKS.folder:
        return False
    return bool((_image(path) != _image(original)).any(-1).mean() < SAME_MASK)


SAME_MASK = 0.01
"""Fraction of the pixels of a mask that may differ if the head is at the same place."""
SILENT = {
    "me/shots.npz": "only `fit` reads it; `talker check` uses `track_params.pt` instead",
    "me/fit.npz": "only `track` reads it; `talker check` uses `track_params.pt` instead",
    "me/verified.json": "an output of `verify` itself",
    "me/lipsync.json": "an output of `lipsync` itself",
    "me/quality.json": "an output of `check` itself",
}
"""Files whose content the gate does not compare with that of other files, with the reason."""


def make_seeds(seeds: Path) -> None:
    """Make the subject and another one, in processes of their own: threads must not be forked."""
    for name, first in (("me", 0), ("other", 25)):
        (seeds / name).mkdir()
        code = "import sys, pathlib, fuzz_files as f; f.make_subject(pathlib.Path(sys.argv[1]), {})"
        command = [sys.executable, "-c", code.format(first), str(seeds / name)]
        subprocess.run(command, cwd=Path(__file__).parent, check=True)


def require_undamaged_files_to_work(seeds: Path) -> None:
    """Exit if a stage refuses the subject as it is: mutations of its files would show nothing."""
    for number, (stage, work) in enumerate(STAGES.items()):
        out = seeds / f"undamaged{number}"
        out.mkdir()
        run = Run(stage, partial(work, seeds / "me"))
        result = run_limited(Case("none", 0, seeds), run, out)
        if result.outcome != "accepted":
            sys.exit(f"{stage} without a mutation: {result.outcome}\n{result.detail}")


def main() -> None:
    """Parse the arguments, run all cases and print the tables and the faults."""
    args = arguments(__doc__)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as name:
        seeds = Path(name)
        make_seeds(seeds)
        require_undamaged_files_to_work(seeds)
        chosen = islice(cases(seeds, args.count), args.first, None)
        work = partial(prepare, seed=args.seed, seeds=seeds)
        groups = {
            "mutation": lambda result: result.case.kind,
            "file": lambda result: result.case.seed.relative_to(seeds / "me").as_posix(),
            "stage": lambda result: result.stage,
        }
        fuzz(chosen, work, groups, args)


if __name__ == "__main__":
    main()
