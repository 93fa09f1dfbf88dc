import itertools
import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbp_search.errors import NothingFitsError
from pbp_search.front import Front, Point

Direction = Literal["maximize", "minimize"]
DIRECTIONS: list[Direction] = ["maximize", "minimize"]

# Few values, so that many are equal, and some of any kind.
scores = st.one_of(st.integers(-2, 3).map(float), st.floats(-1e6, 1e6))
sizes = st.one_of(st.integers(1, 6), st.integers(1, 10**9))
clouds = st.lists(st.tuples(scores, sizes), max_size=30)
directions = st.sampled_from(DIRECTIONS)


def points_of(cloud: list[tuple[float, int]]) -> list[Point[int]]:
    return [Point(score, size, number) for number, (score, size) in enumerate(cloud)]


def at_least_as_good(left: Point[int], right: Point[int], direction: Direction) -> bool:
    score = left.score >= right.score if direction == "maximize" else left.score <= right.score
    return score and left.size <= right.size


def slow_front(points: list[Point[int]], direction: Direction) -> list[Point[int]]:
    """The definition: no other point is at least as good in both and better in one; of equal points the first."""
    kept = []
    for point in points:
        better = [other for other in points if at_least_as_good(other, point, direction)]
        dominated = any(not at_least_as_good(point, other, direction) for other in better)
        repeats = any(other.payload < point.payload for other in better)
        if not dominated and not repeats:
            kept.append(point)
    return sorted(kept, key=lambda point: point.size)


def slow_hypervolume(points: list[Point[int]], direction: Direction, reference: tuple[float, float]) -> float:
    """Cut the plane at every coordinate and add the cells that a point dominates."""
    sign = -1.0 if direction == "maximize" else 1.0
    costs = [(sign * point.score, math.log10(point.size)) for point in points]
    corner = (sign * reference[0], reference[1])
    costs = [cost for cost in costs if cost[0] < corner[0] and cost[1] < corner[1]]
    xs, ys = (sorted({cost[axis] for cost in costs} | {corner[axis]}) for axis in (0, 1))
    area = 0.0
    for left, right in itertools.pairwise(xs):
        for bottom, top in itertools.pairwise(ys):
            if any(cost[0] <= left and cost[1] <= bottom for cost in costs):
                area += (right - left) * (top - bottom)
    return area


@given(clouds, directions)
def test_the_front_is_what_nothing_dominates(cloud: list[tuple[float, int]], direction: Direction) -> None:
    points = points_of(cloud)
    front = Front(points, direction)
    assert list(front) == slow_front(points, direction)
    assert len(front) == len(front.points)


@given(clouds, directions)
def test_scores_improve_with_size_along_the_front(cloud: list[tuple[float, int]], direction: Direction) -> None:
    front = Front(points_of(cloud), direction)
    sign = 1 if direction == "maximize" else -1
    for smaller, larger in itertools.pairwise(front.points):
        assert smaller.size < larger.size
        assert sign * smaller.score < sign * larger.score


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_of_equal_points_the_first_stays(direction: Direction) -> None:
    front = Front([Point(0.5, 10, "first"), Point(0.5, 10, "second"), Point(0.5, 10, "third")], direction)
    assert [point.payload for point in front] == ["first"]


def test_payloads_may_be_anything() -> None:
    payload = object()
    assert Front([Point(1.0, 1, payload)], "maximize").points[0].payload is payload


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.integers(1, 10**5)), max_size=12),
    directions,
    st.tuples(st.floats(-1, 1), st.floats(0, 6)),
)
def test_hypervolume_is_the_dominated_area(
    cloud: list[tuple[float, int]], direction: Direction, reference: tuple[float, float]
) -> None:
    points = points_of(cloud)
    front = Front(points, direction)
    expected = slow_hypervolume(points, direction, reference)
    assert front.hypervolume(reference) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_hypervolume_of_known_fronts() -> None:
    assert Front([Point(0.9, 100, None)], "maximize").hypervolume((0.5, 4.0)) == pytest.approx(0.4 * 2)
    stairs = [Point(0.6, 10, None), Point(0.8, 100, None), Point(0.9, 1000, None)]
    assert Front(stairs, "maximize").hypervolume((0.5, 4.0)) == pytest.approx(0.1 * 3 + 0.2 * 2 + 0.1 * 1)
    errors = [Point(0.4, 10, None), Point(0.2, 100, None), Point(0.1, 1000, None)]
    assert Front(errors, "minimize").hypervolume((0.5, 4.0)) == pytest.approx(0.1 * 3 + 0.2 * 2 + 0.1 * 1)
    assert Front(stairs, "maximize").hypervolume((0.95, 4.0)) == 0.0
    assert Front(stairs, "maximize").hypervolume((0.5, 1.0)) == 0.0
    nothing: list[Point[None]] = []
    assert Front(nothing, "maximize").hypervolume((0.5, 4.0)) == 0.0


