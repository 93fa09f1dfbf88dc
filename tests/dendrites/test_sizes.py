import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pbp_search.dendrites import DendriteSpec, attach, fold, multiply_accumulates, parameter_count, weight_bytes
from pbp_search.errors import InputError
from tests.dendrites.grown_networks import BUILDERS, assert_same_state, grown, inputs_for, state_of


def test_weight_bytes_count_parameters_and_buffers_by_their_types() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    numbers = 2 * 3 + 3 + 4 * 3
    assert weight_bytes(network) == 8 * numbers + 8  # and the count of batches, an int64
    assert weight_bytes(network.float()) == 4 * numbers + 8


def test_tied_weights_count_once() -> None:
    network = nn.ModuleDict({"left": nn.Conv1d(1, 2, 3), "right": nn.Conv1d(1, 2, 3), "head": nn.Linear(2, 2)})
    network["right"].weight = network["left"].weight
    assert parameter_count(network) == 6 + 2 + 2 + 6
    assert weight_bytes(network) == 4 * parameter_count(network)


@pytest.mark.parametrize("generations", range(4))
@pytest.mark.parametrize("builder", ["perceptron", "without_bias", "normalised"])
def test_the_work_is_that_of_the_formula(builder: str, generations: int) -> None:
    plain = BUILDERS[builder](6)
    expected = 0
    for linear in (module for module in plain.modules() if isinstance(module, nn.Linear)):
        f, c = linear.in_features, linear.out_features
        expected += c * (f * (generations + 1) + generations * (generations + 1) // 2)
    network = grown(builder, 6, generations)
    for samples in (1, 2, 7):
        assert multiply_accumulates(network, inputs_for(builder, samples)) == expected
        assert multiply_accumulates(fold(network), inputs_for(builder, samples)) == expected


class Attention(nn.Module):
    """A sequence that looks at itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, weights: bool = False) -> Tensor:
        y: Tensor = self.layer(x, x, x, need_weights=weights)[0]
        return y


LOOKING = 4 * 7 * 8 * 8 + 2 * 7 * 7 * 8  # 7 steps of 8 numbers: four projections, their products, and the sums
# A layer, the shape of a sample, and its multiply-accumulates counted by hand.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear on maps": (lambda: nn.Linear(8, 5), (3, 2, 8), 3 * 2 * 8 * 5),
    "convolution": (lambda: nn.Conv2d(3, 5, 3, padding=1), (3, 6, 8), 6 * 8 * 5 * 3 * 9),
    "with strides": (lambda: nn.Conv2d(3, 5, 3, stride=2, bias=False), (3, 7, 9), 3 * 4 * 5 * 3 * 9),
    "depthwise": (lambda: nn.Conv1d(4, 4, 3, groups=4), (4, 9), 7 * 4 * 3),
    "transposed": (lambda: nn.ConvTranspose1d(3, 5, 2), (3, 6), 6 * 3 * 5 * 2),
    "lstm": (lambda: nn.LSTM(8, 5, batch_first=True), (7, 8), 7 * 4 * 5 * (8 + 5)),
    "lstm of two layers": (
        lambda: nn.LSTM(8, 5, num_layers=2, batch_first=True),
        (7, 8),
        7 * 4 * 5 * (8 + 5) + 7 * 4 * 5 * (5 + 5),
    ),
    "both ways": (lambda: nn.LSTM(8, 5, bidirectional=True, batch_first=True), (7, 8), 2 * 7 * 4 * 5 * (8 + 5)),
    "gru": (lambda: nn.GRU(8, 5, batch_first=True), (7, 8), 7 * 3 * 5 * (8 + 5)),
    "rnn": (lambda: nn.RNN(8, 5, batch_first=True), (7, 8), 7 * 5 * (8 + 5)),
    "attention": (Attention, (7, 8), LOOKING),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (7, 8), LOOKING + 2 * 7 * 8 * 16),
    "nothing but elementwise work": (lambda: nn.LayerNorm(8), (7, 8), 0),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_count_as_by_hand(name: str, frozen: bool) -> None:
    build, shape, expected = LAYERS[name]
    layer = build().requires_grad_(not frozen)  # fused kernels are for what takes no gradient
    assert multiply_accumulates(layer, torch.randn(2, *shape)) == expected


def test_weights_of_attention_cost_nothing_more() -> None:
    x = torch.randn(2, 7, 8)
    assert multiply_accumulates(Attention(), (x, True)) == multiply_accumulates(Attention(), (x, False))


def test_networks_without_dendrites_count_as_torch_counts() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 3))
    x = torch.randn(2, 3, 6, 6)
    with FlopCounterMode(display=False) as counter:
        network.eval()(x)
    assert multiply_accumulates(network, x) == counter.get_total_flops() / 2 / len(x)


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv1d(6, 5, 3)])
def test_small_dendrites_count_their_few_products(layer: nn.Module) -> None:
    shape, positions = ((6,), 1) if isinstance(layer, nn.Linear) else ((6, 9), 7)
    x = torch.randn(2, *shape)
    network = nn.Sequential(layer)
    plain = multiply_accumulates(network, x)
    (module,) = attach(network, DendriteSpec(fan_in=2)).values()
    for _ in range(2):
        module.accept(module.generation())
    # Two dendrites of two inputs each; one sees the other; both reach their neuron.
    assert multiply_accumulates(network, x) == plain + positions * 5 * (2 * 2 + 1 + 2)


class Named(nn.Module):
    """Takes arguments by name, and returns one tensor among others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Any]:
        return {"name": "sum", "y": self.layer(left) + self.layer(right)}


