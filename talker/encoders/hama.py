"""Speech features from the convolutional trunk of hama's phoneme recognizer (Apache-2.0).

The weights are read from the ONNX file inside the `hama` wheel; its code is not imported. The
middle layers predict mouth shapes better than the phoneme scores do; block 6 is the best.
"""

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from talker.clip import SAMPLE_RATE
from talker.core.parallel import one_thread
from talker.encoders import Choice, Encoder
from talker.errors import UserError

VERSION = "1.3.10"
"""Version of hama whose weights are used."""
WEIGHTS = "hama/assets/asr_waveform_fp16.onnx"
"""File of the weights inside the wheel."""
SHA256 = "a884b5ac55f8bbc00673e8cf6d2dd601aa76e5031dd85cf3de2f25b5987cd59a"
"""Hash of the weights."""

HOP = 320
"""Samples between feature vectors."""
DIMS = 256
"""Values of a feature vector."""
DILATIONS = (1, 1, 2, 2, 4, 1, 1)
"""Dilations of blocks 0 to 6."""


class SpectrogramStem(nn.Module):
    """Log-mel spectrogram (25 ms windows every 10 ms, 80 bands) and a convolution to 50 Hz."""

    def __init__(self) -> None:
        super().__init__()
        self.real = nn.Conv1d(1, 201, 400, stride=160, bias=False)
        self.imaginary = nn.Conv1d(1, 201, 400, stride=160, bias=False)
        self.mel = nn.Linear(201, 80, bias=False)
        self.conv = nn.Conv1d(80, DIMS, 3, stride=2, padding=1)

    def forward(self, sound: Tensor) -> Tensor:
        """Map audio [B, S] to [B, 256, 1 + S // 320]."""
        padded = F.pad(sound[:, None], (200, 200), mode="reflect")
        power = self.real(padded) ** 2 + self.imaginary(padded) ** 2
        mel = self.mel(power.mT).mT
        return F.gelu(self.conv(mel.clamp(min=1e-10).log()))


class Block(nn.Module):
    """Depthwise separable convolution with squeeze-and-excitation and a residual."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(DIMS, DIMS, 9, dilation=dilation, padding="same", groups=DIMS)
        self.pointwise = nn.Conv1d(DIMS, DIMS, 1)
        self.squeeze = nn.Conv1d(DIMS, 32, 1)
        self.excite = nn.Conv1d(32, DIMS, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.pointwise(self.depthwise(x)))
        weight = torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean(dim=2, keepdim=True)))))
        return x + weight * y


class Trunk(nn.Module):
    """The recognizer up to and including block 6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SpectrogramStem()
        self.blocks = nn.Sequential(*map(Block, DILATIONS))

    def forward(self, sound: Tensor) -> Tensor:
        """Map audio [B, S] to [B, 256, 1 + S // 320]."""
        return self.blocks(self.stem(sound))

    def load_onnx(self, path: Path) -> None:
        """Copy the weights of the ONNX file, whose convolutions have the same order as here."""
        import onnx
        from onnx.numpy_helper import to_array

        graph = onnx.load(path).graph
        weights = {
            tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer
        }
        theirs = (node for node in graph.node if node.op_type == "Conv")
        ours = (module for module in self.modules() if isinstance(module, nn.Conv1d))
        with torch.no_grad():
            self.stem.mel.weight.copy_(weights["mel_fb"].T)
            for module, node in zip(ours, theirs, strict=False):
                _, *names = node.input
                for parameter, name in zip(module.parameters(), names, strict=True):
                    parameter.copy_(weights[name])


def load(choice: Choice, wav: Path | None) -> Encoder:
    """Build the encoder from the weights in the wheel; the arguments are not used.

    Raises:
        UserError: hama is not installed, or its weights are not those of the expected version.
    """
    path = weights()
    trunk = Trunk()
    trunk.load_onnx(path)
    trunk.eval().requires_grad_(False)
    return Encoder(
        name="hama",
        dims=DIMS,
        rate=SAMPLE_RATE / HOP,
        first_center=0.0,
        sha256=SHA256,
        extract=lambda sound, start: extract(trunk, sound),
    )


@torch.inference_mode()
def extract(trunk: Trunk, sound: Float[np.ndarray, "S"]) -> Float[np.ndarray, "N D"]:
    """Map audio, float32 [S], to float32 [1 + S // 320, 256]; row k is centered on sample 320 k.

    The excitations average over the whole piece, so only pieces of one length are comparable.
    """
    with one_thread():  # one thread reaches 80 times real time
        return trunk(torch.from_numpy(sound)[None])[0].T.numpy()


def weights() -> Path:
    """Return the path of the weights of the installed wheel; UserError if they are not valid."""
    advice = f"Run `pip install hama=={VERSION}`."
    try:
        path = Path(str(distribution("hama").locate_file(WEIGHTS)))
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    except PackageNotFoundError as error:
        raise UserError(f"The speech encoder hama needs the package hama. {advice}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {advice}") from error
    if checksum != SHA256:
        raise UserError(
            f"{path} has the SHA-256 checksum {checksum}, but the weights of hama {VERSION} "
            f"have {SHA256}. {advice}"
        )
    return path
