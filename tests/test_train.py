"""Training: losses with gradients, exact resume, a killed run, a diverged run."""

import dataclasses
import hashlib
import json
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

from talker.avatar.density import DensityConfig
from talker.avatar.losses import LossWeights, compute_loss
from talker.avatar.model import Avatar
from talker.avatar.training_set import TrainingSet, crop_box, training_set
from talker.core.config import from_mapping
from talker.dataset import Dataset
from talker.errors import UserError
from talker.train import (
    PARTS,
    Config,
    LearningRates,
    Training,
    _save_checkpoint,
    batch_rows,
    fingerprint,
    main,
    train,
)

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
    checkpoint_every=10,
)
GROWING = dataclasses.replace(
    TINY,
    checkpoint_every=7,
    density=DensityConfig(start=10, stop=25, every=5, grad_threshold=0.0, max_gaussians=600),
)
"""Counts and densifies: the checkpoint of step 14 lies between two densifications."""


@pytest.fixture(scope="module")
def data(dataset: Path) -> Dataset:
    return Dataset.load(dataset, TINY.image_size)


@pytest.fixture(scope="module")
def subset(data: Dataset) -> TrainingSet:
    return training_set(data, torch.device("cpu"))


def weights_of(training: Training) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in training.avatar.state_dict().items()}


def test_the_image_comes_closer_to_the_subject(
    data: Dataset, subset: TrainingSet, tmp_path: Path
) -> None:
    training = train(data, subset, TINY, tmp_path / "latest.pt")
    canonical = [entry["l1"] for entry in training.log if entry["stage"] == "canonical"]
    rows = torch.arange(0, len(subset.ids), 5)
    start = Training(data, subset, TINY)
    first = start.draw(rows, None)
    before = compute_loss(first.rgb, first.alpha, subset.targets(rows), TINY.weights)[0]
    last = training.draw(rows, training._conditions(rows))
    after = compute_loss(last.rgb, last.alpha, subset.targets(rows), TINY.weights)[0]
    assert after < 0.7 * before
    assert all(np.isfinite(canonical))


def test_alpha_is_supervised_with_a_gradient(subset: TrainingSet) -> None:
    """The published mask loss had none."""
    rows = torch.arange(2)
    height, width = subset.size
    rgb = torch.rand(2, height, width, 3)
    alpha = torch.full((2, height, width, 1), 0.5, requires_grad=True)
    only_alpha = LossWeights(l1=0, ssim=0, lips=0, alpha=1, detail=0)
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


