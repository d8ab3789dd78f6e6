"""Train an avatar: the canonical stage fits one head, the deformation stage fits its motion.

The order of the stages and the losses follow GaussianTalker (ACM MM 2024). A stopped run continues
from its last checkpoint and gives the same result.
"""

import dataclasses
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from inspect import unwrap
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.utils import get_total_norm

from talker.avatar.checkpoint import Origin, load_checkpoint, save_checkpoint
from talker.avatar.density import DensityControl, refine
from talker.avatar.expression import Speaker, SpeechPrior, fit_speech_to_expression
from talker.avatar.gaussians import initial_gaussians, mean_colors, sample_surface, to_view
from talker.avatar.losses import PerceptualNetwork, compute_loss
from talker.avatar.model import Avatar, AvatarConfig
from talker.avatar.options import Config
from talker.avatar.rasterize import Rasterized, Splats, as_graphs, rasterize
from talker.avatar.training_set import (
    EYES,
    MOUTH,
    REGIONS,
    Prefetch,
    Targets,
    TrainingSet,
    region_rows,
)
from talker.core.files import atomic_write
from talker.core.parallel import one_thread
from talker.core.progress import progress
from talker.core.ridge import Ridge
from talker.dataset import Dataset
from talker.errors import UserError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

BOUNDS_MARGIN = 1.1
"""Size of the tri-planes' box relative to the bounding box of the head."""
COLOR_FRAMES = 16
"""Number of training frames from which the initial colors of the Gaussians are computed."""
LOG_EVERY = 20
"""Steps between two entries of the training log."""
HARMONICS_RATE = 0.05
"""Learning rate of the color coefficients that depend on the viewing direction, relative to that of
the constant ones (Kerbl et al., 2023). If they learn fast, the colors are wrong in all head poses
that differ from those of the training frames."""
EYE_LEVELS = 10
"""Number of degrees of eye closure that `blink_share` makes equally frequent."""
CPU_CHUNK = 2
"""Images of a batch that one thread computes on the CPU. The batch is split among Python threads
because torch's own threads wait for each other at each of the many small operations. Results do
not depend on the number of cores."""


class Conditions(NamedTuple):
    """The conditions that drive B training frames."""

    speech: Tensor
    """[B, 16, C] speech windows."""
    expression: Tensor
    """[B, 10] tracked expressions."""
    tracked: Tensor
    """bool [B, 1], whether the tracked expression is used instead of the predicted one."""
    eye: Tensor
    """[B, 2] eye closure and raise of the brows."""
    pose: Tensor
    """[B, 12] standardized head poses."""


class Gradients(NamedTuple):
    """What `Trainer.loss_and_gradients` returns for B images."""

    parameters: list[Tensor]
    """gradients of all trained parameters"""
    losses: dict[str, Tensor]
    """the loss and its terms, by name"""
    centers: Tensor
    """[B, G, 2], gradient of `Rasterized.means2d`"""
    radii: Tensor
    """int [B, G], `Rasterized.radii`"""


class Adam(torch.optim.Adam):
    """Adam without the decorators with which torch imports its compiler.

    Importing the compiler (torch._dynamo) takes several seconds, and nothing here uses it.
    """

    add_param_group = unwrap(torch.optim.Adam.add_param_group)
    load_state_dict = unwrap(torch.optim.Adam.load_state_dict)
    state_dict = unwrap(torch.optim.Adam.state_dict)
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))
    zero_grad = unwrap(torch.optim.Adam.zero_grad)


