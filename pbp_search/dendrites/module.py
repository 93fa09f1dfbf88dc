"""A module whose neurons have dendrites: the forward pass of Perforated Backpropagation.

For input x, D generations, and per-channel weights U[d, e] and W[d]:

    z_d = M_d(x) + sum_{e<d} U[d, e] * a_e        later generations see earlier ones
    a_d = f(z_d)
    y   = M(x) + sum_d W[d] * a_d                 before the network's own nonlinearity

(R. Brenner and L. Itti, arXiv 2501.18018.) "Perforated" means that no error flows back through dendrites: they see
``x.detach()``, and take no gradient themselves once they are accepted.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pbp_search.dendrites.spec import FUNCTIONS, DendriteSpec


class Generation(nn.Module):
    """One dendrite node for each of a module's C output channels.

    Args:
        base: The wrapped module M; the dendrites M_d are a copy of it with a random start of its own.
        channels: C, the number of neurons.
        earlier: The number of accepted generations that this one sees.
        spec: The form of the dendrites.
    """

    def __init__(self, base: nn.Module, channels: int, earlier: int, spec: DendriteSpec) -> None:
        super().__init__()
        self.module = copy.deepcopy(base).requires_grad_(True)
        for part in self.module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
        weight = next(base.parameters())
        self.incoming = nn.Parameter(weight.new_zeros(earlier, channels))  # U[d, :]
        self.nonlinearity = FUNCTIONS[spec.nonlinearity]

    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """The activation a_d, shape (..., C), given x and the activations of all earlier generations."""
        z = self.module(x)
        for weight, activation in zip(self.incoming, earlier, strict=True):
            z = z + weight * activation
        return self.nonlinearity(z)


class Dendritic(nn.Module):
    """A module M with C output channels in its last axis, and any number of frozen dendrite generations.

    Attributes:
        module: M, trained by ordinary backpropagation.
        generations: The accepted dendrites, frozen.
        outgoing: W, shape (D, C), trained with M. A new generation enters with W = 0.
    """

    def __init__(self, module: nn.Linear, spec: DendriteSpec) -> None:
        super().__init__()
        self.module = module
        self.spec = spec
        self.channels = module.out_features
        self.generations: nn.ModuleList = nn.ModuleList()
        self.outgoing = nn.Parameter(module.weight.new_zeros(0, self.channels))

    def __getattr__(self, name: str) -> Any:
        # Networks look at their layers (weight.dtype, in_features): what is not the wrapper's own is M's.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x)
        # One product and one sum a generation, in a fixed order: a larger stacked product may round differently, and
        # a generation that enters with W = 0 must leave every bit of y as it was.
        for weight, activation in zip(self.outgoing, self.activations(x), strict=True):
            y = y + weight * activation
        return y

    @torch.no_grad()
    def activations(self, x: Tensor) -> list[Tensor]:
        """The activations a_0 ... a_{D-1} of the accepted generations, each (..., C), cut off from the graph."""
        seen: list[Tensor] = []
        for generation in self.generations:
            seen.append(generation(x, seen))
        return seen

    def candidate(self) -> Generation:
        """A new generation at a random start (torch's global stream). It is not part of the network yet."""
        return Generation(self.module, self.channels, len(self.generations), self.spec)

    def accept(self, generation: Generation) -> None:
        """Freeze a generation and connect it with W = 0.

        Every bit of the module's outputs stays as it was, but for the sign of an exact zero: -0.0 + 0.0 is 0.0.
        """
        self.generations.append(generation.requires_grad_(False).eval())
        row = self.outgoing.new_zeros(1, self.channels)
        self.outgoing = nn.Parameter(torch.cat([self.outgoing.detach(), row]))

    def train(self, mode: bool = True) -> "Dendritic":
        super().train(mode)
        self.generations.eval()  # frozen dendrites stay in evaluation mode
        return self
