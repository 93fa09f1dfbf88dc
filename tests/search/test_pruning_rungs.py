"""Studies whose rungs prune, too."""

import optuna
import pytest

from pbp_search.errors import SettingsError
from pbp_search.home import Home
from pbp_search.search import Rung, Study
from pbp_search.search.configurations import Collapsed, ConfigurationView
from pbp_search.search.rungs import step_of
from tests.quick_studies import Dots, quick_space, quick_study

SPACE = quick_space(width=4, prunings=2, prune_share=0.5)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = quick_study(Home.at(tmp_path_factory.mktemp("home")), space=SPACE)
    study.run(Dots(), 40)
    return study


def optunas(study: Study) -> list[optuna.trial.FrozenTrial]:
    return study._optuna.get_trials()


def continuations(study: Study) -> list[tuple[Rung, Rung]]:
    rungs = {rung.trial: rung for rung in study.rungs()}
    return [(rungs[rung.parent], rung) for rung in rungs.values() if rung.parent is not None]


def test_milestones_grow_and_are_pruned(study: Study) -> None:
    pairs = continuations(study)
    taken = {step_of(optunas(study)[later.trial]) for _, later in pairs}
    assert taken == {"grow", "prune"}
    for before, later in pairs:
        one, other = before.milestone, later.milestone
        assert one.config == other.config
        if step_of(optunas(study)[later.trial]) == "prune":
            assert (other.dendrites, other.pruned) == (one.dendrites, one.pruned + 1)
            assert other.parameters < one.parameters
        else:
            assert (other.requested, other.pruned) == (one.dendrites + 1, one.pruned)
    assert max(later.milestone.pruned for _, later in pairs) == 2


def test_each_step_is_taken_once(study: Study) -> None:
    taken = [(before.trial, step_of(optunas(study)[later.trial])) for before, later in continuations(study)]
    assert len(taken) == len(set(taken))
    assert any((trial, "grow") in taken and (trial, "prune") in taken for trial, _ in taken)


def test_trials_tell_their_rung_and_samplers_do_not_see_it(study: Study) -> None:
    for rung in study.rungs():
        assert (rung.params["dendrites"], rung.params["pruned"]) == (rung.milestone.requested, rung.milestone.pruned)
    for trial in ConfigurationView(study._optuna, -1, Collapsed()).get_trials():
        assert not {"dendrites", "pruned"} & trial.params.keys()
        assert not {"dendrites", "pruned"} & trial.distributions.keys()


def test_pruned_networks_are_on_the_front_and_can_be_loaded(study: Study) -> None:
    pruned = [point for point in study.front() if point.payload.milestone.pruned]
    assert pruned
    for point in pruned:
        checkpoint = study.checkpoint(point.payload.trial)
        assert checkpoint.milestone == point.payload.milestone
        assert point.payload.row()["pruned"] == point.payload.milestone.pruned


def test_a_continued_study_is_the_same(study: Study, home: Home) -> None:
    other = quick_study(home, space=SPACE)
    for trials in (7, 19, 40):
        other.run(Dots(), trials)
    for one, two in zip(study.rungs(), other.rungs(), strict=True):
        assert (one.trial, one.parent, one.params, one.milestone.score) == (
            two.trial,
            two.parent,
            two.params,
            two.milestone.score,
        )


def test_without_pruning_steps_no_trial_speaks_of_them(home: Home) -> None:
    study = quick_study(home)
    study.run(Dots(), 3)
    assert all("pruned" not in trial.params and "prune_share" not in trial.params for trial in optunas(study))


def test_enqueued_configurations_start_unpruned(home: Home) -> None:
    study = quick_study(home, space=SPACE)
    study._optuna.enqueue_trial({"pruned": 1})
    study._optuna.enqueue_trial({"dendrites": 0})
    study.run(Dots(), 2)
    assert list(study.failures()) == [0]
    assert "A new configuration starts with pruned=0, not 1" in study.failures()[0]


def test_multiply_accumulates_are_not_pruned(home: Home) -> None:
    with pytest.raises(SettingsError, match=r"has pruning steps \(2\), and the size is macs"):
        quick_study(home, space=SPACE, size="macs")