def test_a_given_network_judges_the_detail(
    data: Dataset, subset: TrainingSet, tmp_path: Path
) -> None:
    class Squares(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (x - y).square().mean((1, 2, 3))

    path = tmp_path / "lpips.pt"
    torch.jit.script(Squares()).save(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    config = dataclasses.replace(TINY, perceptual=str(path), perceptual_sha256=sha256)
    training, rows = Training(data, subset, config), torch.arange(2)
    targets = subset.targets(rows)
    drawn = training.draw(rows, None)
    values = training.judge(drawn.rgb, drawn.alpha, *targets)[1:]
    mask = targets.mask[..., None] / 255
    wanted = torch.lerp(targets.background / 255, targets.frame / 255, mask)
    image = drawn.rgb + (1 - drawn.alpha) * targets.background / 255
    assert torch.isclose(
        dict(zip(PARTS, values, strict=True))["detail"], 4 * (image - wanted).square().mean()
    )
    with pytest.raises(UserError, match="sha256"):
        Training(data, subset, dataclasses.replace(config, perceptual_sha256="0"))


def test_audio_net_is_there_where_it_learns(
    data: Dataset, subset: TrainingSet, tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, rates=LearningRates(speech=1e-3))
    training = train(data, subset, config, tmp_path / "latest.pt")
    training.avatar.save(tmp_path / "avatar")
    encoder = Avatar.load(tmp_path / "avatar").speech_encoder
    assert encoder.audio_net is not None
    window = subset.windows[None, :8]
    assert encoder.audio_net(window).abs().max() > 0
    assert Training(data, subset, TINY).avatar.speech_encoder.audio_net is None


def test_a_still_head_trains(data: Dataset, subset: TrainingSet) -> None:
    """Published rates are multiplied by head motion, so a still head never trains."""
    still = dataclasses.replace(subset, viewmats=subset.viewmats[:1].expand_as(subset.viewmats))
    training = Training(data, still, TINY)
    before = weights_of(training)
    for _ in range(3):
        training.advance()
    after = weights_of(training)
    assert all(
        not torch.equal(before[f"canonical.{name}"], after[f"canonical.{name}"])
        for name in ("means", "scales", "opacities", "sh")
    )


def test_a_batch_need_not_divide_among_the_threads(data: Dataset, subset: TrainingSet) -> None:
    training = Training(data, subset, dataclasses.replace(TINY, canonical_batch=3))
    before = weights_of(training)["canonical.means"]
    training.advance()
    assert not torch.equal(before, weights_of(training)["canonical.means"])


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
    whole = train(data, subset, GROWING, tmp_path / "whole.pt")
    assert len(whole.avatar.canonical["means"]) > GROWING.gaussians
    broken = tmp_path / "broken.pt"

    class Stopped(Exception):
        pass

    advance = Training.advance

    def advance_until(self: Training) -> dict[str, float] | None:
        if (self.stage, self.step) == stop:
            raise Stopped
        return advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "advance", advance_until)
        with pytest.raises(Stopped):
            train(data, subset, GROWING, broken)
    assert torch.load(broken, weights_only=True)["density"]["gradients"] is not None
    resumed = train(data, subset, GROWING, broken)
    for name, value in weights_of(whole).items():
        assert torch.equal(value, resumed.avatar.state_dict()[name]), name
    assert [(e["step"], e["loss"]) for e in whole.log] == [
        (e["step"], e["loss"]) for e in resumed.log
    ]


def test_the_owner_of_a_checkpoint_does_not_depend_on_the_threads(dataset: Path) -> None:
    """Nor does what the speech is to tell, which BLAS adds up in another order."""
    code = """
import hashlib, sys
from pathlib import Path
import numpy as np
from talker.avatar.speech_prior import expression_targets
from talker.dataset import Dataset
from talker.train import Config, fingerprint

rng = np.random.default_rng(0)
expression = rng.normal(size=(1026, 79)).astype(np.float32)
targets = expression_targets(expression, rng.random(1026).astype(np.float32))
print(hashlib.sha256(targets.numpy()).hexdigest())
print(fingerprint(Config(), Dataset.load(Path(sys.argv[1]), 64)))
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
    assert fingerprint(TINY, data) == fingerprint(TINY, same)
    with (other / name).open("ab") as file:
        file.write(b" ")
    assert fingerprint(TINY, data) != fingerprint(TINY, same)


def test_a_checkpoint_of_other_options_is_not_used(
    data: Dataset, subset: TrainingSet, tmp_path: Path
) -> None:
    path = tmp_path / "latest.pt"
    train(data, subset, TINY, path)
    other = dataclasses.replace(TINY, seed=1, canonical_steps=5, deformation_steps=5)
    fresh = train(data, subset, other, tmp_path / "fresh.pt")
    after = train(data, subset, other, path)
    assert torch.equal(fresh.avatar.canonical["means"], after.avatar.canonical["means"])


@pytest.mark.parametrize("content", ["", "half", "of another program"])
def test_an_unreadable_checkpoint_is_told_and_not_used(
    data: Dataset,
    subset: TrainingSet,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    content: str,
) -> None:
    short = dataclasses.replace(TINY, canonical_steps=2, deformation_steps=2)
    path = tmp_path / "latest.pt"
    whole = train(data, subset, short, path)
    if content == "of another program":
        torch.save({"x": 1}, path)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content else b"")
    again = train(data, subset, short, path)
    assert f"{path} cannot be read as a checkpoint" in caplog.text
    assert torch.equal(whole.avatar.canonical["means"], again.avatar.canonical["means"])
    assert torch.load(path, weights_only=True)["step"] == 2


def test_no_checkpoint_holds_a_broken_step(
    data: Dataset, subset: TrainingSet, tmp_path: Path
) -> None:
    """A GPU is asked now and then only, and a checkpoint may be due before."""
    training = Training(data, subset, TINY)
    training.diverged.fill_(1)
    with pytest.raises(UserError, match="diverged"):
        _save_checkpoint(tmp_path / "latest.pt", training, "me")
    assert not (tmp_path / "latest.pt").exists()


@pytest.mark.parametrize(
    "options",
    [
        *({"checkpoint_every": 0}, {"canonical_batch": 0}, {"deformation_batch": 0}),
        *({"heads": 3}, {"heads": 0}, {"layers": 0}, {"sh_degree": 4}, {"sh_degree": -1}),
        *({"seed": -1}, {"gaussians": 0}, {"gaussians": 3}, {"image_size": 0}),
        {"density": {"every": 0}},
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    (name,) = options.get("density", options)
    with pytest.raises(UserError, match=f"^train: .*{name}: "):
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
        checkpoint_every=1,
        canonical_steps=2,
        deformation_steps=2,
        hidden=1,
        plane_channels=1,
    )
    main(dataset, tmp_path / "avatar", tmp_path / "checkpoints", config)
    assert {path.name for path in (tmp_path / "avatar").iterdir()} == {
        *("config.json", "log.jsonl", "point_cloud.ply", "weights.safetensors")
    }


def test_not_a_number_stops_with_a_reason(
    data: Dataset, subset: TrainingSet, tmp_path: Path
) -> None:
    broken = dataclasses.replace(subset, windows=subset.windows * float("nan"))
    with pytest.raises(UserError, match="diverged"):
        train(data, broken, TINY, tmp_path / "latest.pt")


def test_killed_training_ends_with_the_same_weights(dataset: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, canonical_steps=60, deformation_steps=60)
    options = tmp_path / "config.yaml"
    options.write_text(
        yaml.safe_dump({"train": json.loads(json.dumps(dataclasses.asdict(config)))})
    )

    def command(name: str) -> list[str]:
        return [
            *(sys.executable, "-m", "talker", "train", "--config", str(options)),
            *("--data", str(dataset), "--avatar", str(tmp_path / name / "avatar")),
            *("--checkpoints", str(tmp_path / name / "checkpoints")),
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
    assert "going on at step" in again.stderr
    files = [tmp_path / name / "avatar" / "weights.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert Avatar.load(tmp_path / "killed" / "avatar").config.image_size == TINY.image_size
    shutil.rmtree(tmp_path / "killed" / "avatar")
    once_more = subprocess.run(command("killed"), check=True, capture_output=True, text=True)
    assert "going on at step 60 of the deformation stage" in once_more.stderr
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.gpu
def test_a_resumed_training_is_as_good_on_the_gpu(data: Dataset, tmp_path: Path) -> None:
    """Atomic sums of gsplat's backward differ from run to run; the picture hardly does."""
    subset = training_set(data, torch.device("cuda"))
    counting = DensityConfig(start=10, stop=90, every=20, grad_threshold=0.0, max_gaussians=600)
    config = dataclasses.replace(TINY, canonical_steps=100, deformation_steps=100, density=counting)
    advance = Training.advance

    def advance_or_stop(self: Training) -> dict[str, float] | None:
        if stops and (self.stage, self.step) == stops[0]:
            del stops[0]
            raise KeyboardInterrupt
        return advance(self)

    losses = []
    for name, stops in (("whole", []), ("broken", [("canonical", 45), ("deformation", 45)])):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Training, "advance", advance_or_stop)
            for _ in range(len(stops)):
                with pytest.raises(KeyboardInterrupt):
                    train(data, subset, config, tmp_path / name)
            training = train(data, subset, config, tmp_path / name)
        assert [entry["step"] for entry in training.log] == [20, 40, 60, 80, 100] * 2
        losses.append(np.mean([entry["loss"] for entry in training.log[-3:]]))
    assert np.isclose(*losses, rtol=0.03)


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
        training = Training(data, part, TINY)
        losses.append([entry["loss"] for _ in range(20) if (entry := training.advance())])
    assert np.allclose(*losses, rtol=1e-3)


@pytest.mark.gpu
def test_the_gpu_trains_what_the_cpu_trains(data: Dataset, subset: TrainingSet) -> None:
    """Recorded graphs, fused kernels and gsplat take the steps of plain torch and numba."""
    config = dataclasses.replace(TINY, speech_noise=0.0, pose_noise=0.0, expression_share=1.0)
    there = training_set(data, torch.device("cuda"))
    losses = []
    for part in (subset, there):
        training = Training(data, part, config)
        training.next_stage()
        values = [entry for _ in range(20) if (entry := training.advance())]
        losses.append([value["loss"] for value in values])
    assert np.allclose(losses[0], losses[1], rtol=0.02)
