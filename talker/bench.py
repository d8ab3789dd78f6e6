"""How fast this machine renders, trains and speaks: frames a second, milliseconds, peak memory.

talker bench                                      # a made-up subject
talker bench --data data/me --json bench.json     # a prepared one
"""

import copy
import gc
import json as json_format
import logging
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from talker.avatar.initialise import initial_gaussians, sample_surface
from talker.avatar.live import LiveAvatar
from talker.avatar.model import Avatar, as_seen
from talker.avatar.rasterize import Splats, rasterize
from talker.avatar.renderer import MAX_WORKERS, Drive, render_frames
from talker.avatar.training_set import Targets, TrainingSet, training_set
from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.core.config import AtLeast0, AtLeast1, validated
from talker.core.files import atomic_write
from talker.core.parallel import one_thread, ordered_map
from talker.dataset import Dataset
from talker.encoders.base import Choice
from talker.encoders.features import describe_clip
from talker.encoders.registry import load_encoder
from talker.errors import UserError
from talker.head.camera import intrinsics, project, viewmats_from_pose
from talker.head.dense import head_surface
from talker.head.morphable import MorphableHead
from talker.media.audio import write_wav
from talker.media.video_writer import video_writer
from talker.render import Config as RenderConfig
from talker.render import render
from talker.speak import Config as SpeakConfig
from talker.speak import Speaker, measure_latency
from talker.train import Conditions, ImageSize, Training, pick_device
from talker.train import Config as TrainConfig

logger = logging.getLogger(__name__)

FOCAL = 2.4
"""of the made-up camera, image sizes"""
DISTANCE = 7.5
"""dm; the head then covers about a third of the image"""
FRAMES = 64
POINTS = 50_000
GREY = 128
VIDEO_FRAMES = {"cuda": 500, "cpu": 50}
STEPS = 10
"""taken in a row on a GPU, which training waits for as seldom"""


@validated
class Config:
    """Options of `talker bench`."""

    gaussians: tuple[int, ...] = (20_000, 50_000)
    image_size: ImageSize = 512
    encoder: str = "hama"
    """whose speech features of the dataset to take, and what hears the sound that is spoken live"""
    render_batches: tuple[int, ...] = (1, 128)
    train_batch: AtLeast1 = 32
    copies: AtLeast1 = 1
    """how often to take each training frame, as of a longer clip"""
    warm_up: AtLeast0 = 5
    repeats: AtLeast1 = 20
    """the median of so many runs is told"""
    device: str = "auto"
    """auto, cpu or cuda"""
    speech: float = 10.0
    """seconds of sound that is spoken live (talker speak); 0: none"""
    hop: AtLeast1 = 2
    """frames that it renders at once"""


@dataclass(frozen=True)
class MadeUp(Dataset):
    """A dataset whose images are made, not read."""

    pictures: np.ndarray
    """uint8 [T, H, W, 3]"""
    masks: np.ndarray
    """uint8 [T, H, W]"""

    def frame(self, i: int) -> np.ndarray:
        return self.pictures[i]

    def background(self, i: int) -> np.ndarray:
        return np.full((self.height, self.width, 3), GREY, np.uint8)

    def head_mask(self, i: int) -> np.ndarray:
        return self.masks[i]


