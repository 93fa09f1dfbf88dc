from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from pbp_search.search.configurations import Collapsed, ConfigurationView
from pbp_search.search.rungs import CONFIGURATION, DENDRITES, PARENT

DISTRIBUTIONS = {DENDRITES: IntDistribution(0, 3), "x": FloatDistribution(0, 1)}


def study_with(*rungs: tuple[int | None, Sequence[float] | TrialState]) -> optuna.Study:
    """A study of trials: which configuration each belongs to (None for one of its own), and its values or state."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    for number, (root, reached) in enumerate(rungs):
        state, values = (reached, None) if isinstance(reached, TrialState) else (TrialState.COMPLETE, reached)
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=values,
                params={DENDRITES: 0 if root is None else 1, "x": number / 100},
                distributions=DISTRIBUTIONS,
                user_attrs={} if root is None else {CONFIGURATION: root, PARENT: root},
            )
        )
    return study


def view_of(study: optuna.Study, asking: int = 1000) -> ConfigurationView:
    return ConfigurationView(study, asking, Collapsed())


def values_in(study: optuna.Study) -> dict[int, Any]:
    return {trial.number: trial.values for trial in view_of(study).get_trials()}


def test_each_configuration_is_one_trial_without_its_rung() -> None:
    study = study_with((None, [0.5, 2.0]), (0, [0.6, 2.1]), (None, [0.7, 3.0]))
    trials = view_of(study).trials
    assert [trial.number for trial in trials] == [0, 2]
    assert [trial.params for trial in trials] == [{"x": 0.0}, {"x": 0.02}]
    assert [trial.distributions for trial in trials] == [{"x": DISTRIBUTIONS["x"]}] * 2
    assert [trial.params[DENDRITES] for trial in study.trials] == [0, 1, 0], "the study itself is as it was"


def test_a_configuration_has_the_values_of_its_first_rung_on_the_front() -> None:
    # Both rungs are on the front: the first one's. A promotion alone changes nothing.
    both = [(None, [0.5, 2.0]), (0, [0.6, 2.1])]
    assert values_in(study_with(*both)) == {0: [0.5, 2.0]}
    # The first is dominated by another configuration, the second is not.
    other = (None, [0.55, 2.0])
    assert values_in(study_with(*both, other)) == {0: [0.6, 2.1], 2: [0.55, 2.0]}
    # None of them is on the front any more: the first one's again.
    assert values_in(study_with(*both, other, (None, [0.9, 1.0]))) == {0: [0.5, 2.0], 2: [0.55, 2.0], 3: [0.9, 1.0]}


@pytest.mark.parametrize("rung", [[0.5, 2.0], [0.4, 2.0], [0.5, 2.5], TrialState.FAIL])
def test_a_rung_that_is_no_better_is_not_seen(rung: Any) -> None:
    study = study_with((None, [0.5, 2.0]), (None, [0.3, 2.2]), (1, [0.35, 2.3]), (0, rung))
    assert values_in(study) == {0: [0.5, 2.0], 1: [0.3, 2.2]}


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.WAITING])
def test_a_promoted_rung_that_is_not_finished_does_not_change_its_configuration(state: TrialState) -> None:
    (trial,) = view_of(study_with((None, [0.5, 2.0]), (0, state))).trials
    assert trial.state == TrialState.COMPLETE
    assert trial.values == [0.5, 2.0]


def test_first_rungs_keep_their_state_and_failures_are_seen() -> None:
    states = [TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL]
    view = view_of(study_with(*((None, state) for state in states)))
    assert [trial.state for trial in view.trials] == states
    assert [trial.number for trial in view.get_trials(states=(TrialState.RUNNING,))] == [0]


def test_the_trial_that_asks_is_not_seen() -> None:
    study = study_with((None, [0.5, 2.0]), (None, TrialState.RUNNING), (None, TrialState.RUNNING))
    assert [trial.number for trial in view_of(study, asking=1).trials] == [0, 2]


def test_what_is_known_is_brought_up_to_date_when_a_trial_finishes() -> None:
    study = study_with((None, [0.5, 2.0]), (None, TrialState.RUNNING), (0, [0.6, 2.1]))
    known = Collapsed()

    def seen() -> list[FrozenTrial]:
        return ConfigurationView(study, 1000, known).get_trials(deepcopy=False)

    earlier = ConfigurationView(study, 1000, known)
    assert [trial.values for trial in seen()] == [trial.values for trial in earlier.trials] == [[0.5, 2.0], None]
    study.tell(1, [0.55, 1.9])
    assert [trial.values for trial in seen()] == [[0.6, 2.1], [0.55, 1.9]]
    assert [trial.values for trial in earlier.trials] == [[0.5, 2.0], None], "it stays as it first was"
    assert seen()[0] is seen()[0], "made once"
    assert earlier.get_trials()[0] is not earlier.get_trials(deepcopy=False)[0], "a copy, unless it is not wanted"


def test_what_is_written_is_the_studys() -> None:
    study = study_with((None, TrialState.RUNNING))
    view = view_of(study)
    view._storage.set_trial_system_attr(view.trials[0]._trial_id, "generation", 7)
    view._storage.set_study_system_attr(view._study_id, "parents", [1])
    assert study.trials[0].system_attrs == {"generation": 7}
    assert study._storage.get_study_system_attrs(study._study_id)["parents"] == [1]
    assert view.directions == study.directions
