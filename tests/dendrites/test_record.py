from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites import DendriteSpec, attach, dendritic_modules
from pbp_search.dendrites.call_pools import CallPart
from pbp_search.errors import TrainingError, UnsupportedModuleError
from tests.dendrites.grown_networks import (
    add_generations,
    all_modules,
    assert_same_bits,
    assert_same_state,
    recorded,
    state_of,
)

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
    records = recorded(network, weighted_loss, inputs, targets, batch_size)
    assert list(records) == list(expected)
    for module, (x, errors) in expected.items():
        kept = records[module]
        assert kept.inputs is not None
        assert kept.inputs.shape == (len(x), x[0, ..., 0].numel(), 1, x.shape[-1]), "N, positions, G, F"
        torch.testing.assert_close(kept.inputs.reshape_as(x), x, rtol=0, atol=1e-12)
        torch.testing.assert_close(kept.errors.reshape_as(errors), errors, rtol=0, atol=1e-12)
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
        records = recorded(network, weighted_loss, inputs, targets)
    assert_same_state(before, network)
    assert {part_name: part.training for part_name, part in network.named_modules()} == modes
    assert any(modes.values())
    assert not all(modes.values())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in all_modules(network))
    assert torch.equal(torch.get_rng_state(), stream)
    for kept in records.values():
        assert kept.inputs is not None
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
    "never called": (lambda net, x: net.last(net.first(x)), r"'middle' took no part in the forward pass.*placement"),
    "output dropped": (lambda net, x: net.last(net.first(x)) + 0 * net.middle(x).detach(), r"depend.* 'middle'"),
    "without gradient": (blocked, r"module 'first' is called without a graph .*placement"),
    "all detached": (lambda net, x: net.last(net.middle(net.first(x))).detach(), r"does not depend on the module"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_modules_used_in_other_ways_are_refused_by_name(case: str) -> None:
    wire, sentence = REFUSED[case]
    network = Wiring(wire).train()
    attach(network)
    with pytest.raises(UnsupportedModuleError, match=sentence):
        recorded(network, squared_loss, torch.ones(4, 2), torch.ones(4, 2))
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
    kept = recorded(network, squared_loss, inputs, inputs)["first"].inputs
    assert kept is not None
    assert_same_bits(kept.reshape(6, 2), 2 * inputs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_error_that_is_not_finite_ends_the_recording(bad: float) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    attach(network)
    targets = torch.zeros(5, 1)
    targets[3] = bad
    with pytest.raises(TrainingError, match=r"input or error of the module '0' is NaN or infinite"):
        recorded(network, squared_loss, torch.ones(5, 2), targets)


class Steps(nn.Module):
    """Inputs (N, T, 4), turned to (T, N, 4) or flattened to (N * T, 4) on the way."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.steps = nn.Linear(4, 3)
        self.turned = turned

    def forward(self, x: Tensor) -> Tensor:
        if self.turned:
            return self.steps(x.transpose(0, 1)).sum(0)
        return self.steps(x.flatten(0, 1)).reshape(*x.shape[:2], 3).sum(1)


@pytest.mark.parametrize("samples", [17, 600])
@pytest.mark.parametrize("turned", [False, True])
def test_samples_on_the_second_axis_or_flattened_with_positions_are_found(turned: bool, samples: int) -> None:
    torch.manual_seed(0)
    network, inputs, targets = Steps(turned), torch.randn(samples, 5, 4), torch.randn(samples, 3)
    attach(network)
    kept = recorded(network, squared_loss, inputs, targets)["steps"]
    assert kept.inputs is not None
    assert_same_bits(kept.inputs, inputs.unsqueeze(2))
    errors = 2 * (network(inputs) - targets).detach()
    torch.testing.assert_close(kept.errors, errors.unsqueeze(1).expand(-1, 5, -1))


class Query(nn.Module):
    """A Linear on rows that belong to no sample: learned queries that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 4))
        self.keys = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.keys(self.queries).T).sum(1)


def test_rows_that_belong_to_no_sample_are_samples_themselves() -> None:
    torch.manual_seed(0)
    network, inputs, targets = Query(), torch.randn(10, 4), torch.randn(10)
    attach(network)
    kept = recorded(network, lambda outputs, y: (outputs - y).square(), inputs, targets, batch_size=5)["keys"]
    assert kept.inputs is not None
    assert_same_bits(kept.inputs.reshape(2, 3, 4)[1], network.queries.detach())
    residual = 2 * (network(inputs) - targets).detach()
    per_batch = [(residual[batch, None] * inputs[batch]).sum(0) for batch in (slice(0, 5), slice(5, 10))]
    torch.testing.assert_close(kept.errors.reshape(2, 3, 4), torch.stack(per_batch)[:, None].expand(2, 3, 4))


def test_a_module_that_is_called_twice_has_the_positions_of_both_calls() -> None:
    network, inputs = Wiring(lambda net, x: net.last(net.middle(net.middle(net.first(x))))), torch.randn(6, 2)
    attach(network)
    kept = recorded(network, squared_loss, inputs, inputs)["middle"]
    assert kept.inputs is not None
    first = network.first(inputs)
    torch.testing.assert_close(kept.inputs[:, :, 0], torch.stack([first, network.middle(first)], 1).detach())
    assert kept.errors.shape == (6, 2, 2)


