"""Pruning steps: what goes, what stays, and what a pruned network counts."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pbp_search.dendrites import DendriteSpec, attach, dendritic_modules, fold, parameter_count, weight_bytes
from pbp_search.errors import SettingsError
from pbp_search.training import Checkpoint, Data, Fixed, run_chain, run_rung
from pbp_search.training.pruning import left, left_after, prunable, prune, stored_bytes, stored_parameters
from tests.training.tiny_tasks import Bowl, BowlWithDropout, assert_same_checkpoint, config

PRUNED = config(width=4, prune_share=0.5, weight_decay=0.01)


def pruned(previous: Checkpoint, task: Any = None, **given: Any) -> Checkpoint:
    return run_rung(task or Bowl(), previous.milestone.config, previous, step="prune", **given)


def zeros(checkpoint: Checkpoint, task: Any) -> dict[str, torch.Tensor]:
    network = checkpoint.network(task)
    chosen = {id(weight) for weight in prunable(network)}
    return {name: weight == 0 for name, weight in network.named_parameters() if id(weight) in chosen}


class BowlWithMomentum(Bowl):
    name = "bowl_with_momentum"

    def optimiser(self, groups: Any, given: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, given.learning_rate, momentum=0.9, weight_decay=0.01)


@pytest.fixture(scope="module")
def plain() -> Checkpoint:
    return run_rung(Bowl(), PRUNED)


@given(st.lists(st.integers(2, 6), min_size=2, max_size=4), st.floats(0, 0.95), st.integers(0, 99))
def test_the_smallest_weights_of_all_layers_go(widths: list[int], share: float, seed: int) -> None:
    torch.manual_seed(seed)
    network = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(widths)))
    weights = torch.cat([weight.detach().abs().flatten() for weight in prunable(network)])
    biases = [layer.get_parameter("bias").detach().clone() for layer in network]
    prune(network, share)
    after = torch.cat([weight.detach().abs().flatten() for weight in prunable(network)])
    gone = after == 0
    assert int((~gone).sum()) == left(network) == left_after(len(weights), share)
    assert torch.equal(after[~gone], weights[~gone])
    if gone.any() and not gone.all():
        assert weights[gone].max() <= weights[~gone].min()
    for layer, bias in zip(network, biases, strict=True):
        assert torch.equal(layer.get_parameter("bias"), bias)


def test_steps_share_what_is_left() -> None:
    network = nn.Linear(16, 16)
    counts = []
    for _ in range(4):
        prune(network, 0.5)
        counts.append(left(network))
    assert counts == [128, 64, 32, 16]


def test_a_network_without_weights_left_stays_as_it_is() -> None:
    network = nn.Linear(3, 2)
    nn.init.zeros_(network.weight)
    prune(network, 0.5)
    assert left(network) == 0


class Scaled(nn.Module):
    """What modules of one's own keep: scales, biases and positions, in shapes that broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.shift = nn.Parameter(torch.ones(1, 8))
        self.positions = nn.Parameter(torch.ones(1, 5, 8))
        self.steps = nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.Linear(3, 1), ["weight"]),
        (nn.Conv2d(2, 1, 3), ["weight"]),
        (nn.GRU(3, 4), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.LayerNorm((3, 4)), []),
        (nn.BatchNorm1d(3), []),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), []),
        (Scaled(), ["positions"]),
        (nn.Tanh(), []),
    ],
)
def test_what_is_a_weight(module: nn.Module, names: list[str]) -> None:
    chosen = {id(weight) for weight in prunable(module)}
    assert [name for name, one in module.named_parameters() if id(one) in chosen] == names


def test_a_network_without_weights_is_left_alone() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.PReLU())
    prune(network, 0.5)
    assert left(network) == 0
    assert stored_parameters(network) == 7
    assert stored_bytes(network) == weight_bytes(network)


def test_pruned_dendrites_need_no_index_of_what_is_gone() -> None:
    network = nn.Sequential(nn.Linear(400, 3))
    (module,) = attach(network, DendriteSpec(fan_in=50)).values()
    module.accept(module.generation())
    dendrite = next(weight for weight in prunable(network) if weight.shape == (3, 50))
    full = stored_bytes(network)
    with torch.no_grad():
        dendrite[:, 4:] = 0
    assert full - stored_bytes(network) == 150 * (4 + 2) - (12 * (4 + 2) + 4 * 3)


def test_connections_of_dendrites_are_not_pruned() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    for module in attach(network, DendriteSpec(fan_in=2)).values():
        for _ in range(2):
            module.accept(module.generation())
    connections = [module.outgoing for module in dendritic_modules(network).values()]
    before = [weight.detach().clone() for weight in connections]
    names = {name for name, one in network.named_parameters() if any(one is weight for weight in prunable(network))}
    assert {name.rsplit(".", 1)[1] for name in names} == {"weight"}
    assert sum("dendrites" in name for name in names) == 4
    prune(network, 0.9)
    assert all(torch.equal(weight, old) for weight, old in zip(connections, before, strict=True))


def test_a_step_leaves_a_smaller_network_that_has_trained(plain: Checkpoint) -> None:
    first = pruned(plain)
    milestone = first.milestone
    assert (milestone.pruned, milestone.dendrites, milestone.requested) == (1, 0, 0)
    assert milestone.accepted
    network = plain.network(Bowl())
    assert milestone.parameters == plain.milestone.parameters - (left(network) - left_after(left(network), 0.5))
    assert milestone.epochs == plain.milestone.epochs + len(first.history)
    assert {epoch.phase for epoch in first.history} == {"neuron"}
    assert not torch.equal(first.weights["0.module.bias"], plain.weights["0.module.bias"])


