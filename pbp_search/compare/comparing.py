"""Comparing the arms by their raw results: see :mod:`pbp_search.compare.verdict`."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pbp_search.compare.results import Results, Row
from pbp_search.compare.statistics import Comparison, Curves, compare
from pbp_search.compare.verdict import ALTERNATIVES, CONTROLS, AtSize, Cost, Findings, Gap, Volumes
from pbp_search.front import Front, Point
from pbp_search.training import Size

_VOLUMES = "volumes"
_NEVER_PRUNED = ("plain", "deep")  # a gap between one that is pruned and these would be the pruning's


def findings(results: Results, kind: Size) -> Findings:
    """Compare the arms at the sizes of the dendritic networks.

    Raises:
        ValueError: There are fewer than two replicates, or no dendritic network is whole.
    """
    return _Comparing(results, kind).findings()


@dataclass(frozen=True)
class _Other:
    """Another arm at the sizes of a dendritic network."""

    scores: np.ndarray
    one_start: np.ndarray
    seconds: float
    curves: Curves | None = None
    size: int | None = None


class _Comparing:
    def __init__(self, results: Results, kind: Size) -> None:
        self.results = results
        self.kind = kind
        self.sign = 1.0 if results.direction == "maximize" else -1.0
        self.rows = results.rows
        self.replicates = sorted({row.replicate for row in results.rows})
        if len(self.replicates) < 2:
            raise ValueError(f"A comparison needs two replicates at least, not {len(self.replicates)}.")
        ends = {group: self._ends(rows) for group, rows in self._groups("dendritic").items()}
        self.picks = {group: rows for group, rows in ends.items() if rows is not None}
        if not self.picks:
            raise ValueError("No network with dendrites could be trained in all replicates.")

    def findings(self) -> Findings:
        others: dict[tuple[str, int], _Other] = {}
        missing: dict[int, dict[str, tuple[int, int]]] = defaultdict(dict)
        for group, rows in self.picks.items():
            pruned = any(row.pruned for row in rows)
            for arm in (*ALTERNATIVES, *CONTROLS):
                if pruned and arm in _NEVER_PRUNED:
                    continue
                found = self._against(arm, group, rows)
                if found is not None:
                    others[arm, group] = found
                elif sizes := [row.size(self.kind) for row in self.rows if row.arm == arm]:
                    missing[group][arm] = min(sizes), max(sizes)
        volumes, (with_dendrites, without) = self._volumes()
        scale = max(abs(row.test) for row in self.rows)
        compared: dict[Any, Comparison] = {}
        for family in (ALTERNATIVES, CONTROLS):
            differences: dict[Any, list[float]] = {
                (arm, group): list(self._scores(self.picks[group]) - other.scores)
                for (arm, group), other in others.items()
                if arm in family
            }
            if family == ALTERNATIVES:
                differences[_VOLUMES] = list(scale * (with_dendrites - without))
            compared |= compare(differences, scale)
        return Findings(
            kind=self.kind,
            seeds=len(self.replicates),
            wanted=self.results.replicates,
            lost=self.results.lost,
            at=tuple(
                sorted(
                    (self._at(group, rows, others, compared, missing[group]) for group, rows in self.picks.items()),
                    key=lambda found: found.size,
                )
            ),
            volumes=volumes(_scaled(compared[_VOLUMES], 1 / scale)),
            costs={arm: self._cost(arm) for arm in dict.fromkeys(row.arm for row in self.rows)},
        )

    def _at(
        self,
        group: int,
        rows: list[Row],
        others: dict[tuple[str, int], _Other],
        compared: dict[Any, Comparison],
        missing: dict[str, tuple[int, int]],
    ) -> AtSize:
        own = self._scores(rows)
        gaps = [
            Gap(
                arm=arm,
                score=self.sign * float(other.scores.mean()),
                comparison=compared[arm, group],
                one_start=float((own - other.one_start).mean()),
                seconds=other.seconds,
                sizes=other.curves.sizes_of(list(own), compared[arm, group].level) if other.curves else None,
                size=other.size,
            )
            for (arm, place), other in others.items()
            if place == group
        ]
        generations = max(row.requested for row in rows)
        kept = [row for row in rows if row.dendrites == generations]
        return AtSize(
            group=group,
            size=self._size(kept or rows),
            width=rows[0].width,
            dendrites=generations,
            kept=len(kept),
            pruned=max(row.pruned for row in rows),
            score=self.sign * float(own.mean()),
            seconds=_mean_seconds(rows),
            gaps=tuple(gaps),
            missing=missing,
        )

    def _against(self, arm: str, group: int, own: list[Row]) -> _Other | None:
        """Another arm's scores at the sizes that a dendritic network has in each replicate.

        None if it has no networks around those sizes. It has as many starts as the dendritic network has trainings.
        """
        groups = self._groups(arm)
        trainings = 1 + max(row.requested for row in own)
        if arm in CONTROLS:
            ends = self._ends(groups.get(group, []))
            if ends is None:
                return None
            scores = self._scores(ends)
            return _Other(scores, scores, _mean_seconds(ends), size=self._size(ends))
        if arm == "linear":
            return self._linear(groups, own, trainings)
        sizes = [row.size(self.kind) for row in own]
        if arm == "pruned":
            networks = self._most_promising([self._by_step(rows) for rows in groups.values()], sizes)
            spent = {self._size(rows): _mean_seconds(rows) for rows in networks}
            first = networks
        else:
            networks = _whole(self._ends(rows, trainings) for rows in groups.values())
            first = _whole(self._ends(rows, 1) for rows in groups.values())
            spent = {self._size(rows): self._all_starts(groups[rows[0].group], trainings) for rows in networks}
        curves, first_curves = self._curves(networks), self._curves(first)
        if curves is None or first_curves is None or not all(map(curves.covers, sizes)):
            return None
        places = sorted(spent)
        near = np.interp(np.log(self._size(own)), np.log(places), [spent[place] for place in places])
        return _Other(curves.at(sizes), first_curves.at(sizes), float(near), curves)

    def _linear(self, groups: dict[int, list[Row]], own: list[Row], trainings: int) -> _Other | None:
        """A linear network, where it is not larger."""
        for rows in groups.values():
            best, first = self._ends(rows, trainings), self._ends(rows, 1)
            if best and first and self._size(best) <= self._size(own):
                seconds = self._all_starts(rows, trainings)
                return _Other(self._scores(best), self._scores(first), seconds, size=self._size(best))
        return None

    def _most_promising(self, candidates: Iterable[list[list[Row]]], sizes: Sequence[int]) -> list[list[Row]]:
        """The networks of the chain whose pruned ones are best at some sizes, by the mean validation score."""
        best: tuple[float, list[list[Row]]] | None = None
        for networks in candidates:
            validated = self._curves(networks, validation=True)
            if validated is not None and all(map(validated.covers, sizes)):
                mean = float(validated.at(sizes).mean())
                if best is None or mean > best[0]:
                    best = mean, networks
        return [] if best is None else best[1]

    def _by_step(self, rows: list[Row]) -> list[list[Row]]:
        """The networks of a chain by their number of pruning steps, those that are whole."""
        steps: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            steps[row.pruned].append(row)
        return _whole(self._ends(some) for some in steps.values())

    def _curves(self, networks: Iterable[list[Row]], validation: bool = False) -> Curves | None:
        """A curve for each replicate over some networks, each with one row a replicate."""
        by_size = {self._size(rows): self._scores(rows, validation) for rows in networks}
        if len(by_size) < 2:
            return None
        return Curves(list(by_size), np.array(list(by_size.values())).T.tolist())

    def _all_starts(self, rows: Iterable[Row], starts: int) -> float:
        """What a network's starts take together, a replicate."""
        return sum(row.seconds for row in rows if row.start < starts) / len(self.replicates)

    def _groups(self, arm: str) -> dict[int, list[Row]]:
        groups: dict[int, list[Row]] = defaultdict(list)
        for row in self.rows:
            if row.arm == arm:
                groups[row.group].append(row)
        return dict(groups)

    def _ends(self, rows: Iterable[Row], starts: int | None = None) -> list[Row] | None:
        """The last network of a chain, of the best of the first starts by validation, for each replicate.

        None if one is missing: it could not be trained.
        """
        ends: dict[tuple[int, int], Row] = {}
        for row in rows:
            place = row.replicate, row.start
            if starts is not None and row.start >= starts:
                continue
            if place not in ends or self._progress(row) > self._progress(ends[place]):
                ends[place] = row
        best: dict[int, Row] = {}
        for row in ends.values():
            known = best.get(row.replicate)
            if known is None or self.sign * row.validation > self.sign * known.validation:
                best[row.replicate] = row
        return [best[replicate] for replicate in self.replicates] if len(best) == len(self.replicates) else None

    @staticmethod
    def _progress(row: Row) -> int:
        return row.requested + row.pruned

    def _scores(self, rows: Sequence[Row], validation: bool = False) -> np.ndarray:
        """Higher is better."""
        return self.sign * np.array([row.validation if validation else row.test for row in rows])

    def _size(self, rows: Sequence[Row]) -> int:
        """The mean, over the logarithm."""
        return round(float(np.exp(np.mean([np.log(row.size(self.kind)) for row in rows]))))

    def _cost(self, arm: str) -> Cost:
        ends: dict[tuple[int, int, int], Row] = {}
        own = [row for row in self.rows if row.arm == arm]
        for row in own:
            place = row.group, row.replicate, row.start
            if place not in ends or self._progress(row) > self._progress(ends[place]):
                ends[place] = row
        count = len(self.replicates)
        return Cost(
            trainings=len(own) / count,
            epochs=sum(row.epochs for row in ends.values()) / count,
            seconds=sum(row.seconds for row in ends.values()) / count,
        )

    def _volumes(self) -> "tuple[Callable[[Comparison], Volumes], tuple[np.ndarray, np.ndarray]]":
        """Of the test scores of each replicate's front by validation, within the sizes of the dendritic networks.

        What is smaller counts at the smallest of these sizes: it is there for everybody who asks for that size.
        """
        sizes = [self._size(rows) for rows in self.picks.values()]
        smallest, largest = min(sizes), max(sizes) * 1.001  # which is in the box
        dendritic = [row for row in self.rows if row.arm == "dendritic"]
        epochs = self._epochs(dendritic)
        rivals = self._rivals(epochs, sizes)
        within = [row.test for row in (*dendritic, *rivals) if row.size(self.kind) <= largest]
        worst, best = min(within, key=lambda score: self.sign * score), max(within, key=lambda score: self.sign * score)
        reference = worst - 0.1 * (best - worst or self.sign), float(np.log10(largest))
        area = abs(best - reference[0]) * (reference[1] - float(np.log10(smallest)))

        def volume(rows: Sequence[Row], replicate: int) -> float:
            points = [
                Point(row.validation, max(smallest, row.size(self.kind)), row)
                for row in rows
                if row.replicate == replicate and row.size(self.kind) <= largest
            ]
            chosen = [Point(point.payload.test, point.size, point.payload) for point in self._front(points)]
            return self._front(chosen).hypervolume(reference) / area

        sides = [np.array([volume(rows, replicate) for replicate in self.replicates]) for rows in (dendritic, rivals)]

        def told(comparison: Comparison) -> Volumes:
            with_dendrites, without = (float(side.mean()) for side in sides)
            return Volumes(with_dendrites, without, comparison, epochs, self._epochs(rivals))

        return told, (sides[0], sides[1])

    def _rivals(self, epochs: float, sizes: Sequence[int]) -> list[Row]:
        """The networks without dendrites that can be trained in as many epochs.

        Those that are pruned from wide ones come first, as they have networks of all sizes; then the starts of plain
        ones, the first of all of them and those next to the sizes before others. What takes too long is left out.
        """
        chains: dict[tuple[str, int, int], list[Row]] = defaultdict(list)
        for row in self.rows:
            if row.arm in ("plain", "pruned"):
                chains[row.arm, row.group, row.start].append(row)

        def turn(place: tuple[str, int, int]) -> tuple[int, bool, float]:
            size = self._size(chains[place])
            return place[2], place[0] == "plain", min(abs(np.log(size / near)) for near in sizes)

        chosen: list[Row] = []
        spent = 0.0
        for place in sorted(chains, key=turn):
            cost = self._epochs(chains[place])
            if spent + cost <= epochs:
                chosen += chains[place]
                spent += cost
        return chosen or min(chains.values(), key=self._epochs, default=[])

    def _front(self, points: Iterable[Point[Row]]) -> Front[Row]:
        return Front(points, self.results.direction)

    def _epochs(self, rows: Sequence[Row]) -> float:
        """Those that some chains took, a replicate."""
        ends: dict[tuple[str, int, int, int], int] = {}
        for row in rows:
            place = row.arm, row.group, row.replicate, row.start
            ends[place] = max(row.epochs, ends.get(place, 0))
        return sum(ends.values()) / len(self.replicates)


def _whole(networks: "Iterable[list[Row] | None]") -> list[list[Row]]:
    return [rows for rows in networks if rows is not None]


def _mean_seconds(rows: Sequence[Row]) -> float:
    return float(np.mean([row.seconds for row in rows]))


def _scaled(comparison: Comparison, factor: float) -> Comparison:
    names = ("mean", "low", "high", "detectable")
    return replace(comparison, **{name: factor * getattr(comparison, name) for name in names})
