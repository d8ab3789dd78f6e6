"""Measure how fast this machine trains, renders and speaks, or how good the avatars are.

talker bench                                      # with a head of random colors
talker bench --data data/me --json bench.json     # with a prepared dataset
talker bench quality --table rows.yaml --json quality.json
"""

import copy
import gc
import json as json_format
import logging
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from talker.avatar.live import LiveAvatar
from talker.avatar.model import Avatar
from talker.avatar.options import Config as TrainConfig
from talker.avatar.options import ImageSize
from talker.avatar.rasterize import Splats, rasterize
from talker.avatar.renderer import MAX_WORKERS, Drive, render_frames
from talker.avatar.trainer import Conditions, Trainer
from talker.avatar.training_set import Targets, TrainingSet, training_set
from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.core.config import DEFAULT_ENCODER, AtLeast0, AtLeast1, NonNegative, validated
from talker.core.files import atomic_write
from talker.core.parallel import one_thread, ordered_map
from talker.dataset import Dataset
from talker.encoders import Choice, Encoder, load_encoder
from talker.encoders.features import extract_clip
from talker.errors import UserError
from talker.media.audio import write_wav
from talker.media.video_writer import video_writer
from talker.render import Config as RenderConfig
from talker.render import render
from talker.synthetic.random_head import random_head
from talker.tools.quality_bench import bench_quality
from talker.tools.speak import Config as SpeakConfig
from talker.tools.speak import StreamingAvatar, measure_latency
from talker.train import pick_device

logger = logging.getLogger(__name__)

VIDEO_FRAMES = {"cuda": 500, "cpu": 50}
"""Length of the rendered video in frames, by device."""
GPU_STEPS = 10
"""Training steps between two synchronizations with a GPU; real training rarely synchronizes."""


@validated
class Config:
    """Options of `talker bench`."""

    gaussians: tuple[AtLeast1, ...] = (20_000, 50_000)
    """Sizes of the avatars to measure, as numbers of Gaussians."""
    image_size: ImageSize = 512
    """Longer side of the images in pixels."""
    encoder: str = DEFAULT_ENCODER
    """Speech encoder. Its features are read from the dataset, and it encodes the live speech."""
    render_batches: tuple[AtLeast1, ...] = (1, 128)
    """Batch sizes for rendering, in frames."""
    train_batch: AtLeast1 = 32
    """Number of images in a training batch."""
    copies: AtLeast1 = 1
    """Number of copies of each training frame, to simulate a longer clip."""
    warm_up: AtLeast0 = 5
    """Number of runs before the timed ones."""
    repeats: AtLeast1 = 20
    """Number of timed runs; the median is reported."""
    device: str = "auto"
    """Device to measure: cpu, cuda, or auto, which selects cuda if a GPU is available."""
    speech: NonNegative = 10.0
    """Duration in seconds of the live speech with which `talker speak` is measured. With 0, this
    measurement is skipped."""
    hop: AtLeast1 = 2
    """Number of frames rendered at once in the live measurement, like the option `--hop` of `talker
    speak`."""


def main(
    what: Annotated[Literal["speed", "quality"], tyro.conf.Positional] = "speed",
    *,
    data: Path | None = None,
    json: Path | None = None,
    table: Path | None = None,
    config: Config = Config(),
) -> None:
    """Measure the speed of this machine, or the quality of avatars.

    Args:
        what: `speed` measures training, rendering and live speech, and their peak memory. `quality`
            trains avatars of several subjects with several options and compares them.
        data: Dataset folder for `speed`. By default, a head with random colors is used.
        json: JSON file to write the numbers to. `quality` requires it, and continues an interrupted
            run from it.
        table: YAML file for `quality`. Required keys: `subjects` (a mapping from names to dataset
            folders) and `rows` (a mapping from the name of each compared variant to its options of
            `talker train`). Optional keys: `options` (options of `talker train` that all rows
            share), `networks` (those options of `talker evaluate` that select the file of a
            network, such as `lpips: published`), `stretches` (number of separate parts of each clip
            that are held out, 4 by default) and `held_out` (fraction of the clip in all of these
            parts together, 0.25 by default).
        config: Options of `speed`. `quality` only uses `device`.
    """
    if what == "speed":
        bench_speed(data, json, config)
        return
    if table is None or json is None:
        raise UserError("`talker bench quality` needs `--table FILE` and `--json FILE`.")
    bench_quality(table, json, config.device)


