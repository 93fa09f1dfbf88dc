import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites import attach
from tests.dendrites.grown_networks import (
    BUILDERS,
    NONLINEARITIES,
    WIDTHS,
    all_modules,
    assert_same_bits,
    dendritic,
    grown,
    inputs_for,
)

REFERENCE: dict[str, Callable[[float], float]] = {
    "tanh": math.tanh,
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "relu": lambda z: max(z, 0.0),
    "gelu": lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))),
}


def outputs_of(network: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(3)  # for dropout
    return network(x).detach()


@pytest.mark.parametrize("generations", range(5))
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("builder", BUILDERS)
def test_a_new_generation_leaves_every_output_bit_as_it_was(builder: str, nonlinearity: str, generations: int) -> None:
    for width in WIDTHS:
        network = grown(builder, width, generations, nonlinearity)
        batches = [inputs_for(builder, samples) for samples in (2, 7, 64)]
        cases = [(x, training) for x in batches for training in (False, True)]
        # The network in evaluation mode first: in training mode batch statistics run on.
        before = [outputs_of(network.train(training), x) for x, training in sorted(cases, key=lambda case: case[1])]
        statistics = {name: value.clone() for name, value in network.named_buffers()}
        fresh = grown(builder, width, generations, nonlinearity)
        for module in all_modules(fresh):
            (candidate,) = module.generation()
            nn.init.normal_(candidate.incoming)
            module.accept([candidate])
        after = [outputs_of(fresh.train(training), x) for x, training in sorted(cases, key=lambda case: case[1])]
        for left, right in zip(before, after, strict=True):
            assert_same_bits(left, right)
        for name, value in fresh.named_buffers():
            assert torch.equal(value, statistics[name])


def test_a_new_generation_enters_with_zero_weight_and_leaves_all_others_alone() -> None:
    module = dendritic(3, 4, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.accept(module.generation())
    after = module.state_dict()
    assert torch.equal(after["outgoing"][2], torch.zeros(4))
    assert_same_bits(after.pop("outgoing")[:2], before.pop("outgoing"))
    for name, value in before.items():
        assert_same_bits(after[name], value)
    assert {name for name in after if name not in before} == {
        "dendrites.2.incoming",
        "dendrites.2.module.weight",
        "dendrites.2.module.bias",
    }


def test_accepted_generations_are_frozen_and_w_and_m_are_trained() -> None:
    module = dendritic(3, 4, 3)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained == {"outgoing", "module.weight", "module.bias"}


def test_frozen_dendrites_stay_in_evaluation_mode() -> None:
    module = dendritic(3, 4, 2).train()
    assert module.training
    assert module.module.training
    assert not any(part.training for generation in module.dendrites for part in generation.modules())


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("leading", [(5,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_the_cascade_neuron_by_neuron(nonlinearity: str, leading: tuple[int, ...], bias: bool) -> None:
    module = dendritic(3, 2, 3, nonlinearity, bias=bias, dtype=torch.float64)
    x = torch.randn(*leading, 3, dtype=torch.float64)
    f = REFERENCE[nonlinearity]
    state = {name: value.numpy() for name, value in module.state_dict().items()}

    def affine(name: str, channel: int, row: np.ndarray) -> float:
        total = state[f"{name}.bias"][channel] if bias else 0.0
        for weight, value in zip(state[f"{name}.weight"][channel], row, strict=True):
            total += weight * value
        return float(total)

    expected = np.empty((*leading, 2))
    for position in np.ndindex(*leading):
        row = x.numpy()[position]
        for channel in range(2):
            activations: list[float] = []
            for d in range(3):
                z = affine(f"dendrites.{d}.module", channel, row)
                for e, activation in enumerate(activations):
                    z += state[f"dendrites.{d}.incoming"][e, channel] * activation
                activations.append(f(z))
            y = affine("module", channel, row)
            for d, activation in enumerate(activations):
                y += state["outgoing"][d, channel] * activation
            expected[position][channel] = y
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=0, atol=1e-12)
    assert np.abs(expected - module.module(x).detach().numpy()).max() > 0.1


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("generations", [1, 4])
@pytest.mark.parametrize("scale", [1.0, 1e6])
@pytest.mark.parametrize("leading", [(6,), (2, 5)])
def test_no_error_flows_back_through_dendrites(
    nonlinearity: str, generations: int, scale: float, leading: tuple[int, ...]
) -> None:
    module = dendritic(3, 4, generations, nonlinearity)
    with torch.no_grad():
        for parameter in (*module.dendrites.parameters(), module.outgoing):
            parameter.mul_(scale)
    module.requires_grad_(True)  # a user may unfreeze everything
    x = torch.randn(*leading, 3, requires_grad=True)
    arriving = torch.randn(*leading, 4)
    own = torch.autograd.grad(module.module(x), (x, *module.module.parameters()), arriving)
    through = torch.autograd.grad(module(x), (x, *module.module.parameters()), arriving)
    for left, right in zip(own, through, strict=True):
        assert_same_bits(left, right)
    module(x).backward(arriving)
    assert all(parameter.grad is None for parameter in module.dendrites.parameters())


def test_the_gradient_at_w_is_the_error_times_the_activation() -> None:
    module = dendritic(3, 2, 3, dtype=torch.float64)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    arriving = torch.randn(2, 5, 2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(module(x), module.outgoing, arriving)
    activations = module.activations(x)
    expected = np.zeros((3, 2))
    for d, i, n, t in np.ndindex(3, 2, 2, 5):
        expected[d, i] += float(arriving[n, t, i] * activations[d][n, t, i])
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=1e-12)


def test_a_candidate_is_a_new_start_of_the_same_form() -> None:
    module = dendritic(3, 4, 2, dtype=torch.float64)
    module.module.requires_grad_(False)
    torch.manual_seed(0)
    (first,) = module.generation()
    torch.manual_seed(0)
    (same,) = module.generation()
    (other,) = module.generation()
    assert_same_bits(first.get_parameter("module.weight"), same.get_parameter("module.weight"))
    assert not torch.equal(first.get_parameter("module.weight"), other.get_parameter("module.weight"))
    assert not torch.equal(first.get_parameter("module.weight"), module.module.get_parameter("weight"))
    assert first.get_parameter("module.weight").dtype == torch.float64
    assert torch.equal(first.incoming, torch.zeros(2, 4, dtype=torch.float64))
    assert all(parameter.requires_grad for parameter in first.parameters())
    assert len(module.dendrites) == 2


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("rows", [5, 5000])
def test_without_a_graph_the_inputs_stay_and_the_outputs_are_the_same(nonlinearity: str, rows: int) -> None:
    module = dendritic(3, 4, 3, nonlinearity, dtype=torch.float64)
    x = torch.randn(rows, 3, dtype=torch.float64)
    before, expected = x.clone(), module(x)
    with torch.no_grad():
        found = module(x)
    assert_same_bits(x, before)
    assert_same_bits(found, expected)


def test_a_layers_weight_can_be_replaced_or_tied_through_the_wrapper() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    attach(network)
    network[0].weight = network[1].weight
    network[0].bias = nn.Parameter(torch.ones(4))
    assert network.get_parameter("0.module.weight") is network.get_parameter("1.module.weight")
    assert dict(network.named_parameters())["0.module.bias"].tolist() == [1.0] * 4
    assert "0.weight" not in network.state_dict()