def made_up_subject(size: int, device: torch.device) -> Dataset:
    """A head of random colours that turns to and fro before a grey wall, drawn on `device`."""
    rng = np.random.default_rng(0)
    head = MorphableHead.load()
    vertices, faces = head_surface(head, head.vertices)
    swing = np.sin(np.linspace(0, 2 * np.pi, FRAMES, endpoint=False))
    euler = np.stack([0.05 * swing, 0.2 * swing, 0 * swing], axis=1)
    trans = np.tile([0.0, 0.0, -DISTANCE], (FRAMES, 1))
    viewmats = viewmats_from_pose(euler, trans).astype(np.float32)
    K = intrinsics(FOCAL * size, size, size).astype(np.float32)
    masks = np.zeros((FRAMES, size, size), np.uint8)
    for mask, points in zip(masks, project(vertices, viewmats, K), strict=True):
        cv2.fillConvexPoly(mask, cv2.convexHull(points.round().astype(np.int32)), (255,))
    points = sample_surface(vertices, faces, POINTS, rng)
    painted = initial_gaussians(points, rng.random((POINTS, 3)), 0)
    pictures = np.empty((FRAMES, size, size, 3), np.uint8)
    for picture, viewmat in zip(pictures, torch.from_numpy(viewmats), strict=True):
        seen = as_seen(painted, painted.means, viewmat[None])
        view = viewmat[None].to(device), torch.from_numpy(K)[None].to(device)
        drawn = rasterize(Splats(*(part.to(device) for part in seen)), *view, size, size)
        colours = 255 * drawn.rgb[0] + GREY * (1 - drawn.alpha[0])
        picture[:] = colours.clamp(0, 255).round().byte().cpu()
    points68 = project(head.landmarks(head.vertices)[:68], viewmats, K)
    return MadeUp(
        folder=Path("made-up"),
        height=size,
        width=size,
        original_size=(size, size),
        valid=np.ones(FRAMES, bool),
        viewmats=viewmats,
        K=K,
        speech=rng.normal(size=(FRAMES, 16, 32)).astype(np.float32),
        silence=None,
        eye=rng.random(FRAMES).astype(np.float32),
        landmarks=points68.astype(np.float32),
        expression=rng.normal(size=(FRAMES, 16)).astype(np.float32),
        vertices=vertices,
        faces=faces.astype(np.int64),
        train_ids=np.arange(FRAMES),
        val_ids=np.arange(0),
        pictures=pictures,
        masks=masks,
    )


def bench(data: Dataset, subset: TrainingSet, gaussians: int, config: Config) -> dict[str, Any]:
    """The numbers for one size of avatar; milliseconds where nothing else is said."""
    device = subset.ids.device
    gc.collect()  # a training and its graphs refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    training = Training(
        data,
        subset,
        TrainConfig(
            encoder=config.encoder,
            image_size=config.image_size,
            gaussians=gaussians,
            deformation_batch=config.train_batch,
            deformation_steps=10**6,
            max_epochs=10**6,
        ),
    )
    training.next_stage()
    # Sums on a GPU are rounded as they come: after training no two avatars cost the same to draw.
    untrained = copy.deepcopy(training.avatar).eval()
    found: dict[str, Any] = {"gaussians": gaussians, "train": _train(training, config)}
    found["train"]["crop"] = training.subset.size
    found["train"]["memory_gib"] = _memory(device)
    found["render"] = [_render(untrained, data, size, config) for size in config.render_batches]
    found["video"] = _video(training, data)
    if config.speech > 0:
        found["speak"] = _speak(training, data, config)
    return found


@one_thread()
def _train(training: Training, config: Config) -> dict[str, Any]:
    """A step, and its parts alone, each divided among threads as a step is."""
    subset = training.subset
    in_a_row = STEPS if subset.ids.is_cuda else 1

    def steps() -> None:
        for _ in range(in_a_row):
            training.advance()

    step = _milliseconds(steps, config) / in_a_row
    rows = training._rows(0).to(subset.ids.device)
    viewmats, Ks = subset.viewmats[rows], subset.K.expand(len(rows), 3, 3)
    height, width = subset.size
    conditions, targets = training._conditions(rows), subset.targets(rows)
    made = training.speak(*conditions, viewmats)
    splats = [part.detach().clone().requires_grad_() for part in made]
    drawn = rasterize(Splats(*splats), viewmats, Ks, width, height)
    images = [part.detach().requires_grad_() for part in (drawn.rgb, drawn.alpha)]

    def deform(part: slice) -> None:
        training.speak(*(x[part] for x in (*conditions, viewmats)))

    def raster(part: slice) -> None:
        some = Splats(*(x[part] for x in splats))
        rasterize(some, viewmats[part], Ks[part], width, height)

    def loss(part: slice) -> None:
        training.judge(*(x[part] for x in (*images, *targets)))

    def whole(part: slice) -> None:
        given = Conditions(*(x[part] for x in conditions))
        training._chunk(1.0, rows[part], Targets(*(x[part] for x in targets)), given)

    def timed(work: Callable[[slice], None]) -> float:
        return _milliseconds(lambda: training.in_parts(work, len(rows)), config)

    parts = {
        "deform": timed(deform),
        "raster": timed(raster),
        "loss": timed(loss),
        "optimiser": _milliseconds(training.optimiser.step, config),
    }
    parts["backward"] = timed(whole) - parts["deform"] - parts["raster"] - parts["loss"]
    return {
        "batch": len(rows),
        "images_per_second": len(rows) / step * 1000,
        "step": step,
        **parts,
    }


