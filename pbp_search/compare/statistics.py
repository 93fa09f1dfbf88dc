"""Paired comparisons at several sizes: what they show, what they do not, and what they could have seen.

Each comparison has the same seeds in both arms. Together they are one family, in which a false claim comes with a
probability of at most 5%: t tests of the paired differences, with S. Holm's correction (Scandinavian Journal of
Statistics 6, 1979).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05
POWER = 0.8
_ROUNDING = 1e-12  # of scores

K = TypeVar("K")
Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Comparison:
    """What a comparison has shown.

    Attributes:
        mean: The mean difference.
        low: The lower end of its interval, at the level of its step in Holm's procedure: zero is outside exactly if a
            difference is shown.
        high: The upper end.
        p: The corrected p-value, two-sided.
        level: The level of its step: the interval's coverage is 1 minus this.
        detectable: The smallest difference that a comparison of this spread shows with a probability of 80%, if it is
            the first to be tested; NaN where there is no spread to go by.
        seeds: How many pairs there are.
    """

    mean: float
    low: float
    high: float
    p: float
    level: float
    detectable: float
    seeds: int

    @property
    def verdict(self) -> Verdict:
        """What may be said."""
        if self.p > LEVEL:
            return "no difference shown"
        return "better" if self.mean > 0 else "worse"


def compare(family: Mapping[K, Sequence[float]], scale: float = 1.0) -> dict[K, Comparison]:
    """Compare each member of a family.

    Args:
        family: Of each comparison the paired differences, one a seed, above zero where the first arm is better.
        scale: How large the scores are: what is below their rounding is no difference.

    Raises:
        ValueError: A comparison has less than two pairs, or a difference that is not a finite number.
    """
    if not family:
        return {}
    samples = [np.asarray(differences, dtype=float) for differences in family.values()]
    for key, sample in zip(family, samples, strict=True):
        if len(sample) < 2 or not np.isfinite(sample).all():
            raise ValueError(f"The differences at {key} are {sample.tolist()}: two finite ones at least are needed.")
    rounding = _ROUNDING * (scale or 1.0)
    alone = [_p_value(sample, rounding) for sample in samples]
    corrected = holm(alone)
    levels = _levels(alone, sum(p <= LEVEL for p in corrected))
    return {
        key: _comparison(sample, p, level, len(samples), rounding)
        for key, sample, p, level in zip(family, samples, corrected, levels, strict=True)
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family, corrected: those up to a level are the claims of Holm's procedure at that level."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(factors * np.asarray(p_values)[order]))
    return [float(p) for p in corrected]


def _p_value(sample: np.ndarray, rounding: float) -> float:
    if np.ptp(sample) < rounding:  # nothing that a t test could go by: a sign test, where there is anything to count
        return 1.0 if abs(sample[0]) < rounding else float(stats.binomtest(len(sample), len(sample)).pvalue)
    return float(stats.ttest_1samp(sample, 0.0).pvalue)


def _levels(p_values: Sequence[float], claims: int) -> list[float]:
    """The level at which Holm's procedure tests each comparison; where it stops, that of all that follow."""
    count = len(p_values)
    ranks = stats.rankdata(p_values, method="ordinal") - 1
    return [LEVEL / (count - min(int(rank), claims, count - 1)) for rank in ranks]


def _comparison(sample: np.ndarray, p: float, level: float, count: int, rounding: float) -> Comparison:
    mean, spread, seeds = float(sample.mean()), float(sample.std(ddof=1)), len(sample)
    if np.ptp(sample) < rounding:
        reach = 0.0 if p <= LEVEL else abs(mean)
        return Comparison(mean, mean - reach, mean + reach, p, level, math.nan, seeds)
    reach = float(stats.t.isf(level / 2, seeds - 1)) * spread / math.sqrt(seeds)
    return Comparison(mean, mean - reach, mean + reach, p, level, spread * _detectable(seeds, LEVEL / count), seeds)


@lru_cache
def _detectable(seeds: int, level: float) -> float:
    """In standard deviations of the differences: where the noncentral t distribution has that power."""
    critical, degrees = stats.t.isf(level / 2, seeds - 1), seeds - 1

    def lacking(effect: float) -> float:
        return POWER - float(stats.nct.sf(critical, degrees, effect * math.sqrt(seeds)))

    return float(optimize.brentq(lacking, 0.0, 1 / level))  # of 2 seeds, the most that are needed, 0.6 / level


class Curves:
    """The scores of one arm over its sizes, a curve for each seed: linear in between, over the logarithm of the size.

    Args:
        sizes: Of the arm's networks, shape (sizes,), all different and above zero.
        scores: Higher is better; shape (seeds, sizes).

    Raises:
        ValueError: A size or a score is not such a number.
    """

    def __init__(self, sizes: Sequence[float], scores: Sequence[Sequence[float]]) -> None:
        order = np.argsort(sizes)
        self._sizes = np.asarray(sizes, dtype=float)[order]
        self._scores = np.asarray(scores, dtype=float)[:, order]
        if not (np.isfinite(self._scores).all() and (self._sizes > 0).all() and (np.diff(self._sizes) > 0).all()):
            raise ValueError(f"A curve needs finite scores at different sizes above zero: {sizes}, {scores}.")
        self._logs = np.log10(self._sizes)

    def covers(self, size: float) -> bool:
        """Whether a size is between the smallest and the largest: nothing is said beyond."""
        return bool(self._sizes[0] <= size <= self._sizes[-1])

    def at(self, sizes: Sequence[float]) -> np.ndarray:
        """The scores at a size for each seed, shape (seeds,); NaN beyond the smallest and the largest."""
        within = [size if self.covers(size) else math.nan for size in sizes]
        logs = np.log10(np.asarray(within, dtype=float))
        return np.array([np.interp(log, self._logs, row) for log, row in zip(logs, self._scores, strict=True)])

    def sizes_of(self, scores: Sequence[float], level: float) -> "Sizes":
        """The sizes at which this arm scores as another one does, by the same test as that of the scores.

        Args:
            scores: Those of the other arm, one a seed, shape (seeds,).
            level: Of the test.
        """
        logs = np.unique(np.concatenate([self._logs, np.linspace(self._logs[0], self._logs[-1], _STEPS)]))
        rows = np.array([np.interp(logs, self._logs, row) for row in self._scores])
        differences = np.asarray(scores, dtype=float)[:, None] - rows
        mean = differences.mean(0)
        reach = stats.t.isf(level / 2, len(rows) - 1) * differences.std(0, ddof=1) / math.sqrt(len(rows))
        return Sizes(
            low=_first(logs, mean <= reach),
            middle=_first(logs, mean <= 0),
            high=_first(logs, mean < -reach),
            smallest=float(self._sizes[0]),
        )


_STEPS = 400


def _first(logs: np.ndarray, holds: np.ndarray) -> float | None:
    """The smallest size at which something holds: larger networks may be worse, and nobody has to take those."""
    found = np.flatnonzero(holds)
    return float(10 ** logs[found[0]]) if len(found) else None


@dataclass(frozen=True)
class Sizes:
    """The smallest size at which an arm scores as another one does; None where no size does, up to the largest.

    Attributes:
        low: The first at which it is not shown that it scores worse.
        middle: The first at which it does not score worse on average.
        high: The first at which it is shown that it scores better.
        smallest: The arm's smallest size: what is said of it may hold below it, too.
    """

    low: float | None
    middle: float | None
    high: float | None
    smallest: float
