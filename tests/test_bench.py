"""The benchmark runs from end to end, and its record holds what it measured."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from talker.avatar.model import Avatar
from talker.avatar.trainer import Trainer
from talker.dataset import Dataset
from talker.encoders import Choice
from talker.errors import UserError
from talker.tools.bench import Config, Numbers, main

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


def measured(
    folder: Path, config: Config, data: Path | None = None, against: Path | None = None
) -> dict[str, float]:
    file = folder / "bench.json"
    main(data=data, json=file, against=against, config=config)
    numbers = json.loads(file.read_text())["numbers"]
    return {name: number["value"] for name, number in numbers.items()}


def test_a_random_head_is_rendered_trained_and_spoken(tmp_path: Path) -> None:
    numbers = measured(tmp_path, dataclasses.replace(SMALL, speech=2.0, hop=4))
    for name in ("train/3", "render/network/2", "render/blendshapes/2", "blendshapes"):
        assert numbers[f"400/{name}"] > 0
    for part in ("deform", "raster"):
        assert numbers[f"400/render/blendshapes/2/{part}"] > 0
    for step in ("", "/rendered", "/layers", "/encoded"):
        assert numbers[f"400/video/blendshapes{step}"] > 0
    waits = numbers["400/speak/4/waiting for later audio"]
    assert waits == 480
    assert numbers["400/speak/4/latency, 95th percentile"] > waits
    assert numbers["400/speak/4/computing per second of speech"] > 0


def test_rendering_is_measured_with_blendshapes_and_with_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = []

    def watched(self: Avatar, *inputs: Any, **options: Any) -> Any:
        used.append(self.blendshapes is not None)
        return original(self, *inputs, **options)

    original = Avatar.render_from_expression
    monkeypatch.setattr(Avatar, "render_from_expression", watched)
    main(config=dataclasses.replace(SMALL, render_batches=(2,)))
    assert used == sorted(used, reverse=True) and used.count(True) == used.count(False) > 0


def test_a_subject_of_another_encoder(mel_only: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, encoder="mel", speech=2.0, hop=4)
    numbers = measured(tmp_path, config, mel_only)
    assert numbers["400/train/3"] > 0
    assert numbers["400/speak/4/latency, 95th percentile"] > 0


def test_numbers_are_compared_with_those_of_an_earlier_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    earlier = {
        "a": {"value": 8.0, "unit": "ms"},
        "b": {"value": 10.0, "unit": "frames/s"},
        "c": {"value": 2.0, "unit": "GiB"},
        "e": {"value": 2.0, "unit": "GiB"},
    }
    numbers = Numbers(earlier, "old.json")
    numbers.add("a", 4, "ms")
    numbers.add("b", 15, "frames/s")
    numbers.add("c", 3, "GiB")
    numbers.add("d", 12_345, "frames/s")
    numbers.add("e", 12.34, "ms")
    assert caplog.messages == [
        "a: 4.00 ms (2.00 times as fast as in old.json)",
        "b: 15.0 frames/s (1.50 times as fast as in old.json)",
        "c: 3.00 GiB (1.50 times the value in old.json)",
        "d: 12,345 frames/s",
        "e: 12.3 ms",
    ]


def test_a_run_is_compared_with_a_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_one(*inputs: Any) -> None:
        inputs[-1].add("400/train/3", next(rates), "images/s")

    rates = iter([10.0, 15.0])
    monkeypatch.setattr("talker.tools.bench.bench", add_one)
    measured(tmp_path, SMALL)
    stored = (tmp_path / "bench.json").rename(tmp_path / "old.json")
    caplog.set_level(logging.INFO)
    caplog.clear()
    measured(tmp_path, SMALL, against=stored)
    assert "400/train/3: 15.0 images/s (1.50 times as fast as in old.json)" in caplog.messages


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "bench.json"),
        ("{", "bench.json"),
        ('{"results": []}', "was not written by this version"),
        ('{"numbers": {}, "settings": {"data": "random head", "image_size": 32}}', "image_size"),
    ],
)
def test_an_unusable_earlier_run_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: str | None, reason: str
) -> None:
    if record is not None:
        (tmp_path / "bench.json").write_text(record)
    monkeypatch.setattr("talker.tools.bench.random_head", lambda *_: pytest.fail("it began"))
    with pytest.raises(UserError, match=reason):
        main(against=tmp_path / "bench.json", config=SMALL)


def test_a_folder_that_cannot_be_written_is_reported_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("talker.tools.bench.random_head", lambda *_: pytest.fail("it began"))
    with pytest.raises(OSError, match="file"):
        main(json=tmp_path / "file" / "bench.json", config=SMALL)


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
        numbers = measured(tmp_path, SMALL)
    finally:
        torch.set_num_threads(before)
    assert calls == {(1, 2), (1, 1)}
    assert numbers["400/train/3"] > 0