def test_inputs_are_arguments_as_in_training() -> None:
    left, right = torch.randn(2, 4, 3)
    assert multiply_accumulates(Named(), {"left": left, "right": right}) == 2 * 6
    assert multiply_accumulates(Named(), (left, right)) == 2 * 6


def test_outputs_without_rows_are_refused() -> None:
    class Total(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sum()

    with pytest.raises(InputError, match="no tensor with a row for each sample"):
        multiply_accumulates(Total(3, 2), torch.randn(2, 3))


@pytest.mark.parametrize("training", [False, True])
def test_counting_changes_nothing(training: bool) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    network = nn.Sequential(grown("normalised", 3, 2), nn.LSTM(3, 2), Last(), Noisy()).train(training)
    before, stream = state_of(network), torch.get_rng_state()
    modes = [part.training for part in network.modules()]
    flags = kernel_flags()
    multiply_accumulates(network, inputs_for("normalised", 4))
    assert_same_state(before, network)
    assert torch.equal(torch.get_rng_state(), stream)
    assert [part.training for part in network.modules()] == modes
    assert kernel_flags() == flags
    assert not any(part._forward_hooks for part in network.modules())


class Last(nn.Module):
    def forward(self, outputs: tuple[Tensor, Any]) -> Tensor:
        return outputs[0]


def kernel_flags() -> list[bool]:
    attention = torch.backends.cuda
    return [
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
        attention.flash_sdp_enabled(),
        attention.mem_efficient_sdp_enabled(),
        attention.math_sdp_enabled(),
    ]


def test_a_network_that_fails_leaves_all_as_it_was() -> None:
    network = nn.Sequential(nn.LSTM(3, 2), nn.Linear(2, 2)).train()
    flags = kernel_flags()
    with pytest.raises(TypeError):
        multiply_accumulates(network, torch.randn(2, 3))
    assert kernel_flags() == flags
    assert all(part.training for part in network.modules())
    assert torch.ones(1).add(1) == 2


def test_counting_does_not_load_the_compiler() -> None:
    lines = [
        "import sys, torch",
        "from pbp_search.dendrites import multiply_accumulates",
        "assert multiply_accumulates(torch.nn.LSTM(2, 3), torch.ones(2, 4, 2)) > 0",
        "assert 'torch._dynamo' not in sys.modules",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


@pytest.mark.parametrize(("inputs", "index"), [(256, 1), (257, 2), (65537, 4)])
def test_an_index_counts_in_as_few_bytes_as_it_takes(inputs: int, index: int) -> None:
    network = nn.Sequential(nn.Linear(inputs, 3))
    before = weight_bytes(network)
    (module,) = attach(network, DendriteSpec(fan_in=5)).values()
    module.accept(module.generation())
    assert weight_bytes(network) - before == 3 * 5 * (4 + index) + 3 * 4 + 3 * 4  # biases, and W
    assert weight_bytes(fold(network)) == weight_bytes(network)
