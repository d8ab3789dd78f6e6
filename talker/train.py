"""Train the avatar of a prepared dataset folder.

talker train --data data/me --avatar results/me/avatar --checkpoints results/me/checkpoints
"""

import json
import logging
from pathlib import Path

import torch

from talker.avatar.bake import add_blendshapes
from talker.avatar.options import Config
from talker.avatar.trainer import fit
from talker.avatar.training_set import training_set
from talker.core.files import Changed, Output, atomic_write
from talker.data.formats import load_torchscript
from talker.data.layout import speech_statistics
from talker.dataset import Dataset
from talker.errors import UserError

logger = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is CUDA where there is a GPU.

    Raises:
        UserError: the name is unknown, or there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "The device is set to cuda, but no CUDA GPU is available. Use `--device cpu`."
        )
    if name not in ("cpu", "cuda"):
        raise UserError(f"The device is set to '{name}'. It must be auto, cpu or cuda.")
    return torch.device(name)


def main(data: Path, avatar: Output, checkpoints: Changed, config: Config = Config()) -> None:
    """Train an avatar on a prepared dataset folder.

    Args:
        data: Dataset folder, or file written by `talker pack`.
        avatar: Folder to write: config.json, weights.safetensors, blendshapes.npz,
            point_cloud.ply, log.jsonl and the speech statistics.
        checkpoints: Folder for the checkpoint, from which an interrupted training run resumes. The
            checkpoint is kept after training. If you train again with the same code, options and
            data, the final state is loaded from it.
        config: Options.
    """
    device = pick_device(config.device)
    perceptual = None
    if config.perceptual:
        perceptual = load_torchscript(Path(config.perceptual), config.perceptual_sha256).to(device)
    dataset = Dataset.load(data, config.image_size, config.encoder)
    subset = training_set(dataset, device)
    trainer = fit(dataset, subset, config, checkpoints / "latest.pt", perceptual)
    add_blendshapes(trainer.avatar.eval(), subset, config.blendshapes)
    with atomic_write(avatar) as (folder,):
        trainer.avatar.save(folder)
        statistics = dataset.folder / speech_statistics(config.encoder)
        if statistics.exists():
            (folder / "speech.npz").write_bytes(statistics.read_bytes())
        lines = (json.dumps(entry) + "\n" for entry in trainer.log)
        (folder / "log.jsonl").write_text("".join(lines), encoding="utf-8")
    count = len(trainer.avatar.canonical["means"])
    logger.info("Wrote the avatar %s with %d Gaussians.", avatar, count)
