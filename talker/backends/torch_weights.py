"""Load a state dict into a PyTorch network without running code from the file."""

from pathlib import Path

import torch

from talker.backends.weights import wrong_weights
from talker.data.weights import Weights


def load_state(network: torch.nn.Module, file: Path, weights: Weights) -> torch.nn.Module:
    """Load a state dict into `network` and return it in evaluation mode, on a GPU if there is one.

    Raises:
        UserError: the file is damaged, refers to code, or belongs to another network.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"the file contains a {type(state).__name__} instead of a state dict")
        state = {key.removeprefix("module."): value for key, value in state.items()}
        network.load_state_dict(state)
    except Exception as error:  # torch raises many kinds for damaged files
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise wrong_weights(file, first_line, weights) from error
    return network.eval().to(device())


def device() -> torch.device:
    """Return the device on which the networks of backends run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
