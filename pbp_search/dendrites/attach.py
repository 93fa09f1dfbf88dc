"""Where dendrites go: wrapping modules of a network, and the report of what was wrapped, what was not and why."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from pbp_search.dendrites.adapters import EMBEDDINGS, Adapter, block_adapter, is_layer, layer_adapter
from pbp_search.dendrites.module import Dendritic
from pbp_search.dendrites.patches import Patches
from pbp_search.dendrites.seen import INPUT, Seen
from pbp_search.dendrites.spec import DendriteSpec
from pbp_search.errors import UnsupportedModuleError

Adapters = Mapping[str | type[nn.Module], Adapter]
"""Adapters of modules by their name in the network, or by their type."""

_NONLINEARITIES = frozenset(nn.modules.activation.__all__) - {"MultiheadAttention"}
NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Place:
    """A module that could have dendrites.

    Attributes:
        name: Its name in the network.
        module: The module.
        adapter: Where its neurons are, if that is known.
        refusal: Why dendrites do not go there; empty if they do.
    """

    name: str
    module: nn.Module
    adapter: Adapter | None
    refusal: str = ""

    def __str__(self) -> str:
        kind = f"{self.name}  {type(self.module).__name__}"
        if self.refusal or self.adapter is None:
            return f"{kind}  no: {self.refusal}"
        found = f"{kind}  dendrites on {self.adapter.channels(self.module)} neurons"
        last = _last(self.module)
        return f"{found}, behind its own {type(last).__name__}" if type(last).__name__ in _NONLINEARITIES else found


class Placement(dict[str, Dendritic]):
    """The wrapped modules by their names, in the network's order. As a text it is the report of all places.

    Attributes:
        places: All modules that were looked at.
    """

    def __init__(self, wrapped: Mapping[str, Dendritic], places: tuple[Place, ...]) -> None:
        super().__init__(wrapped)
        self.places = places

    def __str__(self) -> str:
        return "\n".join(map(str, self.places))


def attach(network: nn.Module, spec: DendriteSpec | None = None, adapters: Adapters | None = None) -> Placement:
    """Wrap modules of a network, in place, so that they can grow dendrites.

    The network's function and parameters stay the same. Linear layers, convolutions, recurrent layers and attention
    are found unasked; blocks go as a whole where the placement names them or an adapter is given for them. A module
    that is the network itself cannot be replaced in place: put it into a Sequential. A network that asks in its forward
    pass of which class a layer is (``isinstance``) finds a wrapper there, under whose ``module`` the layer is.

    Args:
        network: Any module.
        spec: The form of the dendrites, and where they go.
        adapters: Where the neurons are of modules whose output is more than one tensor.

    Returns:
        The wrapped modules; printed, it tells what was wrapped, what was not and why.

    Raises:
        UnsupportedModuleError: Nothing can be wrapped, a placement's pattern fits nothing or something that cannot be
            wrapped, an adapter's name is that of no module, what dendrites are to see is not there, or the network has
            been attached before.
    """
    spec = spec or DendriteSpec()
    if dendritic_modules(network):
        raise UnsupportedModuleError("The network has dendritic modules already: attach dendrites to it once.")
    kind = type(network).__name__
    if is_layer(network):
        raise UnsupportedModuleError(
            f"The network itself is a {kind}: put it into nn.Sequential to attach dendrites to it."
        )
    found = tuple(_places(network, spec, adapters or {}))
    for key in adapters or {}:
        if isinstance(key, str) and key not in {place.name for place in found}:
            raise UnsupportedModuleError(
                f"The adapter of {key!r} fits no module: there are {_listed(place.name for place in found)}."
            )
    places = _placed(found, spec)
    chosen = [place for place in places if not place.refusal]
    if not chosen:
        raise UnsupportedModuleError(
            f"The network {kind} has no module that dendrites can be attached to"
            + (":\n" + "\n".join(map(str, places)) if places else ".")
        )
    _check_apart(chosen)
    if spec.sees not in (None, INPUT, *(name for name, _ in network.named_modules())):
        raise UnsupportedModuleError(
            f"Dendrites are to see {spec.sees!r}, but there is no such module: name one, or {INPUT!r} for what the "
            "network is given."
        )
    for place in chosen:
        if spec.sees is not None and f"{spec.sees}.".startswith(f"{place.name}."):
            raise UnsupportedModuleError(
                f"Dendrites of the module {place.name!r} cannot see {spec.sees!r}, which is that module or a part of "
                "it: leave it out by the placement, or let them see something before it."
            )
    seen = None if spec.sees is None else Seen(spec.sees)
    wrapped: dict[str, Dendritic] = {}
    for place in chosen:
        wrapped[place.name] = Dendritic(place.module, spec, place.adapter, seen)
    for name, dendritic in wrapped.items():
        _replace(network, name, dendritic)
    if seen is not None:
        seen.watch(network)
    _disable_fast_paths(network)
    return Placement(wrapped, places)


def _places(network: nn.Module, spec: DendriteSpec, adapters: Adapters) -> Iterator[Place]:
    """The modules that can have dendrites, from the outside in; nothing inside of one that goes as a whole."""
    named = spec.placement if isinstance(spec.placement, tuple) else ()
    covered: list[str] = []
    for name, module in network.named_modules():
        if not name or any(name.startswith(f"{outer}.") for outer in covered):
            continue
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            continue  # nobody calls them: a pattern that fits one means what it holds
        given = adapters.get(name) or adapters.get(type(module))
        asked = given is not None or _fits(name, named)
        adapter = given or layer_adapter(module) or (block_adapter(module) if asked else None)
        if adapter is None and next(module.parameters(recurse=asked), None) is None:
            continue  # nothing to copy, or what there is, is in its parts
        if adapter is not None or asked:
            covered.append(name)
        yield Place(name, module, adapter, _refusal(module, adapter, spec, asked))


def _fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns fits a name, and none that begins with an exclamation mark does."""
    excluded = any(fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern.startswith("!"))
    return not excluded and any(fnmatchcase(name, pattern) for pattern in patterns)


