"""Which milestone has earned its next generation.

Asynchronous successive halving over dendrites and pruning steps, with two objectives: in the manner of R. Schmucker et
al., "Multi-objective Asynchronous Successive Halving" (arXiv 2106.12639), a milestone is promoted as soon as it is
among the best share of those that have finished at its number of dendrites and pruning steps, whenever a worker is
free, and a new configuration starts if none is. They sort by dominance. Here more is known: the size that the next rung
will have. So milestones are sorted by their gap, the score that they lack to be on the front at that size:

    gap(m) = max {score(n): n finished, size(n) <= next size(m)} - score(m)

which is at most 0 where the milestone's score would do, and minus infinity where no network is as small. A large
network that is more accurate than all others has no gap, however large it is; one whose score a network of half the
size has reached must gain something to be worth its generation, and goes behind those that need less.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import partial

from optuna.trial import FrozenTrial

from pbp_search.search.rungs import Rung, continued_by, front_of
from pbp_search.training import Direction, Size, Step

REDUCTION = 3
"""Of so many milestones with the same numbers of dendrites and pruning steps one is promoted: the papers' eta."""


def next_continuation(
    trials: Sequence[FrozenTrial],
    rungs: Sequence[Rung],
    steps: Sequence[Step],
    direction: Direction,
    size: Size,
    next_size: Callable[[Step, Rung], int | None],
) -> tuple[Rung, Step] | None:
    """The rung to continue and how, by the first of several kinds of steps that one has earned.

    Args:
        trials: All of a study's trials.
        rungs: Those of them that left a milestone.
        steps: What may lead from a milestone to the next.
        direction: Of the score.
        size: What the front counts.
        next_size: The size of a rung's network after a step; None if it may not take it.
    """
    known = continued_by(trials)
    for step in steps:
        continued = {trial for trial, by in known if by == step}
        rung = next_promotion(rungs, continued, direction, size, partial(next_size, step))
        if rung is not None:
            return rung, step
    return None


def next_promotion(
    rungs: Sequence[Rung],
    continued: Collection[int],
    direction: Direction,
    size: Size,
    next_size: Callable[[Rung], int | None],
) -> Rung | None:
    """The rung to continue with one step more, of a kind, or None if none has earned it.

    The most dendrites go first, so that chains are finished; then the smallest gap, the best score, the oldest.

    Args:
        rungs: Those of a study that left a milestone.
        continued: The trials that have been continued by such a step already, whatever came of it.
        direction: Of the score.
        size: What the front counts.
        next_size: The size of a rung's network after the step; None if it may not take it.
    """
    sign = 1 if direction == "maximize" else -1
    front = front_of(rungs, direction, size)
    sizes, scores = [point.size for point in front], [sign * point.score for point in front]

    def gap(rung: Rung) -> float:
        milestone = rung.milestone
        # One that may not go on has a place among the others all the same.
        following = next_size(rung) or milestone.size(size)
        smaller = bisect_right(sizes, following)
        return scores[smaller - 1] - sign * milestone.score if smaller else -math.inf

    peers: dict[tuple[int, int], list[Rung]] = defaultdict(list)
    for rung in rungs:
        peers[rung.milestone.requested, rung.milestone.pruned].append(rung)
    for level in sorted(peers, reverse=True):
        ranked = sorted((gap(rung), -sign * rung.milestone.score, rung.trial, rung) for rung in peers[level])
        for *_, trial, rung in ranked[: len(ranked) // REDUCTION]:
            if trial not in continued and rung.milestone.accepted and next_size(rung) is not None:
                return rung
    return None
