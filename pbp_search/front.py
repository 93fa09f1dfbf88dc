"""The Pareto front of score against size: points of any payload, dominance, hypervolume, the best under limits."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import moocore
import numpy as np

from pbp_search.errors import NothingFitsError

P = TypeVar("P")


@dataclass(frozen=True)
class Point(Generic[P]):
    """A score, a size (smaller is better) and what they belong to."""

    score: float
    size: float
    payload: P


class Front(Generic[P]):
    """The points that no other point dominates, from the smallest to the largest. Of equal points the first stays.

    Args:
        points: All points.
        direction: Whether larger or smaller scores are better.
        unit: What sizes count, for sentences.
    """

    def __init__(
        self, points: Iterable[Point[P]], direction: Literal["maximize", "minimize"], unit: str = "parameters"
    ) -> None:
        self.direction = direction
        self.unit = unit
        everything = list(points)
        self.points: list[Point[P]] = []
        if everything:
            kept = moocore.is_nondominated(self._costs(everything))
            chosen = [point for point, stays in zip(everything, kept, strict=True) if stays]
            self.points = sorted(chosen, key=lambda point: point.size)

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[Point[P]]:
        return iter(self.points)

    def best(self, max_size: float = math.inf, min_score: float | None = None) -> Point[P]:
        """The best point under the limits.

        With ``min_score`` that is the smallest point that reaches the score ("how small can it get at the accuracy I
        need"); without it, the point of the best score that is small enough.

        Raises:
            NothingFitsError: No point fits. The message names the nearest.
        """
        if not self.points:
            raise NothingFitsError("The front is empty: no trial has finished yet.")
        small = [point for point in self.points if point.size <= max_size]
        fitting = [point for point in small if min_score is None or self._reaches(point.score, min_score)]
        if fitting:
            # On a front sorted by size, scores improve with size.
            return fitting[0] if min_score is not None else fitting[-1]
        if not small:
            nearest = self.points[0]
            raise NothingFitsError(
                f"No network has at most {max_size:,.0f} {self.unit}: the smallest on the front has "
                f"{nearest.size:,.0f} (score {nearest.score:.4g})."
            )
        nearest = small[-1]
        limit = "" if math.isinf(max_size) else f" with at most {max_size:,.0f} {self.unit}"
        raise NothingFitsError(
            f"No network{limit} reaches the score {min_score:g}: the nearest has the score {nearest.score:.4g} "
            f"({nearest.size:,.0f} {self.unit})."
        )

    def hypervolume(self, reference: tuple[float, float]) -> float:
        """The area between the front and a reference (score, log10 of size), sizes on a logarithmic scale."""
        if not self.points:
            return 0.0
        score, log_size = reference
        sign = -1.0 if self.direction == "maximize" else 1.0
        return float(moocore.hypervolume(self._costs(self.points), ref=[sign * score, log_size]))

    def _reaches(self, score: float, minimum: float) -> bool:
        return score >= minimum if self.direction == "maximize" else score <= minimum

    def _costs(self, points: list[Point[P]]) -> np.ndarray:
        sign = -1.0 if self.direction == "maximize" else 1.0
        return np.array([[sign * point.score, math.log10(point.size)] for point in points], dtype=float)
