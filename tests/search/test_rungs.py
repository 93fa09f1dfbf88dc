import math

import optuna
import pytest
from optuna.trial import TrialState

from pbp_search.home import Home
from pbp_search.search import Study
from pbp_search.search.rungs import Rungs, front_of
from tests.quick_studies import Dots, fill, finished_trial, milestone, other_trial


def test_rungs_are_read_back_from_trials() -> None:
    reached = milestone(0.75, 40, dendrites=1, requested=1)
    (rung,) = Rungs().of([finished_trial(5, reached, parent=2)])
    assert (rung.trial, rung.parent, rung.milestone) == (5, 2, reached)
    assert rung.params == {"dendrites": 1, "width": 2}
    (first,) = Rungs().of([finished_trial(0, milestone())])
    assert first.parent is None


def test_only_finished_trials_with_a_milestone_are_rungs() -> None:
    foreign = optuna.trial.create_trial(values=[0.5, 1.0])
    foreign.number = 4
    unfinished = [other_trial(number, state) for number, state in enumerate(TrialState) if not state.is_finished()]
    assert Rungs().of([*unfinished, other_trial(3, TrialState.FAIL), foreign]) == []


def test_a_row_has_the_figures_that_tables_show() -> None:
    reached = milestone(0.75, 40, dendrites=1, requested=2, train_score=0.8, epochs=7, seconds=1.23456)
    (rung,) = Rungs().of([finished_trial(5, reached, parent=2)])
    assert rung.row() == {
        "trial": 5,
        "width": 2,
        "dendrites": 1,
        "parameters": 40,
        "weight_bytes": 160,
        "score": 0.75,
        "train_score": 0.8,
        "epochs": 7,
        "seconds": 1.235,
    }


def test_the_front_is_over_the_validation_score_and_the_parameters() -> None:
    milestones = [milestone(0.5, 10), milestone(0.4, 20, train_score=0.9), milestone(0.6, 20)]
    rungs = Rungs().of([finished_trial(number, reached) for number, reached in enumerate(milestones)])
    assert [point.payload.trial for point in front_of(rungs, "maximize")] == [0, 2]
    assert [(point.score, point.size) for point in front_of(rungs, "maximize")] == [(0.5, 10), (0.6, 20)]
    assert [point.payload.trial for point in front_of(rungs, "minimize")] == [0, 1]


def test_rungs_survive_the_storage(home: Home) -> None:
    milestones = [milestone(0.1 + 0.2, 10), milestone(1 / 3, 2**31, seconds=1e-9)]
    study = fill(Study.create(Dots(), home=home), milestones)
    rungs = Study.load("dots", home).rungs()
    assert [rung.milestone for rung in rungs] == milestones
    assert [trial.values[1] for trial in study.finished()] == pytest.approx([math.log10(10), math.log10(2**31)])
