"""A module whose neurons have dendrites: the forward pass of Perforated Backpropagation.

For input x, D dendrites a neuron, and per-channel weights U[d, e] and W[d]:

    z_d = M_d(x) + sum_{e<d} U[d, e] * a_e        dendrites of later generations see those of earlier ones
    a_d = f(z_d)
    y   = M(x) + sum_d W[d] * a_d                 before the network's own nonlinearity

(R. Brenner and L. Itti, arXiv 2501.18018.) "Perforated" means that no error flows back through dendrites: they act
without a graph, and take no gradient themselves once they are accepted. In the variants ``joint`` and ``gradient``
accepted dendrites are ordinary parts of the network.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as modules
from torch.nn.utils import skip_init
from torch.utils._pytree import tree_flatten

from pbp_search.dendrites.adapters import Adapter, is_layer
from pbp_search.dendrites.ahead import Ahead
from pbp_search.dendrites.forms import SparsePatches
from pbp_search.dendrites.seen import Seen
from pbp_search.dendrites.spec import _LARGE, FUNCTIONS, DendriteSpec
from pbp_search.errors import UnsupportedModuleError


class Dendrite(nn.Module):
    """One dendrite node for each of a module's C output channels.

    Args:
        base: The wrapped module M.
        adapter: Where its neurons are.
        earlier: The number of dendrites a neuron that this one sees.
        spec: The form of the dendrites.

    Attributes:
        module: M_d: like M with a random start of its own, or a sparse form of it.
        incoming: U[d, :], shape (earlier, C).
    """

    def __init__(self, base: nn.Module, adapter: Adapter, earlier: int, spec: DendriteSpec) -> None:
        super().__init__()
        self.adapter = adapter
        self.nonlinearity = FUNCTIONS[spec.nonlinearity]
        self.sparse = spec.fan_in is not None
        self.module = SparsePatches(base, spec) if self.sparse else _restarted(base)
        self.incoming = nn.Parameter(next(base.parameters()).new_zeros(earlier, adapter.channels(base)))

    def forward(self, earlier: Sequence[Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The activation a_d, of the shape of M's neurons, given M's inputs and the activations of earlier dendrites.

        Of ``earlier`` only those of earlier generations are used, not its neighbours of the same one.
        """
        module = self._modules["module"]
        assert module is not None
        bare = not hooked(module)
        if bare and type(module) is nn.Linear and len(args) == 1 and not kwargs:  # a call of it does this by a detour
            z = functional.linear(args[0], module.weight, module.bias)
        else:
            output = module(*args, **kwargs)
            z = output if self.sparse else self.adapter.neurons(output)
        alone = bare and (self.sparse or is_layer(module)) and not watched()  # z is new, and nobody else's
        if earlier:
            z = add_branches(z, self.incoming, earlier, self.adapter.axis, in_place=alone)
        return in_place(self.nonlinearity, z) if alone else self.nonlinearity(z)


class Wrapper(nn.Module):
    """In the place of a module of a network, under ``module``."""

    def __getattr__(self, name: str) -> Any:
        # Networks look at their layers (batch_first, weight.dtype): what is not the wrapper's own is M's.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def __getitem__(self, key: Any) -> Any:
        return self.module[key]  # a network may call the parts of a block: recording tells that dendrites see nothing

    def __setattr__(self, name: str, value: Any) -> None:
        modules = self.__dict__.get("_modules", {})
        if name in ("weight", "bias") and "module" in modules:  # tied or replaced behind the wrapper's back
            setattr(modules["module"], name, value)
        else:
            super().__setattr__(name, value)