class Trainer:
    """A training run: the state that a checkpoint holds, and one step of each stage."""

    STAGES = ("canonical", "deformation")

    def __init__(
        self,
        data: Dataset,
        subset: TrainingSet,
        config: Config,
        perceptual: PerceptualNetwork | None = None,
    ) -> None:
        self.config, self.subset, self.perceptual = config, subset, perceptual
        self.stage, self.step = self.STAGES[0], 0
        self.log: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.workers = ThreadPoolExecutor(torch.get_num_threads())
        torch.manual_seed(config.seed)
        device = subset.ids.device
        self.avatar = _initial_avatar(data, subset, config).to(device)
        self.density = DensityControl(config.density)
        self.optimizer = self._new_optimizer()
        self.diverged = torch.zeros((), device=device)
        self.eye_odds = eye_odds(subset.eye[:, 0].cpu())
        self.targets = Prefetch(subset, self.batch_rows)
        self.part_size = self._full_part_size()
        self.whole_batch: Callable[..., Gradients] | None = None
        """`loss_and_gradients` as CUDA graphs, which read the parameters from fixed places in
        memory. It is None until the graphs are needed, and after the parameters were replaced."""

    def _full_part_size(self) -> int:
        """Return how many images of a batch are computed at once if memory allows; 0 means all."""
        return 0 if self.subset.ids.is_cuda else CPU_CHUNK

    @property
    def stage_steps(self) -> int:
        """Number of steps of the current stage."""
        config = self.config
        if self.stage == "canonical":
            return config.canonical_steps
        epoch = math.ceil(len(self.subset.ids) / config.deformation_batch)
        return min(config.deformation_steps, config.max_epochs * epoch)

    def _new_optimizer(self) -> Adam:
        rates, avatar = self.config.rates, self.avatar
        groups = [
            {"params": [value], "lr": getattr(rates, name), "name": name}
            for name, value in avatar.canonical.items()
        ]
        if self.stage == "deformation":
            speech = list(avatar.speech_to_expression.parameters())
            planes = list(avatar.planes.parameters())
            others = {id(p) for p in [*speech, *planes, *avatar.canonical.values()]}
            network = [p for p in avatar.parameters() if id(p) not in others]
            groups += [
                {"params": planes, "lr": rates.planes, "name": "planes"},
                {"params": network, "lr": rates.network, "name": "network"},
            ]
        for group in groups:
            group["initial_lr"] = group["lr"]
        return Adam(groups, eps=1e-15, fused=True)

    def _decay_rates(self) -> None:
        share = self.config.rates.decay ** (self.step / self.stage_steps)
        for group in self.optimizer.param_groups:
            if group["name"] not in ("sh", "opacities"):
                group["lr"] = group["initial_lr"] * share

    def _generator(self) -> torch.Generator:
        """Return a generator seeded by the step, so that a resumed run draws the same numbers."""
        offset = self.STAGES.index(self.stage) * 1_000_003 + self.step
        generator = torch.Generator(self.subset.ids.device)
        return generator.manual_seed(self.config.seed * 1_000_033 + offset)

    def batch_rows(self, step: int) -> Tensor:
        """Return the rows of the training set in the batch of a step of this stage, int64 [B].

        For a GPU they are in pinned memory, because copying other memory waits for the GPU.
        """
        config, count = self.config, len(self.subset.ids)
        if self.stage == "canonical":
            rows = batch_rows(count, config.canonical_batch, step, config.seed)
        else:
            rows = batch_rows(count, config.deformation_batch, step, config.seed)
            generator = torch.Generator().manual_seed(config.seed * 1_000_033 + step)
            rows = balance_eyes(rows, self.eye_odds, config.blink_share, generator)
        return rows.pin_memory() if self.subset.ids.is_cuda else rows

    def sample_conditions(self, rows: Tensor) -> Conditions:
        """Return the conditions of training frames, with the random numbers of this step."""
        subset, config, generator = self.subset, self.config, self._generator()

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=generator.device)

        chance = torch.rand(len(rows), 1, generator=generator, device=generator.device)
        speech = subset.windows[subset.ids[rows]]
        speech = speech + config.speech_noise * noise(*speech.shape)
        pose = self.avatar.pose_vector(subset.viewmats[rows])
        return Conditions(
            speech=speech,
            expression=subset.expression[rows],
            tracked=chance < config.expression_share,
            eye=subset.eye[rows],
            pose=pose + config.pose_noise * noise(*pose.shape),
        )

    def deform(self, conditions: Conditions, viewmats: Tensor) -> Splats:
        """Return the Gaussians of B frames with cameras [B, 4, 4]."""
        with torch.no_grad():
            predicted = self.avatar.speech_to_expression(conditions.speech)
        expression = torch.where(conditions.tracked, conditions.expression, predicted)
        return self.avatar.deform(expression, conditions.eye, viewmats, pose=conditions.pose)

    def render(self, rows: Tensor, conditions: Conditions | None) -> Rasterized:
        """Render training frames; without conditions, render the canonical head in their poses."""
        avatar, viewmats = self.avatar, self.subset.viewmats[rows]
        if conditions is None:
            splats = to_view(avatar.gaussians(), avatar.canonical["means"].detach(), viewmats)
        else:
            splats = self.deform(conditions, viewmats)
        height, width = self.subset.size
        return rasterize(splats, viewmats, self.subset.K.expand(len(rows), 3, 3), width, height)

    def compute_loss(
        self, rgb: Tensor, alpha: Tensor, targets: Targets
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and {name: value} of the loss and its terms without gradients."""
        loss, parts = compute_loss(rgb, alpha, targets, self.config.weights, self.perceptual)
        return loss, {name: part.detach() for name, part in {"loss": loss, **parts}.items()}

    def loss_and_gradients(
        self, rows: Tensor, targets: Targets, conditions: Conditions | None, share: float = 1.0
    ) -> Gradients:
        """Render a part of a batch, compute its loss and differentiate it.

        Args:
            share: fraction of the batch that is in this part; gradients and losses are multiplied
                by it, so that those of all parts add up.
        """
        rendered = self.render(rows, conditions)
        loss, values = self.compute_loss(rendered.rgb, rendered.alpha, targets)
        inputs = [*self._parameters(), rendered.means2d]
        *gradients, centers = torch.autograd.grad(share * loss, inputs)
        values = {name: share * value for name, value in values.items()}
        return Gradients(gradients, values, centers, rendered.radii)

    def in_parts(self, work: Callable[[slice], Result], count: int) -> list[Result]:
        """Return work(part) for each part in which a batch of `count` images is computed."""
        size = self.part_size or count
        parts = (slice(start, start + size) for start in range(0, count, size))
        return list(self.workers.map(work, parts))

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _loss_and_gradients_as_graphs(
        self, rows: Tensor, targets: Targets, conditions: Conditions | None
    ) -> Gradients:
        """Return `loss_and_gradients` of a whole batch on a GPU; see `rasterize.as_graphs`."""
        fields = len(Targets._fields)

        def work(rows: Tensor, *given: Tensor) -> Gradients:
            targets, driving = Targets(*given[:fields]), given[fields:]
            return self.loss_and_gradients(rows, targets, Conditions(*driving) if driving else None)

        if self.whole_batch is None:
            self.whole_batch = as_graphs(work)
        return self.whole_batch(rows, *targets, *(conditions or ()))

    def train_step(self) -> dict[str, float] | None:
        """Take one step; return the losses every `LOG_EVERY` steps and at the end of the stage.

        Raises:
            UserError: a gradient is not finite. On a GPU this is checked only where losses are
                logged, but from the first such step on the optimizer skips all updates.
        """
        subset, canonical = self.subset, self.stage == "canonical"
        self.optimizer.zero_grad()  # small gradients can hold large blocks of memory of old graphs
        rows = self.batch_rows(self.step).to(subset.ids.device, non_blocking=True)
        targets = self.targets(self.step)
        conditions = None if canonical else self.sample_conditions(rows)

        done = self._in_memory(rows, targets, conditions)
        by_parameter = zip(*(part.parameters for part in done), strict=True)
        if len(done) == 1:
            gradients = [g.contiguous() for (g,) in by_parameter]
        else:
            gradients = [torch.stack(g).sum(0) for g in by_parameter]
        broken = 1 - torch.isfinite(get_total_norm(gradients)).float()
        # Adam skips the update if this is not zero.
        self.optimizer.found_inf = broken  # pyright: ignore[reportAttributeAccessIssue]
        self.diverged = torch.maximum(self.diverged, broken)
        logs = (self.step + 1) % LOG_EVERY == 0 or self.step + 1 == self.stage_steps
        if (logs or not rows.is_cuda) and self.diverged:  # reading it waits for the GPU
            self.refuse_divergence()
        for parameter, gradient in zip(self._parameters(), gradients, strict=True):
            parameter.grad = gradient
        self._decay_rates()
        harmonics = self.avatar.canonical["sh"].detach()[:, 1:]
        old = harmonics.clone()
        self.optimizer.step()
        harmonics.lerp_(old, 1 - HARMONICS_RATE)  # an update of Adam is proportional to its rate
        if canonical and self.density.accumulates_gradients(self.step):
            for part in done:
                self.density.observe(part.centers, part.radii, *subset.size, len(rows))
            before = self.avatar.canonical["means"]
            self.density.step(self.avatar.canonical, self.optimizer, self.step, self._generator())
            if self.avatar.canonical["means"] is not before:
                self.whole_batch = None  # the parameters were replaced
        self.step += 1
        if not logs:
            return None
        return {name: sum(part.losses[name].item() for part in done) for name in done[0].losses}

    def _in_memory(
        self, rows: Tensor, targets: Targets, conditions: Conditions | None
    ) -> list[Gradients]:
        """Return the gradients of the parts in which a batch is computed.

        If memory runs out, each batch is computed in two halves from now on.
        """
        count = len(rows)

        def work(part: slice) -> Gradients:
            return self.loss_and_gradients(
                rows[part],
                Targets(*(x[part] for x in targets)),
                conditions and Conditions(*(x[part] for x in conditions)),
                share=len(rows[part]) / count,
            )

        try:
            # the perceptual network may wait for the GPU, which graphs cannot do
            if rows.is_cuda and not self.part_size and self.perceptual is None:
                return [self._loss_and_gradients_as_graphs(rows, targets, conditions)]
            return self.in_parts(work, count)
        except torch.OutOfMemoryError:
            if 0 < self.part_size < count:
                raise
        # outside of the handler, whose exception keeps the tensors of the failed step alive
        self.part_size = math.ceil(count / 2)
        self.whole_batch = None
        torch.cuda.empty_cache()
        logger.warning(
            "The GPU ran out of memory at step %d of the %s stage. From now on, each batch of %d "
            "images is computed in two halves. This is slower and changes the result slightly.",
            *(self.step, self.stage, count),
        )
        return self.in_parts(work, count)

    def refuse_divergence(self) -> None:
        """Raise UserError if a gradient of any previous step was not finite."""
        if self.diverged:
            raise UserError(
                f"Training diverged before step {self.step + 1} of the {self.stage} stage: a "
                "gradient is NaN or infinite. The last checkpoint was written before that "
                "and is valid. Lower the learning rates, or look for invalid values in the "
                "dataset with `talker verify`."
            )

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint holds; UserError if training diverged."""
        self.refuse_divergence()
        return {
            "stage": self.stage,
            "step": self.step,
            "config": dataclasses.asdict(self.avatar.config),
            "avatar": self.avatar.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "density": self.density.state_dict(),
            "log": self.log,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`; its number of Gaussians may differ from the initial one."""
        self.stage, self.step = state["stage"], state["step"]
        self.log, self.seconds = state["log"], state["seconds"]
        for name in self.avatar.canonical:
            value = state["avatar"][f"canonical.{name}"]
            self.avatar.canonical[name] = torch.nn.Parameter(value.to(self.subset.ids.device))
        self.avatar.load_state_dict(state["avatar"])
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.density.load_state_dict(state["density"], self.subset.ids.device)
        self.whole_batch = None

    def next_stage(self) -> None:
        """Refine the Gaussians around mouth and eyes, and switch to the deformation stage."""
        canonical, config = self.avatar.canonical, self.config
        eyes = range(len(REGIONS))[EYES]
        for name, regions, count in (
            ("mouth", [MOUTH], config.mouth_split),
            ("eyes", eyes, config.eye_split),
        ):
            if count == 1:
                continue
            means, opacities = canonical["means"], canonical["opacities"]
            rows = torch.cat([region_rows(self.subset, r, means, opacities) for r in regions])
            refine(canonical, self.optimizer, rows.unique(), count, self._generator())
            logger.info(
                "%d Gaussians around the %s were split into %d each.", len(rows), name, count
            )
        self.stage, self.step = "deformation", 0
        self.part_size = self._full_part_size()
        self.whole_batch = None
        self.optimizer = self._new_optimizer()

    @property
    def total_steps(self) -> int:
        """Number of steps taken since the start of training, in both stages."""
        return self.step + (self.config.canonical_steps if self.stage != self.STAGES[0] else 0)

    def run_stage(self) -> Iterator[None]:
        """Take the remaining steps of the stage, yield after each of them, and write the log.

        At the end, the memory of the graphs and gradients is released.
        """
        while self.step < self.stage_steps:
            start = time.monotonic()
            values = self.train_step()
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
        self.whole_batch = None
        self.optimizer.zero_grad()


def batch_rows(count: int, batch: int, step: int, seed: int) -> Tensor:
    """Return the rows of a batch; the order of the rows depends only on seed and epoch."""
    batch = min(batch, count)
    per_epoch = count // batch
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 10_007 + epoch))
    return order[place * batch : (place + 1) * batch]


def eye_odds(eye: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Return probabilities of frames with which all degrees of eye closure are equally likely.

    Args:
        eye: eye closure of the frames [N], 0..1.
    """
    level = (eye * EYE_LEVELS).long().clamp(0, EYE_LEVELS - 1)
    odds = 1 / torch.bincount(level, minlength=EYE_LEVELS)[level]
    return odds / odds.sum()


def balance_eyes(
    rows: Int64[Tensor, "B"], odds: Float[Tensor, "N"], share: float, generator: torch.Generator
) -> Int64[Tensor, "B"]:
    """Replace a random `share` of the rows of a batch [B] by rows that are drawn with `odds`."""
    chance = torch.rand(len(rows), generator=generator)
    drawn = torch.multinomial(odds, len(rows), replacement=True, generator=generator)
    return torch.where(chance < share, drawn, rows)


def _initial_avatar(data: Dataset, subset: TrainingSet, config: Config) -> Avatar:
    """Create the avatar before training: Gaussians on the tracked head, a random network."""
    rng = np.random.default_rng(config.seed)
    points = sample_surface(data.vertices, data.faces, config.gaussians, rng)
    some = np.linspace(0, len(subset.ids) - 1, COLOR_FRAMES).astype(int)
    colors = mean_colors(
        points,
        subset.frame[some].cpu().numpy(),
        subset.viewmats[some].cpu().numpy(),
        subset.K.cpu().numpy(),
    )
    low, high = points.min(0), points.max(0)
    center, half = (low + high) / 2, (high - low) / 2 * BOUNDS_MARGIN
    shape = AvatarConfig(
        image_size=config.image_size,
        speech_features=data.speech.shape[-1],
        encoder=config.encoder,
        sh_degree=config.sh_degree,
        plane_resolutions=config.plane_resolutions,
        plane_channels=config.plane_channels,
        features=config.features,
        heads=config.heads,
        layers=config.layers,
        hidden=config.hidden,
    )
    bounds = torch.from_numpy(np.stack([center - half, center + half])).float()
    gaussians = initial_gaussians(points, colors, config.sh_degree)
    return Avatar(shape, gaussians, bounds, subset.viewmats.cpu())


def fit(
    data: Dataset,
    subset: TrainingSet,
    config: Config,
    checkpoint: Path,
    perceptual: PerceptualNetwork | None = None,
) -> Trainer:
    """Run all stages, continuing from `checkpoint` if it has the same code, options and data.

    SIGINT (Ctrl-C) and SIGTERM write a checkpoint after the current step and stop the run; a second
    signal stops it at once.

    Raises:
        KeyboardInterrupt: after SIGINT.
        SystemExit: after SIGTERM, with status 143.
        UserError: training diverged.
    """
    prior = None
    if config.speech_prior:
        speaker = Speaker.of(data, config.encoder)
        prior = SpeechPrior.load(Path(config.speech_prior)).map_of(speaker)
    origin = Origin.of(config, data)
    trainer = Trainer(data, subset, config, perceptual)

    def save() -> None:
        save_checkpoint(checkpoint, trainer.state(), origin)

    with one_thread(), _stop_signals() as received:
        _begin(trainer, load_checkpoint(checkpoint, origin), checkpoint, prior)
        saved = -math.inf  # the first step is saved, too
        while True:
            left = trainer.stage_steps - trainer.step
            for _ in progress(trainer.run_stage(), trainer.stage, left, "steps"):
                if trainer.total_steps in config.point_cloud_steps:
                    _save_point_cloud(trainer, checkpoint.parent)
                if received:
                    save()
                    _stop(trainer, checkpoint, received[0])
                if time.monotonic() - saved >= config.checkpoint_seconds:
                    save()
                    saved = time.monotonic()
            if trainer.stage == Trainer.STAGES[-1]:
                save()
                return trainer
            trainer.next_stage()


def _save_point_cloud(trainer: Trainer, folder: Path) -> None:
    """Write the current Gaussians to `folder`, with the step in the file name."""
    path = folder / f"point_cloud_{trainer.total_steps:06d}.ply"
    with atomic_write(path) as (scratch,):
        trainer.avatar.save_point_cloud(scratch)


def _begin(
    trainer: Trainer, state: dict[str, Any] | None, checkpoint: Path, prior: Ridge | None
) -> None:
    """Continue from the `state` of a checkpoint, or fit the map from speech to expression.

    Args:
        trainer: the training run.
        state: content of the checkpoint, if there is one.
        checkpoint: its file.
        prior: the map that other speakers suggest.

    Raises:
        UserError: the state is damaged.
    """
    if state is not None:
        try:
            trainer.restore(state)
        except torch.OutOfMemoryError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{checkpoint} does not hold the state of this training run ({error}). Delete it "
                "and run the command again."
            ) from error
        logger.info("Continuing at step %d of the %s stage.", trainer.step, trainer.stage)
        return
    subset = trainer.subset
    strength, correlation = fit_speech_to_expression(
        trainer.avatar.speech_to_expression,
        subset.windows[subset.ids],
        subset.expression,
        subset.speech_scale,
        subset.silence if len(subset.silence) else None,
        subset.rest,
        trainer.config.mouth_amplitude,
        prior,
        subset.opening,
    )
    logger.info(
        "Ridge regression from speech predicts the expression with a correlation of %.2f "
        "on training frames that were not used for the fit (ridge strength: %g).",
        correlation,
        strength,
    )


@contextmanager
def _stop_signals() -> Iterator[list[signal.Signals]]:
    """Collect SIGINT and SIGTERM, so that only a second signal stops the run at once.

    Python delivers signals only to the main thread, so this has no effect in other threads.
    """
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(trainer: Trainer, checkpoint: Path, received: signal.Signals) -> None:
    """Log how to continue the run, and exit as if the signal had ended the process."""
    logger.info(
        "Training stopped at step %d of %d of the %s stage. The checkpoint %s contains "
        "its state. Run the same command again to continue.",
        *(trainer.step, trainer.stage_steps, trainer.stage, checkpoint),
    )
    if received == signal.SIGTERM:
        raise SystemExit(128 + received)
    raise KeyboardInterrupt
