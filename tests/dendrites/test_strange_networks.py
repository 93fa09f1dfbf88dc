"""Networks of strangers: what they do in a pass is recorded, grown and folded like anything else, or named."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pbp_search.dendrites import (
    Adam,
    DendriteSpec,
    attach,
    dendritic_modules,
    fold,
    grow,
    record,
    weight_bytes,
)
from pbp_search.dendrites.record import Part
from pbp_search.errors import TrainingError, UnsupportedModuleError
from tests.dendrites.grown_networks import assert_same_bits, recorded
from tests.dendrites.test_more_layers import Wired
from tests.dendrites.test_record import squared_loss

N = 8


def pair(wire: Callable[..., Any], inputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return Wired(wire, a=nn.Linear(inputs, 5), b=nn.Linear(5, 3))


def plain(net: Any, x: Tensor) -> Tensor:
    return net.b(torch.tanh(net.a(x)))


def data(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3 * N, *(shape or (4,)), generator=generator), torch.randn(3 * N, 3, generator=generator)


def parts_of(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, Part]:
    return recorded(network, squared_loss, x, y, N)


def assert_same_parts(network: nn.Module, other: nn.Module, x: Tensor, y: Tensor) -> None:
    """Two networks record the same."""
    kept, expected = parts_of(network, x, y), parts_of(other, x, y)
    assert kept.keys() == expected.keys()
    for name, part in kept.items():
        assert part.inputs is not None
        assert expected[name].inputs is not None
        torch.testing.assert_close(part.inputs, expected[name].inputs)
        torch.testing.assert_close(part.errors, expected[name].errors)


def grow_all(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """A generation for every module, with W at random."""
    records = record(network, squared_loss, list(zip(x.split(N // 2), y.split(N // 2), strict=True)))
    for name, module in dendritic_modules(network).items():
        generation, _ = grow(module, records[name], lambda: lambda score: True, torch.Generator().manual_seed(0))
        module.accept(generation)
        nn.init.normal_(module.outgoing)


def refused(network: nn.Module, x: Tensor, y: Tensor, says: str) -> None:
    attach(network)
    with pytest.raises(UnsupportedModuleError, match=says):
        parts_of(network, x, y)


def checkpointed(net: Any, x: Tensor) -> Tensor:
    return net.b(checkpoint(lambda h: torch.tanh(net.a(h)), x, use_reentrant=False))


def test_activation_checkpointing_records_the_same() -> None:
    network, other = pair(checkpointed), pair(plain)
    attach(network)
    attach(other)
    assert_same_parts(network, other, *data())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("before", [False, True])
def test_reentrant_checkpointing_is_refused_with_a_way_out(before: bool) -> None:
    def wire(net: Any, x: Tensor) -> Tensor:
        x = net.first(x) if before else x
        return net.b(checkpoint(lambda h: torch.tanh(net.a(h)), x, use_reentrant=True))

    network = Wired(wire, first=nn.Linear(4, 4), a=nn.Linear(4, 5), b=nn.Linear(5, 3))
    refused(network if before else pair(wire), *data(), "pass use_reentrant=False")


def test_dendrites_cannot_see_another_tensor_when_checkpointing_calls_them_again() -> None:
    network, (x, y) = pair(checkpointed), data()
    attach(network, DendriteSpec(sees="input"))
    grow_all(network, x, y)
    with pytest.raises(UnsupportedModuleError, match="without activation checkpointing"):
        network(x).sum().backward()


def test_a_network_that_takes_gradients_itself_is_refused() -> None:
    def forces(net: Any, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        found: Tensor = torch.autograd.grad(plain(net, x).sum(), x, create_graph=True)[0]
        return found[:, :3]

    refused(pair(forces), *data(), r"module '[ab]' is in a gradient that the network .* takes itself")


def nested(net: Any, x: Tensor) -> Tensor:
    rows = torch.nested.nested_tensor(list(x.unsqueeze(1)), layout=torch.jagged)
    return net.b(torch.nested.to_padded_tensor(net.a(rows), 0.0).sum(1))


@pytest.mark.parametrize(
    "wire",
    [
        lambda net, x: net.b(torch.func.vmap(net.a)(x)),
        lambda net, x: net.b(net.a(x.to_sparse())),
        nested,
    ],
)
def test_a_call_of_which_no_rows_can_be_kept_is_refused(wire: Callable[..., Any]) -> None:
    refused(pair(wire), *data(), r"module 'a' is called with sparse or nested tensors, or inside of torch.func's")


def test_samples_that_come_one_by_one_stay_samples() -> None:
    # As many inputs as samples in a batch: a sample alone is no batch of numbers.
    network, other = pair(lambda net, x: torch.stack([plain(net, one) for one in x]), N), pair(plain, N)
    attach(network)
    attach(other)
    assert_same_parts(network, other, *data(N))


def test_a_block_that_changes_its_inputs_is_refused() -> None:
    block = Wired(lambda net, x: net.layer(x.relu_()), layer=nn.Linear(5, 5))
    network = Wired(lambda net, x: net.b(net.block(net.a(x))), a=nn.Linear(4, 5), block=block, b=nn.Linear(5, 3))
    attach(network, DendriteSpec(placement=("block",)))
    with pytest.raises(UnsupportedModuleError, match="module 'block' works in place on what it is called with"):
        parts_of(network, *data())


def test_a_block_with_fewer_axes_than_its_adapter_counts_is_refused() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten()), nn.Linear(4, 3))
    x, y = data(1, 4)
    attach(network, DendriteSpec(placement=("0",)))
    with pytest.raises(UnsupportedModuleError, match=r"module '0' has 2 neurons.*give it an adapter"):
        parts_of(network, x, y)


def test_modules_may_see_a_tensor_in_different_widths() -> None:
    def wire(net: Any, x: Tensor) -> Tensor:
        first = net.a(net.eye(x[:, :2]))
        return net.b(first + net.c(net.eye(x[:, 1:])))

    torch.manual_seed(0)
    modules = {"eye": nn.Identity(), "a": nn.Linear(2, 5), "c": nn.Linear(3, 5), "b": nn.Linear(5, 3)}
    network, (x, y) = Wired(wire, **modules), data()
    attach(network, DendriteSpec(sees="eye"))
    outputs = network(x)
    grow_all(network, x, y)
    assert bool((network(x) != outputs).any())
    torch.testing.assert_close(fold(network)(x), network.eval()(x))


@pytest.mark.parametrize("spec", [DendriteSpec(), DendriteSpec(placement=("first", "b"), fan_in=2)])
def test_under_autocast_a_generation_leaves_every_bit_as_it_was(spec: DendriteSpec) -> None:
    def cast(net: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.b(net.a(net.first(x))[0].mean(1))

    torch.manual_seed(0)
    network = Wired(cast, first=nn.Linear(4, 4), a=nn.GRU(4, 5, batch_first=True), b=nn.Linear(5, 3)).eval()
    x, y = data(6, 4)
    attach(network, spec)
    outputs = network(x).float()
    grow_all(network, x, y)
    for module in dendritic_modules(network).values():
        nn.init.zeros_(module.outgoing)
    assert network(x).dtype is torch.bfloat16
    assert_same_bits(network(x).float(), outputs)


def test_a_compiled_network_is_recorded_as_it_is_written() -> None:
    network, other = pair(plain), pair(plain)
    attach(network)
    attach(other)
    compiled = torch.compile(network, backend="eager")
    assert isinstance(compiled, nn.Module)
    x, y = data()
    compiled(x)
    kept = parts_of(compiled, x, y)
    for name, part in parts_of(other, x, y).items():
        torch.testing.assert_close(kept[f"_orig_mod.{name}"].errors, part.errors)


def keeping(net: Any, x: Tensor) -> Tensor:
    net.maps = [net.a(x)]
    return net.b(torch.tanh(net.maps[0]))


def test_a_network_that_keeps_its_activations_is_folded() -> None:
    network, (x, y) = pair(keeping), data()
    attach(network)
    grow_all(network, x, y)
    outputs = network.train()(x)
    torch.testing.assert_close(fold(network)(x), outputs)


def test_a_block_that_keeps_its_activations_has_dendrites() -> None:
    network, (x, y) = nn.Sequential(pair(keeping), nn.Tanh(), nn.Linear(3, 3)), data()
    network(x)
    attach(network, DendriteSpec(placement=("0",)))
    grow_all(network, x, y)
    outputs = network(x)
    torch.testing.assert_close(fold(network)(x), outputs)


def test_a_layer_with_complex_weights_has_no_dendrites() -> None:
    network = nn.Sequential(nn.Linear(4, 5, dtype=torch.complex64), nn.Linear(5, 3))
    placement = attach(network)
    assert list(placement) == ["1"]
    assert "complex weights" in str(placement)


def test_adam_trains_complex_parameters_like_torchs() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(3, 2, dtype=torch.complex64)), nn.Parameter(torch.randn(4))]
    theirs = copy.deepcopy(ours)
    for values, optimiser in ((ours, Adam(ours, 0.1)), (theirs, torch.optim.Adam(theirs, 0.1))):
        for _ in range(3):
            optimiser.zero_grad()
            (values[0].abs().square().sum() + values[1].square().sum()).backward()
            optimiser.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_sparse_gradients_are_refused_with_a_way_out() -> None:
    weight = nn.Parameter(torch.randn(5, 3))
    functional.embedding(torch.tensor([1, 2]), weight, sparse=True).sum().backward()
    with pytest.raises(TrainingError, match="sparse=False"):
        Adam([weight], 0.1).step()


def test_the_bytes_of_a_state_that_holds_more_than_tensors() -> None:
    class Stated(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"scale": torch.zeros(2), "type": torch.qint8}

        def set_extra_state(self, state: Any) -> None:
            return

    assert weight_bytes(Stated(4, 3)) == 4 * (4 * 3 + 3 + 2)


def test_what_an_earlier_pass_left_takes_no_gradient() -> None:
    def caching(net: Any, x: Tensor) -> Tensor:
        if not hasattr(net, "kept"):
            net.kept = net.scale.exp() * net.scale
        return net.b(torch.tanh(net.a(x)) * net.kept)

    network, (x, y) = pair(caching), data()
    network.scale = nn.Parameter(torch.ones(5))
    network(x)  # with a graph, which a single pass back frees
    attach(network)
    parts_of(network, x, y)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_block_whose_parts_the_network_calls_is_refused() -> None:
    block = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
    network = Wired(lambda net, x: net.b(net.block[1](net.block[0](x))), block=block, b=nn.Linear(5, 3))
    x, y = data()
    outputs = network(x)
    attach(network, DendriteSpec(placement=("block",)))
    assert_same_bits(network(x), outputs)
    with pytest.raises(UnsupportedModuleError, match="module 'block' took no part in the forward pass"):
        parts_of(network, x, y)
