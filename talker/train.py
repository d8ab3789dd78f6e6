"""Fit the avatar of a prepared dataset folder: speech prior, canonical stage, deformation stage.

The order and the losses follow GaussianTalker (ACM MM 2024); a checkpoint folder lets a killed
training go on where it was, with the same result.

    talker train --data data/me --avatar results/me/avatar --checkpoints results/me/checkpoints
"""

import dataclasses
import hashlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from talker.avatar.density import DensityConfig, DensityControl
from talker.avatar.initialise import (
    NEIGHBOURS,
    initial_gaussians,
    mean_colours,
    sample_surface,
)
from talker.avatar.losses import LossWeights, compute_loss
from talker.avatar.model import Avatar, AvatarConfig, as_seen
from talker.avatar.rasterize import Rasterized, Splats, rasterize
from talker.avatar.speech_encoder import speech_context
from talker.avatar.speech_prior import fit_speech_encoder
from talker.avatar.spherical_harmonics import MAX_DEGREE
from talker.avatar.training_set import Prefetch, Targets, TrainingSet, training_set
from talker.core.config import AtLeast0, AtLeast1, Fraction, NonNegative, validated
from talker.core.files import Changed, Output, atomic_write
from talker.core.parallel import one_thread
from talker.core.progress import progress
from talker.core.provenance import code_of
from talker.data.layout import Folder, speech_statistics
from talker.dataset import Dataset
from talker.errors import UserError
from talker.measure.networks import load_judge

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

PARTS = tuple(item.name for item in dataclasses.fields(LossWeights))
BOUNDS_MARGIN = 1.1
COLOUR_FRAMES = 16
LOG_EVERY = 20
MIN_SIZE = 16
"""pixels; the crop around a head is a multiple of it"""
ImageSize = Annotated[int, Field(ge=MIN_SIZE)]
CPU_CHUNK = 2
"""On the CPU a batch is split among threads, this many images each: torch's own threads wait for
each other at every one of the many small operations. Results do not depend on the cores' number."""


@validated
class LearningRates:
    """Adam rates, in dm where they move points; none depends on how much the head moves."""

    means: float = 4e-4
    quats: float = 1e-3
    scales: float = 5e-3
    opacities: float = 0.05
    sh: float = 2.5e-3
    planes: float = 5e-3
    network: float = 1e-3
    speech: float = 0.0
    """of the speech encoder, whose linear part is fitted before; 0 keeps that alone. At 1e-4 the
    correction learns a minute of speech by heart: on the tail of a clip of 45 s the mouth opening
    that it told correlated 0.57 with the real one, that of the linear part 0.61"""
    decay: float = 0.05
    """the last rate of a stage over its first; exponential in between (not for colour, opacity)"""


@validated
class Config:
    encoder: str = "hama"
    """whose speech features to train on (the workflow sets it from its own key `encoder`)"""
    image_size: ImageSize = 512
    """longer side of the training images, pixels"""
    device: str = "auto"
    """auto, cpu or cuda"""
    seed: AtLeast0 = 6666

    gaussians: Annotated[int, Field(gt=NEIGHBOURS)] = 20_000
    """how many to start with"""
    sh_degree: Annotated[int, Field(ge=0, le=MAX_DEGREE)] = 3
    plane_resolutions: tuple[AtLeast1, ...] = (64, 128)
    plane_channels: AtLeast1 = 32
    features: AtLeast1 = 64
    heads: AtLeast1 = 2
    layers: AtLeast1 = 1
    hidden: AtLeast1 = 128

    canonical_steps: AtLeast1 = 1_500
    canonical_batch: AtLeast1 = 8
    deformation_steps: AtLeast1 = 4_000
    deformation_batch: AtLeast1 = 32
    max_epochs: AtLeast1 = 400
    """a short clip is done when every frame was seen this often in the deformation stage"""
    pose_noise: NonNegative = 1.0
    """noise on the pose token, in standard deviations of the poses: the pose must not tell the
    network which frame it is, or the mouth follows the head instead of the speech"""
    speech_noise: NonNegative = 0.1
    """noise on the speech windows"""
    expression_share: Fraction = 0.5
    """how many training frames are driven by the tracked expression instead of speech: it tells
    the mouth in full, so that the network need not guess the rest from blink and pose"""

    rates: LearningRates = field(default_factory=LearningRates)
    weights: LossWeights = field(default_factory=LossWeights)
    density: DensityConfig = field(default_factory=DensityConfig)
    perceptual: str = ""
    """TorchScript file of LPIPS for the loss `detail` (talker/measure/networks.py)"""
    perceptual_sha256: str = ""
    checkpoint_every: AtLeast1 = 500
    """steps"""

    def __post_init__(self) -> None:
        if self.features % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide features: {self.features}")


