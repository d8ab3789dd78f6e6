"""HuBERT, wav2vec 2.0 and Whisper from the package transformers, loaded from a folder or by model
ID.

They need `pip install 'transformers>=5.23,<6'`. Do not add torchvision from PyPI to a CPU build of
PyTorch: it is built for CUDA and fails to load, and then transformers fails, too.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from talker.clip import SAMPLE_RATE, SLOT, SLOT_RATE
from talker.data.weights import WEIGHTS, location
from talker.encoders import Choice, Encoder
from talker.errors import UserError

EDGE = 40
"""Number of samples by which the 400-sample window of a row exceeds its 320-sample hop on each
side."""
QUIETEST = 1e-3
"""Smallest standard deviation by which a piece of audio is divided, so that silence stays quiet."""


@dataclass(frozen=True)
class Family:
    """A family of networks of the package transformers."""

    model: str
    """Name of the class of the network."""
    preprocessor: str
    """Name of the class of its preprocessor."""
    default: str
    """ID of the default model on the Hugging Face Hub."""
    first_center: float
    """Time in seconds on which the first row is centered."""
    extract: Callable[[Any, Any, int, np.ndarray], torch.Tensor]


def load(choice: Choice, wav: Path | None) -> Encoder:
    """Build an encoder from the weights in a folder or of a model on the Hugging Face Hub.

    By default, these are the weights that `talker weights fetch` downloaded, else those of the hub.

    Raises:
        UserError: transformers is not installed, the weights cannot be loaded, or the network does
            not have the layer.
    """
    name, layer = choice.name, choice.layer
    family = FAMILIES[name]
    fetched = location(WEIGHTS[name])
    source = choice.model or (str(fetched) if fetched.is_dir() else family.default)
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"The speech encoder {name} needs the package transformers ({error}). Run "
            "`pip install 'transformers>=5.23,<6'`. Torchvision is not needed: if the error "
            "mentions it, uninstall it."
        ) from error
    try:
        network = getattr(transformers, family.model).from_pretrained(source)
        preprocessor = getattr(transformers, family.preprocessor).from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The weights of the speech encoder {name} cannot be loaded from '{source}' "
            f"({error}). Run `talker weights fetch {name}`, or set the option `model` of `talker "
            "speech` to a folder with config.json, preprocessor_config.json and the weights, or "
            "to the ID of a model on the Hugging Face Hub."
        ) from error
    network.eval().requires_grad_(False)
    depth = getattr(network.config, "encoder_layers", None) or network.config.num_hidden_layers
    if not 0 <= layer <= depth:
        raise UserError(
            f"The option `layer` is {layer}. For {source}, it must be from 1 to {depth}, or 0 "
            "for the default."
        )
    chosen_layer = layer or max(1, round(0.75 * depth))

    def extract(sound: np.ndarray, start: int) -> np.ndarray:
        with torch.inference_mode():
            return family.extract(network, preprocessor, chosen_layer, sound).numpy()

    return Encoder(
        name=name,
        dims=network.config.hidden_size,
        rate=SLOT_RATE,
        first_center=family.first_center,
        sha256=fingerprint(network),
        extract=extract,
    )


def fingerprint(network: torch.nn.Module) -> str:
    """Return the sha256 of the weights, independent of the file format."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.float().numpy().tobytes())
    return digest.hexdigest()


def _from_waveform(network: Any, preprocessor: Any, layer: int, sound: np.ndarray) -> torch.Tensor:
    """Return rows of HuBERT or wav2vec 2.0, [S // 320, D]; row k is centered on 320 k + 160."""
    x = torch.from_numpy(sound)
    if preprocessor.do_normalize:
        x = (x - x.mean()) / x.std().clamp_min(QUIETEST)
    rows = network(F.pad(x, (EDGE, EDGE))[None], output_hidden_states=True).hidden_states[layer][0]
    return _exactly(rows, len(sound) // SLOT)


def _from_spectrogram(
    network: Any, preprocessor: Any, layer: int, sound: np.ndarray
) -> torch.Tensor:
    """Return rows of Whisper's encoder, [S // 320, D]; row k is centered on sample 320 k.

    Whisper's input always lasts 30 s, so the audio is padded with silence.
    """
    spectrogram = preprocessor(sound, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    rows = network.get_encoder()(spectrogram, output_hidden_states=True).hidden_states[layer][0]
    return _exactly(rows[: len(sound) // SLOT], len(sound) // SLOT)


def _exactly(rows: torch.Tensor, count: int) -> torch.Tensor:
    if len(rows) != count:
        raise RuntimeError(f"The network returned {len(rows)} rows instead of {count}.")
    return rows


FAMILIES = {
    "hubert": Family(
        model="HubertModel",
        preprocessor="Wav2Vec2FeatureExtractor",
        default="facebook/hubert-base-ls960",
        first_center=0.01,
        extract=_from_waveform,
    ),
    "wav2vec2": Family(
        model="Wav2Vec2Model",
        preprocessor="Wav2Vec2FeatureExtractor",
        default="facebook/wav2vec2-base-960h",
        first_center=0.01,
        extract=_from_waveform,
    ),
    "whisper": Family(
        model="WhisperModel",
        preprocessor="WhisperFeatureExtractor",
        default="openai/whisper-tiny",
        first_center=0.0,
        extract=_from_spectrogram,
    ),
}
