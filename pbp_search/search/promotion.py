"""Which milestone has earned its next generation.

The rule is the simplest sound one: a milestone may be promoted while it is on the study's front. Of networks that tie
in score and size the first stands for all.
Of those, the one with the fewest dendrites goes first, then the oldest. Promotions and new configurations take turns,
so that neither starves the other.
"""

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from pbp_search.search.rungs import PARENT, Rung, front_of
from pbp_search.training import Direction


def next_promotion(
    trials: Sequence[FrozenTrial], rungs: Sequence[Rung], direction: Direction, most_dendrites: int
) -> Rung | None:
    """The rung to continue with one dendrite more, or None if a new configuration should start.

    Args:
        trials: All trials of the study, waiting, running and failed ones included.
        rungs: Those of them that left a milestone.
        direction: Of the score.
        most_dendrites: No network grows more.
    """
    parents = {trial.user_attrs[PARENT] for trial in trials if trial.user_attrs.get(PARENT) is not None}
    configurations = len(trials) - len(parents)
    if len(parents) >= configurations:
        return None
    eligible = [
        point.payload
        for point in front_of(rungs, direction)
        if point.payload.trial not in parents
        and point.payload.milestone.accepted
        and point.payload.milestone.dendrites < most_dendrites
    ]
    return min(eligible, key=lambda rung: (rung.milestone.dendrites, rung.trial), default=None)