def bench_speed(data: Path | None, json: Path | None, config: Config) -> None:
    """Measure the speed of training, rendering and live speech, and their peak memory."""
    device = pick_device(config.device)
    encoder = load_encoder(Choice(config.encoder)) if config.speech > 0 else None
    if data is None:
        dataset = random_head(config.image_size, device)
    else:
        dataset = Dataset.load(data, config.image_size, config.encoder)
    dataset = replace(dataset, train_ids=np.tile(dataset.train_ids, config.copies))
    if config.train_batch > len(dataset.train_ids):
        raise UserError(
            f"train_batch is {config.train_batch}, but there are only "
            f"{len(dataset.train_ids)} training frames. Use a smaller batch, or repeat the "
            "frames with --copies."
        )
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    logger.info("Measuring on %s with images of %dx%d pixels.", name, dataset.width, dataset.height)
    start = time.perf_counter()
    subset = training_set(dataset, device)
    loading = {
        "frames": len(subset.ids),
        "seconds": time.perf_counter() - start,
        "host_memory_gib": _host_memory(),
    }
    logger.info(
        "Loading %d training frames: %.1f s, peak host memory %.1f GiB",
        *(loading["frames"], loading["seconds"], loading["host_memory_gib"]),
    )
    results = [bench(dataset, subset, count, encoder, config) for count in config.gaussians]
    if json is not None:
        record = {
            "device": name,
            "image_size": config.image_size,
            "start": loading,
            "results": results,
        }
        with atomic_write(json) as (scratch,):
            scratch.write_text(json_format.dumps(record, indent=2) + "\n", encoding="utf-8")


def bench(
    data: Dataset, subset: TrainingSet, gaussians: int, encoder: Encoder | None, config: Config
) -> dict[str, Any]:
    """Measure an avatar with `gaussians` Gaussians, and log each number as soon as it is known.

    Returns:
        Times in milliseconds unless the name says otherwise.
    """
    device = subset.ids.device
    gc.collect()  # trainers and their CUDA graphs reference each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    options = TrainConfig(
        encoder=config.encoder,
        image_size=config.image_size,
        gaussians=gaussians,
        deformation_batch=config.train_batch,
        deformation_steps=10**6,
        max_epochs=10**6,
    )
    trainer = Trainer(data, subset, options)
    trainer.next_stage()
    # Sums on a GPU depend on their order, so two trained avatars would render at different speeds.
    untrained = copy.deepcopy(trainer.avatar).eval()
    logger.info("Avatar with %d Gaussians:", gaussians)
    result = {
        "gaussians": gaussians,
        "train": time_training(trainer, config),
        "render": [time_rendering(untrained, data, size, config) for size in config.render_batches],
        "video": time_video(trainer.avatar, data),
    }
    if encoder is not None:
        result["speak"] = time_speaking(trainer.avatar, data, encoder, config)
    return result


@one_thread()
def time_training(trainer: Trainer, config: Config) -> dict[str, Any]:
    """Measure a training step and its parts, which are split among threads as in training."""
    subset = trainer.subset
    in_a_row = GPU_STEPS if subset.ids.is_cuda else 1

    def steps() -> None:
        for _ in range(in_a_row):
            trainer.train_step()

    step = _milliseconds(steps, config) / in_a_row
    rows = trainer.batch_rows(0).to(subset.ids.device)
    viewmats, Ks = subset.viewmats[rows], subset.K.expand(len(rows), 3, 3)
    height, width = subset.size
    conditions, targets = trainer.sample_conditions(rows), subset.targets(rows)
    deformed = trainer.deform(*conditions, viewmats)
    splats = [part.detach().clone().requires_grad_() for part in deformed]
    rendered = rasterize(Splats(*splats), viewmats, Ks, width, height)
    images = [part.detach().requires_grad_() for part in (rendered.rgb, rendered.alpha)]

    def deform(part: slice) -> None:
        trainer.deform(*(x[part] for x in (*conditions, viewmats)))

    def raster(part: slice) -> None:
        some = Splats(*(x[part] for x in splats))
        rasterize(some, viewmats[part], Ks[part], width, height)

    def loss(part: slice) -> None:
        rgb, alpha = (x[part] for x in images)
        trainer.compute_loss(rgb, alpha, Targets(*(x[part] for x in targets)))

    def whole(part: slice) -> None:
        given = Conditions(*(x[part] for x in conditions))
        trainer.loss_and_gradients(rows[part], Targets(*(x[part] for x in targets)), given)

    def timed(work: Callable[[slice], None]) -> float:
        return _milliseconds(lambda: trainer.in_parts(work, len(rows)), config)

    parts = {
        "deform": timed(deform),
        "raster": timed(raster),
        "loss": timed(loss),
        "optimizer": _milliseconds(trainer.optimizer.step, config),
    }
    parts["backward"] = timed(whole) - parts["deform"] - parts["raster"] - parts["loss"]
    memory = _peak_memory(subset.ids.device)
    rate = len(rows) / step * 1000
    logger.info(
        "  training, crop %dx%d, batch %d: %.0f images/s, peak memory %.1f GiB; ms per step: %.2f "
        "(deform %.2f, raster %.2f, loss %.2f, backward %.2f, optimizer %.2f)",
        *(width, height, len(rows), rate, memory, step, parts["deform"], parts["raster"]),
        *(parts["loss"], parts["backward"], parts["optimizer"]),
    )
    return {
        "batch": len(rows),
        "images_per_second": rate,
        "step": step,
        **parts,
        "crop": subset.size,
        "memory_gib": memory,
    }


