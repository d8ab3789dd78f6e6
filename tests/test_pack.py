"""Pack a dataset folder into one file."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from talker.dataset import Dataset
from talker.errors import UserError
from talker.measure.metrics import psnr
from talker.tools.pack import Config, main


@pytest.fixture(scope="module")
def packed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "subject.zip"
    main(data=dataset, pack=path)
    return path


def test_a_pack_holds_what_training_reads(dataset: Path, packed: Path) -> None:
    before, after = Dataset.load(dataset, 96), Dataset.load(packed, 96)
    for field in dataclasses.fields(Dataset):
        if field.name != "folder":
            np.testing.assert_array_equal(
                getattr(after, field.name), getattr(before, field.name), field.name
            )
    ids = before.train_ids[::7]
    expected, found = before.images(ids), after.images(ids)
    np.testing.assert_array_equal(found.head_mask, expected.head_mask)
    assert psnr(found.frame[0], expected.frame[0]) > 30
    assert psnr(found.background[0], expected.background[0]) > 30


def test_less_quality_is_a_smaller_file(dataset: Path, packed: Path, tmp_path: Path) -> None:
    main(data=dataset, pack=tmp_path / "small.zip", config=Config(quality=20))
    assert (tmp_path / "small.zip").stat().st_size < packed.stat().st_size


def test_a_subject_of_another_encoder(mel_only: Path, tmp_path: Path) -> None:
    main(data=mel_only, pack=tmp_path / "mel.zip")
    before, after = (Dataset.load(x, 64, "mel") for x in (mel_only, tmp_path / "mel.zip"))
    np.testing.assert_array_equal(after.speech, before.speech)


@pytest.mark.parametrize("name", ["parsing/3.png", "au.csv"])
def test_a_pipe_is_not_packed(dataset: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "me", copy_function=os.link))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match="is a pipe, socket or device"):
        main(data=folder, pack=tmp_path / "me.zip")


def test_other_files_are_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Only a dataset folder"):
        main(data=packed, pack=tmp_path / "again.zip")
    (tmp_path / "me.mp4").write_bytes(b"no pack")
    with pytest.raises(UserError, match="talker pack"):
        Dataset.load(tmp_path / "me.mp4", 64)
    with pytest.raises(UserError, match="does not exist"):
        main(data=tmp_path, pack=tmp_path / "me.zip")
    assert not (tmp_path / "me.zip").exists()