def batch_rows(count: int, batch: int, step: int, seed: int) -> Tensor:
    """The rows of batch `step`: epochs in an order that depends on seed and epoch alone."""
    batch = min(batch, count)
    per_epoch = count // batch
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 10_007 + epoch))
    return order[place * batch : (place + 1) * batch]


class Conditions(NamedTuple):
    """What drives B training frames."""

    speech: Tensor
    """[B, 8, 16, C]"""
    expression: Tensor
    """[B, 10], the tracked one"""
    tracked: Tensor
    """bool [B, 1]: driven by the tracked expression, else by what the speech tells"""
    eye: Tensor
    """[B]"""
    pose: Tensor
    """[B, 12]"""


class Speaking(nn.Module):
    """The network of the deformation stage, from conditions to what is drawn."""

    def __init__(self, avatar: Avatar) -> None:
        super().__init__()
        self.avatar = avatar

    def forward(
        self,
        speech: Tensor,
        expression: Tensor,
        tracked: Tensor,
        eye: Tensor,
        pose: Tensor,
        viewmats: Tensor,
    ) -> tuple[Tensor, ...]:
        """`Splats` of the fields of `Conditions` and viewmats [B, 4, 4]."""
        avatar = self.avatar
        learns = avatar.config.audio_net and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            heard = avatar.speech_encoder(speech)
        tokens = avatar.tokens(torch.where(tracked, expression, heard), eye, pose)
        return tuple(avatar.splats(avatar.shared(), tokens, viewmats))


