"""Families of networks, and where their default search spaces differ."""

from typing import Any

import torch
from torch import nn

from pbp_search.search.values import Range
from pbp_search.training import Task
from pbp_search.training.task import attempt

# Only what there is a reason for. All else is the same for all families: see SearchSpace.
FAMILIES: dict[str, dict[str, Any]] = {
    "perceptron": {},
    "convolutional": {},
    # Gradients through time explode (R. Pascanu, T. Mikolov, Y. Bengio, ICML 2013): the remedy is theirs.
    "recurrent": {"gradient_clip": 1.0},
    # Adam restarts in each cycle without a warm-up, and attention does not stand large first steps (R. Xiong et al.,
    # On Layer Normalization in the Transformer Architecture, ICML 2020).
    "transformer": {"learning_rate": Range(1e-4, 3e-3, log=True)},
}

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def family_of(network: nn.Module) -> str:
    """The family of a network, by its modules: one of :data:`FAMILIES`."""
    modules = list(network.modules())
    if any(isinstance(module, nn.MultiheadAttention) or "Attention" in type(module).__name__ for module in modules):
        return "transformer"
    if any(isinstance(module, _RECURRENT) for module in modules):
        return "recurrent"
    return "convolutional" if any(isinstance(module, _CONVOLUTIONS) for module in modules) else "perceptron"


def smallest_network(task: Task) -> nn.Module:
    """A task's network of its smallest width; torch's global stream is left alone.

    Raises:
        TaskError: The task cannot build it.
    """
    with torch.random.fork_rng(devices=[]):
        return attempt(
            f"The task {type(task).__name__}: its smallest network failed", lambda: task.model(task.widths[0])
        )
