"""What a dendrite is made of."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pbp_search.settings import Settings

Nonlinearity = Literal["tanh", "sigmoid", "relu"]

FUNCTIONS: dict[Nonlinearity, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
}


class DendriteSpec(Settings):
    """The form of the dendrites.

    Attributes:
        nonlinearity: f in ``a = f(z)``, the dendrite's own nonlinearity.
    """

    nonlinearity: Nonlinearity = "tanh"
