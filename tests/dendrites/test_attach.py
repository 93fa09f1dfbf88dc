from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from pbp_search.dendrites import Dendritic, attach, dendritic_modules, parameter_count
from pbp_search.errors import UnsupportedModuleError
from tests.dendrites.grown_networks import BUILDERS, assert_same_bits, inputs_for, state_of


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


def test_every_linear_is_wrapped_in_the_networks_order() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Conv1d(1, 1, 1), nn.Linear(3, 4))
    wrapped = attach(network)
    assert list(wrapped) == ["0.0", "2"]
    assert list(dendritic_modules(network).items()) == list(wrapped.items())
    assert network.get_submodule("2") is wrapped["2"]
    assert isinstance(network[1], nn.Conv1d)
    assert wrapped["0.0"].channels == 3


def test_subclasses_of_linear_are_left_alone() -> None:
    class OwnLinear(nn.Linear):
        pass

    network = nn.ModuleDict(
        {"own": OwnLinear(2, 2), "attention": nn.MultiheadAttention(2, 1), "plain": nn.Linear(2, 2)}
    )
    assert list(attach(network)) == ["plain"]
    assert type(network["own"]) is OwnLinear
    assert not isinstance(network["attention"].out_proj, Dendritic)


def shared_module() -> nn.Module:
    shared = nn.Linear(2, 2)
    return nn.ModuleDict({"before": nn.Linear(2, 2), "encoder": shared, "decoder": shared})


def shared_parent() -> nn.Module:
    block = nn.Sequential(nn.Linear(2, 2))
    return nn.ModuleDict({"left": block, "right": block})


def tied_weights() -> nn.Module:
    network = nn.ModuleDict({"before": nn.Linear(2, 5), "embedding": nn.Embedding(5, 2), "head": nn.Linear(2, 5)})
    network["head"].weight = network["embedding"].weight
    return network


def with_hook() -> nn.Module:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return network


def pruned() -> nn.Module:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    prune.l1_unstructured(network[1], "weight", 0.5)
    return network


def attached_before() -> nn.Module:
    network = nn.Sequential(nn.Linear(2, 2))
    attach(network)
    return network


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "shared module": (shared_module, r"'decoder' is the same module as 'encoder'.*cannot be attached"),
    "shared parent": (shared_parent, r"'right\.0' is the same module as 'left\.0'"),
    "tied weights": (tied_weights, r"'head' shares a weight with another module.*tied"),
    "a hook": (with_hook, r"'1' has a hook or a weight that is computed"),
    "a computed weight": (pruned, r"'1' has a hook or a weight that is computed"),
    "the network itself": (lambda: nn.Linear(2, 2), r"The network itself is a Linear: put it into nn\.Sequential"),
    "attached before": (attached_before, r"dendritic modules already.*once"),
    "nothing to wrap": (lambda: nn.Sequential(nn.Conv1d(1, 1, 1)), r"The network Sequential has no nn\.Linear"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_wrapped_is_refused_by_name(case: str) -> None:
    build, sentence = REFUSED[case]
    with pytest.raises(UnsupportedModuleError, match=sentence):
        attach(build())


@pytest.mark.parametrize("build", [shared_module, shared_parent, tied_weights, with_hook, pruned])
def test_a_refused_network_is_left_as_it_was(build: Callable[[], nn.Module]) -> None:
    network = build()
    modules = list(network.named_modules(remove_duplicate=False))
    with pytest.raises(UnsupportedModuleError):
        attach(network)
    assert list(network.named_modules(remove_duplicate=False)) == modules


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("build", [nn.TransformerEncoderLayer, "encoder"])
def test_transformer_layers_call_their_wrapped_linears_in_evaluation_mode(
    build: str | type[nn.Module], batch_first: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=batch_first, dropout=0.1)
    network = layer if build != "encoder" else nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    network.eval()
    x = torch.randn(3, 5, 4)
    with torch.no_grad():
        before = network(x)
    wrapped = attach(network)
    for module in wrapped.values():
        module.accept(module.candidate())
    with torch.no_grad():
        torch.testing.assert_close(network(x), before)
        for module in wrapped.values():
            module.outgoing.fill_(1.0)
        assert (network(x) - before).abs().max() > 0.01, "dendrites act"
