"""Write and read the checkpoints of a training run, and identify the run that they belong to."""

import dataclasses
import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from talker.avatar.model import Avatar, AvatarConfig
from talker.avatar.options import Config
from talker.core.config import from_mapping
from talker.core.files import atomic_write
from talker.core.provenance import code_of
from talker.data.layout import Folder
from talker.dataset import Dataset
from talker.errors import UserError

logger = logging.getLogger(__name__)

NO_EFFECT = ("checkpoint_seconds", "blendshapes")
"""Options that do not change the weights of the avatar."""


@dataclass(frozen=True)
class Origin:
    """Hashes of everything that determines the result of a training run."""

    code: str
    """Code of `talker.train` and of all modules that it imports."""
    options: str
    """Options of the run."""
    data: str
    """Content of the dataset's files and of the file `speech_prior`. Arrays computed from the files
    are not hashed, because they are rounded differently on different machines."""

    @classmethod
    def of(cls, config: Config, data: Dataset) -> "Origin":
        """Hash the code, the options and the files of the dataset that training reads."""
        options = {k: v for k, v in dataclasses.asdict(config).items() if k not in NO_EFFECT}

        def content(file: Folder) -> bytes:
            return hashlib.sha256(file.read_bytes()).digest()

        files = [*data.training_files(config.encoder)]
        if config.speech_prior:
            files.append(Path(config.speech_prior))
        with ThreadPoolExecutor() as pool:
            parts = b"".join(pool.map(content, files))
        return cls(
            code=code_of("talker.train"),
            options=hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest(),
            data=hashlib.sha256(parts).hexdigest(),
        )

    def differences(self, other: "Origin") -> list[str]:
        """Return the names of the fields in which two origins differ."""
        names = (item.name for item in dataclasses.fields(self))
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def save_checkpoint(path: Path, state: dict[str, Any], origin: Origin) -> None:
    """Write the state of a training run and its origin; the file is replaced as a whole."""
    with atomic_write(path) as (scratch,):
        torch.save({"origin": dataclasses.asdict(origin), **state}, scratch)


def load_checkpoint(path: Path, origin: Origin) -> dict[str, Any] | None:
    """Return the saved state of a run if its origin is the same; otherwise log the reason."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored = Origin(**state.pop("origin"))
    except Exception as error:  # torch raises many kinds of errors for foreign or damaged files
        logger.warning(
            "%s cannot be read as a checkpoint (%s). Training starts from the beginning.",
            path,
            error,
        )
        return None
    if differences := origin.differences(stored):
        logger.info(
            "The checkpoint %s was written with different %s. Training starts from the beginning.",
            path,
            " and different ".join(differences),
        )
        return None
    return state


def checkpoint_avatar(path: Path, device: torch.device | str = "cpu") -> Avatar:
    """Return the avatar in a checkpoint, to look at it while it trains.

    Raises:
        UserError: the file is missing, damaged, or from a version that stored no network shape.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        config = from_mapping(AvatarConfig, state["config"], f"{path}: config")
        return Avatar.from_state(config, state["avatar"]).to(device)
    except Exception as error:  # torch raises many kinds of errors for foreign or damaged files
        raise UserError(
            f"{path} cannot be read as a checkpoint ({error}). Give a checkpoint that this "
            "version of `talker train` wrote."
        ) from error
