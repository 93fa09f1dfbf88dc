"""When a phase ends, and what counts as better."""

import math

from pbp_search.training.config import Fixed, Plateau
from pbp_search.training.task import Direction


def better(score: float, best: float, direction: Direction, relative: float = 0.0, absolute: float = 0.0) -> bool:
    """Whether a score betters the best by more than ``max(absolute, relative * |best|)``.

    Works alike for metrics that are maximised, minimised, negative or zero. NaN is never better.
    """
    gain = score - best if direction == "maximize" else best - score
    return gain > max(absolute, relative * abs(best))


class Stopper:
    """A stopping rule at work: told the score after each epoch, says whether the phase is over.

    Args:
        rule: Plateau or fixed.
        generation: Which of a plateau's thresholds holds: 0 for the network without dendrites.
        direction: Of the score.
    """

    def __init__(self, rule: Plateau | Fixed, generation: int, direction: Direction) -> None:
        self._rule = rule
        self._direction = direction
        self._epochs = 0
        self._reference: float | None = None
        self._since = 0
        if isinstance(rule, Plateau):
            self._relative = rule.relative[min(generation, len(rule.relative) - 1)]

    def __call__(self, score: float) -> bool:
        self._epochs += 1
        if isinstance(self._rule, Fixed):
            return self._epochs >= self._rule.epochs
        # The reference moves only by whole improvements, so that many small ones add up to one.
        improved = not math.isnan(score) and (
            self._reference is None
            or better(score, self._reference, self._direction, self._relative, self._rule.absolute)
        )
        if improved:
            self._reference, self._since = score, 0
        else:
            self._since += 1
        return self._since >= self._rule.patience or self._epochs >= self._rule.max_epochs
