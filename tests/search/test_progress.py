import math
from datetime import datetime, timedelta
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from pbp_search.home import Home
from pbp_search.search import Progress, Rung, Study
from pbp_search.search.progress import Box, place_of_failure, progress_of, sentence
from pbp_search.search.rungs import Rungs, front_of
from pbp_search.training import Direction
from tests.quick_studies import fill, finished_trial, milestone, other_trial, quick_study

figures = st.lists(st.tuples(st.floats(-10, 10), st.integers(1, 10**6)), min_size=1, max_size=12)


def rungs_of(*pairs: tuple[float, int]) -> list[Rung]:
    """Rungs of these scores and numbers of parameters."""
    return Rungs().of([finished_trial(number, milestone(*pair)) for number, pair in enumerate(pairs)])


def share(rungs: list[Rung], seen: list[Rung], direction: Direction = "maximize") -> float:
    return box_of(seen, direction).share(front_of(rungs, direction))


def box_of(rungs: list[Rung], direction: Direction = "maximize") -> Box:
    return Box.around([front_of(rungs, direction)], rungs, direction, "parameters")


def test_a_study_without_trials() -> None:
    assert progress_of([], [], "maximize", "parameters") == Progress(0, 0, 0, 0, 0, 0, 0, None)


def test_trials_are_counted_by_what_they_are() -> None:
    trials = [
        finished_trial(0, milestone(0.5, 10)),
        finished_trial(1, milestone(0.6, 100)),
        finished_trial(2, milestone(0.7, 200, requested=1, dendrites=1), parent=0),
        other_trial(3, TrialState.FAIL),
        other_trial(4, TrialState.RUNNING),
        other_trial(5, TrialState.RUNNING, parent=1),
        other_trial(6, TrialState.WAITING),
    ]
    progress = progress_of(trials, Rungs().of(trials), "maximize", "parameters")
    assert (progress.finished, progress.running, progress.failed, progress.waiting) == (4, 2, 1, 1)
    assert (progress.configurations, progress.promoted, progress.front_size) == (4, 1, 3)


def test_a_study_says_how_far_it_is(finished: Study, home: Home) -> None:
    progress = finished.progress()
    assert (progress.finished, progress.running, progress.failed, progress.waiting) == (7, 0, 0, 0)
    assert progress.configurations + progress.promoted == 7
    assert progress.promoted > 0
    assert progress.front_size == len(finished.front())
    study = quick_study(home)
    assert study.progress().finished == 0
    fill(study, [milestone(0.5, 10), milestone(0.4, 100)])
    assert study.progress() == Progress(2, 0, 0, 0, 2, 0, 1, None)


def test_the_hypervolume_by_hand() -> None:
    # The box is 1.1 wide and 2.2 high: log10 of the sizes is 1 to 3, and the scores are 0 to 1.
    rungs = rungs_of((0.0, 10), (1.0, 1000), (0.5, 100))
    assert box_of(rungs).reference == pytest.approx((-0.1, 3.2))
    staircase = 2.2 * 0.1 + 1.2 * 0.5 + 0.2 * 0.5
    assert share(rungs, rungs) == pytest.approx(staircase / (1.1 * 2.2))
    mirrored = rungs_of((1.0, 10), (0.0, 1000), (0.5, 100))
    assert share(mirrored, mirrored, "minimize") == pytest.approx(staircase / (1.1 * 2.2))


@given(figures, st.sampled_from(["maximize", "minimize"]))
def test_the_hypervolume_is_a_share_that_grows_with_the_rungs(
    pairs: list[tuple[float, int]], direction: Direction
) -> None:
    rungs = rungs_of(*pairs)
    shares = [share(rungs[:count], rungs, direction) for count in range(len(rungs) + 1)]
    assert all(after >= before - 1e-12 for before, after in pairwise(shares))
    assert shares[0] == 0
    assert 0 < shares[-1] <= 1 + 1e-12


def hypervolume(trials: list[FrozenTrial]) -> float | None:
    return progress_of(trials, Rungs().of(trials), "maximize", "parameters").hypervolume