def _lazy(module: nn.Module) -> bool:
    return any(is_lazy(parameter) for parameter in module.parameters())


def _refusal(module: nn.Module, adapter: Adapter | None, spec: DendriteSpec, asked: bool) -> str:
    if isinstance(module, NORMALISATIONS):
        return "a normalisation is never wrapped alone: name a block that holds it"
    if _lazy(module) or next(module.parameters(), None) is None:
        return "it has no parameters yet: run the network once before attaching"
    if any(parameter.is_complex() for parameter in module.parameters()):
        return "it has complex weights: a dendrite's are real"
    if any(is_computed(part) for part in module.modules()):
        return "it has a weight that is computed (weight_norm, prune)"
    if isinstance(module, EMBEDDINGS) and not asked:
        return "embeddings are left alone unless they are named"
    if adapter is None:
        return "it is not known where its neurons are: give it an adapter"
    if adapter.axis >= 0:
        return f"its adapter counts the axis from the beginning: {adapter.axis} is not negative"
    if not adapter.channels(module) or not all(parameter.numel() for parameter in module.parameters()):
        return "it has no inputs or no outputs"
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        return "it has a hook: register that after attaching"
    if getattr(_beginning(module), "inplace", False):
        return "it begins with a layer that works in place, on what its dendrites see: set its inplace to False"
    if not asked and not is_layer(module):
        return "a subclass may compute something else: name it in the placement"
    if not asked and not any(parameter.requires_grad for parameter in module.parameters()):
        return "it is frozen"
    if spec.fan_in is not None and not Patches.fit(module):
        return "only Linear layers and convolutions take dendrites with a fan_in"
    if spec.sees is not None and type(module) is not nn.Linear:
        return "only Linear layers take dendrites that see another tensor"
    return ""


def _last(module: nn.Module) -> nn.Module:
    """What is registered last in a block, and as a rule called last."""
    parts = list(module.children())
    return _last(parts[-1]) if parts else module


def _beginning(module: nn.Module) -> nn.Module:
    while isinstance(module, nn.Sequential) and len(module):
        module = module[0]
    return module


def is_computed(module: nn.Module) -> bool:
    """Whether a parametrization or a hook computes a weight of a module."""
    if (
        not module._forward_pre_hooks
    ):  # without one, a tensor with a history is something that a forward pass left there
        return is_parametrized(module)
    return is_parametrized(module) or any(not one.is_leaf for one in vars(module).values() if isinstance(one, Tensor))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _placed(places: tuple[Place, ...], spec: DendriteSpec) -> tuple[Place, ...]:
    """The places with a refusal for those that the placement leaves out."""
    possible = [place.name for place in places if not place.refusal]
    rule = spec.placement
    if isinstance(rule, tuple):
        for pattern in rule:
            fitting = [place for place in places if fnmatchcase(place.name, pattern.removeprefix("!"))]
            if not fitting:
                raise UnsupportedModuleError(
                    f"The placement {pattern!r} fits no module: there are {_listed(possible)}."
                )
            if all(place.refusal for place in fitting) and not pattern.startswith("!"):
                raise UnsupportedModuleError(
                    f"The placement {pattern!r} fits only modules that take no dendrites: "
                    + "; ".join(f"{place.name}: {place.refusal}" for place in fitting)
                    + "."
                )
        wanted = [name for name in possible if _fits(name, rule)]
    else:
        wanted = {
            "all": possible,
            "head": possible[-1:],
            "first": possible[:1],
            "all_but_first": possible[1:],
        }[rule]
    return tuple(
        place
        if place.refusal or place.name in wanted
        else Place(place.name, place.module, place.adapter, f"the placement {rule!r} leaves it out")
        for place in places
    )


def _check_apart(chosen: list[Place]) -> None:
    """A shared module can be found a second time inside of a block."""
    names = {id(place.module): place.name for place in chosen}
    for place in chosen:
        for part in place.module.modules():
            if part is not place.module and id(part) in names:
                raise UnsupportedModuleError(
                    f"The module {names[id(part)]!r} is also a part of {place.name!r}: the placement can name one of "
                    "them only."
                )


def _replace(network: nn.Module, name: str, dendritic: Dendritic) -> None:
    """Put a wrapper wherever its module is registered: a shared module stays shared."""
    for parent in list(network.modules()):
        if isinstance(parent, Dendritic):
            continue
        for child, module in list(parent._modules.items()):
            if module is dendritic.module:
                setattr(parent, child, dendritic)


def _disable_fast_paths(network: nn.Module) -> None:
    """Make torch's Transformer layers call their parts: in evaluation mode they would read their weights instead."""
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def dendritic_modules(network: nn.Module) -> dict[str, Dendritic]:
    """The wrapped modules of a network by name, in the network's order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Dendritic)}
