from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from joblib.externals.loky import get_reusable_executor
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from pbp_search.home import Home
from pbp_search.search import Study
from pbp_search.search.rungs import Rungs
from pbp_search.search.stagnation import stagnated
from pbp_search.training import Direction
from tests.quick_studies import Dots, finished_trial, milestone, other_trial, quick_study

GOOD, BETTER, SMALLER, WORSE = (0.5, 100), (0.9, 1000), (0.4, 10), (0.3, 500)


def trials_of(*pairs: tuple[float, int] | None) -> list[FrozenTrial]:
    """Trials of these scores and numbers of parameters, one finished after the other; None for failed ones."""
    trials = []
    for number, pair in enumerate(pairs):
        trial = other_trial(number, TrialState.FAIL) if pair is None else finished_trial(number, milestone(*pair))
        trial.datetime_complete = datetime(2026, 1, 1) + timedelta(seconds=number)
        trials.append(trial)
    return trials


def stagnates(trials: list[FrozenTrial], window: int, direction: Direction = "maximize") -> bool:
    return stagnated(trials, Rungs().of(trials), window, direction, "parameters")


@pytest.mark.parametrize("progress", [BETTER, SMALLER])
def test_a_better_or_a_smaller_network_is_progress(progress: tuple[float, int]) -> None:
    assert not stagnates(trials_of(GOOD, WORSE, progress), 1)
    assert not stagnates(trials_of(GOOD, progress, WORSE), 2)
    assert stagnates(trials_of(GOOD, progress, WORSE), 1)
    assert stagnates(trials_of(GOOD, progress, WORSE, None, WORSE), 3)


def test_a_box_that_grows_is_no_progress() -> None:
    assert stagnates(trials_of(GOOD, BETTER, (0.01, 10**6)), 1)


def test_less_than_a_thousandth_is_no_progress() -> None:
    assert stagnates(trials_of(GOOD, BETTER, SMALLER, (0.90001, 1000)), 1)
    assert not stagnates(trials_of(GOOD, BETTER, SMALLER, (0.91, 1000)), 1)


@pytest.mark.parametrize("size", [10, 50, 500], ids=["as small as the smallest", "in between", "large"])
@pytest.mark.parametrize("sign", [1, -1], ids=["minimize", "maximize"])
def test_a_score_that_diverged_hides_no_progress(sign: int, size: int) -> None:
    direction: Direction = "minimize" if sign > 0 else "maximize"

    def pairs(*some: tuple[float, int]) -> list[FrozenTrial]:
        return trials_of(*((sign * score, parameters) for score, parameters in some))

    before = [(1.0, 10), (0.5, 100), (1e12, size), (0.7, 90)]
    assert not stagnates(pairs(*before, (0.4, 100)), 1, direction)
    assert not stagnates(pairs(*before, (0.5, 80)), 1, direction)
    assert not stagnates(pairs(*before, (0.9, 10)), 1, direction)
    assert stagnates(pairs(*before, (0.6, 100)), 1, direction)
    assert stagnates(pairs(*before, (1e12, 600)), 1, direction)
    assert stagnates(pairs(*before, (0.4999, 100)), 1, direction)


def test_a_front_of_one_network_has_a_range() -> None:
    assert stagnates(trials_of(GOOD, WORSE, WORSE, (0.50001, 100)), 1)
    assert not stagnates(trials_of(GOOD, WORSE, WORSE, (0.51, 100)), 1)
    assert not stagnates(trials_of(GOOD, WORSE, WORSE, (0.5, 90)), 1)


def test_a_front_whose_ends_both_move_gets_better() -> None:
    assert not stagnates(trials_of(GOOD, BETTER, (0.95, 9)), 1), "one network instead of two"
    assert not stagnates(trials_of(GOOD, BETTER, (0.91, 10**5)), 1)
    assert not stagnates(trials_of(GOOD, BETTER, (0.01, 10)), 1)


def test_a_study_is_given_its_window() -> None:
    assert not stagnates([], 1)
    assert not stagnates(trials_of(GOOD), 1)
    assert not stagnates(trials_of(GOOD, WORSE, WORSE), 3)
    assert stagnates(trials_of(GOOD, WORSE, WORSE, WORSE), 3)


def test_a_study_of_which_nothing_succeeds_stagnates() -> None:
    assert stagnates(trials_of(None, None, None), 2)
    assert not stagnates(trials_of(None, None, GOOD), 2)


def test_the_direction_of_the_score_counts() -> None:
    assert stagnates(trials_of((0.5, 10), (0.9, 10)), 1, "minimize")
    assert not stagnates(trials_of((0.5, 10), (0.9, 10)), 1, "maximize")
    assert not stagnates(trials_of((0.5, 10), (0.1, 10)), 1, "minimize")


def test_the_last_trials_are_those_that_finished_last() -> None:
    trials = trials_of(GOOD, BETTER, WORSE)
    assert stagnates(trials, 1)
    trials[1].datetime_complete = datetime(2026, 1, 2)
    assert not stagnates(trials, 1)


def test_running_trials_do_not_count() -> None:
    assert not stagnates([*trials_of(GOOD), other_trial(1, TrialState.RUNNING)], 1)


class Constant(Dots):
    """Nothing is better than anything else."""

    widths = (2, 2)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return 0.5


@pytest.fixture
def _no_processes_left() -> Iterator[None]:
    yield
    get_reusable_executor().shutdown(wait=True)


def test_a_study_stops_when_it_stagnates(home: Home) -> None:
    study = quick_study(home, Constant())
    study.run(Constant(), 50, stagnation=3)
    assert len(study.finished()) == 4
    study.run(Constant(), 50, stagnation=3)
    assert len(study.finished()) == 4, "there is no progress still"
    study.run(Constant(), 50, stagnation=5)
    assert len(study.finished()) == 6
    study.run(Constant(), 7)
    assert len(study.finished()) == 7


def test_stopping_and_going_on_stops_at_the_same_trial(home: Home) -> None:
    for trials in (2, 3, 50):
        study = quick_study(home, Constant())
        study.run(Constant(), trials, stagnation=4)
    assert len(study.finished()) == 5


@pytest.mark.slow
@pytest.mark.usefixtures("_no_processes_left")
def test_two_workers_finish_what_they_train_when_a_study_stagnates(home: Home) -> None:
    study = quick_study(home, Constant())
    study.run(Constant(), 50, stagnation=3, workers=2)
    assert 4 <= len(study.finished()) <= 5  # the other worker's trial too
    assert {trial.state for trial in Study.load("dots", home)._trials()} == {TrialState.COMPLETE}
