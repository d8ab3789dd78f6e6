"""HuBERT, wav2vec 2.0 and Whisper through transformers, from a folder or a hub id.

`pip install talker[transformers]`. Never add torchvision from PyPI to a CPU torch: its build is for
CUDA, fails to load, and takes transformers with it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from talker.clip import SAMPLE_RATE
from talker.encoders.base import Encoder
from talker.errors import UserError

RATE = 50
HOP = SAMPLE_RATE // RATE
EDGE = 40
"""samples that a row's 400 reach beyond its 320, on each side"""
QUIETEST = 1e-3
"""deviation of a piece of sound that is normalised up to 1; below, it is silence and stays so"""


@dataclass(frozen=True)
class Family:
    model: str
    """class of transformers"""
    preprocessor: str
    usual: str
    """hub id"""
    first_centre: float
    describe: Callable[[Any, Any, int, np.ndarray], torch.Tensor]


def load(name: str, model: str, layer: int) -> Encoder:
    """Build an encoder from a folder or a hub id (empty: the family's usual one).

    Raises:
        UserError: transformers is not installed, the weights cannot be had, or no such layer.
    """
    family = FAMILIES[name]
    source = model or family.usual
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"the speech encoder {name} needs transformers ({error}); install it with "
            "`pip install 'talker[transformers]'`, and without torchvision"
        ) from error
    try:
        network = getattr(transformers, family.model).from_pretrained(source)
        preprocessor = getattr(transformers, family.preprocessor).from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"speech encoder {name}: no weights at '{source}' ({error}); give a folder that holds "
            "config.json, preprocessor_config.json and the weights, or a hub id, as the option "
            "`model` of `talker speech`"
        ) from error
    network.eval().requires_grad_(False)
    depth = getattr(network.config, "encoder_layers", None) or network.config.num_hidden_layers
    if not 0 <= layer <= depth:
        raise UserError(f"layer: expected 1 to {depth} for {source}, or 0, found {layer}")
    chosen = layer or max(1, round(0.75 * depth))

    def describe(sound: np.ndarray, start: int) -> np.ndarray:
        with torch.inference_mode():
            return family.describe(network, preprocessor, chosen, sound).numpy()

    return Encoder(
        name=name,
        dims=network.config.hidden_size,
        rate=RATE,
        first_centre=family.first_centre,
        sha256=fingerprint(network),
        describe=describe,
    )


def fingerprint(network: torch.nn.Module) -> str:
    """sha256 of the weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.float().numpy().tobytes())
    return digest.hexdigest()


def _from_waveform(network: Any, preprocessor: Any, layer: int, sound: np.ndarray) -> torch.Tensor:
    """Rows of HuBERT and wav2vec 2.0 [S // 320, D]; row k is centred on sample 320 k + 160."""
    x = torch.from_numpy(sound)
    if preprocessor.do_normalize:
        x = (x - x.mean()) / x.std().clamp_min(QUIETEST)
    rows = network(F.pad(x, (EDGE, EDGE))[None], output_hidden_states=True).hidden_states[layer][0]
    return _exactly(rows, len(sound) // HOP)


def _from_spectrogram(
    network: Any, preprocessor: Any, layer: int, sound: np.ndarray
) -> torch.Tensor:
    """Rows of Whisper's encoder [S // 320, D]; row k is centred on sample 320 k.

    Whisper hears 30 s, filled with silence.
    """
    heard = preprocessor(sound, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    rows = network.get_encoder()(heard, output_hidden_states=True).hidden_states[layer][0]
    return _exactly(rows[: len(sound) // HOP], len(sound) // HOP)


def _exactly(rows: torch.Tensor, count: int) -> torch.Tensor:
    if len(rows) != count:
        raise RuntimeError(f"{len(rows)} rows for {count} slots of sound")
    return rows


FAMILIES = {
    "hubert": Family(
        model="HubertModel",
        preprocessor="Wav2Vec2FeatureExtractor",
        usual="facebook/hubert-base-ls960",
        first_centre=0.01,
        describe=_from_waveform,
    ),
    "wav2vec2": Family(
        model="Wav2Vec2Model",
        preprocessor="Wav2Vec2FeatureExtractor",
        usual="facebook/wav2vec2-base-960h",
        first_centre=0.01,
        describe=_from_waveform,
    ),
    "whisper": Family(
        model="WhisperModel",
        preprocessor="WhisperFeatureExtractor",
        usual="openai/whisper-tiny",
        first_centre=0.0,
        describe=_from_spectrogram,
    ),
}
