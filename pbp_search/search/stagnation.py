"""Whether a study still gets anywhere."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from pbp_search.search.progress import Box, by_end
from pbp_search.search.rungs import Rung, front_of
from pbp_search.training import Direction, Size

LEAST_IMPROVEMENT = 1e-3
"""The share by which the hypervolume must have grown to count as progress."""


def stagnated(
    trials: Sequence[FrozenTrial], rungs: Sequence[Rung], window: int, direction: Direction, size: Size
) -> bool:
    """Whether the last trials have not made the front better.

    Compared are the front of all rungs and that of those before, by their hypervolumes in the box around both: a box
    that grows is no progress. Where no rung has succeeded there is none either.

    Args:
        trials: All of the study's trials.
        rungs: Those of them that left a milestone.
        window: How many finished trials, failed ones included, may go by without progress.
        direction: Of the score.
        size: What the front counts.
    """
    finished = by_end(trials)
    if len(finished) <= window:
        return False
    recent = {trial.number for trial in finished[-window:]}
    if not rungs:
        return True
    before = [rung for rung in rungs if rung.trial not in recent]
    fronts = [front_of(some, direction, size) for some in (rungs, before)]
    box = Box.around(fronts, rungs, direction, size)
    now, then = map(box.share, fronts)
    return now <= then * (1 + LEAST_IMPROVEMENT)