def _render(avatar: Avatar, data: Dataset, size: int, config: Config) -> dict[str, Any]:
    device = avatar.pose_mean.device
    rows = torch.arange(size, device=device) % len(data.viewmats)
    windows = torch.from_numpy(data.speech).to(device)[rows]
    speech = windows[:, None].expand(-1, 8, -1, -1).contiguous()
    eye = torch.from_numpy(data.eye).to(device)[rows]
    viewmats = torch.from_numpy(data.viewmats).to(device)[rows]
    Ks = torch.from_numpy(data.K).to(device).expand(size, 3, 3)
    with torch.inference_mode():
        shared = avatar.shared()

        given = (speech, eye, viewmats, Ks, data.height, data.width)
        live = LiveAvatar(avatar) if size == 1 and device.type == "cuda" else None

        def frames() -> tuple[Tensor, Tensor]:
            return live(*given) if live else avatar(*given, shared)

        tokens = avatar.tokens(avatar.speech_encoder(speech), eye, avatar.pose_vector(viewmats))
        splats = avatar.splats(shared, tokens, viewmats)
        times = {
            "all": _milliseconds(frames, config),
            "deform": _milliseconds(lambda: avatar.splats(shared, tokens, viewmats), config),
            "raster": _milliseconds(
                lambda: rasterize(splats, viewmats, Ks, data.width, data.height), config
            ),
        }
        covered = frames()[1].mean().item()
    rate = size / times["all"] * 1000
    return {"batch": size, "frames_per_second": rate, **times, "alpha": covered}


