"""Raw results with a planted truth: the networks of a real comparison, with the spread of their scores, all equally
good but for a gap that is known. They show how often a verdict is wrong."""

from collections import defaultdict
from typing import Any

import numpy as np

from pbp_search.compare.results import Results, Row


def planted(results: Results, random: np.random.Generator, gap: float = 0.0) -> Results:
    """Results of the same networks, with other scores.

    The mean score is the same for all sizes: whatever arms and sizes are compared, there is no difference. Each network
    deviates as it does in truth, test and validation apart, so that the best of several starts is worth no more than
    another; a part of the deviations is common to all networks of a replicate.

    Args:
        results: Of a real comparison.
        random: Where deviations are drawn from.
        gap: By how much networks with dendrites are better than others of their size.
    """
    sign = 1.0 if results.direction == "maximize" else -1.0
    mean = float(np.mean([row.test for row in results.rows]))
    networks: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in results.rows:
        networks[row.arm, row.group, row.start, row.requested, row.pruned].append(row)
    common: dict[int, list[float]] = defaultdict(list)
    spread: dict[int, float] = {}
    for rows in networks.values():
        deviations = np.array([row.test for row in rows]) - np.mean([row.test for row in rows])
        for row, deviation in zip(rows, deviations, strict=True):
            common[row.replicate].append(float(deviation))
            spread[row.trial] = float(np.std(deviations, ddof=1)) if len(rows) > 1 else 0.0
    shared = float(np.std([np.mean(some) for some in common.values()]))
    of_replicate = {replicate: random.normal(0, shared) for replicate in sorted(common)}

    def score(row: Row) -> float:
        more = sign * gap if row.arm == "dendritic" and row.requested else 0.0
        return mean + more + float(of_replicate[row.replicate] + random.normal(0, spread[row.trial]))

    scored = tuple(row.model_copy(update={"validation": score(row), "test": score(row)}) for row in results.rows)
    return results.model_copy(update={"rows": scored})
