"""Load a state dict into a PyTorch network without running code from the file."""

from pathlib import Path
from typing import Any

import torch

from talker.backends.weights import wrong_weights
from talker.data.weights import Weights
from talker.errors import counted


def load_state(network: torch.nn.Module, file: Path, weights: Weights) -> torch.nn.Module:
    """Load a state dict into `network` and return it in evaluation mode, on a GPU if there is one.

    Raises:
        UserError: the file is damaged, refers to code, or belongs to another network.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(
                f"the file contains a value of type {type(state).__name__} instead of a state dict"
            )
        state = {key.removeprefix("module."): value for key, value in state.items()}
        if fault := _difference(network, state):
            raise ValueError(fault)
        network.load_state_dict(state)
    except Exception as error:  # torch raises many kinds for damaged files
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise wrong_weights(file, first_line, weights) from error
    return network.eval().to(device())


def _difference(network: torch.nn.Module, state: dict[str, Any]) -> str:
    """Return how the names and shapes of a state dict differ from those of a network, or "".

    Checkpoints of PyTorch before 0.4.1 lack the counters `num_batches_tracked`, which are not used.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    missing = [name for name in expected.keys() - state.keys() if "num_batches" not in name]
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    other = [name for name in expected.keys() & shapes.keys() if shapes[name] != expected[name]]
    if missing:
        return f"the file lacks {counted(len(missing), 'parameter')}, such as {min(missing)}"
    if unknown := shapes.keys() - expected.keys():
        return f"the file has {counted(len(unknown), 'unknown parameter')}, such as {min(unknown)}"
    if other:
        name = min(other)
        return f"{name} has the shape {list(shapes[name])} instead of {list(expected[name])}"
    return ""


def device() -> torch.device:
    """Return the device on which the networks of backends run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
