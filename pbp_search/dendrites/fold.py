"""The network that ships: dendrites fused into their modules, no scaffolding."""

import copy

import torch
from torch import Tensor, nn

from pbp_search.dendrites.attach import dendritic_modules
from pbp_search.dendrites.module import Dendritic
from pbp_search.dendrites.spec import FUNCTIONS


class FoldedLinear(nn.Module):
    """A Linear and all its dendrite generations as one matrix product and a short cascade.

    Attributes:
        linear: M and M_0 ... M_{D-1} stacked: (D + 1) * C outputs.
        incoming: The rows of U one after the other, shape (D * (D - 1) / 2, C).
        outgoing: W, shape (D, C).
    """

    def __init__(self, module: Dendritic) -> None:
        super().__init__()
        base = module.module
        parts = [base, *(generation.get_submodule("module") for generation in module.generations)]
        # On the meta device: no random start is drawn for weights that are replaced at once.
        self.linear = nn.Linear(
            base.in_features, len(parts) * module.channels, bias=base.bias is not None, device="meta"
        )
        self.linear.weight = nn.Parameter(torch.cat([part.get_parameter("weight").detach() for part in parts]))
        if base.bias is not None:
            self.linear.bias = nn.Parameter(torch.cat([part.get_parameter("bias").detach() for part in parts]))
        self.incoming = nn.Parameter(
            torch.cat([part.get_parameter("incoming").detach() for part in module.generations])
        )
        self.outgoing = nn.Parameter(module.outgoing.detach().clone())
        self.nonlinearity = FUNCTIONS[module.spec.nonlinearity]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        y, *sums = self.linear(x).chunk(len(self.outgoing) + 1, dim=-1)
        seen: list[Tensor] = []
        row = 0
        for weight, z in zip(self.outgoing, sums, strict=True):
            for activation in seen:
                z = z + self.incoming[row] * activation
                row += 1
            seen.append(self.nonlinearity(z))
            y = y + weight * seen[-1]
        return y


def fold(network: nn.Module) -> nn.Module:
    """A deployable copy of a network: equal outputs up to rounding, and only the numbers that ship.

    The copy is in evaluation mode; the network itself is not changed. A wrapped Linear without dendrites becomes the
    plain Linear again. With D generations everywhere the copy holds B + D*P + C*D*(D+1)/2 parameters (B the base
    network's, P the wrapped modules', C their output channels).
    """
    folded = copy.deepcopy(network)
    for name, module in dendritic_modules(folded).items():
        parent, _, child = name.rpartition(".")
        plain = FoldedLinear(module) if module.generations else module.module
        setattr(folded.get_submodule(parent), child, plain)
    return folded.eval()


def parameter_count(network: nn.Module) -> int:
    """How many parameters the folded network stores. Nothing in a dendritic network is scaffolding."""
    return sum(parameter.numel() for parameter in network.parameters())


def weight_bytes(network: nn.Module) -> int:
    """The bytes of a network's parameters and persistent buffers; what is tied counts once."""
    values = {id(value): value for value in network.state_dict(keep_vars=True).values()}
    return sum(value.numel() * value.element_size() for value in values.values())