def _video(training: Training, data: Dataset) -> dict[str, float]:
    """Frames a second from the layers on disk to an .mp4 with sound, and of its parts alone."""
    avatar = training.avatar
    ids = np.resize(data.train_ids, VIDEO_FRAMES[training.subset.ids.device.type])
    drive, options = Drive(ids, data.speech, ids), RenderConfig()

    def rate(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return len(ids) / (time.perf_counter() - start)

    with TemporaryDirectory() as folder:
        wav, video = Path(folder, "silence.wav"), Path(folder, "bench.mp4")
        write_wav(wav, np.zeros(len(ids) * SAMPLES_PER_FRAME, np.int16))
        frames = list(render_frames(avatar, data, drive, options.batch))

        def encode() -> None:
            with video_writer(video, wav, options.crf) as write:
                for frame in frames:
                    write(frame)

        return {
            "frames": len(ids),
            "all": rate(lambda: render(avatar, data, drive, wav, video, options)),
            "layers": rate(lambda: list(ordered_map(data.background, ids.tolist(), MAX_WORKERS))),
            "drawn": rate(lambda: list(render_frames(avatar, data, drive, options.batch))),
            "encoded": rate(encode),
        }


def _speak(training: Training, data: Dataset, config: Config) -> dict[str, float]:
    """Latency and speed of `talker speak` (`measure_latency`), of hummed syllables."""
    choice = Choice(config.encoder)
    encoder = load_encoder(choice)
    frames = round(config.speech * FPS)
    seconds = np.arange(frames * SAMPLES_PER_FRAME) / SAMPLE_RATE
    hum = np.sin(2 * np.pi * 150 * seconds) * np.sin(2 * np.pi * 2 * seconds) ** 2
    sound = np.round(8000 * hum).astype(np.int16)
    learned, _ = describe_clip(encoder, choice, sound, frames, data.speech.shape[-1])
    parts = training.avatar, data, encoder, learned, SpeakConfig(hop=config.hop)
    list(Speaker(*parts).hear(sound))  # compiles
    return measure_latency(Speaker(*parts), sound)


def _milliseconds(run: Callable[[], object], config: Config) -> float:
    """The median time of `run`, waiting for the GPU."""

    def wait() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(config.warm_up):
        run()
    times = []
    for _ in range(config.repeats):
        start = wait()
        run()
        times.append(wait() - start)
    return 1000 * statistics.median(times)


def _memory(device: torch.device) -> float:
    """Peak memory, GiB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return _host_memory()


def _host_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(*, data: Path | None = None, json: Path | None = None, config: Config = Config()) -> None:
    """Measure rendering and training: without data, of a made-up subject.

    Args:
        data: a dataset folder to take the images and poses from.
        json: where to write the numbers too.
        config: options.
    """
    device = pick_device(config.device)
    if data is None:
        dataset = made_up_subject(config.image_size, device)
    else:
        dataset = Dataset.load(data, config.image_size, config.encoder)
    dataset = replace(dataset, train_ids=np.tile(dataset.train_ids, config.copies))
    if config.train_batch > len(dataset.train_ids):
        raise UserError(
            f"train_batch: expected at most the {len(dataset.train_ids)} training frames, found "
            f"{config.train_batch}; take each more often with --copies"
        )
    start = time.perf_counter()
    subset = training_set(dataset, device)
    begun = {
        "frames": len(subset.ids),
        "seconds": time.perf_counter() - start,
        "host_memory_gib": _host_memory(),
    }
    logger.info(
        "%d training frames ready after %.1f s, %.1f GiB of host memory at most",
        *(begun["frames"], begun["seconds"], begun["host_memory_gib"]),
    )
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    results = []
    for gaussians in config.gaussians:
        found = bench(dataset, subset, gaussians, config)
        results.append(found)
        for row in found["render"]:
            logger.info(
                "%d Gaussians, %dx%d, batch %d: %.0f frames/s; ms: %.2f all, %.2f deform, "
                "%.2f raster",
                *(gaussians, dataset.width, dataset.height, row["batch"]),
                *(row["frames_per_second"], row["all"], row["deform"], row["raster"]),
            )
        times = found["train"]
        logger.info(
            "%d Gaussians, crop %dx%d, batch %d: trains %.0f images/s, %.1f GiB; ms: %.2f step, "
            "%.2f deform, %.2f raster, %.2f loss, %.2f backward, %.2f optimiser",
            *(gaussians, *times["crop"][::-1], times["batch"]),
            *(times["images_per_second"], times["memory_gib"], times["step"], times["deform"]),
            *(times["raster"], times["loss"], times["backward"], times["optimiser"]),
        )
        logger.info(
            "%d Gaussians, %dx%d: %.0f frames/s into an .mp4; alone: %.0f layers, %.0f drawn over "
            "them, %.0f encoded",
            *(gaussians, dataset.width, dataset.height),
            *(found["video"][part] for part in ("all", "layers", "drawn", "encoded")),
        )
        if spoken := found.get("speak"):
            logger.info(
                "%d Gaussians, %dx%d: speaks %.0f ms after the sound (95 %%; %.0f of them waiting, "
                "a hop takes %.1f), %.2f s of computing for a second",
                *(gaussians, dataset.width, dataset.height, spoken["latency_ms_p95"]),
                *(spoken["waits_ms"], spoken["hop_ms_median"], spoken["real_time_factor"]),
            )
    if json is not None:
        with atomic_write(json) as (scratch,):
            record = {
                "device": name,
                "image_size": config.image_size,
                "start": begun,
                "results": results,
            }
            scratch.write_text(json_format.dumps(record, indent=2) + "\n")
