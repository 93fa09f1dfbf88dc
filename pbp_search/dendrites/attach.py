"""Where dendrites go: wrapping the modules of a network."""

from collections import Counter

from torch import nn

from pbp_search.dendrites.module import Dendritic
from pbp_search.dendrites.spec import DendriteSpec
from pbp_search.errors import UnsupportedModuleError


def attach(network: nn.Module, spec: DendriteSpec | None = None) -> dict[str, Dendritic]:
    """Wrap every Linear of a network, in place, so that it can grow dendrites.

    The network's function and parameters stay the same. A Linear that is the network itself cannot be replaced in
    place: put it into a Sequential.

    Args:
        network: Any module. Exactly ``nn.Linear`` is wrapped; subclasses may be used in ways of their own.
        spec: The form of the dendrites.

    Returns:
        The wrapped modules by their names in the network, in the network's order.

    Raises:
        UnsupportedModuleError: Nothing can be wrapped, a Linear is registered in two places, has a hook, or shares or
            computes its weight, or the network has been attached before.
    """
    spec = spec or DendriteSpec()
    if dendritic_modules(network):
        raise UnsupportedModuleError("The network has dendritic modules already: attach dendrites to it once.")
    if type(network) is nn.Linear:
        raise UnsupportedModuleError("The network itself is a Linear: put it into nn.Sequential to attach dendrites.")
    linears = _linears(network)
    wrapped: dict[str, Dendritic] = {}
    for name, linear in linears.items():
        parent, _, child = name.rpartition(".")
        wrapped[name] = Dendritic(linear, spec)
        setattr(network.get_submodule(parent), child, wrapped[name])
    for part in network.modules():
        if isinstance(part, nn.TransformerEncoderLayer):
            # In evaluation mode it would read its Linears' weights and never call them.
            part.activation_relu_or_gelu = 0
    return wrapped


def _linears(network: nn.Module) -> dict[str, nn.Linear]:
    """The modules to wrap by name. All are checked before any is wrapped."""
    owners = Counter(id(weight) for part in network.modules() for weight in part.parameters(recurse=False))
    linears: dict[str, nn.Linear] = {}
    places: dict[int, str] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if type(module) is not nn.Linear:
            continue
        if id(module) in places:
            raise UnsupportedModuleError(
                f"The Linear {name!r} is the same module as {places[id(module)]!r}: "
                "dendrites cannot be attached to a shared module."
            )
        if any(owners[id(weight)] > 1 for weight in module.parameters()):
            raise UnsupportedModuleError(
                f"The Linear {name!r} shares a weight with another module: dendrites cannot go on tied weights."
            )
        if not module.weight.numel():
            raise UnsupportedModuleError(f"The Linear {name!r} has no inputs or no outputs: it has no neurons.")
        if "weight" not in module._parameters or module._forward_hooks or module._forward_pre_hooks:
            raise UnsupportedModuleError(
                f"The Linear {name!r} has a hook or a weight that is computed (weight_norm, prune): "
                "dendrites can be attached before that, or to plain layers."
            )
        places[id(module)] = name
        linears[name] = module
    if not linears:
        raise UnsupportedModuleError(
            f"The network {type(network).__name__} has no nn.Linear: there is nothing to attach dendrites to. "
            "Subclasses of Linear may compute something else and are left alone."
        )
    return linears


def dendritic_modules(network: nn.Module) -> dict[str, Dendritic]:
    """The wrapped modules of a network by name, in the network's order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Dendritic)}
