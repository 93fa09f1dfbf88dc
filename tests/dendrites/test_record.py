from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites import Record, attach, dendritic_modules, record
from pbp_search.errors import TrainingError, UnsupportedModuleError
from tests.dendrites.grown_networks import add_generations, all_modules, assert_same_bits, assert_same_state, state_of

CLASS_WEIGHTS = torch.tensor([0.5, 3.0, 0.0], dtype=torch.float64)


def weighted_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with class weights, one of them a mask: no batch mean can be divided out of it."""
    return CLASS_WEIGHTS.to(outputs.dtype)[targets] * nn.functional.cross_entropy(outputs, targets, reduction="none")


def squared_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).sum(1)


def feed_forward(inplace: bool) -> nn.Module:
    return nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(4, 6),
        nn.ReLU(inplace=inplace),
        nn.Dropout(0.5, inplace=inplace),
        nn.Linear(6, 5),
        nn.BatchNorm1d(5),
        nn.Tanh(),
        nn.Linear(5, 3),
    )


class Pooled(nn.Module):
    """Inputs (N, T, 4): three positions of a sample make one output."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.positions = nn.Linear(4, 6)
        self.activation = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.positions(x)).amax(1))


NETWORKS: dict[str, tuple[Callable[[bool], nn.Module], tuple[int, ...]]] = {
    "feed forward": (feed_forward, (4,)),
    "pooled": (Pooled, (3, 4)),
}


def problem(name: str, inplace: bool = True, generations: int = 2) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in float64 with batch statistics and dendrites of its own, and 17 samples."""
    build, shape = NETWORKS[name]
    torch.manual_seed(5)
    network = build(inplace).double()
    for module in attach(network).values():
        add_generations(module, generations)
    inputs = torch.randn(17, *shape, dtype=torch.float64)
    network.train()(inputs)  # moves the batch statistics
    return network, inputs, torch.arange(17) % 3


def catch_into(caught: dict[str, tuple[Tensor, Tensor]], name: str) -> Callable[..., None]:
    """A forward hook that keeps a module's input and output."""

    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        caught[name] = (inputs[0], output)

    return hook