def time_rendering(avatar: Avatar, data: Dataset, size: int, config: Config) -> dict[str, Any]:
    """Measure rendering `size` heads at once, and its parts."""
    device = avatar.device
    rows = torch.arange(size, device=device) % len(data.viewmats)
    windows = torch.from_numpy(data.speech).to(device)[rows]
    eye = torch.from_numpy(data.eye).to(device)[rows]
    viewmats = torch.from_numpy(data.viewmats).to(device)[rows]
    Ks = torch.from_numpy(data.K).to(device).expand(size, 3, 3)
    with torch.inference_mode():
        shared = avatar.shared()
        live = LiveAvatar(avatar) if size == 1 and device.type == "cuda" else None

        def frames() -> torch.Tensor:
            expression = avatar.speech_to_expression(windows)
            given = (expression, eye, viewmats, Ks, data.height, data.width)
            _, alpha = live(*given) if live else avatar.render_from_expression(*given, shared)
            return alpha

        def deform() -> Splats:
            return avatar.deform(avatar.speech_to_expression(windows), eye, viewmats, shared)

        splats = deform()
        times = {
            "all": _milliseconds(frames, config),
            "deform": _milliseconds(deform, config),
            "raster": _milliseconds(
                lambda: rasterize(splats, viewmats, Ks, data.width, data.height), config
            ),
        }
        covered = frames().mean().item()
    rate = size / times["all"] * 1000
    logger.info(
        "  rendering, batch %d: %.0f frames/s; ms per batch: %.2f (deform %.2f, raster %.2f)",
        *(size, rate, times["all"], times["deform"], times["raster"]),
    )
    return {"batch": size, "frames_per_second": rate, **times, "alpha": covered}


def time_video(avatar: Avatar, data: Dataset) -> dict[str, float]:
    """Measure the frames per second of writing an .mp4 from the layers, and of each step."""
    ids = np.resize(data.train_ids, VIDEO_FRAMES[avatar.device.type])
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

        rates = {
            "all": rate(lambda: render(avatar, data, drive, wav, video, options)),
            "layers": rate(lambda: list(ordered_map(data.background, ids.tolist(), MAX_WORKERS))),
            "rendered": rate(lambda: list(render_frames(avatar, data, drive, options.batch))),
            "encoded": rate(encode),
        }
    logger.info(
        "  video of %d frames: %.0f frames/s (only reading the layers: %.0f, only "
        "rendering onto them: %.0f, only encoding: %.0f)",
        *(len(ids), rates["all"], rates["layers"], rates["rendered"], rates["encoded"]),
    )
    return {"frames": len(ids), **rates}


def time_speaking(
    avatar: Avatar, data: Dataset, encoder: Encoder, config: Config
) -> dict[str, float]:
    """Measure latency and speed of live speech with synthetic syllables (`measure_latency`)."""
    frames = round(config.speech * FPS)
    seconds = np.arange(frames * SAMPLES_PER_FRAME) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * 150 * seconds) * np.sin(2 * np.pi * 2 * seconds) ** 2
    audio = np.round(8000 * tone).astype(np.int16)
    choice = Choice(config.encoder)
    learned, _ = extract_clip(encoder, choice, audio, frames, data.speech.shape[-1])
    parts = avatar, data, encoder, learned, SpeakConfig(hop=config.hop)
    list(StreamingAvatar(*parts).push_audio(audio))  # compiles
    result = measure_latency(StreamingAvatar(*parts), audio)
    logger.info(
        "  live speech: 95 %% of the frames are ready at most %.0f ms after their audio "
        "(%.0f ms of this is waiting for later audio). The median computing time is %.1f ms per "
        "step. The computation takes %.2f s per second of speech",
        *(result["latency_ms_p95"], result["waits_ms"], result["hop_ms_median"]),
        result["real_time_factor"],
    )
    return result


def _milliseconds(run: Callable[[], object], config: Config) -> float:
    """Return the median time of `run`, which includes waiting for the GPU."""

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(config.warm_up):
        run()
    times = []
    for _ in range(config.repeats):
        start = now()
        run()
        times.append(now() - start)
    return 1000 * statistics.median(times)


def _peak_memory(device: torch.device) -> float:
    """Return the peak memory of the GPU, or of this process on a CPU, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return _host_memory()


def _host_memory() -> float:
    """Return the peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
