"""How often does a verdict claim a difference where there is none, and how often does it miss one that is there?

    python benchmarks/claims.py --json benchmarks/results/claims.json

For each comparison in docs/results, and for each of two kinds of size: sets of scores with the networks and the spread
of that comparison, but the same mean score for all of them, or with a planted gap. A set is a false claim if any
verdict at any size claims a difference, within a family. Hypervolumes are of fronts with different numbers of networks,
which differ in truth: they are not counted, but corrected for.
"""

from pathlib import Path

import click
import numpy as np
from form import Figure, show
from joblib import Parallel, delayed

from pbp_search.compare import Results, findings
from pbp_search.compare.planted import planted
from pbp_search.compare.verdict import ALTERNATIVES, CONTROLS
from pbp_search.training import Size

_RESULTS = Path(__file__).parents[1] / "docs" / "results"
_BATCH = 50
_GAP = 0.02


def claims(results: Results, kind: Size, gap: float, seeds: range) -> list[tuple[bool, bool, float]]:
    """Of each set: whether there is a claim against an alternative, against a control, and the share of the gaps
    against plain networks that are claimed."""
    found = []
    for seed in seeds:
        verdicts: dict[str, list[bool]] = {}
        for one in findings(planted(results, np.random.default_rng(seed), gap), kind).at:
            for each in one.gaps:
                verdicts.setdefault(each.arm, []).append(each.verdict != "no difference shown")
        alternatives = any(any(verdicts.get(arm, [])) for arm in ALTERNATIVES)
        controls = any(any(verdicts.get(arm, [])) for arm in CONTROLS)
        found.append((alternatives, controls, float(np.mean(verdicts.get("plain", [0.0])))))
    return found


def _in_batches(results: Results, kind: Size, gap: float, sets: int, jobs: int) -> list[tuple[bool, bool, float]]:
    batches = [range(start, min(start + _BATCH, sets)) for start in range(0, sets, _BATCH)]
    found = Parallel(jobs)(delayed(claims)(results, kind, gap, batch) for batch in batches)
    return [one for batch in found for one in batch]


@click.command()
@click.option("--sets", type=click.IntRange(min=1), default=2000, show_default=True, help="Of each comparison.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures.")
def main(sets: int, jobs: int, file: Path | None) -> None:
    """Count claims."""
    kinds: tuple[Size, ...] = ("parameters", "weight_bytes")
    figures = []
    for folder in sorted(path.parent for path in _RESULTS.glob("*/results.json")):
        results = Results.load(folder)
        for kind in kinds:
            null = _in_batches(results, kind, 0.0, sets, jobs)
            for family, told in (
                ("alternatives", [each[0] for each in null]),
                ("controls", [each[1] for each in null]),
            ):
                rate = float(np.mean(told))
                name = f"{results.study}, {kind}: false claims against {family}"
                figures.append(
                    Figure(name, rate, "share of sets", 0.05, sets, float(np.sqrt(rate * (1 - rate) / sets)))
                )
        there = _in_batches(results, "parameters", _GAP, max(1, sets // 10), jobs)
        seen = float(np.mean([each[2] for each in there]))
        name = f"{results.study}: gaps of {_GAP} against plain networks that are claimed"
        figures.append(Figure(name, seen, "share of sizes", None, len(there), 0.0))
    show(figures, file)


if __name__ == "__main__":
    main()
