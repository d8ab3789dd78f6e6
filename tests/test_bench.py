"""The benchmark runs from end to end, and its record holds what it measured."""

import json
from pathlib import Path

from talker.bench import Config, main


def test_a_made_up_subject_is_rendered_trained_and_spoken(tmp_path: Path) -> None:
    config = Config(
        gaussians=(400,),
        image_size=64,
        render_batches=(2,),
        train_batch=2,
        warm_up=1,
        repeats=1,
        device="cpu",
        speech=2.0,
        hop=4,
    )
    main(json=tmp_path / "bench.json", config=config)
    (row,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert row["render"][0]["frames_per_second"] > 0
    assert row["train"]["images_per_second"] > 0
    spoken = row["speak"]
    assert spoken["frames"] == 50
    assert spoken["waits_ms"] == 480
    assert spoken["latency_ms_p95"] > spoken["waits_ms"]
    assert spoken["real_time_factor"] > 0
