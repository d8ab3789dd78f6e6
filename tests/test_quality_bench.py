"""The quality bench: held-out stretches, region metrics, and statistics with known values."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from talker.dataset import Dataset
from talker.errors import UserError
from talker.measure.heldout import GAP
from talker.measure.regions import compare_regions, region_masks
from talker.tools.bench import main
from talker.tools.quality_bench import half_width, split, statistics, summary

TRAIN = {
    "image_size": 64,
    "device": "cpu",
    "gaussians": 300,
    "sh_degree": 0,
    "plane_resolutions": [8],
    "plane_channels": 4,
    "features": 8,
    "hidden": 8,
    "canonical_steps": 2,
    "canonical_batch": 2,
    "deformation_steps": 2,
    "deformation_batch": 2,
}


@pytest.fixture(scope="module")
def data(dataset: Path) -> Dataset:
    return Dataset.load(dataset, 128)


def test_stretches_are_apart_from_the_training_frames(data: Dataset) -> None:
    parts, held_out = split(data, 2, 0.2)
    assert [len(ids) for ids in held_out] == pytest.approx([data.frames / 10] * 2, abs=1)
    apart = np.abs(parts.train_ids[:, None] - parts.val_ids).min(1)
    assert apart.min() > GAP
    with pytest.raises(UserError, match="too few for 4 held-out stretches"):
        split(data, 4, 0.5)


def test_each_region_gets_its_own_error(data: Dataset) -> None:
    """Noise in the mouth or the hair lowers the metrics of that region alone."""
    ids = np.arange(3)
    frames = [data.frame(int(i)) for i in ids]
    heads = [data.head_mask(int(i)) for i in ids]
    landmarks = data.landmarks[ids]
    same = compare_regions(frames, frames, ids, landmarks, heads)
    regions = ("mouth", "eyes", "brows", "hair", "neck_seam", "border")
    assert {name.split("_", 1)[1] for name in same} == set(regions)
    assert all(same[f"psnr_{region}"] == 100 for region in regions)
    assert all(same[f"sharpness_{region}"] == pytest.approx(1) for region in regions)
    rng = np.random.default_rng(0)
    for region in ("mouth", "hair"):
        images = []
        for frame, head, points in zip(frames, heads, landmarks, strict=True):
            mask = region_masks(points, head)[region][..., None]
            noise = rng.integers(-20, 21, frame.shape)
            noisy = np.where(mask, np.clip(frame + noise, 0, 255), frame)
            images.append(noisy.astype(np.uint8))
        row = compare_regions(images, frames, ids, landmarks, heads)
        assert row[f"psnr_{region}"] < 30
        assert row[f"flicker_{region}"] > 5 + row["flicker_eyes"]
        assert row["psnr_eyes"] == 100


def test_statistics_of_known_values() -> None:
    values = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 6.0, ("b", 1): float("nan")}
    row = statistics(values)
    assert row["mean"] == 4
    assert (row["subjects"], row["stretches"]) == (2, 3)
    assert row["over_subjects"] == pytest.approx(12.706 * 2 * 2**0.5 / 2**0.5, rel=1e-3)
    assert np.isnan(half_width([1.0]))


def test_differences_are_paired() -> None:
    """The stretches differ much more than the rows do."""
    results = [
        {"row": row, "subject": "a", "stretch": k, "metrics": {"psnr": 30 + 5 * k + gain}}
        for k in range(4)
        for row, gain in (("base", 0.0), ("new", 1.0 + 0.01 * k))
    ]
    row = summary(results, ["base", "new"])["new"]["psnr"]
    assert row["over_stretches"] > 5
    assert row["difference"]["mean"] == pytest.approx(1.015)
    assert row["difference"]["over_stretches"] < 0.05


def test_a_table_is_trained_and_continued(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "rows.yaml"
    content = {
        "subjects": {"demo": str(dataset)},
        "options": TRAIN,
        "rows": {"base": {}, "eyes": {"weights": {"eyes": 0.0}}},
        "stretches": 1,
        "held_out": 0.1,
    }
    table.write_text(yaml.safe_dump(content))
    output = tmp_path / "quality.json"
    main("quality", table=table, json=output)
    record = json.loads(output.read_text())
    assert [one["row"] for one in record["results"]] == ["base", "eyes"]
    metrics = record["results"][1]["metrics"]
    assert {"psnr_hair", "opening_correlation", "blink_closing", "head_shake"} <= set(metrics)
    assert record["summary"]["eyes"]["psnr_head"]["difference"]["stretches"] == 1

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("talker.tools.quality_bench.fit", refuse)
    main("quality", table=table, json=output)
    assert json.loads(output.read_text()) == record


def test_the_table_is_validated(tmp_path: Path) -> None:
    table = tmp_path / "rows.yaml"
    table.write_text("subjects: {}\nrows: {base: {lips: 1}}\n")
    with pytest.raises(UserError, match="lips"):
        main("quality", table=table, json=tmp_path / "out.json")
    with pytest.raises(UserError, match="--table"):
        main("quality", json=tmp_path / "out.json")
