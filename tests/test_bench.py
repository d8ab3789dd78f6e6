"""The benchmark runs from end to end, and its record holds what it measured."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from talker.bench import Config, main
from talker.dataset import Dataset
from talker.errors import UserError
from talker.train import Training

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


def test_a_made_up_subject_is_rendered_trained_and_spoken(tmp_path: Path) -> None:
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


def test_the_rate_counts_images_that_were_trained(dataset: Path, tmp_path: Path) -> None:
    frames = len(Dataset.load(dataset, 64).train_ids)
    config = dataclasses.replace(SMALL, train_batch=frames + 1)
    with pytest.raises(UserError, match=f"train_batch: expected at most the {frames} "):
        main(data=dataset, config=config)
    with pytest.raises(UserError, match="repeats"):
        main(data=dataset, config=dataclasses.replace(SMALL, repeats=0))


def test_on_the_cpu_it_measures_what_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    chunk = Training._chunk

    def watched(self: Training, share: float, rows: torch.Tensor, *rest: Any) -> Any:
        seen.add((torch.get_num_threads(), len(rows)))
        return chunk(self, share, rows, *rest)

    monkeypatch.setattr(Training, "_chunk", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        row = measured(tmp_path, SMALL)
    finally:
        torch.set_num_threads(before)
    assert seen == {(1, 2), (1, 1)}
    assert row["train"]["batch"] == 3
