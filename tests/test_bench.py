"""The benchmark runs from end to end, and its record holds what it measured."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from talker.avatar.trainer import Trainer
from talker.dataset import Dataset
from talker.encoders import Choice
from talker.errors import UserError
from talker.tools.bench import Config, main

SMALL = Config(
    gaussians=(400,),
    image_size=64,
    render_batches=(2,),
    train_batch=3,
    warm_up=1,
    repeats=1,
    device="cpu",
    speech=0,
)


def measured(folder: Path, config: Config, data: Path | None = None) -> dict[str, Any]:
    main(data=data, json=folder / "bench.json", config=config)
    (row,) = json.loads((folder / "bench.json").read_text())["results"]
    return row


def test_a_random_head_is_rendered_trained_and_spoken(tmp_path: Path) -> None:
    row = measured(tmp_path, dataclasses.replace(SMALL, speech=2.0, hop=4))
    assert row["render"][0]["frames_per_second"] > 0
    assert row["train"]["images_per_second"] > 0
    spoken = row["speak"]
    assert spoken["frames"] == 50
    assert spoken["waits_ms"] == 480
    assert spoken["latency_ms_p95"] > spoken["waits_ms"]
    assert spoken["real_time_factor"] > 0


def test_a_subject_of_another_encoder(mel_only: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, encoder="mel", speech=2.0, hop=4)
    row = measured(tmp_path, config, mel_only)
    assert row["train"]["images_per_second"] > 0
    assert row["speak"]["frames"] == 50


def test_more_images_in_a_batch_than_frames_are_refused(dataset: Path) -> None:
    """Otherwise the rate would count images that were not used."""
    frames = len(Dataset.load(dataset, 64).train_ids)
    config = dataclasses.replace(SMALL, train_batch=frames + 1)
    with pytest.raises(UserError, match=f"there are only {frames} training frames"):
        main(data=dataset, config=config)


@pytest.mark.parametrize(
    "options", [{"repeats": 0}, {"gaussians": (0,)}, {"render_batches": (0,)}, {"speech": -1.0}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        dataclasses.replace(SMALL, **options)


def test_a_missing_encoder_is_reported_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(choice: Choice) -> None:
        raise UserError(f"{choice.name}: not installed")

    monkeypatch.setattr("talker.tools.bench.load_encoder", refuse)
    monkeypatch.setattr("talker.tools.bench.training_set", lambda *_: pytest.fail("it began"))
    with pytest.raises(UserError, match="hama: not installed"):
        main(config=dataclasses.replace(SMALL, speech=1.0))


def test_numbers_are_logged_when_they_are_known(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    caplog.set_level(logging.INFO)
    monkeypatch.setattr("talker.tools.bench.time_video", stop)
    with pytest.raises(KeyboardInterrupt):
        main(config=SMALL)
    assert "images/s" in caplog.text and "frames/s" in caplog.text


def test_on_the_cpu_it_measures_what_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = set()
    original = Trainer.loss_and_gradients

    def watched(self: Trainer, rows: torch.Tensor, *rest: Any, **options: Any) -> Any:
        calls.add((torch.get_num_threads(), len(rows)))
        return original(self, rows, *rest, **options)

    monkeypatch.setattr(Trainer, "loss_and_gradients", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        row = measured(tmp_path, SMALL)
    finally:
        torch.set_num_threads(before)
    assert calls == {(1, 2), (1, 1)}
    assert row["train"]["batch"] == 3
