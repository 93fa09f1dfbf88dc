"""Planned chains: trained as they are given, beside the search, which does not see them."""

from collections.abc import Sequence
from typing import Any

import pytest
from torch import nn

from pbp_search.errors import TaskError
from pbp_search.home import Home
from pbp_search.search import Rung, Study
from pbp_search.search.plans import Planned
from pbp_search.search.rungs import Plan
from pbp_search.training import Data, Step, TrialConfig, is_deep, linear_network
from tests.quick_studies import Dots, checkpoint_file, quick_config, quick_study, recorded

TRIALS = 9
WANTED = Planned("1", 1)


def plan(*steps: Step, group: int = 0, **changes: object) -> Plan:
    config = quick_config(**changes)
    return Plan(comparison="1", arm="arm", group=group, replicate=0, start=0, config=config, steps=steps)


PLANS = [
    plan("grow", "grow", width=3),
    plan("prune", "prune", "prune", group=1, width=40),
    plan("grow", "prune", group=2, width=5),
    plan(group=3, width=1, network="linear"),
]


@pytest.fixture
def study(home: Home) -> Study:
    study = quick_study(home)
    study.run(Dots(), TRIALS)
    return study


def planned(study: Study) -> list[Rung]:
    return [rung for rung in study.rungs() if rung.plan is not None]


def chain(study: Study, wanted: Plan) -> list[Rung]:
    return [rung for rung in planned(study) if rung.plan is not None and rung.plan.group == wanted.group]


def run(study: Study, plans: Sequence[Plan], workers: int = 1) -> None:
    study.plan(dict.fromkeys(plans, 0))
    study.run(Dots(), WANTED, workers=workers)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_planned_chains_take_their_steps(study: Study, workers: int) -> None:
    before = len(study.finished())
    run(study, PLANS, workers=workers)
    for wanted in PLANS:
        rungs = chain(study, wanted)
        assert [rung.parent for rung in rungs] == [None, *(rung.trial for rung in rungs[:-1])]
        seeded = wanted.config.model_copy(update={"seed": rungs[0].milestone.config.seed})
        assert {rung.milestone.config for rung in rungs} == {seeded}
        assert rungs[0].params["width"] == wanted.config.width
        taken = [rung.milestone.requested + rung.milestone.pruned for rung in rungs]
        assert taken == list(range(len(rungs)))
        assert len(rungs) == 1 + len(wanted.steps) or not rungs[-1].milestone.accepted
        assert all(checkpoint_file(study, rung.trial).exists() for rung in rungs)
    assert chain(study, PLANS[1])[-1].milestone.pruned == 3
    assert len(planned(study)) == len(study.finished()) - before
    assert not study.failures()
    assert recorded(study.folder.home, study.name) == {trial.number for trial in study.finished()}


def test_chains_that_are_there_are_not_planned_again(study: Study) -> None:
    run(study, PLANS[:1])
    before = [trial.number for trial in study.finished()]
    run(study, PLANS[:1])
    assert [trial.number for trial in study.finished()] == before
    run(study, PLANS[:2])
    assert len(study.finished()) == len(before) + 4


def test_the_search_does_not_see_planned_chains(study: Study) -> None:
    run(study, PLANS)
    assert study.progress().finished == TRIALS
    assert study.run(Dots(), TRIALS) is not None
    assert study.progress().finished == TRIALS, "they count to no number of trials"
    study.run(Dots(), 3 * TRIALS)
    assert study.progress().finished == 3 * TRIALS
    mine = {rung.trial for rung in planned(study)}
    for rung in study.rungs():
        assert (rung.parent in mine) == (rung.plan is not None and rung.parent is not None)
    assert len(mine) == len(planned(study))


def test_a_run_with_a_number_of_trials_leaves_planned_chains_waiting(study: Study) -> None:
    study.plan(dict.fromkeys(PLANS, 0))
    study.run(Dots(), TRIALS + 2)
    assert not planned(study)
    study.run(Dots(), WANTED)
    assert len(planned(study)) >= len(PLANS)
    assert study.progress().finished == TRIALS + 2


def test_planned_networks_are_on_the_front(study: Study) -> None:
    run(study, [plan(width=1, network="linear", group=number) for number in range(3)])
    smallest = study.front().points[0].payload
    assert smallest.milestone.parameters == 6 or smallest.milestone.size("parameters") < 6
    assert study.checkpoint(planned(study)[0].trial).network(Dots())(Dots().data().test.inputs).shape[1] == 2


class Deep(Dots):
    """With more layers, if it is asked for them."""

    def model(self, width: int, depth: int = 1) -> nn.Module:
        layers = [nn.Linear(2 if layer == 0 else width, width) for layer in range(depth)]
        return nn.Sequential(*layers, nn.Linear(width, 2))


def test_networks_of_another_depth(home: Home) -> None:
    study = quick_study(home, Deep())
    study.run(Deep(), 1)
    study.plan({plan(width=2, depth=3): 0})
    study.run(Deep(), WANTED)
    assert planned(study)[0].milestone.parameters == 6 + 6 + 6 + 6
    assert is_deep(Deep())
    assert not is_deep(Dots())


class Pairs(Dots):
    def data(self) -> Data[Any]:
        data = super().data()
        batches: list[Any] = [[({"x": part.inputs}, part.targets)] for part in (data.train, data.validation, data.test)]
        return Data(*batches)


def test_inputs_that_are_no_tensor_have_no_linear_network() -> None:
    class Named(nn.Module):
        def forward(self, x: object) -> object:
            return x

    class Task(Pairs):
        def model(self, width: int) -> nn.Module:
            return Named()

    with pytest.raises(TaskError, match="has no linear network"):
        linear_network(Task(), Task().data().train)


def test_a_configuration_says_which_network() -> None:
    assert TrialConfig(width=2).network == "task"
    assert TrialConfig.from_dict(TrialConfig(width=2, network="linear", depth=3).to_dict()).depth == 3