@given(clouds.filter(bool), directions, st.integers(1, 10**9))
def test_best_of_a_size_is_the_best_score(cloud: list[tuple[float, int]], direction: Direction, limit: int) -> None:
    points = points_of(cloud)
    front = Front(points, direction)
    small = [point.score for point in points if point.size <= limit]
    if small:
        best = front.best(max_size=limit)
        assert best.score == (max(small) if direction == "maximize" else min(small))
        assert best.size <= limit
    else:
        with pytest.raises(NothingFitsError):
            front.best(max_size=limit)
    everything = [point.score for point in points]
    assert front.best().score == (max(everything) if direction == "maximize" else min(everything))


@given(clouds.filter(bool), directions, scores, st.one_of(st.just(math.inf), st.integers(1, 10**9)))
def test_best_of_a_score_is_the_smallest(
    cloud: list[tuple[float, int]], direction: Direction, wanted: float, limit: float
) -> None:
    points = points_of(cloud)
    front = Front(points, direction)
    reaching = [
        point.size
        for point in points
        if point.size <= limit and (point.score >= wanted if direction == "maximize" else point.score <= wanted)
    ]
    if reaching:
        assert front.best(max_size=limit, min_score=wanted).size == min(reaching)
    else:
        with pytest.raises(NothingFitsError):
            front.best(max_size=limit, min_score=wanted)


ACCURACIES = [Point(0.61, 120, None), Point(0.85, 2400, None), Point(0.97, 51000, None)]
ERRORS = [Point(0.9, 120, None), Point(0.5, 2400, None), Point(0.123456, 51000, None)]


@pytest.mark.parametrize(
    ("points", "direction", "limits", "sentence"),
    [
        ([], "maximize", {}, "The front is empty: no trial has finished yet."),
        ([], "minimize", {"max_size": 10}, "The front is empty: no trial has finished yet."),
        (
            ACCURACIES,
            "maximize",
            {"max_size": 50},
            "No network has at most 50 parameters: the smallest on the front has 120 (score 0.61).",
        ),
        (
            ACCURACIES,
            "maximize",
            {"max_size": 119, "min_score": 0.5},
            "No network has at most 119 parameters: the smallest on the front has 120 (score 0.61).",
        ),
        (
            ACCURACIES,
            "maximize",
            {"min_score": 0.99},
            "No network reaches the score 0.99: the nearest has the score 0.97 (51,000 parameters).",
        ),
        (
            ACCURACIES,
            "maximize",
            {"max_size": 2400, "min_score": 0.9},
            "No network with at most 2,400 parameters reaches the score 0.9: "
            "the nearest has the score 0.85 (2,400 parameters).",
        ),
        (
            ERRORS,
            "minimize",
            {"min_score": 0.1},
            "No network reaches the score 0.1: the nearest has the score 0.1235 (51,000 parameters).",
        ),
        (
            ERRORS,
            "minimize",
            {"max_size": 130, "min_score": 0.6},
            "No network with at most 130 parameters reaches the score 0.6: "
            "the nearest has the score 0.9 (120 parameters).",
        ),
    ],
)
def test_what_does_not_fit_names_the_nearest(
    points: list[Point[None]], direction: Direction, limits: dict[str, float], sentence: str
) -> None:
    with pytest.raises(NothingFitsError) as caught:
        Front(points, direction).best(**limits)
    assert str(caught.value) == sentence


def test_sentences_name_what_sizes_count() -> None:
    front = Front(ACCURACIES, "maximize", "multiply-accumulates")
    with pytest.raises(NothingFitsError, match=r"No network has at most 50 multiply-accumulates: the smallest"):
        front.best(50)
    with pytest.raises(NothingFitsError, match=r"the nearest has the score 0\.97 \(51,000 multiply-accumulates\)"):
        front.best(min_score=0.99)
    with pytest.raises(NothingFitsError, match=r"No network with at most 120 multiply-accumulates reaches"):
        front.best(120, 0.99)


def test_limits_are_inclusive() -> None:
    front = Front(ACCURACIES, "maximize")
    assert front.best(max_size=120).size == 120
    assert front.best(min_score=0.85).size == 2400
    assert front.best(max_size=2400, min_score=0.85).size == 2400
    assert front.best(min_score=0.0).size == 120
