"""The verdict of a comparison: at each size, do dendrites help, hurt, or is no difference shown?

Everything is computed from the raw results. Of the starts of a network the one of the best validation score counts, and
of the wide networks that are pruned, at each size, the one of the best mean validation score; test scores select
nothing. Two families are corrected, each as a whole: what a user could do instead (``plain``, ``deep``, ``pruned``,
``linear``), and what tells why (``sham``, ``gradient``, ``random``).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pbp_search.compare.results import Results, Row
from pbp_search.compare.statistics import Comparison, Curves, Sizes, compare
from pbp_search.front import Front, Point
from pbp_search.training import Size

ALTERNATIVES = ("plain", "deep", "pruned", "linear")
CONTROLS = ("sham", "gradient", "random")

Verdict = Literal["help", "hurt", "no difference shown"]
_VERDICTS: dict[str, Verdict] = {"better": "help", "worse": "hurt"}


@dataclass(frozen=True)
class Gap:
    """Dendrites against another arm at one size.

    Attributes:
        arm: The other one.
        score: Its mean test score at the size.
        comparison: Of the paired differences, above zero where dendrites are better, whatever the direction.
        sizes: At which sizes the other arm scores the same; None where the arm is a single network.
    """

    arm: str
    score: float
    comparison: Comparison
    sizes: Sizes | None

    @property
    def verdict(self) -> Verdict:
        """Whether dendrites help."""
        return _VERDICTS.get(self.comparison.verdict, "no difference shown")


@dataclass(frozen=True)
class AtSize:
    """What was found at the size of one network with dendrites.

    Attributes:
        group: The network.
        size: Of the kind that is compared.
        width: Its base width.
        dendrites: Its generations.
        pruned: Its pruning steps.
        score: Its mean test score.
        gaps: Against each other arm that has networks around this size.
    """

    group: int
    size: int
    width: int
    dendrites: int
    pruned: int
    score: float
    gaps: tuple[Gap, ...]


@dataclass(frozen=True)
class Cost:
    """What an arm took, a replicate: all of its networks together.

    Attributes:
        trainings: Neuron phases.
        epochs: Of both phases.
        seconds: Wall-clock.
    """

    trainings: float
    epochs: float
    seconds: float


@dataclass(frozen=True)
class Volumes:
    """Hypervolumes with and without dendrites at equal training cost, in the box that holds both.

    Attributes:
        with_dendrites: The mean over replicates.
        without: The same.
        comparison: Of their differences.
        epochs: The cost at which they are compared, a replicate.
    """

    with_dendrites: float
    without: float
    comparison: Comparison
    epochs: float


@dataclass(frozen=True)
class Findings:
    """The verdict for one kind of size.

    Attributes:
        kind: What sizes count.
        seeds: The replicates.
        at: What was found at each size, smallest first.
        volumes: Hypervolumes.
        costs: Of each arm.
    """

    kind: Size
    seeds: int
    at: tuple[AtSize, ...]
    volumes: Volumes
    costs: dict[str, Cost]


def findings(results: Results, kind: Size) -> Findings:
    """Compare the arms at the sizes of the dendritic networks.

    Raises:
        ValueError: There are fewer than two replicates.
    """
    return _Comparing(results, kind).findings()


class _Comparing:
    def __init__(self, results: Results, kind: Size) -> None:
        self.kind = kind
        self.sign = 1.0 if results.direction == "maximize" else -1.0
        self.direction = results.direction
        self.rows = results.rows
        self.replicates = sorted({row.replicate for row in results.rows})
        if len(self.replicates) < 2:
            raise ValueError(f"A comparison needs two replicates at least, not {len(self.replicates)}.")

    def findings(self) -> Findings:
        picks = self._dendritic()
        others = {
            (arm, group): found
            for group, rows in picks.items()
            for arm in (*ALTERNATIVES, *CONTROLS)
            if (found := self._against(arm, group, rows)) is not None
        }
        compared: dict[tuple[str, int], Comparison] = {}
        for family in (ALTERNATIVES, CONTROLS):
            compared |= compare(
                {
                    (arm, group): list(self._scores(picks[group]) - scores)
                    for (arm, group), (scores, _) in others.items()
                    if arm in family
                }
            )
        return Findings(
            kind=self.kind,
            seeds=len(self.replicates),
            at=tuple(
                sorted(
                    (self._at(group, rows, others, compared) for group, rows in picks.items()),
                    key=lambda found: found.size,
                )
            ),
            volumes=self._volumes(),
            costs={arm: self._cost(arm) for arm in dict.fromkeys(row.arm for row in self.rows)},
        )

    def _at(
        self,
        group: int,
        rows: list[Row],
        others: dict[tuple[str, int], "tuple[np.ndarray, Curves | None]"],
        compared: dict[tuple[str, int], Comparison],
    ) -> AtSize:
        gaps = []
        for (arm, other), (scores, curves) in others.items():
            if other == group:
                comparison = compared[arm, group]
                sizes = None if curves is None else curves.sizes_of(list(self._scores(rows)), comparison.level)
                gaps.append(Gap(arm, self.sign * float(scores.mean()), comparison, sizes))
        return AtSize(
            group=group,
            size=self._size(rows),
            width=rows[0].width,
            dendrites=max(row.dendrites for row in rows),
            pruned=max(row.pruned for row in rows),
            score=self.sign * float(self._scores(rows).mean()),
            gaps=tuple(gaps),
        )

    def _dendritic(self) -> dict[int, list[Row]]:
        return {group: self._ends(rows) for group, rows in self._groups("dendritic").items()}

    def _against(self, arm: str, group: int, own: list[Row]) -> "tuple[np.ndarray, Curves | None] | None":
        """Another arm's scores at the size of a dendritic network, one a replicate, and its curves.

        None if it has no networks around that size. It has as many starts as the dendritic network has trainings.
        """
        groups, size = self._groups(arm), self._size(own)
        trainings = 1 + max(row.requested for row in own)
        if not groups:
            return None
        if arm in CONTROLS:
            return self._scores(self._ends(groups[group])), None
        if arm == "linear":
            ((_, rows),) = groups.items()
            return self._scores(self._ends(rows, trainings)), None
        if arm == "pruned":
            curves = self._most_promising([self._by_step(rows) for rows in groups.values()], size)
        else:
            curves = self._curves([self._ends(rows, trainings) for rows in groups.values()])
        if curves is None or not curves.covers(size):
            return None
        return curves.at([size] * len(self.replicates)), curves

    def _most_promising(self, candidates: "list[list[list[Row]]]", size: int) -> Curves | None:
        """The curves of the wide network whose pruned ones are best at a size, by the mean validation score."""
        best: tuple[float, Curves] | None = None
        for networks in candidates:
            validated = self._curves(networks, validation=True)
            if validated is not None and validated.covers(size):
                mean = float(validated.at([size] * len(self.replicates)).mean())
                test = self._curves(networks)
                if test is not None and (best is None or mean > best[0]):
                    best = mean, test
        return None if best is None else best[1]

    def _by_step(self, rows: list[Row]) -> list[list[Row]]:
        """The networks of a chain by their number of pruning steps."""
        steps: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            steps[row.pruned].append(row)
        return [sorted(some, key=lambda row: row.replicate) for some in steps.values()]

    def _curves(self, networks: "list[list[Row]]", validation: bool = False) -> Curves | None:
        """A curve for each replicate over some networks, each with one row a replicate."""
        by_size = {self._size(rows): self._scores(rows, validation) for rows in networks}
        if len(by_size) < 2:
            return None
        return Curves(list(by_size), np.array(list(by_size.values())).T.tolist())

    def _groups(self, arm: str) -> dict[int, list[Row]]:
        groups: dict[int, list[Row]] = defaultdict(list)
        for row in self.rows:
            if row.arm == arm:
                groups[row.group].append(row)
        return dict(groups)

    def _ends(self, rows: Iterable[Row], starts: int | None = None) -> list[Row]:
        """The last network of a chain, of the best of the first starts by validation, for each replicate."""
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
        return [best[replicate] for replicate in self.replicates]

    @staticmethod
    def _progress(row: Row) -> int:
        return row.requested + row.pruned

    def _scores(self, rows: Sequence[Row], validation: bool = False) -> np.ndarray:
        """Higher is better."""
        return self.sign * np.array([row.validation if validation else row.test for row in rows])

    def _size(self, rows: Sequence[Row]) -> int:
        """That of the network as it was meant: a generation may have been thrown away in some replicates."""
        whole = [row for row in rows if row.dendrites == max(other.dendrites for other in rows)]
        return round(float(np.exp(np.mean([np.log(row.size(self.kind)) for row in whole]))))

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

    def _volumes(self) -> Volumes:
        """Of the test scores of each replicate's front by validation, at the epochs of the cheaper side.

        With dendrites are their networks, pruned or not; without, plain and pruned ones.
        """
        sides = {"with": ("dendritic",), "without": ("plain", "pruned")}
        epochs = min(sum(self._cost(arm).epochs for arm in arms) for arms in sides.values())
        chosen = {
            side: [self._chosen(arms, replicate, epochs) for replicate in self.replicates]
            for side, arms in sides.items()
        }
        rows = [row for some in chosen.values() for one in some for row in one]
        costs = self.sign * np.array([row.test for row in rows])
        worst = float(costs.min() - 0.1 * (np.ptp(costs) or 1.0))
        logs = np.log10([row.size(self.kind) for row in rows])
        largest = float(logs.max() + 0.1 * (np.ptp(logs) or 1.0))
        area = (float(costs.max()) - worst) * (largest - float(logs.min()))

        def volume(some: Sequence[Row]) -> float:
            points = (Point(row.test, row.size(self.kind), row) for row in some)
            return Front(points, self.direction).hypervolume((self.sign * worst, largest)) / area

        with_dendrites, without = (np.array([volume(some) for some in chosen[side]]) for side in sides)
        (comparison,) = compare({"": list(with_dendrites - without)}).values()
        return Volumes(float(with_dendrites.mean()), float(without.mean()), comparison, epochs)

    def _chosen(self, arms: Sequence[str], replicate: int, epochs: float) -> list[Row]:
        """The front by validation of what some arms train, one start after the other, within so many epochs."""
        rows = [row for row in self.rows if row.arm in arms and row.replicate == replicate]
        before: dict[tuple[str, int, int], int] = {}
        spent = 0
        within: list[Row] = []
        for row in sorted(rows, key=lambda row: (row.start, self._progress(row), row.trial)):
            chain = row.arm, row.group, row.start
            spent += row.epochs - before.get(chain, 0)
            before[chain] = row.epochs
            if spent <= epochs or not within:
                within.append(row)
        front = Front((Point(row.validation, row.size(self.kind), row) for row in within), self.direction)
        return [point.payload for point in front]


def to_dict(found: Findings) -> dict[str, Any]:
    """The findings as JSON types."""
    return {
        "kind": found.kind,
        "seeds": found.seeds,
        "at": [
            {
                "network": one.group,
                "size": one.size,
                "width": one.width,
                "dendrites": one.dendrites,
                "pruned": one.pruned,
                "score": one.score,
                "against": {gap.arm: _gap(gap) for gap in one.gaps},
            }
            for one in found.at
        ],
        "hypervolume": {
            "with": found.volumes.with_dendrites,
            "without": found.volumes.without,
            "epochs": found.volumes.epochs,
            **vars(found.volumes.comparison),
        },
        "cost": {arm: vars(cost) for arm, cost in found.costs.items()},
    }


def _gap(gap: Gap) -> dict[str, Any]:
    sizes = None if gap.sizes is None else vars(gap.sizes)
    return {"dendrites": gap.verdict, "score": gap.score, **vars(gap.comparison), "size_at_equal_score": sizes}
