import math
from typing import get_args

import optuna
import pytest
from optuna.trial import TrialState

from pbp_search.errors import NothingFitsError
from pbp_search.home import Home
from pbp_search.search import Study
from pbp_search.search.rungs import Rungs, best_of, front_of, values_of
from pbp_search.training import Size
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
        "pruned": 0,
        "parameters": 40,
        "weight_bytes": 160,
        "macs": 120,
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


SIZES = get_args(Size)


@pytest.mark.parametrize("size", SIZES)
def test_the_size_is_of_the_kind_that_is_asked_for(size: Size) -> None:
    other = {"weight_bytes": 7, "macs": 1000}
    rungs = Rungs().of([finished_trial(0, milestone(0.5, 10)), finished_trial(1, milestone(0.6, 20, **other))])
    sizes = {"parameters": [10, 20], "weight_bytes": [7], "macs": [30, 1000]}[size]
    assert [point.size for point in front_of(rungs, "maximize", size)] == sizes
    assert values_of(rungs[1].milestone, size) == [0.6, math.log10(sizes[-1])]


def best(size: Size, max_parameters: int | None = None, min_score: float | None = None) -> int:
    # Of the middle ones the second has more parameters, and less of everything else.
    others = [(0.5, 10, 90), (0.6, 20, 60), (0.7, 25, 50), (0.8, 40, 100)]
    milestones = [milestone(score, count, macs=work, weight_bytes=work) for score, count, work in others]
    rungs = Rungs().of([finished_trial(number, reached) for number, reached in enumerate(milestones)])
    return best_of(front_of(rungs, "maximize", size), size, max_parameters, min_score).payload.trial


def test_a_limit_of_parameters_is_one_whatever_the_size_is() -> None:
    assert [best(size) for size in SIZES] == [3, 3, 3]
    assert [best(size, 39) for size in SIZES] == [2, 2, 2]
    assert [best(size, min_score=0.5) for size in SIZES] == [0, 2, 2]
    assert [best(size, 40, 0.55) for size in SIZES] == [1, 2, 2]
    assert best("parameters", 24) == 1
    for size in SIZES:
        with pytest.raises(NothingFitsError, match=r"No network has at most 9 parameters: the smallest on the front"):
            best(size, 9)
        with pytest.raises(NothingFitsError, match=r"No network with at most 30 parameters reaches the score 0\.75: "):
            best(size, 30, 0.75)
    with pytest.raises(NothingFitsError, match=r"0\.8 \(100 multiply-accumulates\)"):
        best("macs", min_score=0.9)


def test_rungs_survive_the_storage(home: Home) -> None:
    milestones = [milestone(0.1 + 0.2, 10), milestone(1 / 3, 2**31, seconds=1e-9)]
    study = fill(Study.create(Dots(), home=home), milestones)
    rungs = Study.load("dots", home).rungs()
    assert [rung.milestone for rung in rungs] == milestones
    assert [trial.values[1] for trial in study.finished()] == pytest.approx([math.log10(10), math.log10(2**31)])
