from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from pbp_search.dendrites import (
    Adapter,
    DendriteSpec,
    Dendritic,
    Fused,
    attach,
    dendritic_modules,
    fold,
    parameter_count,
    weight_bytes,
)
from pbp_search.errors import UnsupportedModuleError
from tests.dendrites.grown_networks import BUILDERS, add_generations, assert_same_bits, inputs_for, state_of

Build = Callable[[], nn.Module]


@pytest.mark.parametrize("builder", BUILDERS)
def test_attaching_changes_neither_function_nor_parameters(builder: str) -> None:
    network = BUILDERS[builder](3).eval()
    x = inputs_for(builder, 6)
    outputs, values, count = network(x), list(state_of(network).values()), parameter_count(network)
    attach(network)
    assert_same_bits(network(x), outputs)
    assert parameter_count(network) == count
    attached = [value for name, value in state_of(network).items() if not name.endswith("outgoing")]
    assert len(attached) == len(values)
    assert all(torch.equal(left, right) for left, right in zip(attached, values, strict=True))


def many_layers() -> nn.Module:
    return nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()),
            "encoder": nn.ModuleList([nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), nn.LSTM(2, 4)]),
            "embedding": nn.Embedding(5, 2),
            "attention": nn.MultiheadAttention(6, 1),
            "up": nn.ConvTranspose1d(1, 7, 1),
            "head": nn.Linear(3, 8),
        }
    )


def test_layers_with_neurons_are_wrapped_in_the_networks_order() -> None:
    network = many_layers()
    wrapped = attach(network)
    assert {name: module.channels for name, module in wrapped.items()} == {
        "stem.0": 2,
        "encoder.0.0": 3,
        "encoder.1": 4,
        "attention": 6,
        "up": 7,
        "head": 8,
    }
    assert list(dendritic_modules(network).items()) == list(wrapped.items())
    assert all(network.get_submodule(name) is module for name, module in wrapped.items())
    assert all(not isinstance(part, Dendritic) for module in wrapped.values() for part in module.module.modules())


def test_subclasses_of_layers_are_left_alone() -> None:
    class OwnLinear(nn.Linear):
        """May compute anything."""

    network = nn.ModuleDict({"own": OwnLinear(2, 2), "plain": nn.Linear(2, 2)})
    assert list(attach(network)) == ["plain"]
    assert type(network["own"]) is OwnLinear


PLACEMENTS: dict[str, tuple[Any, list[str]]] = {
    "all": ("all", ["stem.0", "encoder.0.0", "encoder.1", "attention", "up", "head"]),
    "head": ("head", ["head"]),
    "first": ("first", ["stem.0"]),
    "all but first": ("all_but_first", ["encoder.0.0", "encoder.1", "attention", "up", "head"]),
    "a name": (("up",), ["up"]),
    "a pattern": (("e*.1", "head"), ["encoder.1", "head"]),
    # A list of modules is called by nobody: its pattern means what it holds.
    "what a list holds": (("encoder*",), ["encoder.0", "encoder.1"]),
    "a block as a whole": (("stem",), ["stem"]),
    "a layer of a block": (("stem.?",), ["stem.0"]),
}


@pytest.mark.parametrize("case", PLACEMENTS)
def test_a_placement_says_where_dendrites_go(case: str) -> None:
    placement, names = PLACEMENTS[case]
    network = many_layers()
    # A normalisation that a pattern fits beside other modules is left alone.
    assert list(attach(network, DendriteSpec(placement=placement))) == names
    assert list(dendritic_modules(network)) == names


def test_a_small_fan_in_goes_to_layers_with_patches() -> None:
    wrapped = attach(many_layers(), DendriteSpec(fan_in=1))
    assert list(wrapped) == ["stem.0", "encoder.0.0", "up", "head"]
    assert "encoder.1  LSTM  no: only Linear layers and convolutions take dendrites with a fan_in" in str(wrapped)


def test_the_report_says_of_every_place_what_it_gets_or_why_not() -> None:
    network = nn.Sequential(nn.Conv1d(1, 2, 1), nn.ReLU(), nn.Linear(2, 3), nn.Linear(3, 4).requires_grad_(False))
    network.append(nn.Linear(4, 1))
    report = str(attach(network, DendriteSpec(placement="all_but_first")))
    assert report.splitlines() == [
        "0  Conv1d  no: the placement 'all_but_first' leaves it out",
        "2  Linear  dendrites on 3 neurons",
        "3  Linear  no: it is frozen",
        "4  Linear  dendrites on 1 neurons",
    ]


def with_hook() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def pruned() -> nn.Module:
    layer = nn.Linear(2, 2)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


NORMALISATION = "a normalisation is never wrapped alone: name a block that holds it"

