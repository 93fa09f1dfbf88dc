import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites import Fused, attach, dendritic_modules, fold, parameter_count, weight_bytes
from pbp_search.dendrites.spec import FUNCTIONS
from tests.dendrites.grown_networks import (
    BUILDERS,
    NONLINEARITIES,
    add_generations,
    all_modules,
    assert_same_state,
    dendritic,
    grown,
    inputs_for,
    state_of,
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("generations", range(4))
@pytest.mark.parametrize("builder", BUILDERS)
def test_folding_leaves_outputs_equal(
    builder: str, generations: int, nonlinearity: str, dtype: torch.dtype, tolerance: float
) -> None:
    network = grown(builder, 5, generations, nonlinearity, dtype).eval()
    x = inputs_for(builder, 20, dtype)
    torch.testing.assert_close(fold(network)(x), network(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("generations", range(5))
@pytest.mark.parametrize("builder", BUILDERS)
def test_the_size_is_that_of_the_formula(builder: str, generations: int) -> None:
    plain = BUILDERS[builder](6)
    base = sum(parameter.numel() for parameter in plain.parameters())
    linears = [module for module in plain.modules() if isinstance(module, nn.Linear)]
    added = 0
    for linear in linears:
        own = linear.in_features * linear.out_features + (linear.out_features if linear.bias is not None else 0)
        added += generations * own + linear.out_features * generations * (generations + 1) // 2
    network = grown(builder, 6, generations)
    assert parameter_count(network) == base + added
    assert parameter_count(fold(network)) == base + added
    assert weight_bytes(fold(network)) == weight_bytes(network)


def test_without_dendrites_the_plain_network_comes_back() -> None:
    plain = BUILDERS["normalised"](3)
    before = state_of(plain)
    attach(plain)
    folded = fold(plain)
    assert_same_state(before, folded)
    assert not any(isinstance(module, Fused) for module in folded.modules())


def test_modules_may_have_different_numbers_of_generations() -> None:
    network = grown("perceptron", 4, 0, dtype=torch.float64).eval()
    first, second = all_modules(network)
    add_generations(second, 2)
    folded = fold(network)
    x = inputs_for("perceptron", 9, torch.float64)
    torch.testing.assert_close(folded(x), network(x), rtol=0, atol=1e-12)
    assert type(folded.get_submodule("0")) is nn.Linear
    assert type(folded.get_submodule("2")) is Fused
    assert len(first.dendrites) == 0


def test_the_folded_network_is_a_copy_in_evaluation_mode() -> None:
    network = grown("normalised", 3, 2).train()
    before = state_of(network)
    folded = fold(network)
    assert not any(module.training for module in folded.modules())
    assert dendritic_modules(folded) == {}
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.add_(1)
    assert_same_state(before, network)
    assert network.training
    assert len(all_modules(network)) == 3


def test_folding_draws_no_random_numbers() -> None:
    network = grown("perceptron", 3, 1)
    state = torch.get_rng_state()
    fold(network)
    assert torch.equal(torch.get_rng_state(), state)


class Mirrored(nn.Module):
    """An autoencoder whose decoder reads the encoder's weight."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        decoded = torch.tanh(self.encoder(x)) @ self.encoder.weight
        return decoded if self.encoder.bias is None else decoded + self.encoder.bias.sum()


@pytest.mark.parametrize("bias", [False, True])
def test_a_network_that_reads_the_weight_of_a_layer_reads_the_layers_own(bias: bool) -> None:
    torch.manual_seed(0)
    network = Mirrored(bias).double()
    (module,) = attach(network).values()
    add_generations(module, 2)
    folded = fold(network)
    assert type(folded.get_submodule("encoder")) is Fused
    x = inputs_for("perceptron", 9, torch.float64)
    torch.testing.assert_close(folded(x), network(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_a_tanh_is_a_sigmoid_with_other_weights_and_m_keeps_its_own(bias: bool) -> None:
    module = dendritic(3, 4, 3, "tanh", bias=bias, dtype=torch.float64)
    folded = fold(nn.Sequential(module)).get_submodule("0")
    assert isinstance(folded, Fused)
    assert folded.nonlinearity is (torch.sigmoid if bias else FUNCTIONS["tanh"])
    torch.testing.assert_close(folded.weight, module.module.weight, rtol=0, atol=0)
    if bias:
        torch.testing.assert_close(folded.bias, module.module.bias, rtol=0, atol=1e-14)
    x = 10 * torch.randn(50, 3, dtype=torch.float64)
    torch.testing.assert_close(folded(x), module(x), rtol=0, atol=1e-12)


def test_a_short_type_keeps_its_tanh() -> None:
    network = grown("perceptron", 3, 2, dtype=torch.bfloat16)
    folded = fold(network)
    assert all(part.nonlinearity is FUNCTIONS["tanh"] for part in folded.modules() if isinstance(part, Fused))
