"""The network that ships: dendrites fused into their modules, no scaffolding."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from pbp_search.dendrites.attach import dendritic_modules
from pbp_search.dendrites.module import Dendrite, Dendritic, Wrapper, add_branches, along, copy_of
from pbp_search.dendrites.patches import Patches
from pbp_search.dendrites.spec import FUNCTIONS


class Fused(Wrapper):
    """A Linear or convolution and all its dendrites as one product or convolution and a short cascade.

    To its network it still has C outputs: ``out_features`` or ``out_channels``, ``weight`` and ``bias`` are M's.

    Attributes:
        module: M and M_0 ... M_{D-1} stacked: (D + 1) * C outputs.
        incoming: The rows of U one after the other, each of C numbers.
        outgoing: W, shape (D, C).
    """

    def __init__(self, module: Dendritic) -> None:
        super().__init__()
        dendrites = _dendrites(module)
        parts = [module.module, *(dendrite.module for dendrite in dendrites)]
        self.module = _stacked(parts)
        self.earlier = [len(dendrite.incoming) for dendrite in dendrites]
        self.incoming = nn.Parameter(torch.cat([dendrite.incoming.detach() for dendrite in dendrites]))
        self.outgoing = nn.Parameter(module.outgoing.detach().clone())
        self.nonlinearity = FUNCTIONS[module.spec.nonlinearity]
        self.shifted = False
        self.axis = module.adapter.axis
        setattr(self, _outputs(module.module), module.channels)
        self.channels = module.channels
        if self.nonlinearity is FUNCTIONS["tanh"]:
            self._use_sigmoids()

    @torch.no_grad()
    def _use_sigmoids(self) -> None:
        """Put tanh(z) = 2 sigmoid(2 z) - 1, several times faster on CPUs, into the weights if there is a bias.

        With s = sigmoid(2 z) the activations are a = 2 s - 1, and the sums become

            2 z_d = 2 M_d(x) - 2 sum_e U[d, e] + sum_e 4 U[d, e] s_e
            y     = M(x) - sum_d W[d] + sum_d 2 W[d] s_d
        """
        weight, bias = self.module.get_parameter("weight"), self.module.bias
        if not isinstance(bias, Tensor) or weight.dtype not in (torch.float32, torch.float64):
            return  # shorter types would round s before 1 is taken away
        shifts = [self.outgoing.sum(0), *(rows.sum(0) for rows in self.incoming.split(self.earlier))]
        bias.sub_(torch.cat(shifts))
        for values in (weight, bias):
            values[self.channels :].mul_(2)
        self.incoming.mul_(4)
        self.outgoing.mul_(2)
        self.nonlinearity, self.shifted = torch.sigmoid, True

    @property
    def weight(self) -> Tensor:
        """M's own, for networks that read the weights of their layers."""
        return self.module.get_parameter("weight")[: self.channels]

    @property
    def bias(self) -> Tensor | None:
        """M's own."""
        stacked = self.module.bias
        if not isinstance(stacked, Tensor):
            return None
        own = stacked[: self.channels]
        return own + self.outgoing.sum(0) / 2 if self.shifted else own

    def forward(self, input: Tensor) -> Tensor:  # torch's name: networks may give it by keyword
        y: Tensor
        y, *sums = self.module(input).chunk(len(self.outgoing) + 1, dim=self.axis)
        seen: list[Tensor] = []
        rows = iter(self.incoming.unbind() if len(self.incoming) else ())
        for earlier, z in zip(self.earlier, sums, strict=True):
            for activation in seen[:earlier]:
                z = torch.addcmul(z, activation, along(next(rows), self.axis))
            seen.append(self.nonlinearity(z))
        return add_branches(y, self.outgoing, seen, self.axis)


class Beside(Wrapper):
    """Any module with its dendrites beside it: the same sums as in training."""

    def __init__(self, module: Dendritic) -> None:
        super().__init__()
        self.module = module.module
        self.dendrites = module.dendrites
        self.outgoing = module.outgoing
        self.adapter = module.adapter
        self.seen = module.seen

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        y = self.adapter.neurons(output)
        if self.seen is not None:
            args, kwargs = (self.seen.value().to(self.outgoing.dtype),), {}
        earlier: list[Tensor] = []
        for dendrite in self.dendrites:
            earlier.append(dendrite(earlier, *args, **kwargs))
        return self.adapter.replace(output, add_branches(y, self.outgoing, earlier, self.adapter.axis))


def fold(network: nn.Module) -> nn.Module:
    """A deployable copy of a network: equal outputs up to rounding, and only the numbers that ship.

    The copy is in evaluation mode; the network itself is not changed. A wrapped module without dendrites becomes the
    plain module again. With D full dendrites everywhere the copy holds B + D*P + C*D*(D+1)/2 parameters (B the base
    network's, P the wrapped modules', C their output channels).
    """
    folded = copy_of(network)
    owners = Counter(id(weight) for part in folded.modules() for weight in part.parameters(recurse=False))
    for module in dendritic_modules(folded).values():
        tied = any(owners[id(weight)] > 1 for weight in module.module.parameters())
        plain: nn.Module
        if not len(module.dendrites):
            plain = module.module
        elif tied or not _fusable(module):
            plain = Beside(module)
        else:
            plain = Fused(module)
        for parent in list(folded.modules()):
            for child, part in list(parent._modules.items()):
                if part is module:
                    setattr(parent, child, plain)
    return folded.eval()


def _dendrites(module: Dendritic) -> list[Dendrite]:
    return [dendrite for dendrite in module.dendrites if isinstance(dendrite, Dendrite)]


def _fusable(module: Dendritic) -> bool:
    if module.spec.fan_in is not None or module.seen is not None or not Patches.fit(module.module):
        return False
    view = Patches.of(module.module)
    return view.groups == 1 and not view.transposed


def _stacked(parts: list[nn.Module]) -> nn.Module:
    """A layer with the outputs of several alike, one after the other."""
    stacked = copy.deepcopy(parts[0])
    for name, _ in list(stacked.named_parameters()):
        whole = torch.cat([part.get_parameter(name).detach() for part in parts])
        setattr(stacked, name, nn.Parameter(whole))
    setattr(stacked, _outputs(stacked), len(parts) * getattr(stacked, _outputs(stacked)))
    return stacked


def _outputs(layer: nn.Module) -> str:
    return "out_features" if isinstance(layer, nn.Linear) else "out_channels"