class BowlWithMuon(Bowl):
    """An optimiser whose step moves weights that take no gradient."""

    name = "bowl_with_muon"

    def model(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2, width, bias=False), nn.Tanh(), nn.Linear(width, 1, bias=False))

    def optimiser(self, groups: Any, given: Any) -> torch.optim.Optimizer:
        matrices = [p for group in groups for p in group["params"] if p.ndim == 2]
        return torch.optim.Muon(matrices, lr=given.learning_rate)


def test_muon_would_revive_weights_of_no_gradient() -> None:
    weight = nn.Parameter(torch.eye(3))
    optimiser = torch.optim.Muon([weight])
    weight.grad = torch.tensor([[1.0, 1, 0], [0, 1, 1], [1, 0, 1]]) * torch.tensor([[0.0], [1], [1]])
    weight.grad[0, 0] = 1
    optimiser.step()
    assert bool((weight[weight.grad == 0] != torch.eye(3)[weight.grad == 0]).any())


@pytest.mark.parametrize("task", [Bowl(), BowlWithMomentum(), BowlWithDropout()])
def test_pruned_weights_stay_zero_in_every_later_rung(task: Any) -> None:
    chain = [run_rung(task, PRUNED)]
    for step in ("prune", "prune", "grow", "prune"):
        chain.append(run_rung(task, PRUNED, chain[-1], step=step))
        assert chain[-1].milestone.accepted
    for one, later in pairwise(chain):
        before, after = zeros(one, task), zeros(later, task)
        for name, gone in before.items():
            assert bool(after[name][gone].all())
    sizes = [checkpoint.milestone.parameters for checkpoint in chain]
    assert sizes[0] > sizes[1] > sizes[2] < sizes[3] > sizes[4]
    assert [(one.milestone.dendrites, one.milestone.pruned) for one in chain] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 2),
        (1, 3),
    ]


def test_an_optimiser_that_ignores_gradients_of_zero_revives_nothing() -> None:
    chain = [run_rung(BowlWithMuon(), PRUNED)]
    for _ in range(2):
        chain.append(pruned(chain[-1], BowlWithMuon()))
    assert [int(sum(gone.sum() for gone in zeros(one, BowlWithMuon()).values())) for one in chain] == [0, 6, 9]


def test_a_dendritic_network_is_pruned_and_folds() -> None:
    given = config(width=4, dendrites=DendriteSpec(fan_in=2, pattern="chosen"))
    dendritic = run_chain(Bowl(), given, 1)[-1]
    assert dendritic.milestone.dendrites == 1
    checkpoint = pruned(dendritic)
    network = checkpoint.network(Bowl()).eval()
    assert any(".dendrites." in name and bool((value == 0).any()) for name, value in checkpoint.weights.items())
    inputs = torch.randn(9, 2)
    torch.testing.assert_close(fold(network)(inputs), network(inputs))
    assert checkpoint.milestone.parameters == stored_parameters(network) < parameter_count(network)


def test_a_step_repeats_bit_for_bit_and_draws_streams_of_its_own(plain: Checkpoint, tmp_path: Path) -> None:
    first = pruned(plain)
    plain.save(tmp_path / "milestone")
    assert_same_checkpoint(pruned(Checkpoint.load(tmp_path / "milestone")), first)
    second = pruned(first)
    assert second.history[0].values != first.history[0].values


def test_pruned_networks_take_the_smallest_form() -> None:
    network = nn.Linear(300, 4, bias=False)
    assert stored_bytes(network) == weight_bytes(network) == 4800
    with torch.no_grad():
        network.weight[:, 150:] = 0
    assert stored_bytes(network) == 4 * 600 + 150  # a bit for each weight
    with torch.no_grad():
        network.weight[:, 10:] = 0
    assert stored_bytes(network) == 40 * (4 + 2) + 4 * 4  # columns in 2 bytes, ends of rows in 4
    assert stored_parameters(network) == 40


def test_there_must_be_something_to_prune() -> None:
    with pytest.raises(SettingsError, match="nothing to prune yet"):
        run_rung(Bowl(), PRUNED, None, step="prune")


def test_after_a_generation_that_was_thrown_away_a_network_is_pruned_but_grows_no_more(plain: Checkpoint) -> None:
    thrown = Checkpoint(plain.milestone.model_copy(update={"requested": 1}), plain.weights)
    smaller = pruned(thrown)
    assert (smaller.milestone.requested, smaller.milestone.dendrites, smaller.milestone.pruned) == (1, 0, 1)
    with pytest.raises(SettingsError, match="this one's was thrown away"):
        run_rung(Bowl(), smaller.milestone.config, smaller)


def test_streams_of_data_are_pruned_too(plain: Checkpoint) -> None:
    data = Bowl().data()
    batches = [
        (data.train.inputs[at : at + 50], data.train.targets[at : at + 50])
        for at in range(0, len(data.train.inputs), 50)
    ]
    short = config(width=4, schedule=plain.milestone.config.schedule.model_copy(update={"neuron": Fixed(epochs=2)}))
    chain = [run_rung(Bowl(), short, data=Data(batches, data.validation, data.test))]
    chain.append(pruned(chain[0], data=Data(batches, data.validation, data.test)))
    assert chain[1].milestone.parameters < chain[0].milestone.parameters