class Dendritic(Wrapper):
    """A module M with C neurons, and any number of dendrites on them.

    Attributes:
        module: M, trained by ordinary backpropagation.
        seen: What dendrites see instead of M's inputs, if anything.
        dendrites: The accepted dendrites in their order; frozen, except in the variants ``joint`` and
            ``gradient``.
        outgoing: W, shape (D, C), trained with M.
        features: How many numbers of ``seen`` there are for each sample; None before the first pass.
        ahead: Set by a training loop while it runs: what the dendrites say of all samples.
    """

    features: int | None = None
    ahead: Ahead | None = None

    def __init__(
        self, module: nn.Module, spec: DendriteSpec, adapter: Adapter | None = None, seen: Seen | None = None
    ) -> None:
        super().__init__()
        self.module = module
        self.spec = spec
        self.adapter = adapter or Adapter()
        self.seen = seen
        self.channels = self.adapter.channels(module)
        self.dendrites: nn.ModuleList = nn.ModuleList()
        self.outgoing = nn.Parameter(next(module.parameters()).new_zeros(0, self.channels))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        if self.seen is not None:
            self.features = self.seen.features
        if not self.dendrites._modules:  # a ModuleList's own len and iter take as long as a small kernel
            return output
        y = self.adapter.neurons(output)
        activations = self.activations(*args, **kwargs)
        return self.adapter.replace(output, add_branches(y, self.outgoing, activations, self.adapter.axis))

    def activations(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The activations of the accepted dendrites, each of the shape of M's neurons; cut off from the graph."""
        if self.seen is not None:
            args, kwargs = (self.seen.value().to(self.outgoing.dtype),), {}
        if self.ahead is not None and len(args) == 1 and not kwargs:
            known = self.ahead.slices(self, args[0])
            if known is not None:
                return known
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.spec.unfrozen):
            return self.cascade(*args, **kwargs)

    def cascade(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The activations of all dendrites at what they see, each generation seeing those before it."""
        earlier: list[Tensor] = []
        for dendrite in self.dendrites._modules.values():
            assert dendrite is not None
            earlier.append(dendrite.forward(earlier, *args, **kwargs))  # not a call: it has no hooks
        return earlier

    def hooked(self) -> bool:
        """Whether a dendrite may do more than its class says."""
        return any(hooked(part) for part in self.dendrites.modules())

    def base(self) -> nn.Module:
        """What a dendrite is alike: M, or a Linear from what it sees instead of M's inputs."""
        if self.seen is None:
            return self.module
        if self.features is None:
            raise UnsupportedModuleError(
                f"How much dendrites see of {self.seen.name!r} is not known yet: run the network once before growing."
            )
        like = self.module.get_parameter("weight")
        biased = getattr(self.module, "bias", None) is not None
        # Not drawn here: a dendrite draws its own start.
        base: nn.Linear = skip_init(
            nn.Linear, self.features, self.channels, biased, device=like.device, dtype=like.dtype
        )
        return base

    def dendrite(self) -> Dendrite:
        """A new dendrite at a random start (torch's global stream). It is not part of the network yet."""
        return Dendrite(self.base(), self.adapter, len(self.dendrites), self.spec)

    def generation(self) -> list[Dendrite]:
        """A new generation at a random start (torch's global stream). It is not part of the network yet."""
        if self.spec.variant == "sham":
            return []
        return [self.dendrite() for _ in range(self.spec.per_neuron)]

    def accept(self, generation: Sequence[Dendrite]) -> None:
        """Connect a generation with W = 0, and freeze it.

        Every bit of the module's outputs stays as it was, but for the sign of an exact zero: -0.0 + 0.0 is 0.0. In the
        variants ``joint`` and ``gradient`` dendrites stay trainable; in the latter W starts at random (torch's global
        stream).
        """
        joint = self.spec.unfrozen
        for dendrite in generation:
            self.dendrites.append(dendrite.requires_grad_(joint).train(joint and self.training))
        rows = self.outgoing.new_zeros(len(generation), self.channels)
        if self.spec.variant == "gradient":
            rows.normal_(std=self.spec.outgoing_scale)
        self.outgoing = nn.Parameter(torch.cat([self.outgoing.detach(), rows]))

    def train(self, mode: bool = True) -> "Dendritic":
        super().train(mode)
        if not self.spec.unfrozen:
            self.dendrites.eval()  # frozen dendrites stay in evaluation mode
        return self


def add_branches(
    y: Tensor, weights: Tensor, activations: Sequence[Tensor], axis: int, in_place: bool = False
) -> Tensor:
    """``y + sum_d W[d] * a_d``, for as many activations as there are rows of weights.

    One product and one sum a dendrite, in a fixed order: a larger stacked product may round differently, and a dendrite
    that enters with W = 0 must leave every bit of y as it was.
    """
    weights = weights.to(y.dtype)  # under autocast the module's outputs keep their type
    # A single row need not be taken out: that is a node of the graph less.
    rows = (weights,) if len(weights) == 1 and y.ndim > 1 else weights.unbind()
    for row, activation in zip(rows, activations, strict=False):
        factor = along(row, axis)
        activation = activation.to(y.dtype)
        y = y.addcmul_(activation, factor) if in_place else torch.addcmul(y, activation, factor)
    return y


def in_place(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """A dendrite's nonlinearity in the place of its argument: fresh memory costs more than the numbers.

    Without a graph only. The values are those of the function to the last bit.
    """
    if function is torch.sigmoid:
        return z.sigmoid_()
    if function is torch.relu:
        return z.relu_()
    if function is not FUNCTIONS["tanh"]:
        return function(z)
    return z.tanh_() if z.numel() < _LARGE or z.is_cuda else z.mul_(2).sigmoid_().mul_(2).sub_(1)


def watched() -> bool:
    """Whether a graph of the operations is made: for gradients, or by a compiler or exporter."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def hooked(module: nn.Module) -> bool:
    """Whether a call of a module may be more than its class says."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in module.__dict__
        or modules._global_forward_hooks
        or modules._global_forward_pre_hooks
    )


def along(weight: Tensor, axis: int) -> Tensor:
    """A vector of C numbers in the shape that broadcasts along a (negative) axis."""
    return weight if axis == -1 else weight.reshape(-1, *(1,) * (-axis - 1))


def copy_of(module: nn.Module) -> nn.Module:
    """A deep copy, of what a forward pass left on the module too: torch copies no tensor that has a graph."""
    left = (leaf for part in module.modules() for leaf in tree_flatten(vars(part))[0] if isinstance(leaf, Tensor))
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in left if not value.is_leaf})


def _restarted(base: nn.Module) -> nn.Module:
    """A copy with a random start of its own."""
    copied = copy_of(base).requires_grad_(True)
    for part in copied.modules():
        # MultiheadAttention has its own under a private name.
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
        else:
            for parameter in part.parameters(recurse=False):
                _draw_alike(parameter)
    return copied


@torch.no_grad()
def _draw_alike(parameter: Tensor) -> None:
    """Draw a parameter of a module that cannot reset itself with the mean and deviation that it has."""
    if parameter.is_floating_point() and parameter.numel() > 1:
        parameter.normal_(float(parameter.mean()), float(parameter.std()))
