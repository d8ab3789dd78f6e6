"""DeepSpeech 0.1 (Hannun et al. 2014), with the weights of its published TensorFlow graph.

The scripts of the AD-NeRF family run the graph with TensorFlow on the cepstra of the package
python_speech_features. Here its weights are read from the file and the network is evaluated with
PyTorch, so TensorFlow is not needed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

from talker.clip import SAMPLE_RATE
from talker.data.weights import WEIGHTS
from talker.errors import UserError, counted

CEPSTRA = 26
"""Number of cepstral coefficients, and of mel filters."""
FRAME, HOP, FFT = 400, 160, 512
"""Length of an analysis frame, step between frames, and length of the Fourier transform, in
samples."""
PREEMPHASIS = 0.97
"""Factor of the previous sample that is subtracted from each sample."""
LIFTER = 22
"""Parameter of the sinusoidal lifter of the cepstra."""
CONTEXT = 9
"""Number of steps of 20 ms before and after each step that the network is given."""
CLIP = 20.0
"""Upper limit of the rectified linear units."""
DENSE = ("1", "2", "3", "5", "6")
"""Names of the dense layers in the graph; layer 4 is recurrent."""

Message = memoryview | bytes
"""A serialized protocol buffer."""


def predict(file: Path, samples: np.ndarray) -> np.ndarray:
    """Return the letter scores (logits) float32 [N, 29] of audio int16 [S] at 16 kHz, at 50 Hz.

    Raises:
        UserError: the file is not the published graph.
    """
    try:
        weights = read_constants(np.memmap(file, np.uint8, mode="r").data)
        return evaluate(weights, torch.from_numpy(inputs_of(samples))).numpy()
    except (ValueError, IndexError, KeyError, RuntimeError, OSError) as error:
        published = WEIGHTS["deepspeech"]
        raise UserError(
            f"{file} does not contain {published.name} ({error}). To obtain it, {published.hint()}."
        ) from error


def inputs_of(samples: np.ndarray) -> np.ndarray:
    """Return the inputs of the network, float32 [N, 494], for audio int16 [S] at 16 kHz.

    Every 20 ms, they contain the cepstra of 19 steps, normalized over the whole audio.
    """
    steps = np.pad(cepstra(samples)[::2], ((CONTEXT, CONTEXT), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(steps, 2 * CONTEXT + 1, axis=0)
    inputs = windows.transpose(0, 2, 1).reshape(len(windows), -1)
    return ((inputs - inputs.mean()) / (inputs.std() or 1)).astype(np.float32)


def cepstra(samples: np.ndarray) -> np.ndarray:
    """Return mel-frequency cepstral coefficients float64 [N, 26] of audio int16 [S], at 100 Hz.

    The first coefficient is replaced by the logarithm of the energy.
    """
    sound = samples.astype(float)
    sound[1:] -= PREEMPHASIS * samples[:-1]
    count = 1 + max(0, -(-(len(sound) - FRAME) // HOP))
    sound = np.pad(sound, (0, max(0, (count - 1) * HOP + FRAME - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[::HOP][:count]
    power = np.abs(np.fft.rfft(frames, FFT)) ** 2 / FFT
    smallest = np.finfo(float).eps
    mel = power @ _mel_filters().T
    logarithms = np.log(np.where(mel == 0, smallest, mel))
    coefficients = np.asarray(dct(logarithms, type=2, axis=1, norm="ortho"))
    coefficients *= 1 + LIFTER / 2 * np.sin(np.pi * np.arange(CEPSTRA) / LIFTER)
    energy = power.sum(axis=1)
    coefficients[:, 0] = np.log(np.where(energy == 0, smallest, energy))
    return coefficients


def _mel_filters() -> np.ndarray:
    """Return triangular filters [26, 257] with edges equally spaced on the mel scale."""
    highest = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, CEPSTRA + 2) / 2595) - 1)
    bins = np.floor((FFT + 1) * edges / SAMPLE_RATE)
    positions = np.arange(FFT // 2 + 1)
    low, center, high = bins[:-2, None], bins[1:-1, None], bins[2:, None]
    rising = (positions - low) / (center - low)
    falling = (high - positions) / (high - center)
    return np.clip(np.minimum(rising, falling), 0, None)


@torch.no_grad()
def evaluate(weights: dict[str, np.ndarray], inputs: Tensor) -> Tensor:
    """Return the scores [N, 29] of the inputs [N, 494].

    Args:
        weights: matrices `h1`, ..., `h6` [inputs, outputs], biases `b1`, ..., `b6`, and the kernel
            [inputs + units, 4 units] and bias [4 units] of the recurrent cells `fw` and `bw`.
        inputs: as `inputs_of` returns them.
    """

    def dense(name: str, x: Tensor) -> Tensor:
        return x @ _copied(weights[f"h{name}"]) + _copied(weights[f"b{name}"])

    x = inputs
    for name in "123":
        x = dense(name, x).clamp(0, CLIP)
    recurrent = torch.nn.LSTM(x.shape[1], weights["fw bias"].size // 4, bidirectional=True)
    for cell, suffix in (("fw", ""), ("bw", "_reverse")):
        for name, values in _recurrent_state(weights, cell, suffix).items():
            recurrent.get_parameter(name).copy_(values)
    x, _ = recurrent(x)
    return dense("6", dense("5", x).clamp(0, CLIP))


def _recurrent_state(weights: dict[str, np.ndarray], cell: str, suffix: str) -> dict[str, Tensor]:
    """Convert a cell from TensorFlow, with the gates i, j, f, o, to PyTorch, with i, f, g, o.

    TensorFlow adds 1 to the forget gate.
    """
    kernel, bias = (_copied(weights[f"{cell} {part}"]) for part in ("kernel", "bias"))
    units = bias.numel() // 4
    entry, new, forget, output = bias.reshape(4, units)
    gates = kernel.T.reshape(4, units, -1)[[0, 2, 1, 3]].reshape(4 * units, -1)
    return {
        f"weight_ih_l0{suffix}": gates[:, :-units],
        f"weight_hh_l0{suffix}": gates[:, -units:],
        f"bias_ih_l0{suffix}": torch.cat([entry, forget + 1, new, output]),
        f"bias_hh_l0{suffix}": torch.zeros(4 * units),
    }


def _copied(array: np.ndarray) -> Tensor:
    """Return a copy in memory of an array in the file, where it may not be aligned."""
    return torch.from_numpy(array.copy())


def read_constants(graph: Message) -> dict[str, np.ndarray]:
    """Read the weights of a serialized TensorFlow graph, by the names that `evaluate` expects.

    Raises:
        ValueError: it is not such a graph, or it lacks a weight.
    """
    names = {f"{kind}{layer}": f"{kind}{layer}" for layer in DENSE for kind in "hb"}
    names |= {
        f"bidirectional_rnn/{cell}/basic_lstm_cell/{part}": f"{cell} {part}"
        for cell in ("fw", "bw")
        for part in ("kernel", "bias")
    }
    parameters = {}
    for number, node in _fields(graph):
        parts = dict(_fields(node)) if number == 1 and isinstance(node, memoryview) else {}
        name = bytes(parts.get(1, b"")).decode(errors="replace")
        if name in names and bytes(parts.get(2, b"")) == b"Const":
            parameters[names[name]] = _tensor(node)
    if missing := sorted(set(names.values()) - parameters.keys()):
        raise ValueError(f"the file lacks {counted(len(missing), 'weight')}, such as {missing[0]}")
    return parameters


def _tensor(node: Message) -> np.ndarray:
    """Return the float32 array of a node of the kind Const."""
    for number, attribute in _fields(node):
        entry = dict(_fields(attribute)) if number == 5 else {}
        if bytes(entry.get(1, b"")) == b"value":
            tensor = dict(_fields(dict(_fields(entry[2]))[8]))
            shape = [dict(_fields(size)).get(1, 0) for _, size in _fields(tensor.get(2, b""))]
            return np.frombuffer(tensor[4], "<f4").reshape(shape)
    raise ValueError("a weight has no value")


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field of a serialized protocol buffer.

    Raises:
        ValueError: the message is damaged.
    """
    if isinstance(message, int):
        raise ValueError("it is not a TensorFlow graph")
    view = memoryview(message)
    position = 0
    while position < len(view):
        key, position = _varint(view, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(view, position)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, position = _varint(view, position)
        if size is None or position + size > len(view):
            raise ValueError("it is not a TensorFlow graph, or it is truncated")
        yield number, view[position : position + size]
        position += size


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """Return the integer of variable length at a position, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = view[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("it is not a TensorFlow graph")
