"""Training: losses with gradients, exact resume, a killed run, a diverged run."""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from talker.avatar import trainer as trainer_module
from talker.avatar.checkpoint import Origin, save_checkpoint
from talker.avatar.density import DensityConfig
from talker.avatar.losses import LossWeights, compute_loss
from talker.avatar.model import Avatar
from talker.avatar.options import Config
from talker.avatar.trainer import Trainer, balance_eyes, batch_rows, eye_odds, fit
from talker.avatar.training_set import (
    EYES,
    MOUTH,
    REGIONS,
    TrainingSet,
    crop_box,
    region_rows,
    training_set,
)
from talker.core.config import from_mapping
from talker.data.formats import load_torchscript
from talker.dataset import Dataset
from talker.errors import UserError
from talker.train import main

TINY = Config(
    image_size=64,
    device="cpu",
    gaussians=300,
    sh_degree=1,
    plane_resolutions=(8,),
    plane_channels=8,
    features=16,
    hidden=16,
    canonical_steps=30,
    canonical_batch=2,
    deformation_steps=20,
    deformation_batch=2,
    checkpoint_seconds=0.0,
    blendshapes=0,
)
GROWING = dataclasses.replace(
    TINY,
    density=DensityConfig(start=10, stop=25, every=5, grad_threshold=0.0, max_gaussians=600),
)
"""Densifies at steps 10, 15 and 20, so that step 17 lies between two densifications."""


@pytest.fixture(scope="module")
def data(dataset: Path) -> Dataset:
    return Dataset.load(dataset, TINY.image_size)


@pytest.fixture(scope="module")
def subset(data: Dataset) -> TrainingSet:
    return training_set(data, torch.device("cpu"))


