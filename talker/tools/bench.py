"""Measure how fast this machine trains, renders and speaks, or how good the avatars are.

talker bench                                      # with a head of random colors
talker bench --data data/me --json bench.json     # with a prepared dataset
talker bench --data data/me --against bench.json  # compared with an earlier run
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
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from talker.avatar.bake import Camera, bake
from talker.avatar.bake import Conditions as BakeConditions
from talker.avatar.blendshapes import Blendshapes
from talker.avatar.live import LiveAvatar
from talker.avatar.model import Avatar
from talker.avatar.options import Config as TrainConfig
from talker.avatar.options import ImageSize
from talker.avatar.rasterize import Splats, rasterize
from talker.avatar.renderer import MAX_WORKERS, Drive, render_frames
from talker.avatar.trainer import Conditions, Trainer
from talker.avatar.training_set import Targets, TrainingSet, training_set
from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, load_json
from talker.core.config import DEFAULT_ENCODER, AtLeast0, AtLeast1, NonNegative, validated
from talker.core.files import atomic_write
from talker.core.parallel import one_thread, ordered_map, usable_cores
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

VIDEO_FRAMES = {"cuda": 2000, "cpu": 50}
"""Length of the rendered video in frames, by device."""
ENCODED_FRAMES = 250
"""Number of different frames in the video that is only encoded; they are repeated."""
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


@dataclass
class Numbers:
    """Measured numbers, each of which is logged as soon as it is known."""

    stored: dict[str, dict[str, Any]]
    """numbers of an earlier run, as `values`"""
    source: str
    """name of the file with the earlier run"""
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    """value and unit of each number, by its name"""

    def add(self, name: str, value: float, unit: str) -> None:
        """Store and log a number, with its ratio to that of the earlier run."""
        self.values[name] = {"value": value, "unit": unit}
        logger.info("%s: %s %s%s", name, _readable(value), unit, self._comparison(name))

    def _comparison(self, name: str) -> str:
        new, old = (numbers.get(name) for numbers in (self.values, self.stored))
        if not new or not old or old["unit"] != new["unit"] or not new["value"] * old["value"] > 0:
            return ""
        ratio = new["value"] / old["value"]
        if new["unit"] in ("ms", "s"):
            return f" ({1 / ratio:.2f} times as fast as in {self.source})"
        if new["unit"].endswith("/s"):
            return f" ({ratio:.2f} times as fast as in {self.source})"
        return f" ({ratio:.2f} times the value in {self.source})"


def main(
    what: Annotated[Literal["speed", "quality"], tyro.conf.Positional] = "speed",
    *,
    data: Path | None = None,
    json: Path | None = None,
    against: Path | None = None,
    table: Path | None = None,
    config: Config = Config(),
) -> None:
    """Measure the speed of this machine, or the quality of avatars.

    Args:
        what: `speed` measures training, rendering and live speech, and their peak memory. Before
            the first measurement, it checks that everything it needs is available. `quality` trains
            avatars of several subjects with several options and compares them.
        data: Dataset folder for `speed`. By default, a head with random colors is used.
        json: JSON file to write the numbers to. `quality` requires it, and continues an interrupted
            run from it.
        against: JSON file of an earlier run of `speed` with the same dataset, image size and speech
            encoder. Each number is followed by its ratio to the number in this file.
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
        bench_speed(data, json, against, config)
        return
    if table is None or json is None:
        raise UserError("`talker bench quality` needs `--table FILE` and `--json FILE`.")
    bench_quality(table, json, config.device)