class Training:
    """A training run: what a checkpoint holds, and one step of each stage."""

    STAGES = ("canonical", "deformation")

    def __init__(self, data: Dataset, subset: TrainingSet, config: Config) -> None:
        self.config, self.subset = config, subset
        self.stage, self.step = self.STAGES[0], 0
        self.log: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.workers = ThreadPoolExecutor(torch.get_num_threads())
        torch.manual_seed(config.seed)
        device = subset.ids.device
        self.avatar = _new_avatar(data, subset, config).to(device)
        self.density = DensityControl(config.density)
        self.optimiser = self._new_optimiser()
        self.diverged = torch.zeros((), device=device)
        path, sha256 = config.perceptual, config.perceptual_sha256
        self.perceptual = load_judge(Path(path), sha256).to(device) if path else None
        self.targets = Prefetch(subset, self._rows)
        self.speak: Callable[..., tuple[Tensor, ...]] = Speaking(self.avatar)
        self.recorded = False

    @property
    def stage_steps(self) -> int:
        config = self.config
        if self.stage == "canonical":
            return config.canonical_steps
        epoch = math.ceil(len(self.subset.ids) / config.deformation_batch)
        return min(config.deformation_steps, config.max_epochs * epoch)

    def _new_optimiser(self) -> torch.optim.Adam:
        rates = self.config.rates
        groups = [
            {"params": [value], "lr": getattr(rates, name), "name": name}
            for name, value in self.avatar.canonical.items()
        ]
        if self.stage == "deformation":
            avatar = self.avatar
            speech = list(avatar.speech_encoder.parameters())
            planes = list(avatar.planes.parameters())
            taken = {id(p) for p in [*speech, *planes, *avatar.canonical.values()]}
            network = [p for p in avatar.parameters() if id(p) not in taken]
            groups += [
                {"params": planes, "lr": rates.planes, "name": "planes"},
                {"params": network, "lr": rates.network, "name": "network"},
            ]
            if rates.speech:
                groups.append({"params": speech, "lr": rates.speech, "name": "speech"})
        for group in groups:
            group["initial_lr"] = group["lr"]
        return torch.optim.Adam(groups, eps=1e-15, fused=True)

    def _decay_rates(self) -> None:
        share = self.config.rates.decay ** (self.step / self.stage_steps)
        for group in self.optimiser.param_groups:
            if group["name"] not in ("sh", "opacities"):
                group["lr"] = group["initial_lr"] * share

    def _generator(self) -> torch.Generator:
        """Randomness of this step alone, so that a resumed run draws the same numbers."""
        offset = self.STAGES.index(self.stage) * 1_000_003 + self.step
        generator = torch.Generator(self.subset.ids.device)
        return generator.manual_seed(self.config.seed * 1_000_033 + offset)

    def _conditions(self, rows: Tensor) -> Conditions:
        """What drives training frames, with this step's noise and choice."""
        subset, config, generator = self.subset, self.config, self._generator()

        def noisy(clean: Tensor, strength: float) -> Tensor:
            noise = torch.randn(clean.shape, generator=generator, device=generator.device)
            return clean + strength * noise

        chance = torch.rand(len(rows), 1, generator=generator, device=generator.device)
        return Conditions(
            speech=noisy(speech_context(subset.windows, subset.ids[rows]), config.speech_noise),
            expression=subset.expression[rows],
            tracked=chance < config.expression_share,
            eye=subset.eye[rows],
            pose=noisy(self.avatar.pose_vector(subset.viewmats[rows]), config.pose_noise),
        )

    def draw(self, rows: Tensor, conditions: Conditions | None) -> Rasterized:
        """Render training frames; the canonical head where there are no conditions."""
        avatar, viewmats = self.avatar, self.subset.viewmats[rows]
        if conditions is None:
            splats = as_seen(avatar.gaussians(), avatar.canonical["means"].detach(), viewmats)
        else:
            splats = Splats(*self.speak(*conditions, viewmats))
        height, width = self.subset.size
        return rasterize(splats, viewmats, self.subset.K.expand(len(rows), 3, 3), width, height)

    def judge(self, rgb: Tensor, alpha: Tensor, *targets: Tensor) -> tuple[Tensor, ...]:
        """The loss, and its parts without gradients in the order of `LossWeights`."""
        wanted = Targets(*targets)
        loss, parts = compute_loss(rgb, alpha, wanted, self.config.weights, self.perceptual)
        return loss, *(part.detach() for part in parts.values())

    def _record(self, rows: Tensor, conditions: Conditions) -> None:
        """Have the network replayed as a CUDA graph from now on.

        Launched one by one its hundreds of small kernels take Python longer than the GPU.
        """
        # True of the recording, which has a stream of its own, and of no consequence.
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")
        record: Any = partial(torch.cuda.make_graphed_callables, allow_unused_input=True)
        self.speak = record(self.speak, (*conditions, self.subset.viewmats[rows]))
        self.recorded = True

    def _chunk(
        self, share: float, rows: Tensor, targets: Targets, conditions: Conditions | None
    ) -> tuple[list[Tensor], dict[str, Tensor], Rasterized]:
        """Gradients and losses of a part of the batch, times the `share` that it has of it."""
        drawn = self.draw(rows, conditions)
        loss, *parts = self.judge(drawn.rgb, drawn.alpha, *targets)
        wanted = [*self._parameters(), drawn.means2d]
        gradients = list(torch.autograd.grad(share * loss, wanted))
        values = (share * value for value in (loss.detach(), *parts))
        return gradients, dict(zip(("loss", *PARTS), values, strict=False)), drawn

    def _rows(self, step: int) -> Tensor:
        """The rows of a batch of this stage, pinned: a copy of others waits for the GPU."""
        config = self.config
        canonical = self.stage == "canonical"
        batch = config.canonical_batch if canonical else config.deformation_batch
        rows = batch_rows(len(self.subset.ids), batch, step, config.seed)
        return rows.pin_memory() if self.subset.ids.is_cuda else rows

    def in_parts(self, work: Callable[[slice], Result], count: int) -> list[Result]:
        """Run work(part) for every part that a batch of `count` images is computed in."""
        size = count if self.subset.ids.is_cuda else CPU_CHUNK
        parts = (slice(start, start + size) for start in range(0, count, size))
        return list(self.workers.map(work, parts))

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    def advance(self) -> dict[str, float] | None:
        """Take one step; the losses where they are logged.

        Raises:
            UserError: a gradient is not a number. A GPU is asked only where losses are logged, but
                from a broken step on the optimiser changes nothing.
        """
        subset, canonical = self.subset, self.stage == "canonical"
        rows = self._rows(self.step).to(subset.ids.device, non_blocking=True)
        targets = self.targets(self.step)
        conditions = None if canonical else self._conditions(rows)
        if conditions and rows.is_cuda and not self.recorded:
            self._record(rows, conditions)

        def work(part: slice) -> tuple[list[Tensor], dict[str, Tensor], Rasterized]:
            given = conditions and Conditions(*(x[part] for x in conditions))
            wanted = Targets(*(x[part] for x in targets))
            return self._chunk(len(rows[part]) / len(rows), rows[part], wanted, given)

        done = self.in_parts(work, len(rows))
        found = zip(*(gradients[:-1] for gradients, *_ in done), strict=True)
        if len(done) == 1:
            gradients = [g.contiguous() for (g,) in found]
        else:
            gradients = [torch.stack(g).sum(0) for g in found]
        broken = 1 - torch.isfinite(get_total_norm(gradients)).float()
        # Adam leaves everything as it is where this is not zero.
        self.optimiser.found_inf = broken  # pyright: ignore[reportAttributeAccessIssue]
        self.diverged = torch.maximum(self.diverged, broken)
        logs = (self.step + 1) % LOG_EVERY == 0 or self.step + 1 == self.stage_steps
        if (logs or not rows.is_cuda) and self.diverged:  # to ask a GPU is to wait for it
            self.refuse_divergence()
        for parameter, gradient in zip(self._parameters(), gradients, strict=True):
            parameter.grad = gradient
        self._decay_rates()
        self.optimiser.step()
        if canonical and self.density.watches(self.step):
            for gradients, _, drawn in done:
                self.density.observe(gradients[-1], drawn.radii, *subset.size, len(rows))
            self.density.step(self.avatar.canonical, self.optimiser, self.step, self._generator())
        self.step += 1
        if not logs:
            return None
        return {name: sum(d[1][name].item() for d in done) for name in done[0][1]}

    def refuse_divergence(self) -> None:
        """Raise UserError if a step until now was broken."""
        if self.diverged:
            raise UserError(
                f"training diverged by step {self.step} of the {self.stage} stage: a gradient is "
                "not a number. No checkpoint holds such a step. Lower the learning rates or look "
                "for broken values with `talker check`"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; UserError if training diverged."""
        self.refuse_divergence()
        return {
            "stage": self.stage,
            "step": self.step,
            "avatar": self.avatar.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "density": self.density.state_dict(),
            "log": self.log,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the number of Gaussians may have changed since the start."""
        self.stage, self.step = state["stage"], state["step"]
        self.log, self.seconds = state["log"], state["seconds"]
        for name in self.avatar.canonical:
            value = state["avatar"][f"canonical.{name}"]
            self.avatar.canonical[name] = torch.nn.Parameter(value.to(self.subset.ids.device))
        self.avatar.load_state_dict(state["avatar"])
        self.optimiser = self._new_optimiser()
        self.optimiser.load_state_dict(state["optimiser"])
        self.density.load_state_dict(state["density"], self.subset.ids.device)

    def next_stage(self) -> None:
        self.stage, self.step = "deformation", 0
        self.optimiser = self._new_optimiser()

    def run_stage(self) -> Iterator[None]:
        """Step to the end of the stage, keeping the log."""
        while self.step < self.stage_steps:
            start = time.monotonic()
            values = self.advance()
            self.seconds += time.monotonic() - start
            if values is not None:
                self.log.append(
                    {
                        "stage": self.stage,
                        "step": self.step,
                        **values,
                        "gaussians": len(self.avatar.canonical["means"]),
                        "seconds": round(self.seconds, 3),
                    }
                )
            yield


def _new_avatar(data: Dataset, subset: TrainingSet, config: Config) -> Avatar:
    rng = np.random.default_rng(config.seed)
    points = sample_surface(data.vertices, data.faces, config.gaussians, rng)
    some = np.linspace(0, len(subset.ids) - 1, COLOUR_FRAMES).astype(int)
    colours = mean_colours(
        points,
        subset.frame[some].cpu().numpy(),
        subset.viewmats[some].cpu().numpy(),
        subset.K.cpu().numpy(),
    )
    low, high = points.min(0), points.max(0)
    centre, half = (low + high) / 2, (high - low) / 2 * BOUNDS_MARGIN
    shape = AvatarConfig(
        image_size=config.image_size,
        speech_features=data.speech.shape[-1],
        encoder=config.encoder,
        audio_net=config.rates.speech > 0,
        sh_degree=config.sh_degree,
        plane_resolutions=config.plane_resolutions,
        plane_channels=config.plane_channels,
        features=config.features,
        heads=config.heads,
        layers=config.layers,
        hidden=config.hidden,
    )
    bounds = torch.from_numpy(np.stack([centre - half, centre + half])).float()
    return Avatar(
        shape, initial_gaussians(points, colours, config.sh_degree), bounds, subset.viewmats.cpu()
    )


def fingerprint(config: Config, data: Dataset) -> str:
    """What a checkpoint belongs to: the code, the options and the data, as it lies in the files.

    Whatever is computed from them is rounded, and not everywhere in the same way.
    """
    digest = hashlib.sha256(code_of("talker.train").encode())
    digest.update(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())

    def content(file: Folder) -> bytes:
        return hashlib.sha256(file.read_bytes()).digest()

    with ThreadPoolExecutor() as pool:
        for part in pool.map(content, data.training_files(config.encoder)):
            digest.update(part)
    return digest.hexdigest()


def _save_checkpoint(path: Path, training: Training, owner: str) -> None:
    with atomic_write(path) as (scratch,):
        torch.save({"owner": owner, **training.state()}, scratch)


def _load_checkpoint(path: Path, owner: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        known = state["owner"]
    except Exception as error:  # whatever torch meets in a file of another program
        logger.warning("%s cannot be read as a checkpoint (%s): starting anew", path, error)
        return None
    if known != owner:
        logger.info("%s belongs to other data or options: starting anew", path)
        return None
    return state


def train(data: Dataset, subset: TrainingSet, config: Config, checkpoint: Path) -> Training:
    """Run every stage, going on from `checkpoint` if it belongs to this data and these options."""
    owner = fingerprint(config, data)
    training = Training(data, subset, config)
    with one_thread():
        _begin(training, _load_checkpoint(checkpoint, owner))
        while True:
            total = training.stage_steps - training.step
            for _ in progress(training.run_stage(), training.stage, total, "steps"):
                if training.step % config.checkpoint_every == 0:
                    _save_checkpoint(checkpoint, training, owner)
            if training.stage == Training.STAGES[-1]:
                _save_checkpoint(checkpoint, training, owner)
                return training
            training.next_stage()
            _save_checkpoint(checkpoint, training, owner)


def _begin(training: Training, state: dict[str, Any] | None) -> None:
    """Go on from `state`, or else teach the speech encoder what can be told before any picture."""
    if state is not None:
        training.restore(state)
        logger.info("going on at step %d of the %s stage", training.step, training.stage)
        return
    subset = training.subset
    strength, correlation = fit_speech_encoder(
        training.avatar.speech_encoder,
        subset.windows[subset.ids],
        subset.expression,
        subset.silence if len(subset.silence) else None,
        subset.rest,
    )
    logger.info(
        "speech tells the expression: correlation %.2f on left-out stretches (ridge %g)",
        correlation,
        strength,
    )


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: expected a CUDA GPU, found none; use --device cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"device: expected auto, cpu or cuda, found '{name}'")
    return torch.device(name)


def main(data: Path, avatar: Output, checkpoints: Changed, config: Config = Config()) -> None:
    """Fit an avatar to a prepared dataset folder.

    Args:
        data: the dataset folder.
        avatar: where config.json, weights.safetensors, point_cloud.ply and log.jsonl go.
        checkpoints: a folder for the state of the training. It stays: training again with the
            same code, options and data takes the finished state.
    """
    device = pick_device(config.device)
    dataset = Dataset.load(data, config.image_size, config.encoder)
    subset = training_set(dataset, device)
    checkpoint = checkpoints / "latest.pt"
    training = train(dataset, subset, config, checkpoint)
    with atomic_write(avatar) as (folder,):
        training.avatar.save(folder)
        learned = dataset.folder / speech_statistics(config.encoder)
        if learned.exists():
            (folder / "speech.npz").write_bytes(learned.read_bytes())
        lines = (json.dumps(entry) + "\n" for entry in training.log)
        (folder / "log.jsonl").write_text("".join(lines))
    logger.info("%s: %d Gaussians", avatar, len(training.avatar.canonical["means"]))
