"""The controls and the forms of dendrites in the cycle."""

from typing import Any

import pytest
import torch

from pbp_search.dendrites import DendriteSpec, dendritic_modules, fold, parameter_count
from pbp_search.training import Checkpoint, run_chain
from tests.training.tiny_tasks import Bowl, assert_same_checkpoint, config

VARIANTS = ("perforated", "joint", "gradient", "random", "sham")


def chain(dendrites: int = 2, **spec: Any) -> list[Checkpoint]:
    return run_chain(Bowl(), config(dendrites=DendriteSpec(**spec)), dendrites)


@pytest.fixture(scope="module")
def chains() -> dict[str, list[Checkpoint]]:
    return {variant: chain(variant=variant) for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_through_the_cycle(variant: str, chains: dict[str, list[Checkpoint]]) -> None:
    first, *later = chains[variant]
    assert later
    assert [checkpoint.milestone.requested for checkpoint in later] == list(range(1, len(later) + 1))
    for checkpoint in (first, *later):
        network = checkpoint.network(Bowl())
        assert parameter_count(fold(network)) == checkpoint.milestone.parameters
    # All variants begin with the same network.
    for name, value in chains["perforated"][0].weights.items():
        assert torch.equal(value, first.weights[name])


def test_only_dendrites_that_learn_an_objective_have_a_dendrite_phase(chains: dict[str, list[Checkpoint]]) -> None:
    for variant, checkpoints in chains.items():
        phases = {epoch.phase for checkpoint in checkpoints for epoch in checkpoint.history}
        learned = variant in ("perforated", "joint")
        assert ("dendrite" in phases) == learned
        assert any(checkpoint.milestone.growth for checkpoint in checkpoints) == learned


def test_sham_trains_again_and_grows_nothing(chains: dict[str, list[Checkpoint]]) -> None:
    first, second, *_ = chains["sham"]
    assert second.milestone.parameters == first.milestone.parameters
    assert second.milestone.epochs > first.milestone.epochs
    assert not any("dendrites." in name for name in second.weights)


def test_random_dendrites_stay_as_they_started_and_unfrozen_ones_learn(
    chains: dict[str, list[Checkpoint]],
) -> None:
    for variant, moved in (("random", False), ("perforated", False), ("gradient", True), ("joint", True)):
        second, third = chains[variant][1:3]
        names = [name for name in second.weights if ".dendrites.0." in name and second.weights[name].numel()]
        assert names
        assert all(torch.equal(second.weights[name], third.weights[name]) != moved for name in names)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_the_same_for_the_same_seed(variant: str, chains: dict[str, list[Checkpoint]]) -> None:
    torch.manual_seed(99)
    for left, right in zip(chain(variant=variant), chains[variant], strict=True):
        assert_same_checkpoint(left, right)


def test_dendrites_of_a_few_inputs_have_fewer_parameters() -> None:
    whole, small = chain(1)[1].milestone, chain(1, fan_in=1, pool=4)[1].milestone
    assert whole.accepted
    assert small.accepted
    assert small.parameters < whole.parameters
    assert small.weight_bytes > 4 * small.parameters, "indices are counted in bytes"


def test_two_dendrites_a_neuron_are_one_generation() -> None:
    _, second, *_ = chain(1, pool=4, per_neuron=2)
    assert second.milestone.dendrites == 1
    modules = dendritic_modules(second.network(Bowl()))
    assert all(len(module.dendrites) == 2 for module in modules.values())
    incoming = [dendrite.get_parameter("incoming") for module in modules.values() for dendrite in module.dendrites]
    assert all(len(rows) == 0 for rows in incoming)


def test_dendrites_go_where_the_placement_says() -> None:
    for placement, name in (("head", "2"), ("first", "0")):
        checkpoint = chain(1, placement=placement)[-1]
        assert list(dendritic_modules(checkpoint.network(Bowl()))) == [name]


def test_a_tasks_adapters_are_used() -> None:
    class Other(Bowl):
        adapters = {"missing": object()}  # noqa: RUF012

    with pytest.raises(Exception, match=r"The adapter of 'missing' fits no module"):
        run_chain(Other(), config(), 0)