def sample_by_sample(network: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """x and E of every dendritic module: each sample alone, through the network's own graph."""
    caught: dict[str, tuple[Tensor, Tensor]] = {}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, module in dendritic_modules(network.eval()).items():
        module.register_forward_hook(catch_into(caught, name))
    for n in range(len(inputs)):
        loss = weighted_loss(network(inputs[n : n + 1]), targets[n : n + 1])[0]
        for name, (x, y) in caught.items():
            (error,) = torch.autograd.grad(loss, y, retain_graph=True)
            seen.setdefault(name, []).append((x.detach()[0], error[0]))
    return {
        name: (torch.stack([x for x, _ in pairs]), torch.stack([error for _, error in pairs]))
        for name, pairs in seen.items()
    }


@pytest.mark.parametrize("batch_size", [1, 5, 16, 17, 512])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_errors_are_those_of_each_samples_own_loss(name: str, inplace: bool, batch_size: int) -> None:
    expected = sample_by_sample(*problem(name, inplace=False))
    network, inputs, targets = problem(name, inplace)
    records = record(network, weighted_loss, inputs, targets, batch_size)
    assert list(records) == list(expected)
    for module, (x, errors) in expected.items():
        torch.testing.assert_close(records[module].inputs, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(records[module].errors, errors, rtol=0, atol=1e-12)
        masked = records[module].errors[CLASS_WEIGHTS[targets] == 0]
        assert torch.equal(masked, torch.zeros_like(masked))
        assert errors.abs().max() > 1e-3


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_recording_changes_nothing(name: str, frozen: bool) -> None:
    network, inputs, targets = problem(name)
    network.requires_grad_(not frozen)
    network.get_submodule("1" if name == "feed forward" else "head").eval()  # modes may be mixed
    modes = {part_name: part.training for part_name, part in network.named_modules()}
    before, stream = state_of(network), torch.get_rng_state()
    with torch.no_grad():
        records = record(network, weighted_loss, inputs, targets)
    assert_same_state(before, network)
    assert {part_name: part.training for part_name, part in network.named_modules()} == modes
    assert any(modes.values())
    assert not all(modes.values())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in all_modules(network))
    assert torch.equal(torch.get_rng_state(), stream)
    for kept in records.values():
        assert not kept.inputs.requires_grad
        assert not kept.errors.requires_grad


class Wiring(nn.Module):
    """Modules ``first``, ``middle`` and ``last``, all 2 to 2, wired as a function says."""

    def __init__(self, wire: Callable[["Wiring", Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Linear(2, 2) for _ in range(3))
        self.wire = wire

    def forward(self, x: Tensor) -> Tensor:
        return self.wire(self, x)


def blocked(net: Wiring, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = net.middle(net.first(x))
    return net.last(x)


REFUSED: dict[str, tuple[Callable[[Wiring, Tensor], Tensor], str]] = {
    "called twice": (lambda net, x: net.last(net.middle(net.middle(net.first(x)))), r"'middle' was called 2 times"),
    "never called": (lambda net, x: net.last(net.first(x)), r"'middle' was called 0 times"),
    "of one row for all": (
        lambda net, x: net.last(net.first(x) + net.middle(torch.ones(1, 2))),
        r"'middle' was given inputs of the shape \(1, 2\) for 4 samples: .* first axis",
    ),
    "of one vector for all": (
        lambda net, x: net.last(net.first(x) + net.middle(torch.ones(2))),
        r"'middle' was given inputs of the shape \(2,\) for 4 samples",
    ),
    "output dropped": (lambda net, x: net.last(net.first(x)) + 0 * net.middle(x).detach(), r"depend.* 'middle'"),
    "without gradient": (blocked, r"does not depend on the module 'first'"),
    "all detached": (lambda net, x: net.last(net.middle(net.first(x))).detach(), r"does not depend on the module"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_modules_used_in_other_ways_are_refused_by_name(case: str) -> None:
    wire, sentence = REFUSED[case]
    network = Wiring(wire).train()
    attach(network)
    with pytest.raises(UnsupportedModuleError, match=sentence):
        record(network, squared_loss, torch.ones(4, 2), torch.ones(4, 2))
    assert all(part.training for part in network.modules())
    assert not any(module._forward_hooks for module in all_modules(network))


def test_an_input_that_is_overwritten_later_is_recorded_as_it_was() -> None:
    def wire(net: Wiring, x: Tensor) -> Tensor:
        x = 2 * x
        y = net.first(x)
        x.zero_()
        return net.last(net.middle(y))

    network, inputs = Wiring(wire), torch.randn(6, 2)
    attach(network)
    assert_same_bits(record(network, squared_loss, inputs, inputs)["first"].inputs, 2 * inputs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_error_that_is_not_finite_ends_the_recording(bad: float) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    attach(network)
    targets = torch.zeros(5, 1)
    targets[3] = bad
    with pytest.raises(TrainingError, match=r"input or error of the module '0' is NaN or infinite"):
        record(network, squared_loss, torch.ones(5, 2), targets)


def test_rows_are_those_of_the_samples_with_leading_axes_flattened() -> None:
    kept = Record(torch.arange(24.0).reshape(4, 3, 2), -torch.arange(12.0).reshape(4, 3, 1))
    rows = kept.rows(torch.tensor([2, 0]))
    assert torch.equal(rows.inputs, torch.cat([kept.inputs[2], kept.inputs[0]]))
    assert torch.equal(rows.errors, torch.cat([kept.errors[2], kept.errors[0]]))


def test_shuffling_moves_whole_samples_errors_beside_other_inputs_of_their_part() -> None:
    kept = Record(torch.randn(50, 3, 2), torch.randn(50, 3, 1))
    parts = (torch.arange(0, 50, 2), torch.arange(1, 50, 2))
    shuffled = kept.shuffled(parts, torch.Generator().manual_seed(1))
    again = kept.shuffled(parts, torch.Generator().manual_seed(1))
    assert_same_bits(shuffled.inputs, kept.inputs)
    assert_same_bits(shuffled.errors, again.errors)
    order = [next(n for n in range(50) if torch.equal(kept.errors[n], row)) for row in shuffled.errors]
    assert sorted(order) == list(range(50))
    assert sum(n == place for place, n in enumerate(order)) < 10
    assert all(n % 2 == place % 2 for place, n in enumerate(order))


class Steps(nn.Module):
    """Inputs (N, T, 4), turned to (T, N, 4) on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x.transpose(0, 1)).sum(0)


def test_samples_on_another_axis_than_the_first_are_refused() -> None:
    network = Steps()
    attach(network)
    with pytest.raises(UnsupportedModuleError, match=r"'steps' was given inputs of the shape \(5, 17, 4\) for 17"):
        record(network, squared_loss, torch.randn(17, 5, 4), torch.randn(17, 3))
