"""Placements by name: subclasses, and what is left out."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pbp_search.dendrites import DendriteSpec, attach, grow, record
from pbp_search.errors import UnsupportedModuleError
from tests.dendrites.grown_networks import in_batches


class Causal(nn.Conv1d):
    """Looks only backwards: a subclass whose forward pass is not that of its class."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.pad(input, (2, 0)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Causal(2, 3, 3), nn.ReLU(), nn.Conv1d(3, 3, 1), nn.Flatten(), nn.Linear(24, 2))


def test_a_subclass_is_left_alone_with_the_reason() -> None:
    placement = attach(network())
    assert list(placement) == ["2", "4"]
    assert str(placement).splitlines()[0] == (
        "0  Causal  no: a subclass may compute something else: name it in the placement"
    )


def test_a_subclass_that_is_named_grows_dendrites_that_compute_what_it_computes() -> None:
    net, inputs, targets = network(), torch.randn(40, 2, 8), torch.randn(40, 2)
    module = attach(net, DendriteSpec(placement=("0",)))["0"]
    kept = record(net, lambda outputs, y: (outputs - y).square().sum(1), in_batches(inputs, targets, 5))["0"]
    generation, _ = grow(module, kept, lambda: lambda score: True, torch.Generator().manual_seed(0))
    module.accept(generation)
    (activation,) = module.activations(inputs)
    own = generation[0].module
    assert isinstance(own, Causal)
    torch.testing.assert_close(activation, torch.tanh(own(inputs)))


@pytest.mark.parametrize(
    ("patterns", "wrapped"), [(("*", "!2"), ["0", "4"]), (("[0-2]", "!0"), ["2"]), (("!4", "*"), ["0", "2"])]
)
def test_a_pattern_with_an_exclamation_mark_leaves_out(patterns: tuple[str, ...], wrapped: list[str]) -> None:
    assert list(attach(network(), DendriteSpec(placement=patterns))) == wrapped


def test_a_pattern_that_leaves_out_nothing_is_a_mistake() -> None:
    with pytest.raises(UnsupportedModuleError, match=r"The placement '!head' fits no module: there are 2, 4\."):
        attach(network(), DendriteSpec(placement=("2", "!head")))