def test_images_in_a_temporary_file_are_the_same(
    data: Dataset, subset: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("talker.avatar.training_set.IN_MEMORY", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    part = training_set(data, torch.device("cpu"))
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8").count(str(tmp_path))
    assert mapped == 3 and not list(tmp_path.iterdir())
    rows = torch.arange(len(part.ids))
    for there, here in zip(part.targets(rows), subset.targets(rows), strict=True):
        assert torch.equal(there, here)
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    assert torch.equal(training_set(data, torch.device("cpu")).mask, subset.mask)


def full_disk(descriptor: int, offset: int, size: int) -> None:
    """Stand in for `os.posix_fallocate` on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.avatar.state_dict().items()}


def test_the_image_comes_closer_to_the_subject(
    data: Dataset, subset: TrainingSet, tmp_path: Path
) -> None:
    trainer = fit(data, subset, TINY, tmp_path / "latest.pt")
    canonical = [entry["l1"] for entry in trainer.log if entry["stage"] == "canonical"]
    rows = torch.arange(0, len(subset.ids), 5)
    start = Trainer(data, subset, TINY)
    first = start.render(rows, None)
    before = compute_loss(first.rgb, first.alpha, subset.targets(rows), TINY.weights)[0]
    last = trainer.render(rows, trainer.sample_conditions(rows))
    after = compute_loss(last.rgb, last.alpha, subset.targets(rows), TINY.weights)[0]
    assert after < 0.7 * before
    assert all(np.isfinite(canonical))


def test_alpha_is_supervised_with_a_gradient(subset: TrainingSet) -> None:
    """The published mask loss has no gradient."""
    rows = torch.arange(2)
    height, width = subset.size
    rgb = torch.rand(2, height, width, 3)
    alpha = torch.full((2, height, width, 1), 0.5, requires_grad=True)
    only_alpha = LossWeights(l1=0, ssim=0, lips=0, eyes=0, brows=0, alpha=1, perceptual=0)
    loss, _ = compute_loss(rgb, alpha, subset.targets(rows), only_alpha)
    loss.backward()
    head = subset.mask[rows, ..., None] == 255
    outside = subset.mask[rows, ..., None] == 0
    assert alpha.grad is not None
    assert (alpha.grad[head] < 0).all()
    assert (alpha.grad[outside] > 0).all()


def test_a_perfect_picture_costs_nothing(subset: TrainingSet) -> None:
    rows = torch.arange(3)
    mask = subset.mask[rows, ..., None].float() / 255
    rgb = mask * subset.frame[rows].float() / 255
    loss, _ = compute_loss(rgb, mask, subset.targets(rows), LossWeights())
    assert loss < 1e-5


def test_a_given_network_adds_a_perceptual_loss(
    data: Dataset, subset: TrainingSet, tmp_path: Path
) -> None:
    class Squares(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (x - y).square().mean((1, 2, 3))

    path = tmp_path / "lpips.pt"
    torch.jit.script(Squares()).save(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    rows = torch.arange(2)
    trainer = Trainer(data, subset, TINY, load_torchscript(path, sha256))
    targets = subset.targets(rows)
    rendered = trainer.render(rows, None)
    loss, values = trainer.compute_loss(rendered.rgb, rendered.alpha, targets)
    mask = targets.mask[..., None] / 255
    expected = torch.lerp(targets.background / 255, targets.frame / 255, mask)
    image = rendered.rgb + (1 - rendered.alpha) * targets.background / 255
    assert torch.isclose(values["perceptual"], 4 * (image - expected).square().mean())
    plain, without = Trainer(data, subset, TINY).compute_loss(rendered.rgb, rendered.alpha, targets)
    assert "perceptual" not in without
    assert torch.isclose(loss - plain, TINY.weights.perceptual * values["perceptual"])


def test_the_network_must_have_the_given_hash(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "lpips.pt"
    path.write_bytes(b"no network")
    config = dataclasses.replace(TINY, perceptual=str(path), perceptual_sha256="0")
    with pytest.raises(UserError, match="SHA-256"):
        main(dataset, tmp_path / "avatar", tmp_path / "checkpoints", config)


def test_a_still_head_trains(data: Dataset, subset: TrainingSet) -> None:
    """The published rates are multiplied by the head motion, so a still head would not train."""
    still = dataclasses.replace(subset, viewmats=subset.viewmats[:1].expand_as(subset.viewmats))
    trainer = Trainer(data, still, TINY)
    before = weights_of(trainer)
    for _ in range(3):
        trainer.train_step()
    after = weights_of(trainer)
    assert all(
        not torch.equal(before[f"canonical.{name}"], after[f"canonical.{name}"])
        for name in ("means", "scales", "opacities", "sh")
    )


def test_view_dependent_colors_learn_slowly(data: Dataset, subset: TrainingSet) -> None:
    """The first update of Adam is the learning rate, whatever the gradient."""
    trainer = Trainer(data, subset, TINY)
    before = weights_of(trainer)["canonical.sh"]
    trainer.train_step()
    moved = (weights_of(trainer)["canonical.sh"] - before).abs()
    assert moved[:, 0].amax() == pytest.approx(TINY.rates.sh, rel=0.01)
    assert moved[:, 1:].amax() == pytest.approx(TINY.rates.sh / 20, rel=0.01)


def test_the_map_from_speech_depends_on_the_opening_of_the_mouth(
    data: Dataset, subset: TrainingSet, tmp_path: Path
) -> None:
    quick = dataclasses.replace(TINY, canonical_steps=1, deformation_steps=1)
    constant = dataclasses.replace(subset, opening=torch.ones_like(subset.opening))
    maps = [
        fit(data, given, quick, tmp_path / f"{k}.pt").avatar.speech_to_expression.weight
        for k, given in enumerate((subset, constant))
    ]
    assert not torch.allclose(*maps)


def test_a_batch_need_not_divide_among_the_threads(data: Dataset, subset: TrainingSet) -> None:
    trainer = Trainer(data, subset, dataclasses.replace(TINY, canonical_batch=3))
    before = weights_of(trainer)["canonical.means"]
    trainer.train_step()
    assert not torch.equal(before, weights_of(trainer)["canonical.means"])


@pytest.mark.parametrize("region", range(EYES.stop))
def test_the_gaussians_of_a_region_lie_inside_it(
    data: Dataset, subset: TrainingSet, region: int
) -> None:
    surface = torch.from_numpy(data.vertices).float()
    behind = surface + 1.5 * subset.viewmats[0, 2, :3]
    both = torch.cat([surface, behind])
    rows = region_rows(subset, region, both, torch.ones(len(both)))
    assert 0 < len(rows) < len(surface) / 3
    assert rows.max() < len(surface)
    camera = surface @ subset.viewmats[0, :3, :3].T + subset.viewmats[0, :3, 3]
    pixels = (camera @ subset.K.T)[:, :2] / camera[:, 2:]
    x0, y0, x1, y1 = subset.regions[0, region].tolist()
    center = pixels.new_tensor([(x0 + x1) / 2, (y0 + y1) / 2])
    distance = (pixels - center).abs().amax(1)
    assert distance[rows].max() < max(x1 - x0, y1 - y0)
    front = (distance < (x1 - x0) / 4) & (camera[:, 2] < camera[:, 2].quantile(0.3))
    assert set(front.nonzero()[:, 0].tolist()) <= set(rows.tolist())


@pytest.mark.parametrize(
    ("options", "regions"),
    [({"mouth_split": 3, "eye_split": 1}, [MOUTH]), ({"mouth_split": 1, "eye_split": 3}, EYES)],
)
def test_mouth_and_eyes_are_refined_before_the_deformation_stage(
    data: Dataset, subset: TrainingSet, options: dict[str, int], regions: list[int] | slice
) -> None:
    trainer = Trainer(data, subset, dataclasses.replace(TINY, **options))
    canonical = trainer.avatar.canonical
    means, opacities = canonical["means"], canonical["opacities"]
    indices = range(len(REGIONS))[regions] if isinstance(regions, slice) else regions
    rows = {int(row) for r in indices for row in region_rows(subset, r, means, opacities)}
    before = len(means)
    trainer.next_stage()
    assert len(rows) > 0
    assert len(canonical["means"]) == before + 2 * len(rows)


def test_a_batch_is_halved_once_if_memory_runs_out(
    data: Dataset,
    subset: TrainingSet,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    undisturbed = Trainer(data, subset, TINY)
    undisturbed.train_step()
    limit, sizes = 1, []
    real = Trainer.loss_and_gradients

    def limited(self: Trainer, rows: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(rows))
        if len(rows) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, rows, *arguments, **options)

    monkeypatch.setattr(Trainer, "loss_and_gradients", limited)
    trainer = Trainer(data, subset, TINY)
    trainer.train_step()
    assert sizes == [2, 1, 1]
    assert "computed in two halves" in caplog.text
    for name in ("means", "scales", "opacities", "sh"):
        expected = undisturbed.avatar.canonical[name].grad
        difference = trainer.avatar.canonical[name].grad - expected
        assert difference.norm() < 0.05 * expected.norm(), name
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train_step()


def test_graphs_and_gradients_are_released_as_soon_as_they_are_obsolete(
    data: Dataset, subset: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs read the parameters where they were in memory when the graphs were captured."""

    def graphs(*given: torch.Tensor) -> Any:
        raise AssertionError("not called on the CPU")

    trainer = Trainer(data, subset, GROWING)
    real = Trainer.loss_and_gradients

    def checked(self: Trainer, *given: Any, **options: Any) -> Any:
        assert all(parameter.grad is None for parameter in self._parameters())
        return real(self, *given, **options)

    monkeypatch.setattr(Trainer, "loss_and_gradients", checked)
    replaced = 0
    for _ in range(GROWING.canonical_steps):
        before, trainer.whole_batch = trainer.avatar.canonical["means"], graphs
        trainer.train_step()
        kept = trainer.avatar.canonical["means"] is before
        assert trainer.whole_batch is (graphs if kept else None)
        replaced += not kept
    assert 0 < replaced < GROWING.canonical_steps
    trainer.whole_batch = graphs
    trainer.restore(trainer.state())
    assert trainer.whole_batch is None
    for stage_ends in (trainer.next_stage, lambda: list(trainer.run_stage())):
        trainer.whole_batch = graphs
        stage_ends()
        assert trainer.whole_batch is None
    assert all(parameter.grad is None for parameter in trainer._parameters())


def test_batches_cover_every_frame_once_an_epoch() -> None:
    rows = torch.cat([batch_rows(12, 4, step, seed=1) for step in range(3)])
    assert sorted(rows.tolist()) == list(range(12))
    assert not torch.equal(rows, torch.cat([batch_rows(12, 4, s, seed=1) for s in range(3, 6)]))


def test_crop_holds_every_head() -> None:
    masks = np.zeros((3, 100, 120), np.uint8)
    masks[0, 20:60, 30:70] = 255
    masks[2, 50:80, 40:90] = 255
    x0, y0, x1, y1 = crop_box(masks.any(0))
    assert x0 < 30 and y0 < 20 and x1 > 90 and y1 > 80
    assert (x1 - x0) % 16 == (y1 - y0) % 16 == 0
    assert crop_box(np.ones((50, 70), bool)) == (0, 0, 70, 50)


@pytest.mark.parametrize("stop", [("canonical", 17), ("canonical", 29), ("deformation", 10)])
def test_resume_is_exact(
    data: Dataset, subset: TrainingSet, tmp_path: Path, stop: tuple[str, int]
) -> None:
    whole = fit(data, subset, GROWING, tmp_path / "whole.pt")
    assert len(whole.avatar.canonical["means"]) > GROWING.gaussians
    broken = tmp_path / "broken.pt"

    class Stopped(Exception):
        pass

    train_step = Trainer.train_step

    def step_until(self: Trainer) -> dict[str, float] | None:
        if (self.stage, self.step) == stop:
            raise Stopped
        return train_step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_until)
        with pytest.raises(Stopped):
            fit(data, subset, GROWING, broken)
    assert torch.load(broken, weights_only=True)["density"]["gradients"] is not None
    resumed = fit(data, subset, GROWING, broken)
    for name, value in weights_of(whole).items():
        assert torch.equal(value, resumed.avatar.state_dict()[name]), name
    assert [(e["step"], e["loss"]) for e in whole.log] == [
        (e["step"], e["loss"]) for e in resumed.log
    ]


def test_point_clouds_are_saved_at_the_chosen_steps(
    data: Dataset, subset: TrainingSet, tmp_path: Path
) -> None:
    """Steps are counted through both stages; other steps are not saved."""
    last = TINY.canonical_steps + TINY.deformation_steps
    steps = (1, TINY.canonical_steps + 1, last, last + 1)
    config = dataclasses.replace(TINY, point_cloud_steps=steps)
    trainer = fit(data, subset, config, tmp_path / "latest.pt")
    names = [f"point_cloud_{step:06d}.ply" for step in steps[:-1]]
    assert sorted(path.name for path in tmp_path.glob("*.ply")) == names
    trainer.avatar.save(tmp_path / "avatar")
    final = (tmp_path / "avatar" / "point_cloud.ply").read_bytes()
    assert (tmp_path / names[-1]).read_bytes() == final
    assert (tmp_path / names[0]).read_bytes() != final


def test_the_origin_of_a_checkpoint_does_not_depend_on_the_threads(dataset: Path) -> None:
    """The expression targets do not change either, although BLAS may change the order of sums."""
    code = """
import hashlib, sys
from pathlib import Path
import numpy as np
from talker.avatar import trainer as trainer_module
from talker.avatar.checkpoint import Origin
from talker.avatar.expression import expression_targets
from talker.avatar.options import Config
from talker.dataset import Dataset

rng = np.random.default_rng(0)
expression = rng.normal(size=(1026, 79)).astype(np.float32)
targets = expression_targets(expression, rng.random((1026, 2)).astype(np.float32))
print(hashlib.sha256(targets.numpy()).hexdigest())
print(Origin.of(Config(), Dataset.load(Path(sys.argv[1]), 64)))
"""
    found = set()
    for threads in ("1", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        found.add(
            subprocess.check_output(
                [sys.executable, "-c", code, str(dataset)],
                env={**os.environ, **dict.fromkeys(names, threads)},
            )
        )
    assert len(found) == 1


@pytest.mark.parametrize(
    "name",
    [
        *("track_params.pt", "transforms_train.json", "au.csv", "bc.jpg", "aud_hama.npy"),
        *("ori_imgs/3.jpg", "ori_imgs/3.lms", "torso_imgs/3.png", "parsing/3.png"),
    ],
)
def test_a_checkpoint_belongs_to_what_the_files_hold(
    dataset: Path, data: Dataset, tmp_path: Path, name: str
) -> None:
    other = tmp_path / "data"
    shutil.copytree(dataset, other)
    same = dataclasses.replace(data, folder=other)
    before = Origin.of(TINY, data)
    assert before == Origin.of(TINY, same)
    with (other / name).open("ab") as file:
        file.write(b" ")
    assert before.differences(Origin.of(TINY, same)) == ["data"]


def test_a_checkpoint_of_other_options_is_not_used(
    data: Dataset, subset: TrainingSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "latest.pt"
    fit(data, subset, TINY, path)
    other = dataclasses.replace(TINY, seed=1, canonical_steps=5, deformation_steps=5)
    fresh = fit(data, subset, other, tmp_path / "fresh.pt")
    assert "was written with different" not in caplog.text
    after = fit(data, subset, other, path)
    assert f"The checkpoint {path} was written with different options." in caplog.text
    assert torch.equal(fresh.avatar.canonical["means"], after.avatar.canonical["means"])


@pytest.mark.parametrize("changed", [["code"], ["code", "data"]], ids=str)
def test_the_log_says_why_a_checkpoint_is_not_used(
    data: Dataset,
    subset: TrainingSet,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    changed: list[str],
) -> None:
    caplog.set_level(logging.INFO)
    short = dataclasses.replace(TINY, canonical_steps=2, deformation_steps=2)
    fit(data, subset, short, tmp_path / "latest.pt")
    origin = dataclasses.replace(Origin.of(short, data), **dict.fromkeys(changed, "other"))
    monkeypatch.setattr(Origin, "of", lambda *_: origin)
    fit(data, subset, short, tmp_path / "latest.pt")
    assert f"written with different {' and different '.join(changed)}." in caplog.text


def test_how_often_checkpoints_are_written_makes_no_difference(data: Dataset) -> None:
    rarely = dataclasses.replace(TINY, checkpoint_seconds=1000.0)
    assert Origin.of(TINY, data) == Origin.of(rarely, data)


@pytest.mark.parametrize("content", ["", "half", "of another program"])
def test_an_unreadable_checkpoint_is_reported_and_not_used(
    data: Dataset,
    subset: TrainingSet,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    content: str,
) -> None:
    short = dataclasses.replace(TINY, canonical_steps=2, deformation_steps=2)
    path = tmp_path / "latest.pt"
    whole = fit(data, subset, short, path)
    if content == "of another program":
        torch.save({"x": 1}, path)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content else b"")
    again = fit(data, subset, short, path)
    assert f"{path} cannot be read as a checkpoint" in caplog.text
    assert torch.equal(whole.avatar.canonical["means"], again.avatar.canonical["means"])
    assert torch.load(path, weights_only=True)["step"] == 2


def test_a_checkpoint_with_a_damaged_state_is_refused(
    data: Dataset, subset: TrainingSet, tmp_path: Path
) -> None:
    short = dataclasses.replace(TINY, canonical_steps=2, deformation_steps=2)
    path = tmp_path / "latest.pt"
    fit(data, subset, short, path)
    state = torch.load(path, weights_only=True)
    torch.save(state | {"step": None, "stage": 7}, path)
    with pytest.raises(UserError, match=r"latest\.pt does not hold the state.*Delete it"):
        fit(data, subset, short, path)


def test_no_checkpoint_holds_a_broken_step(
    data: Dataset, subset: TrainingSet, tmp_path: Path
) -> None:
    """On a GPU, divergence is checked rarely, so a checkpoint may be due before the check."""
    trainer = Trainer(data, subset, TINY)
    trainer.diverged.fill_(1)
    with pytest.raises(UserError, match="diverged"):
        save_checkpoint(tmp_path / "latest.pt", trainer.state(), Origin("code", "options", "data"))
    assert not (tmp_path / "latest.pt").exists()


@pytest.mark.parametrize(
    "options",
    [
        *({"checkpoint_seconds": -1}, {"canonical_batch": 0}, {"deformation_batch": 0}),
        *({"heads": 3}, {"heads": 0}, {"layers": 0}, {"sh_degree": 4}, {"sh_degree": -1}),
        *({"seed": -1}, {"gaussians": 0}, {"gaussians": 3}, {"image_size": 0}),
        {"density": {"every": 0}},
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    (name,) = options.get("density", options)
    with pytest.raises(UserError, match=f"^train: .*{name}(:| \\()"):
        from_mapping(Config, options, "train")


def test_the_smallest_options_train(dataset: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(
        TINY,
        image_size=16,
        gaussians=4,
        sh_degree=0,
        seed=0,
        features=2,
        canonical_batch=1,
        deformation_batch=1,
        canonical_steps=2,
        deformation_steps=2,
        hidden=1,
        plane_channels=1,
        blendshapes=1,
    )
    main(dataset, tmp_path / "avatar", tmp_path / "checkpoints", config)
    assert {path.name for path in (tmp_path / "avatar").iterdir()} == {
        *("blendshapes.npz", "config.json", "log.jsonl", "point_cloud.ply", "weights.safetensors")
    }


def test_not_a_number_stops_with_a_reason(
    data: Dataset, subset: TrainingSet, tmp_path: Path
) -> None:
    broken = dataclasses.replace(subset, windows=subset.windows * float("nan"))
    with pytest.raises(UserError, match="diverged"):
        fit(data, broken, TINY, tmp_path / "latest.pt")


def test_the_optimizer_is_adam_and_does_not_import_the_compiler_of_torch() -> None:
    code = """
import sys
import torch
from talker.avatar.trainer import Adam

start = torch.linspace(-1, 1, 12).view(4, 3)

def trained(kind):
    parameter = torch.nn.Parameter(start.clone())
    optimizer = kind([{"params": [parameter], "lr": 0.1}], eps=1e-15, fused=True)
    for step in range(6):
        optimizer.zero_grad()
        parameter.grad = torch.sin(parameter.detach() * step)
        optimizer.found_inf = torch.tensor(float(step == 2))
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    return parameter

ours = trained(Adam)
assert "torch._dynamo" not in sys.modules
assert torch.equal(ours, trained(torch.optim.Adam)) and not torch.equal(ours, start)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_killed_training_ends_with_the_same_weights(dataset: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, canonical_steps=60, deformation_steps=60)
    options = tmp_path / "config.yaml"
    options.write_text(
        yaml.safe_dump({"train": json.loads(json.dumps(dataclasses.asdict(config)))})
    )

    def command(name: str, blendshapes: int = 0) -> list[str]:
        return [
            *(sys.executable, "-m", "talker", "train", "--config", str(options)),
            *("--data", str(dataset), "--avatar", str(tmp_path / name / "avatar")),
            *("--checkpoints", str(tmp_path / name / "checkpoints")),
            *("--blendshapes", str(blendshapes)),
        ]

    subprocess.run(command("whole"), check=True)
    killed = subprocess.Popen(command("killed"), start_new_session=True)
    checkpoint = tmp_path / "killed" / "checkpoints" / "latest.pt"
    while not checkpoint.exists():
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "avatar").exists()
    again = subprocess.run(command("killed"), check=True, capture_output=True, text=True)
    assert "Continuing at step" in again.stderr
    files = [tmp_path / name / "avatar" / "weights.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert Avatar.load(tmp_path / "killed" / "avatar").config.image_size == TINY.image_size
    shutil.rmtree(tmp_path / "killed" / "avatar")
    assert Avatar.load(tmp_path / "whole" / "avatar").blendshapes is None
    once_more = subprocess.run(command("killed", 4), check=True, capture_output=True, text=True)
    assert "Continuing at step 60 of the deformation stage" in once_more.stderr
    assert Avatar.load(tmp_path / "killed" / "avatar").blendshapes is not None
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_writes_a_checkpoint_and_says_how_to_continue(
    dataset: Path, tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    """Between two checkpoints: only the first step and the signal write one."""
    config = dataclasses.replace(TINY, canonical_steps=10_000, checkpoint_seconds=1000.0)
    options = tmp_path / "config.yaml"
    options.write_text(
        yaml.safe_dump({"train": json.loads(json.dumps(dataclasses.asdict(config)))})
    )
    command = [
        *(sys.executable, "-m", "talker", "train", "--config", str(options)),
        *("--data", str(dataset), "--avatar", str(tmp_path / "avatar")),
        *("--checkpoints", str(tmp_path / "checkpoints")),
    ]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "checkpoints" / "latest.pt"
    while not checkpoint.exists():
        assert running.poll() is None
        time.sleep(0.01)
    time.sleep(1)
    running.send_signal(sent)
    _, log = running.communicate(timeout=60)
    assert running.returncode == status
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] > 1
    (line,) = [line for line in log.splitlines() if "Training stopped" in line]
    assert line == (
        f"Training stopped at step {state['step']} of 10000 of the canonical stage. The checkpoint "
        f"{checkpoint} contains its state. Run the same command again to continue."
    )
    assert "Traceback" not in log
    assert not (tmp_path / "avatar").exists()


def test_checkpoints_are_written_by_time(
    data: Dataset, subset: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first step, then every 30 s, and at the end; here a step takes 7 s."""
    clock = iter(range(0, 10**9, 7))
    steps = []
    config = dataclasses.replace(TINY, checkpoint_seconds=30.0)
    save = trainer_module.save_checkpoint

    def watched(path: Path, state: dict[str, Any], origin: Origin) -> None:
        steps.append((state["stage"], state["step"]))
        save(path, state, origin)

    now = [0.0]
    step = Trainer.train_step

    def slow_step(self: Trainer) -> dict[str, float] | None:
        now[0] = next(clock)
        return step(self)

    monkeypatch.setattr(trainer_module, "save_checkpoint", watched)
    monkeypatch.setattr(Trainer, "train_step", slow_step)
    monkeypatch.setattr(trainer_module.time, "monotonic", lambda: now[0])
    fit(data, subset, config, tmp_path / "latest.pt")
    assert steps[:4] == [("canonical", count) for count in (1, 6, 11, 16)]
    assert steps[-1] == ("deformation", 20)


@pytest.mark.gpu
def test_repeated_and_resumed_trainings_give_the_same_bytes_on_the_gpu(
    data: Dataset, tmp_path: Path
) -> None:
    subset = training_set(data, torch.device("cuda"))
    counting = DensityConfig(start=10, stop=90, every=20, grad_threshold=0.0, max_gaussians=600)
    config = dataclasses.replace(TINY, canonical_steps=100, deformation_steps=100, density=counting)
    train_step = Trainer.train_step

    def step_or_stop(self: Trainer) -> dict[str, float] | None:
        if stops and (self.stage, self.step) == stops[0]:
            del stops[0]
            raise KeyboardInterrupt
        return train_step(self)

    weights = []
    broken = [("canonical", 45), ("deformation", 45)]
    for name, stops in (("whole", []), ("again", []), ("broken", broken)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "train_step", step_or_stop)
            for _ in range(len(stops)):
                with pytest.raises(KeyboardInterrupt):
                    fit(data, subset, config, tmp_path / name)
            trainer = fit(data, subset, config, tmp_path / name)
        assert [entry["step"] for entry in trainer.log] == [20, 40, 60, 80, 100] * 2
        weights.append(trainer.avatar.serialized())
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.gpu
def test_images_in_host_memory_train_the_same(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    losses = []
    for reserved in (0, 10**15):
        monkeypatch.setattr("talker.avatar.training_set.WORKING_MEMORY", reserved)
        part = training_set(data, device)
        assert part.frame.is_cuda == (reserved == 0) and part.ids.is_cuda
        trainer = Trainer(data, part, TINY)
        losses.append([entry["loss"] for _ in range(20) if (entry := trainer.train_step())])
    assert np.allclose(*losses, rtol=1e-3)


@pytest.mark.gpu
def test_the_gpu_trains_what_the_cpu_trains(data: Dataset, subset: TrainingSet) -> None:
    """CUDA graphs, fused kernels and gsplat give the same steps as plain torch and numba."""
    config = dataclasses.replace(TINY, speech_noise=0.0, pose_noise=0.0, expression_share=1.0)
    there = training_set(data, torch.device("cuda"))
    losses = []
    for part in (subset, there):
        trainer = Trainer(data, part, config)
        trainer.next_stage()
        values = [entry for _ in range(20) if (entry := trainer.train_step())]
        losses.append([value["loss"] for value in values])
    assert np.allclose(losses[0], losses[1], rtol=0.02)


def test_all_degrees_of_eye_closure_are_equally_likely() -> None:
    eye = torch.tensor([0.0] * 90 + [0.55] * 8 + [1.0] * 2)
    odds = eye_odds(eye)
    assert odds[:90].sum() == pytest.approx(1 / 3)
    assert odds[98:].sum() == pytest.approx(1 / 3)
    rows = torch.zeros(3000, dtype=torch.int64)
    drawn = balance_eyes(rows, odds, 0.5, torch.Generator().manual_seed(0))
    assert (drawn != 0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert (eye[drawn] == 1).float().mean() == pytest.approx(1 / 6, abs=0.03)
    assert torch.equal(balance_eyes(rows, odds, 0.0, torch.Generator()), rows)
