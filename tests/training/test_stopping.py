import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbp_search.training import Direction, Fixed, Plateau, Stopper, better

NAN = float("nan")

OPPOSITE: dict[Direction, Direction] = {"maximize": "minimize", "minimize": "maximize"}


def ends_after(
    rule: Plateau | Fixed, scores: list[float], generation: int = 0, direction: Direction = "maximize"
) -> int | None:
    """After how many scores the phase is over; None if it goes on."""
    stop = Stopper(rule, generation, direction)
    for count, score in enumerate(scores, start=1):
        if stop(score):
            return count
    return None


@pytest.mark.parametrize(
    ("score", "best", "direction", "relative", "absolute", "expected"),
    [
        (0.51, 0.5, "maximize", 0.0, 0.0, True),
        (0.5, 0.5, "maximize", 0.0, 0.0, False),
        (0.49, 0.5, "maximize", 0.0, 0.0, False),
        (0.49, 0.5, "minimize", 0.0, 0.0, True),
        (0.5, 0.5, "minimize", 0.0, 0.0, False),
        (0.51, 0.5, "minimize", 0.0, 0.0, False),
        # a tenth of 10 is 1, in either direction and below zero too; a gain must be larger than it
        (11.5, 10.0, "maximize", 0.1, 0.0, True),
        (11.0, 10.0, "maximize", 0.1, 0.0, False),
        (8.5, 10.0, "minimize", 0.1, 0.0, True),
        (9.0, 10.0, "minimize", 0.1, 0.0, False),
        (-8.5, -10.0, "maximize", 0.1, 0.0, True),
        (-9.5, -10.0, "maximize", 0.1, 0.0, False),
        (-11.5, -10.0, "minimize", 0.1, 0.0, True),
        (-10.5, -10.0, "minimize", 0.1, 0.0, False),
        # no share of zero keeps anything out
        (1e-300, 0.0, "maximize", 0.5, 0.0, True),
        (-1e-300, 0.0, "minimize", 0.5, 0.0, True),
        (0.0, 0.0, "maximize", 0.5, 0.0, False),
        (0.0, -0.0, "minimize", 0.5, 0.0, False),
        (1.0, -1.0, "maximize", 0.5, 0.0, True),
        # the larger of both thresholds counts
        (10.5, 10.0, "maximize", 0.01, 1.0, False),
        (11.5, 10.0, "maximize", 0.01, 1.0, True),
        (11.5, 10.0, "maximize", 0.2, 1.0, False),
        (0.5, 0.0, "maximize", 0.2, 1.0, False),
        (NAN, 0.0, "maximize", 0.0, 0.0, False),
        (NAN, 0.0, "minimize", 0.0, 0.0, False),
        (NAN, NAN, "maximize", 0.0, 0.0, False),
    ],
)
def test_better(
    score: float, best: float, direction: Direction, relative: float, absolute: float, expected: bool
) -> None:
    assert better(score, best, direction, relative, absolute) is expected
    if not math.isnan(score):
        assert better(-score, -best, OPPOSITE[direction], relative, absolute) is expected


SCORES = st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 1.0, NAN])
THRESHOLDS = st.floats(0, 2) | st.just(0.0)


@settings(deadline=None)
@given(SCORES, SCORES, THRESHOLDS, THRESHOLDS)
def test_better_is_the_same_for_negated_scores(score: float, best: float, relative: float, absolute: float) -> None:
    up = better(score, best, "maximize", relative, absolute)
    assert better(-score, -best, "minimize", relative, absolute) is up
    assert not (up and better(best, score, "maximize", relative, absolute))


@settings(deadline=None)
@given(st.lists(SCORES, max_size=30), THRESHOLDS, THRESHOLDS, st.integers(1, 4))
def test_the_same_decisions_for_negated_scores(
    scores: list[float], relative: float, absolute: float, patience: int
) -> None:
    rule = Plateau(patience=patience, relative=(relative,), absolute=absolute)
    up, down = Stopper(rule, 0, "maximize"), Stopper(rule, 0, "minimize")
    assert [up(score) for score in scores] == [down(-score) for score in scores]


@settings(deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 6))
def test_a_plateau_without_thresholds_ends_when_the_best_is_patience_epochs_old(
    scores: list[int], patience: int, shift: int
) -> None:
    expected = None
    for count in range(1, len(scores) + 1):
        since_best = count - 1 - scores[:count].index(max(scores[:count]))
        if since_best >= patience:
            expected = count
            break
    rule = Plateau(patience=patience, relative=(0.0,))
    assert ends_after(rule, [float(score - shift) for score in scores]) == expected


@pytest.mark.parametrize(("patience", "expected"), [(1, 4), (2, 7), (3, None)])
def test_patience_counts_epochs_without_an_improvement(patience: int, expected: int | None) -> None:
    scores = [1.0, 2.0, 3.0, 2.5, 3.5, 3.5, 3.0, 4.0]
    assert ends_after(Plateau(patience=patience, relative=(0.0,)), scores) == expected


def test_small_improvements_add_up_to_a_whole_one() -> None:
    # Each step is smaller than the threshold of 1, but every fourth is a whole improvement over the reference.
    creeping = [0.3 * step for step in range(40)]
    assert ends_after(Plateau(patience=4, relative=(0.0,), absolute=1.0), creeping) is None
    assert ends_after(Plateau(patience=3, relative=(0.0,), absolute=1.0), creeping) == 4


def test_thresholds_are_those_of_the_generation_and_the_last_holds_for_all_later_ones() -> None:
    rule = Plateau(patience=1, relative=(0.5, 0.1, 0.0))
    gains = {1.6: 0, 1.2: 1, 1.05: 2}  # the largest threshold that lets a step from 1 pass
    for score, least in gains.items():
        for generation in range(6):
            goes_on = ends_after(rule, [1.0, score], generation) is None
            assert goes_on == (generation >= least)


@pytest.mark.parametrize("epochs", [1, 2, 7])
@pytest.mark.parametrize("scores", [[0.0] * 20, [float(n) for n in range(20)], [-float(n) for n in range(20)]])
def test_a_fixed_length_is_exact(epochs: int, scores: list[float]) -> None:
    for direction in OPPOSITE:
        for generation in (0, 5):
            assert ends_after(Fixed(epochs=epochs), scores, generation, direction) == epochs


@pytest.mark.parametrize("max_epochs", [1, 5])
def test_a_plateau_ends_at_its_longest_in_any_case(max_epochs: int) -> None:
    rule = Plateau(patience=3, max_epochs=max_epochs)
    assert ends_after(rule, [float(n + 1) ** 2 for n in range(20)]) == max_epochs


def test_nan_is_never_an_improvement_wherever_it_comes() -> None:
    rule = Plateau(patience=2, relative=(0.0,))
    assert ends_after(rule, [1.0, NAN, NAN]) == 3
    assert ends_after(rule, [1.0, NAN, 2.0, NAN, 3.0, NAN, NAN]) == 7
    assert ends_after(rule, [NAN, 1.0, 2.0, 3.0, 4.0]) is None
    assert ends_after(rule, [NAN, NAN, 1.0]) == 2