class Pyramid(nn.Module):
    """A block that one pass calls at two scales: inputs (N, 2, 4), as they are and halved."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.block(x), 2 * self.block(x[:, :, ::2])], 2)


def pyramid() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    network = Pyramid()
    attach(network, DendriteSpec(placement=("block",)))
    return network, torch.randn(7, 2, 4), torch.randn(7, 3, 6)


@pytest.mark.parametrize("batch_size", [3, 7])
def test_a_block_that_is_called_at_several_sizes_has_the_positions_of_all_calls(batch_size: int) -> None:
    network, inputs, targets = pyramid()
    kept = recorded(network, squared_loss, inputs, targets, batch_size)["block"]
    errors = 2 * (network(inputs) - targets).detach().transpose(1, 2)
    errors[:, 4:] *= 2  # of the second call, which the network doubles
    torch.testing.assert_close(kept.errors, errors)
    assert [len(batch) for batch in kept.calls] == [2] * len(inputs.split(batch_size))


def test_the_rows_of_a_blocks_calls_are_those_of_its_errors() -> None:
    network, inputs, targets = pyramid()
    module = all_modules(network)[0]
    add_generations(module, 1)
    wanted = torch.tensor([1, 4, 6])
    kept = recorded(network, squared_loss, inputs[wanted], targets[wanted], batch_size=2)["block"]
    part = CallPart(module, kept)
    scales = [inputs[wanted], inputs[wanted][:, :, ::2]]
    outputs = torch.cat([module.module(x).transpose(1, 2) for x in scales], 1).flatten(0, 1)
    activations = torch.cat([module.activations(x)[0].transpose(1, 2) for x in scales], 1).flatten(0, 1)
    torch.testing.assert_close(part.inputs.squeeze(2), outputs.detach())
    torch.testing.assert_close(part.activations[0], activations.detach())
    torch.testing.assert_close(part.errors, kept.errors.flatten(0, 1))


class Memory(nn.Module):
    """An encoder of samples and of some stored inputs, as many as there are or others."""

    def __init__(self, stored: int, learn_from_stored: bool) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 3)
        self.stored = torch.randn(stored, 2)
        self.learn_from_stored = learn_from_stored

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.learn_from_stored):
            stored = self.encoder(self.stored)
        return self.encoder(x) - stored.mean(0)


@pytest.mark.parametrize("stored", [3, 5, 10])
def test_calls_that_take_no_gradient_are_not_recorded(stored: int) -> None:
    network, inputs = Memory(stored, learn_from_stored=False), torch.randn(10, 2)
    attach(network)
    kept = recorded(network, squared_loss, inputs, torch.zeros(10, 3), batch_size=5)["encoder"]
    assert kept.inputs is not None
    assert_same_bits(kept.inputs.reshape(10, 2), inputs)
    torch.testing.assert_close(kept.errors[:, 0], 2 * network(inputs).detach())


def test_calls_with_other_samples_than_the_batchs_follow_each_other() -> None:
    network, inputs = Memory(3, learn_from_stored=True), torch.randn(10, 2)
    attach(network)
    kept = recorded(network, squared_loss, inputs, torch.zeros(10, 3), batch_size=5)["encoder"]
    assert kept.inputs is not None
    stored = network.stored
    assert_same_bits(kept.inputs.reshape(16, 2), torch.cat([stored, inputs[:5], stored, inputs[5:]]))
    own = 2 * network(inputs).detach()
    theirs = [-batch.sum(0).expand(3, 3) / 3 for batch in own.split(5)]
    torch.testing.assert_close(kept.errors[:, 0], torch.cat([theirs[0], own[:5], theirs[1], own[5:]]))


def test_other_positions_for_other_samples_are_refused_by_name() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.Conv1d(2, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.steps(x).mean(2) + self.steps(x[:1, :, :2]).mean(2)

    network = Sized()
    attach(network)
    with pytest.raises(UnsupportedModuleError, match=r"'steps' has another number of positions for other samples"):
        recorded(network, squared_loss, torch.randn(4, 2, 5), torch.zeros(4, 3))


class Experts(nn.Module):
    """Two experts, each for the samples that a gate sends to it: an expert without samples is called with none."""

    def __init__(self, call_without_samples: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(2, 3) for _ in range(2))
        self.call_without_samples = call_without_samples

    def forward(self, x: Tensor) -> Tensor:
        outputs = x.new_zeros(len(x), 3)
        for expert, sent in zip(self.experts, (x[:, 0] > 0, x[:, 0] <= 0), strict=True):
            if self.call_without_samples or sent.any():
                outputs[sent] = expert(x[sent])
        return outputs


@pytest.mark.parametrize("call_without_samples", [False, True])
def test_an_expert_has_the_samples_that_were_sent_to_it(call_without_samples: bool) -> None:
    torch.manual_seed(0)
    network, inputs = Experts(call_without_samples), torch.randn(12, 2)
    inputs[:4, 0] = inputs[:4, 0].abs() + 0.1  # no sample of the first batch goes to the second expert
    attach(network)
    records = recorded(network, squared_loss, inputs, torch.zeros(12, 3), batch_size=4)
    errors = 2 * network(inputs).detach()
    for kept, sent in zip(records.values(), (inputs[:, 0] > 0, inputs[:, 0] <= 0), strict=True):
        assert kept.inputs is not None
        assert_same_bits(kept.inputs.reshape(-1, 2), inputs[sent])
        torch.testing.assert_close(kept.errors.flatten(0, 1), errors[sent])
