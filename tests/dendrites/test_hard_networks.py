"""The networks that the paper names as unsolved: dendrites are attached, grown and folded there like anywhere."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites import (
    Dendrite,
    DendriteSpec,
    Dendritic,
    Growth,
    Placement,
    attach,
    dendritic_modules,
    fold,
    grow,
    parameter_count,
    record,
)
from pbp_search.dendrites.adapters import is_layer
from tests.dendrites.grown_networks import add_generations, all_modules, assert_same_bits, in_batches
from tests.dendrites.hard_networks import HARD, Hard, trained

pytestmark = pytest.mark.slow

EPOCHS = 15


class Grown:
    """A trained network with dendrites attached, and a generation for each of its modules, not accepted yet."""

    def __init__(self, name: str) -> None:
        self.hard: Hard = HARD[name]
        self.plain, self.inputs, self.targets = trained(name)
        self.network = copy.deepcopy(self.plain)
        self.placement: Placement = attach(self.network, DendriteSpec(pool=2), self.hard.adapters)
        self.records = record(self.network, self.hard.loss, in_batches(self.inputs, self.targets, 128))
        self.generations: dict[str, list[Dendrite]] = {}
        self.growths: dict[str, Growth] = {}
        for name_, module in self.placement.items():
            generator = torch.Generator().manual_seed(0)
            grown = grow(module, self.records[name_], _stop, generator, learning_rate=0.03)
            self.generations[name_], self.growths[name_] = grown

    def accepted(self) -> nn.Module:
        """A copy of the network with the generation of each module."""
        network = copy.deepcopy(self.network)
        for name, module in dendritic_modules(network).items():
            module.accept(copy.deepcopy(self.generations[name]))
        return network


def _stop() -> Callable[[float], bool]:
    scores: list[float] = []

    def stop(score: float) -> bool:
        scores.append(score)
        return len(scores) >= EPOCHS

    return stop


@pytest.fixture(scope="module", params=HARD)
def case(request: pytest.FixtureRequest) -> Grown:
    """One network; tests do not change it."""
    return Grown(request.param)


def outputs(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    found = network(x)
    return found if isinstance(found, dict) else {"": found}


def random_weights(network: nn.Module) -> nn.Module:
    """Two more generations at random on every module, and W and U at random.

    W is small: after many modules, deviations grow to where no gradient is left.
    """
    torch.manual_seed(3)
    for module in all_modules(network):
        add_generations(module, 2)
        with torch.no_grad():
            module.outgoing.mul_(0.1)
    return network


def test_the_task_is_learned_by_an_ordinary_loop(case: Grown) -> None:
    untrained = case.hard.build().eval()
    before = case.hard.loss(untrained(case.inputs), case.targets).mean()
    assert case.hard.loss(case.plain(case.inputs), case.targets).mean() < 0.8 * before


def test_dendrites_are_attached_to_every_layer_with_neurons(case: Grown) -> None:
    kinds = Counter(type(module.module).__name__ for module in case.placement.values())
    assert kinds == case.hard.wrapped
    assert not [str(place) for place in case.placement.places if place.refusal and is_layer(place.module)]


def test_every_module_has_a_record_of_its_own_errors(case: Grown) -> None:
    assert list(case.records) == list(case.placement)
    for name, kept in case.records.items():
        for part in (kept.training, kept.held_out):
            assert part.errors.shape[2] == case.placement[name].channels
            assert bool(part.errors.any(1).any(0).all()), name


def test_a_residual_is_found(case: Grown) -> None:
    assert case.growths[case.hard.finds].above_floor(tests=len(case.growths)), case.growths[case.hard.finds]


def test_accepted_dendrites_change_no_bit_of_the_outputs(case: Grown) -> None:
    network = case.accepted()
    with torch.no_grad():
        for name, expected in outputs(case.plain, case.inputs).items():
            assert_same_bits(outputs(network, case.inputs)[name], expected)
    assert all(bool(module.dendrites) for module in all_modules(network))


def test_dendrites_that_speak_change_the_outputs(case: Grown) -> None:
    # Else the tests around this one say nothing.
    network = case.accepted()
    with torch.no_grad():
        for module in all_modules(network):
            module.outgoing.add_(0.1)
        for name, expected in outputs(case.plain, case.inputs).items():
            assert float((outputs(network, case.inputs)[name] - expected).abs().max()) > 1e-3


class Caught:
    """One call of a module in a network's pass, and the gradients that arrive at its neurons and at its input."""

    def __init__(self, module: Dendritic) -> None:
        self.module = module
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []
        self._open: list[tuple[Tensor, Tensor]] = []
        module.register_forward_pre_hook(self._before)
        module.register_forward_hook(self._after)

    # Sums with leaves of their own: the input may also feed others, and an in-place activation may overwrite y.
    def _before(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = args
        zero = torch.zeros_like(x, requires_grad=True)
        self._open.append((x.detach().clone(), zero))
        return (x + zero,)

    def _after(self, module: nn.Module, args: tuple[Tensor], output: Any) -> Any:
        neurons = self.module.adapter.neurons(output)
        zero = torch.zeros_like(neurons, requires_grad=True)
        self.calls.append((*self._open.pop(), zero))
        return self.module.adapter.replace(output, neurons + zero)


def test_no_error_flows_back_through_dendrites(case: Grown) -> None:
    network = random_weights(copy.deepcopy(case.network))
    caught = {name: Caught(module) for name, module in dendritic_modules(network).items()}
    case.hard.loss(network(case.inputs[:32]), case.targets[:32]).sum().backward()
    compared = 0
    for name, catch in caught.items():
        module = catch.module
        assert catch.calls, name
        for x, at_input, at_neurons in catch.calls:
            x.requires_grad_()
            neurons = module.adapter.neurons(module.module(x))
            assert at_neurons.grad is not None
            (expected,) = torch.autograd.grad(neurons, x, at_neurons.grad)
            assert at_input.grad is not None
            assert_same_bits(at_input.grad, expected)
            compared += bool(expected.any())
    assert compared >= len(caught) - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_folded_network_equals_the_network(case: Grown, dtype: torch.dtype) -> None:
    network = random_weights(case.accepted()).to(dtype).eval()
    folded = fold(network)
    inputs = case.inputs.to(dtype) if case.inputs.is_floating_point() else case.inputs
    assert not dendritic_modules(folded)
    assert parameter_count(folded) == parameter_count(network)
    with torch.no_grad():
        for name, expected in outputs(network, inputs).items():
            # Of numbers of about 1, behind some ten layers whose tanh is a sigmoid now: a few units in the last place.
            tolerance = 3e-5 if dtype == torch.float32 else 1e-10
            torch.testing.assert_close(outputs(folded, inputs)[name], expected, rtol=tolerance, atol=tolerance)
