from typing import Any

import pytest
import torch
from torch import nn

from pbp_search.errors import TaskError
from pbp_search.search import Range, SearchSpace
from pbp_search.search.families import FAMILIES, family_of
from tests.quick_studies import Dots


class SelfAttention(nn.Module):
    """Somebody's own."""


class Cells(nn.MultiheadAttention):
    """Attention by another name."""


NETWORKS: dict[str, list[nn.Module]] = {
    "perceptron": [nn.Linear(2, 3), nn.Embedding(2, 3), nn.Sequential(nn.Linear(2, 3), nn.ReLU())],
    "convolutional": [nn.Conv1d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.ConvTranspose3d(1, 1, 1), nn.LazyConv2d(1, 1)],
    "recurrent": [
        nn.LSTM(2, 3),
        nn.GRU(2, 3),
        nn.RNN(2, 3),
        nn.GRUCell(2, 3),
        nn.ModuleList([nn.Conv1d(1, 1, 1), nn.RNN(1, 1)]),
    ],
    "transformer": [
        nn.TransformerEncoderLayer(4, 2, batch_first=True),
        SelfAttention(),
        Cells(4, 2),
        nn.ModuleList([nn.Conv2d(1, 1, 1), nn.LSTM(2, 3), SelfAttention()]),
    ],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_has_the_family_of_its_modules(family: str) -> None:
    for network in NETWORKS[family]:
        assert family_of(nn.Sequential(nn.Sequential(network), nn.Linear(3, 2))) == family


class Of(Dots):
    """A task with a network of a family."""

    def __init__(self, network: nn.Module, **attributes: Any) -> None:
        self.network = network
        for name, value in attributes.items():
            setattr(self, name, value)

    def model(self, width: int) -> nn.Module:
        assert width == 1, "the smallest"
        torch.rand(3)
        return self.network


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_space_is_the_familys_over_the_tasks_widths(family: str) -> None:
    for network in NETWORKS[family]:
        assert SearchSpace.for_task(Of(network)) == SearchSpace(width=(1, 4), **FAMILIES[family])


def test_families_differ_where_there_is_a_reason() -> None:
    def space(family: str) -> SearchSpace:
        return SearchSpace.for_task(Of(NETWORKS[family][0]))

    assert space("perceptron") == space("convolutional") == SearchSpace(width=(1, 4))
    assert space("perceptron").learning_rate == Range(1e-3, 3e-2, log=True)
    assert space("transformer").learning_rate == Range(1e-4, 3e-3, log=True)
    assert space("recurrent").gradient_clip == 1.0


def test_looking_at_a_network_leaves_the_global_stream_alone() -> None:
    task = Of(nn.Linear(2, 2))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    SearchSpace.for_task(task)
    assert torch.equal(torch.rand(3), expected)


def test_a_task_brings_its_own_space() -> None:
    attention = NETWORKS["transformer"][0]
    partial = {"width": [2, 3], "nonlinearity": ["tanh", "relu"]}
    expected = SearchSpace(width=[2, 3], nonlinearity=["tanh", "relu"], learning_rate=(1e-4, 3e-3))
    assert SearchSpace.for_task(Of(attention, space=partial)) == expected
    assert SearchSpace.for_task(Of(attention, space=SearchSpace(width=7))) == SearchSpace(width=7)
    assert SearchSpace.for_task(Of(attention, space=None)) == SearchSpace.for_task(Of(attention))


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"widht": 3}, "SearchSpace: there is no setting 'widht': did you mean 'width'?"),
        ({3: 3}, "SearchSpace: there is no setting 3: there are width, "),
        ({"width": 0}, "SearchSpace: width is 0: input should be greater than or equal to 1"),
        ({"pool": (1, 3), "per_neuron": 2}, "SearchSpace: per_neuron can be 2 where the pool has 1 candidates"),
        ("width = 3", "it is str, not a mapping or a SearchSpace."),
    ],
)
def test_a_bad_space_of_a_task_is_a_sentence(space: object, sentence: str) -> None:
    with pytest.raises(TaskError) as caught:
        SearchSpace.for_task(Of(nn.Linear(2, 2), space=space))
    assert str(caught.value).startswith(f"The task Of has a space that cannot be used: {sentence}")


@pytest.mark.parametrize("error", [LookupError("no network"), SystemExit("no network")])
def test_a_network_that_fails_is_a_sentence(error: BaseException) -> None:
    class Fails(Dots):
        def model(self, width: int) -> nn.Module:
            raise error

    with pytest.raises(TaskError, match=r"^The task Fails: its smallest network failed: .*: no network$"):
        SearchSpace.for_task(Fails())