# What is found unasked and reported, and what is only looked at when its name is given.
UNFIT: dict[str, tuple[Build, str]] = {
    "a hook": (with_hook, "it has a hook: register that after attaching"),
    "a hook inside": (
        lambda: nn.Sequential(with_hook(), nn.BatchNorm1d(2)),
        "it has a hook: register that after attaching",
    ),
    "a pruned weight": (pruned, "it has a weight that is computed (weight_norm, prune)"),
    "a computed weight": (
        lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
        "it has a weight that is computed (weight_norm, prune)",
    ),
    "no parameters yet": (
        lambda: nn.LazyLinear(2),
        "it has no parameters yet: run the network once before attaching",
    ),
    "no inputs": (lambda: nn.Linear(0, 2), "it has no inputs or no outputs"),
}
UNFIT_WHEN_NAMED: dict[str, tuple[Build, str]] = {
    "batch normalisation": (lambda: nn.BatchNorm1d(2), NORMALISATION),
    "lazy normalisation": (lambda: nn.LazyBatchNorm1d(), NORMALISATION),
    "layer normalisation": (lambda: nn.LayerNorm(2), NORMALISATION),
    "group normalisation": (lambda: nn.GroupNorm(1, 2), NORMALISATION),
    "root mean square normalisation": (lambda: nn.RMSNorm(2), NORMALISATION),
    "no parameters yet in a block": (
        lambda: nn.Sequential(nn.LazyConv1d(2, 1), nn.Linear(2, 2)),
        "it has no parameters yet: run the network once before attaching",
    ),
    "an input overwritten": (
        lambda: nn.Sequential(nn.Sequential(nn.ReLU(inplace=True)), nn.Linear(2, 2)),
        "it begins with a layer that works in place, on what its dendrites see: set its inplace to False",
    ),
    "unknown neurons": (
        lambda: nn.PReLU(2),
        "it is not known where its neurons are: give it an adapter",
    ),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_wrapped_is_left_alone_and_reported(case: str) -> None:
    build, reason = UNFIT[case]
    network = nn.ModuleDict({"fit": nn.Linear(2, 3), "unfit": build()})
    unfit = network["unfit"]
    kind = type(unfit).__name__
    if kind == "Sequential":
        kind, name = "Linear", "unfit.0"
    else:
        name = "unfit"
    wrapped = attach(network)
    assert list(wrapped) == ["fit"]
    assert network["unfit"] is unfit
    assert str(wrapped).splitlines()[:2] == ["fit  Linear  dendrites on 3 neurons", f"{name}  {kind}  no: {reason}"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("case", [*UNFIT, *UNFIT_WHEN_NAMED])
def test_a_pattern_that_fits_only_what_cannot_be_wrapped_is_refused(case: str) -> None:
    build, reason = (UNFIT | UNFIT_WHEN_NAMED)[case]
    network = nn.ModuleDict({"fit": nn.Linear(2, 3), "unfit": build()})
    modules = list(network.named_modules(remove_duplicate=False))
    with pytest.raises(UnsupportedModuleError) as caught:
        attach(network, DendriteSpec(placement=("fit", "un*t")))
    assert str(caught.value) == f"The placement 'un*t' fits only modules that take no dendrites: unfit: {reason}."
    left = list(network.named_modules(remove_duplicate=False))
    assert [name for name, _ in left] == [name for name, _ in modules]
    assert all(one is other for (_, one), (_, other) in zip(left, modules, strict=True))


def test_a_frozen_module_is_wrapped_where_its_name_is_given() -> None:
    network = nn.ModuleDict({"frozen": nn.Linear(2, 2).requires_grad_(False), "head": nn.Linear(2, 2)})
    assert list(attach(network, DendriteSpec(placement=("frozen",)))) == ["frozen"]


def attached_before() -> nn.Module:
    network = nn.Sequential(nn.Linear(2, 2))
    attach(network)
    return network


def two() -> nn.Module:
    return nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2)})


def shared_with_a_block() -> nn.Module:
    shared = nn.Linear(2, 2)
    return nn.ModuleDict({"alone": shared, "block": nn.Sequential(shared, nn.LayerNorm(2))})


class FromTheBeginning(Adapter):
    axis = 1