def bench_speed(data: Path | None, json: Path | None, against: Path | None, config: Config) -> None:
    """Measure the speed of training, rendering and live speech, and their peak memory."""
    settings = {
        "data": data.name if data else "random head",
        "image_size": config.image_size,
        "encoder": config.encoder,
        "copies": config.copies,
    }
    stored = read_numbers(against, settings) if against else {}
    numbers = Numbers(stored, against.name if against else "")
    device = pick_device(config.device)
    encoder = load_encoder(Choice(config.encoder)) if config.speech > 0 else None
    with ExitStack() as stack:
        file = stack.enter_context(atomic_write(json))[0] if json else None
        _check_video(config.image_size)
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
        logger.info(
            "Measuring on %s with images of %dx%d pixels.", name, dataset.width, dataset.height
        )
        start = time.perf_counter()
        subset = training_set(dataset, device)
        numbers.add("load/images", len(subset.ids) / (time.perf_counter() - start), "images/s")
        numbers.add("load/host memory", _host_memory(), "GiB")
        for count in config.gaussians:
            bench(dataset, subset, count, encoder, config, numbers)
        if file is not None:
            record = {
                "device": name,
                "cores": usable_cores(),
                "torch": torch.__version__,
                "settings": settings,
                "numbers": numbers.values,
            }
            file.write_text(json_format.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_numbers(file: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the numbers of an earlier run, by their names.

    Raises:
        UserError: the file is missing or no record of `talker bench --json`, or its numbers were
            measured with other settings.
    """
    record = load_json(file)
    if not isinstance(record.get("numbers"), dict) or not isinstance(record.get("settings"), dict):
        raise UserError(
            f"{file} cannot be compared, because it was not written by this version of `talker "
            "bench --json`. Measure again."
        )
    for name, value in settings.items():
        if record["settings"].get(name) != value:
            raise UserError(
                f"{file} was measured with {name} = {record['settings'].get(name)}, but now {name} "
                f"is {value}. Use the same value."
            )
    return record["numbers"]


def _check_video(size: int) -> None:
    """Raise UserError if this machine cannot write a video with sound."""
    with TemporaryDirectory() as folder:
        wav = Path(folder, "silence.wav")
        write_wav(wav, np.zeros(SAMPLES_PER_FRAME, np.int16))
        with video_writer(Path(folder, "check.mp4"), wav) as write:
            write(np.zeros((size, size, 3), np.uint8))


def bench(
    data: Dataset,
    subset: TrainingSet,
    gaussians: int,
    encoder: Encoder | None,
    config: Config,
    numbers: Numbers,
) -> None:
    """Measure an avatar with `gaussians` Gaussians."""
    device = subset.ids.device
    gc.collect()  # trainers and their CUDA graphs reference each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    options = TrainConfig(
        encoder=config.encoder,
        image_size=config.image_size,
        gaussians=gaussians,
        mouth_split=1,  # otherwise, the avatar would have more Gaussians
        deformation_batch=config.train_batch,
        deformation_steps=10**6,
        max_epochs=10**6,
    )
    trainer = Trainer(data, subset, options)
    trainer.next_stage()
    # Sums on a GPU depend on their order, so two trained avatars would render at different speeds.
    untrained = copy.deepcopy(trainer.avatar).eval()
    time_training(trainer, config, numbers, f"{gaussians}/train")
    avatar = trainer.avatar.eval()
    start = time.perf_counter()
    blendshapes = blendshapes_of(untrained, subset), blendshapes_of(avatar, subset)
    numbers.add(f"{gaussians}/blendshapes", (time.perf_counter() - start) / 2, "s")
    for name in ("blendshapes", "network"):
        if name == "blendshapes":
            untrained.blendshapes, avatar.blendshapes = blendshapes
        else:
            untrained.blendshapes = avatar.blendshapes = None
        for size in config.render_batches:
            time_rendering(untrained, data, size, config, numbers, f"{gaussians}/render/{name}")
        time_video(avatar, data, numbers, f"{gaussians}/video/{name}")
    if encoder is not None:
        avatar.blendshapes = blendshapes[1]
        time_speaking(avatar, data, encoder, config, numbers, f"{gaussians}/speak")


@torch.no_grad()
def blendshapes_of(avatar: Avatar, subset: TrainingSet) -> Blendshapes:
    """Compute the blendshapes of an avatar, as at the end of its training."""
    expression = avatar.speech_to_expression(subset.windows[subset.ids])
    conditions = BakeConditions(expression, subset.eye, subset.viewmats)
    return bake(avatar, conditions, Camera(subset.K, *subset.size))


@one_thread()
def time_training(trainer: Trainer, config: Config, numbers: Numbers, name: str) -> None:
    """Measure a training step and its parts, which are split among threads as in training."""
    subset = trainer.subset
    in_a_row = GPU_STEPS if subset.ids.is_cuda else 1
    name = f"{name}/{config.train_batch}"

    def steps() -> None:
        for _ in range(in_a_row):
            trainer.train_step()

    step = _milliseconds(steps, config) / in_a_row
    numbers.add(name, config.train_batch / step * 1000, "images/s")
    numbers.add(f"{name}/step", step, "ms")
    numbers.add(f"{name}/memory", _peak_memory(subset.ids.device), "GiB")
    trainer.whole_batch = None  # the parts are measured without graphs, and need memory, too
    rows = trainer.batch_rows(0).to(subset.ids.device)
    viewmats, Ks = subset.viewmats[rows], subset.K.expand(len(rows), 3, 3)
    height, width = subset.size
    conditions, targets = trainer.sample_conditions(rows), subset.targets(rows)
    deformed = trainer.deform(conditions, viewmats)
    splats = [part.detach().clone().requires_grad_() for part in deformed]
    rendered = rasterize(Splats(*splats), viewmats, Ks, width, height)
    images = [part.detach().requires_grad_() for part in (rendered.rgb, rendered.alpha)]

    def deform(part: slice) -> None:
        trainer.deform(Conditions(*(x[part] for x in conditions)), viewmats[part])

    def raster(part: slice) -> None:
        some = Splats(*(x[part] for x in splats))
        rasterize(some, viewmats[part], Ks[part], width, height)

    def loss(part: slice) -> None:
        rgb, alpha = (x[part] for x in images)
        trainer.compute_loss(rgb, alpha, Targets(*(x[part] for x in targets)))

    def whole(part: slice) -> None:
        given = Conditions(*(x[part] for x in conditions))
        trainer.loss_and_gradients(rows[part], Targets(*(x[part] for x in targets)), given)

    def timed(part: str, work: Callable[[slice], None]) -> float:
        elapsed = _milliseconds(lambda: trainer.in_parts(work, len(rows)), config)
        numbers.add(f"{name}/{part}", elapsed, "ms")
        return elapsed

    forward = timed("deform", deform) + timed("raster", raster) + timed("loss", loss)
    both = timed("forward and backward", whole)
    numbers.add(f"{name}/backward", both - forward, "ms")
    numbers.add(f"{name}/optimizer", _milliseconds(trainer.optimizer.step, config), "ms")


def time_rendering(
    avatar: Avatar, data: Dataset, size: int, config: Config, numbers: Numbers, name: str
) -> None:
    """Measure rendering `size` heads at once, and its parts."""
    device, name = avatar.device, f"{name}/{size}"
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
        whole = _milliseconds(frames, config)
        numbers.add(name, size / whole * 1000, "frames/s")
        numbers.add(f"{name}/batch", whole, "ms")
        numbers.add(f"{name}/deform", _milliseconds(deform, config), "ms")
        raster = _milliseconds(
            lambda: rasterize(splats, viewmats, Ks, data.width, data.height), config
        )
        numbers.add(f"{name}/raster", raster, "ms")
        numbers.add(f"{name}/covered", 100 * frames().mean().item(), "% of the image")


def time_video(avatar: Avatar, data: Dataset, numbers: Numbers, name: str) -> None:
    """Measure the frames per second of writing an .mp4 from the layers, and of each step."""
    ids = np.resize(data.train_ids, VIDEO_FRAMES[avatar.device.type])
    drive, options = Drive(ids, data.speech, ids), RenderConfig()
    some = ids[:ENCODED_FRAMES]

    def timed(step: str, run: Callable[[], object]) -> None:
        start = time.perf_counter()
        run()
        numbers.add(f"{name}{step}", len(ids) / (time.perf_counter() - start), "frames/s")

    def rendered() -> None:
        for _ in render_frames(avatar, data, drive, options.batch):
            pass

    with TemporaryDirectory() as folder:
        wav, video = Path(folder, "speech.wav"), Path(folder, "bench.mp4")
        write_wav(wav, syllables(len(ids)))
        frames = list(render_frames(avatar, data, Drive(some, data.speech, some), options.batch))

        def encoded() -> None:
            with video_writer(video, wav, options.crf) as write:
                for i in range(len(ids)):
                    write(frames[i % len(frames)])

        timed("", lambda: render(avatar, data, drive, wav, video, options))
        timed("/rendered", rendered)
        timed("/layers", lambda: list(ordered_map(data.background, ids.tolist(), MAX_WORKERS)))
        timed("/encoded", encoded)


def time_speaking(
    avatar: Avatar, data: Dataset, encoder: Encoder, config: Config, numbers: Numbers, name: str
) -> None:
    """Measure latency and speed of live speech with synthetic syllables (`measure_latency`)."""
    frames = round(config.speech * FPS)
    audio = syllables(frames)
    choice = Choice(config.encoder)
    learned, _ = extract_clip(encoder, choice, audio, frames, data.speech.shape[-1])
    parts = avatar, data, encoder, learned, SpeakConfig(hop=config.hop)
    list(StreamingAvatar(*parts).push_audio(audio))  # compiles
    result = measure_latency(StreamingAvatar(*parts), audio)
    name = f"{name}/{config.hop}"
    numbers.add(f"{name}/latency, 95th percentile", result["latency_ms_p95"], "ms")
    numbers.add(f"{name}/waiting for later audio", result["waits_ms"], "ms")
    numbers.add(f"{name}/step, median", result["hop_ms_median"], "ms")
    numbers.add(f"{name}/computing per second of speech", result["real_time_factor"], "s")


def syllables(frames: int) -> np.ndarray:
    """Return synthetic syllables for a number of video frames, int16 [640 T] at 16 kHz."""
    seconds = np.arange(frames * SAMPLES_PER_FRAME) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * 150 * seconds) * np.sin(2 * np.pi * 2 * seconds) ** 2
    return np.round(8000 * tone).astype(np.int16)


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


def _readable(value: float) -> str:
    """Format a number with three digits, or more in front of the decimal point."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"
