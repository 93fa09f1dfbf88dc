"""Which milestone is promoted next. Every network with a dendrite more is twice as large here, unless said."""

from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbp_search.front import Front, Point
from pbp_search.search.promotion import REDUCTION, next_promotion
from pbp_search.search.rungs import Rung
from pbp_search.training import Direction
from tests.quick_studies import milestone


def rung(
    trial: int, score: float, size: int, dendrites: int = 0, parent: int | None = None, accepted: bool = True
) -> Rung:
    reached = milestone(score, size, dendrites=dendrites - (not accepted), requested=dendrites)
    return Rung(trial, trial if parent is None else parent, parent, {}, reached, "")


def promoted(
    rungs: Sequence[Rung], continued: Sequence[int] = (), most: int = 3, direction: Direction = "maximize"
) -> int | None:
    def next_size(one: Rung) -> int | None:
        return None if one.milestone.dendrites == most else 2 * one.milestone.parameters

    found = next_promotion(
        rungs,
        {*continued, *(one.parent for one in rungs if one.parent is not None)},
        direction,
        "parameters",
        next_size,
    )
    return None if found is None else found.trial


def poor(*trials: int) -> list[Rung]:
    """Base networks that are large and bad."""
    return [rung(trial, 0.01, 1000) for trial in trials]


def test_a_study_starts_with_new_configurations() -> None:
    for others in range(REDUCTION):
        assert promoted(poor(*range(others))) is None


def test_the_best_share_of_the_peers_is_promoted() -> None:
    rungs = [*poor(*range(REDUCTION - 1)), rung(10, 0.9, 10)]
    assert promoted(rungs) == 10
    rungs.append(rung(11, 0.95, 20, dendrites=1, parent=10))
    assert promoted(rungs) is None, "the share is used up"
    rungs += [rung(12, 0.8, 9), *poor(*range(20, 19 + REDUCTION))]
    assert promoted(rungs) == 12


def test_a_network_that_lacks_nothing_goes_before_one_that_must_gain() -> None:
    # At 40 parameters 0.9 has been reached: trial 0 would need 0.1, though it is on the front, and trial 1 nothing.
    rungs = [rung(0, 0.8, 20), rung(1, 0.9, 40), *poor(*range(2, 2 * REDUCTION))]
    assert promoted(rungs) == 1
    assert promoted(rungs, continued=[1]) == 0


def test_size_alone_holds_no_accurate_network_back() -> None:
    small = [rung(0, 0.6, 10), *(rung(trial, 0.5, 10) for trial in range(1, 2 * REDUCTION))]
    assert promoted([*small, rung(99, 0.99, 10**9)], continued=[0]) == 99


def test_a_network_that_would_be_larger_than_a_better_one_waits() -> None:
    """Both are on the front now. With one dendrite more trial 0 would be as large as trial 1, and must gain 0.4."""
    rungs = [rung(0, 0.5, 10), rung(1, 0.9, 19), rung(2, 0.95, 500)]
    assert promoted(rungs) == 1 or promoted(rungs) == 2
    assert promoted(rungs, continued=[1, 2]) is None


def test_most_dendrites_go_first_then_the_smallest_gap_then_the_oldest() -> None:
    first = [rung(trial, 0.9, 100) for trial in range(REDUCTION)]
    assert promoted([*first, rung(9, 0.9, 100)]) == 0
    assert promoted([*first, rung(9, 0.91, 100)]) == 9
    second = [rung(20 + trial, 0.5, 200, dendrites=1, parent=100 + trial) for trial in range(REDUCTION)]
    assert promoted([*first, *second]) == 20


def test_a_milestone_is_promoted_once_whatever_became_of_it() -> None:
    rungs = [rung(0, 0.9, 10), *poor(*range(1, REDUCTION))]
    assert promoted(rungs) == 0
    assert promoted(rungs, continued=[0]) is None


def test_a_generation_that_was_thrown_away_ends_the_chain() -> None:
    ended = [rung(10 + trial, 0.9, 10, dendrites=1, parent=trial, accepted=False) for trial in range(REDUCTION)]
    rungs = [*(rung(trial, 0.9, 10) for trial in range(REDUCTION)), *ended]
    assert promoted(rungs) is None


def test_no_network_grows_more_than_it_may() -> None:
    rungs = [rung(0, 0.9, 10), *poor(*range(1, REDUCTION))]
    assert promoted(rungs, most=1) == 0
    assert promoted(rungs, most=0) is None


def test_scores_that_are_minimised() -> None:
    rungs = [rung(0, 0.1, 10), rung(1, 0.9, 10), *(rung(trial, 5.0, 1000) for trial in range(2, REDUCTION))]
    assert promoted(rungs, direction="minimize") == 0
    assert promoted(rungs) != 0


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@given(
    scores=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), min_size=1, max_size=30),
    sizes=st.lists(st.integers(1, 20), min_size=30, max_size=30),
)
def test_what_is_promoted_needs_no_more_than_what_is_not(
    direction: Direction, scores: list[float], sizes: list[int]
) -> None:
    """By the definition, written out: the gap of a point is what the best one within its next size is ahead."""
    numbers = count()
    rungs = [rung(next(numbers), score, size) for score, size in zip(scores, sizes, strict=False)]
    sign = 1 if direction == "maximize" else -1

    def gap(one: Rung) -> float:
        within = [
            sign * other.milestone.score
            for other in rungs
            if other.milestone.parameters <= 2 * one.milestone.parameters
        ]
        return max(within) - sign * one.milestone.score

    continued: list[int] = []
    while (found := promoted(rungs, continued, direction=direction)) is not None:
        continued.append(found)
    assert len(continued) == len(rungs) // REDUCTION
    taken = [gap(one) for one in rungs if one.trial in continued]
    left = [gap(one) for one in rungs if one.trial not in continued]
    assert max(taken, default=-1) <= min(left, default=1)
    front = Front((Point(one.milestone.score, one.milestone.parameters, one) for one in rungs), direction)
    assert all(gap(point.payload) >= 0 for point in front)


def test_who_becomes_smaller_than_all_lacks_nothing_and_the_best_of_those_goes_first() -> None:
    rungs = [rung(0, 0.5, 100), rung(1, 0.9, 101), rung(2, 0.4, 1000), rung(3, 0.95, 2000), *poor(4, 5)]

    def halved(one: Rung) -> int:
        return one.milestone.parameters // 2

    def chosen(*continued: int) -> int | None:
        found = next_promotion(rungs, continued, "maximize", "parameters", halved)
        return None if found is None else found.trial

    assert [chosen(), chosen(1), chosen(1, 0)] == [1, 0, None]