REFUSED: dict[str, tuple[Build, dict[str, Any], str]] = {
    "the network itself": (
        lambda: nn.Linear(2, 2),
        {},
        "The network itself is a Linear: put it into nn.Sequential to attach dendrites to it.",
    ),
    "attached before": (
        attached_before,
        {},
        "The network has dendritic modules already: attach dendrites to it once.",
    ),
    "nothing with neurons": (
        lambda: nn.Sequential(nn.Softmax(-1), nn.ReLU()),
        {},
        "The network Sequential has no module that dendrites can be attached to.",
    ),
    "nothing left": (
        lambda: nn.Sequential(with_hook(), pruned()),
        {},
        "The network Sequential has no module that dendrites can be attached to:\n"
        "0  Linear  no: it has a hook: register that after attaching\n"
        "1  Linear  no: it has a weight that is computed (weight_norm, prune)",
    ),
    "all but the only one": (
        lambda: nn.Sequential(nn.Linear(2, 2)),
        {"spec": DendriteSpec(placement="all_but_first")},
        "The network Sequential has no module that dendrites can be attached to:\n"
        "0  Linear  no: the placement 'all_but_first' leaves it out",
    ),
    "a pattern that fits nothing": (
        two,
        {"spec": DendriteSpec(placement=("head", "tail*"))},
        "The placement 'tail*' fits no module: there are body, head.",
    ),
    "an adapter of nothing": (
        two,
        {"adapters": {"haed": Adapter()}},
        "The adapter of 'haed' fits no module: there are body, head.",
    ),
    "a module and a block of it": (
        shared_with_a_block,
        {"spec": DendriteSpec(placement=("alone", "block"))},
        "The module 'alone' is also a part of 'block': the placement can name one of them only.",
    ),
    "an axis counted from the beginning": (
        two,
        {"spec": DendriteSpec(placement=("head",)), "adapters": {"head": FromTheBeginning()}},
        "The placement 'head' fits only modules that take no dendrites: head: its adapter counts the axis from the "
        "beginning: 1 is not negative.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_named_and_the_network_left_as_it_was(case: str) -> None:
    build, options, sentence = REFUSED[case]
    network = build()
    modules = list(network.named_modules(remove_duplicate=False))
    with pytest.raises(UnsupportedModuleError) as caught:
        attach(network, **options)
    assert str(caught.value) == sentence
    left = list(network.named_modules(remove_duplicate=False))
    assert [name for name, _ in left] == [name for name, _ in modules]
    assert all(one is other for (_, one), (_, other) in zip(left, modules, strict=True))


def shared_module() -> nn.Module:
    shared = nn.Linear(2, 2)
    return nn.Sequential(nn.Linear(2, 2), shared, nn.Tanh(), nn.Sequential(shared, nn.Tanh()))


def shared_parent() -> nn.Module:
    block = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    return nn.Sequential(nn.Linear(2, 2), block, block)


SHARED: dict[str, tuple[Build, str, str]] = {
    "module": (shared_module, "1", "3.0"),
    "parent": (shared_parent, "1.0", "2.0"),
}


@pytest.mark.parametrize("case", SHARED)
def test_a_shared_module_stays_shared_and_its_dendrites_are_counted_once(case: str) -> None:
    build, one, other = SHARED[case]
    torch.manual_seed(0)
    network = build()
    wrapped = attach(network)
    assert list(wrapped) == ["0", one]
    assert network.get_submodule(other) is network.get_submodule(one) is wrapped[one]
    for module in wrapped.values():
        add_generations(module, 2)
    folded = fold(network)
    assert type(folded.get_submodule(one)) is Fused
    assert folded.get_submodule(other) is folded.get_submodule(one)
    # Two modules of 6 parameters, two copies of each, three rows of U and W.
    assert parameter_count(network) == parameter_count(folded) == 2 * (6 + 2 * 6 + 3 * 2)
    assert weight_bytes(network) == weight_bytes(folded) == 4 * parameter_count(network)
    x = torch.randn(5, 2)
    torch.testing.assert_close(folded(x), network(x))


class Tied(nn.Module):
    """Words to words: the embedding's weight is the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 2)
        self.body = nn.Linear(2, 2)
        self.head = nn.Linear(2, 5)
        self.head.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embedding(words)))


def test_tied_weights_stay_tied_and_are_counted_once() -> None:
    torch.manual_seed(0)
    network = Tied()
    base = 5 * 2 + 6 + 5
    assert parameter_count(network) == base
    wrapped = attach(network)
    assert list(wrapped) == ["body", "head"]
    for module in wrapped.values():
        add_generations(module, 2)
    folded = fold(network)
    for one in (network, folded):
        assert one.get_parameter("head.module.weight") is one.get_parameter("embedding.weight")
        # A dendrite's weight is its own.
        assert parameter_count(one) == base + 2 * 6 + 3 * 2 + 2 * 15 + 3 * 5
        assert weight_bytes(one) == 4 * parameter_count(one)
    words = torch.arange(5)
    torch.testing.assert_close(folded(words), network(words))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("build", ["layer", "encoder"])
def test_transformer_layers_call_their_wrapped_modules_in_evaluation_mode(build: str, batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=batch_first, dropout=0.1)
    network: nn.Module = layer if build == "layer" else nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    network.eval()
    x = torch.randn(3, 5, 4)
    with torch.no_grad():
        before = network(x)
    wrapped = attach(network)
    assert len(wrapped) == (3 if build == "layer" else 6)
    for module in wrapped.values():
        module.accept(module.generation())
    with torch.no_grad():
        torch.testing.assert_close(network(x), before)
    for module in wrapped.values():
        with torch.no_grad():
            module.outgoing.fill_(1.0)
            assert (network(x) - before).abs().max() > 0.01, "dendrites act"
            torch.testing.assert_close(fold(network)(x), network(x), rtol=1e-4, atol=1e-5)
            module.outgoing.zero_()