@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(1, 10**6)), min_size=10, max_size=20), st.randoms())
def test_the_hypervolume_of_a_study_never_falls(pairs: list[tuple[float, int]], random: Random) -> None:
    trials = [finished_trial(number, milestone(*pair)) for number, pair in enumerate(pairs)]
    random.shuffle(trials)
    for place, trial in enumerate(trials):  # finished in another order than begun
        trial.datetime_complete = datetime(2026, 1, 1) + timedelta(seconds=place)
    there = [sorted(trials[:count], key=lambda trial: trial.number) for count in range(len(trials) + 1)]
    shares = [hypervolume(trials) for trials in there]
    assert shares[:10] == [None] * 10
    known = [value for value in shares if value is not None]
    assert len(known) == len(trials) - 9
    assert all(after >= before - 1e-12 for before, after in pairwise(known))
    assert 0 < known[0] <= 1 + 1e-12


def test_the_hypervolume_of_a_study_by_hand() -> None:
    trials = [finished_trial(number, milestone(0.5, 10)) for number in range(8)]
    trials += [finished_trial(8, milestone(0.0, 1)), finished_trial(9, milestone(1.0, 100))]
    staircase = 2.2 * 0.1 + 1.2 * 0.5 + 0.2 * 0.5
    assert hypervolume(trials) == pytest.approx(staircase / (1.1 * 2.2))
    better = finished_trial(10, milestone(2.0, 1))
    assert hypervolume([*trials, better]) == pytest.approx(2.1 / 1.1), "better than the best of both before"
    assert hypervolume([*trials, finished_trial(10, milestone(-9.0, 1000))]) == hypervolume(trials)


def test_the_best_and_smallest_network_dominates_the_whole_box() -> None:
    rungs = rungs_of((0.5, 10), (0.4, 20), (0.1, 3000))
    assert share(rungs, rungs) == pytest.approx(1)
    assert share(rungs[:1], rungs[:1]) == pytest.approx(1)
    assert share(rungs, rungs_of((0.5, 10), (0.9, 10**5))) < 1, "it shrinks when the box grows"


def test_what_is_not_on_the_front_counts_by_its_median() -> None:
    rungs = rungs_of((0.5, 10), (0.3, 1000), (-1e12, 10**6))
    assert box_of(rungs).reference == pytest.approx((0.28, 3.2))
    assert box_of(rungs_of((0.5, 10), (0.9, 1000), (0.8, 2000))).reference == pytest.approx((0.46, 3.2))
    diverged = [*rungs, *rungs_of((-1e12, 1))]  # no network is smaller
    assert box_of(diverged).reference[0] == pytest.approx(-1.1e12)
    assert box_of([*diverged, *rungs_of((0.2, 1))]).reference == pytest.approx((0.17, 1.1))


def test_networks_at_the_corners_count() -> None:
    rungs = rungs_of((0.5, 10), (0.9, 1000), (0.4, 5))
    assert share(rungs[:1], rungs) < share(rungs[:2], rungs) < share(rungs, rungs)


def test_what_came_of_a_trial_in_a_sentence() -> None:
    first = milestone(0.71234, 1200)
    assert sentence(finished_trial(0, first), "fit", "parameters") == (
        "Trial 0 is a new configuration of width 2: fit 0.7123, 1,200 parameters."
    )
    grown = milestone(math.nextafter(0.75, 1), 1300, requested=2, dendrites=2)
    assert sentence(finished_trial(5, grown, parent=3), "fit", "macs") == (
        "Trial 5 goes on from trial 3 to dendrite 2: fit 0.75, 3,900 multiply-accumulates."
    )
    refused = milestone(0.7, 1200, requested=2, dendrites=1)
    assert sentence(finished_trial(5, refused, parent=3), "fit", "parameters") == (
        "Trial 5 goes on from trial 3 to dendrite 2: fit 0.7, 1,200 parameters, which is not enough better: "
        "its chain ends."
    )


def test_the_place_of_a_failure_is_its_last_frame() -> None:
    trial = other_trial(0, TrialState.FAIL)
    assert place_of_failure(trial) == "  outside of this program"
    frames = '  File "a.py", line 1, in f\n    g()\n  File "b.py", line 2, in g\n    raise ValueError\n'
    trial.set_user_attr("traceback", frames)
    assert place_of_failure(trial) == '  File "b.py", line 2, in g'
