from collections.abc import Sequence
from typing import Literal

import pytest
from optuna.trial import FrozenTrial, TrialState

from pbp_search.search.promotion import next_promotion
from pbp_search.search.rungs import Rungs
from tests.quick_studies import finished_trial, milestone, other_trial


def done(
    number: int, score: float, parameters: int, parent: int | None = None, dendrites: int = 0, accepted: bool = True
) -> FrozenTrial:
    reached = milestone(score, parameters, dendrites=dendrites, requested=dendrites + (not accepted))
    return finished_trial(number, reached, parent)


def promoted(
    trials: Sequence[FrozenTrial],
    most: int = 3,
    direction: Literal["maximize", "minimize"] = "maximize",
) -> int | None:
    rung = next_promotion(trials, Rungs().of(trials), direction, most)
    return None if rung is None else rung.trial


def test_a_study_starts_with_a_new_configuration() -> None:
    assert promoted([]) is None


def test_promotions_and_new_configurations_take_turns() -> None:
    trials = [done(0, 0.5, 10)]
    assert promoted(trials) == 0
    trials.append(done(1, 0.6, 20, parent=0, dendrites=1))
    assert promoted(trials) is None
    trials.append(done(2, 0.7, 30))
    assert promoted(trials) == 2
    trials.append(done(3, 0.8, 40, parent=2, dendrites=1))
    assert promoted(trials) is None
    # Two new configurations in a row earn two promotions.
    trials += [done(4, 0.1, 5), done(5, 0.2, 6)]
    assert promoted(trials) == 4
    trials.append(done(6, 0.15, 7, parent=4, dendrites=1))
    assert promoted(trials) == 5


def test_dominated_networks_are_not_promoted() -> None:
    assert promoted([done(0, 0.5, 10), done(1, 0.6, 10)]) == 1
    assert promoted([done(0, 0.5, 10), done(1, 0.6, 9), done(2, 0.55, 9)]) == 1
    # ... and are again when the direction is the other one.
    assert promoted([done(0, 0.5, 10), done(1, 0.6, 10)], direction="minimize") == 0


def test_fewest_dendrites_go_first_then_the_oldest() -> None:
    front = [done(0, 0.9, 100), done(1, 0.95, 110, parent=0, dendrites=1), done(2, 0.5, 10), done(3, 0.6, 20)]
    assert promoted(front) == 2
    assert promoted([*front, done(4, 0.51, 11, parent=2, dendrites=1)]) == 3
    chain = [*front, done(4, 0.61, 15, parent=2, dendrites=1), done(5, 0.1, 1), done(6, 0.2, 2, parent=5, dendrites=1)]
    # Trial 3 is dominated by now. All that is left has one dendrite: the oldest goes first.
    assert promoted([*chain, done(7, 0.05, 50), done(8, 0.01, 60)]) == 1


def test_a_parent_is_promoted_once_whatever_became_of_it() -> None:
    new = [done(0, 0.5, 10), done(1, 0.1, 50), done(2, 0.1, 60)]
    for state in (TrialState.WAITING, TrialState.RUNNING, TrialState.FAIL):
        assert promoted([*new, other_trial(3, state, parent=0)]) is None
    assert promoted([*new, done(3, 0.5, 10, parent=0, accepted=False)]) is None


def test_a_generation_that_was_thrown_away_ends_the_chain() -> None:
    start = [done(0, 0.5, 10), done(1, 0.1, 50), done(2, 0.1, 60)]
    # The rejected rung holds its parent's network. It does not grow on, even if it is alone on the front.
    assert promoted([*start, done(3, 0.6, 10, parent=0, accepted=False)]) is None


def test_no_network_grows_more_than_the_most_dendrites() -> None:
    trials = [done(0, 0.5, 10), done(1, 0.6, 20, parent=0, dendrites=1), done(2, 0.1, 30), done(3, 0.1, 30)]
    assert promoted(trials, most=2) == 1
    assert promoted(trials, most=1) is None
    assert promoted([done(0, 0.5, 10)], most=0) is None


@pytest.mark.parametrize("state", [TrialState.WAITING, TrialState.RUNNING, TrialState.FAIL])
def test_unfinished_and_failed_trials_count_as_configurations_only(state: TrialState) -> None:
    assert promoted([other_trial(0, state)]) is None
    trials = [done(0, 0.5, 10), done(1, 0.6, 20, parent=0, dendrites=1)]
    assert promoted(trials) is None
    assert promoted([*trials, other_trial(2, state)]) == 1
