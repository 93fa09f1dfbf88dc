"""The arms of a comparison: which chains are trained to say whether dendrites pay.

The dendritic networks are taken from the study's fronts of networks with dendrites, by validation, at a few sizes: some
as they grew, and some that were pruned besides. Each arm besides them is what a user could have done instead:

* ``plain``: networks of the sizes just below and above, with as many starts as a dendritic network has trainings, each
  with the next best of the settings that the same search has found for networks without dendrites of about that size;
* ``deep``: the same with one layer more, if the task's ``model`` takes a depth;
* ``pruned``: plain networks pruned by magnitude step by step: those that the search has found best at each size, and
  wider ones;
* ``linear``: one linear layer;

or tells what it is that helps: ``sham`` has the same cycles and restarts and no dendrites, the dendrites of
``gradient`` train by backpropagation alone, and those of ``random`` not at all.

Every chain is trained once for each replicate, and all arms start from the same seeds.
"""

import inspect
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pbp_search.compare.searched import gap_to_front
from pbp_search.dendrites import DendriteSpec
from pbp_search.errors import StudyError, TaskError
from pbp_search.search import Rung, Study
from pbp_search.search.rungs import Plan, front_of
from pbp_search.search.sizes import NetworkSizes
from pbp_search.search.values import Choices, corners
from pbp_search.training import Data, Direction, Step, Task, TrialConfig, is_deep, linear_network
from pbp_search.training.pruning import left_after

CONTROLS = ("sham", "gradient", "random")

_NEAR = 2.0  # settings are those of networks up to so many times as large or small
_FEWEST = 5  # ... or of so many nearest ones
_WIDER = 4  # how much larger than the largest dendritic network one is that is pruned
_SHARE = 0.4
_MARGIN = 1.5  # how far beyond the dendritic networks' sizes the plain ones reach: indices make bytes larger


def picks_of(study: Study, count: int, max_params: int | None = None) -> list[Rung]:
    """The networks with dendrites that are compared: of the front of those that are not pruned some of evenly spread
    sizes, and as many of the front of those that are.

    Their scores are in the better half between the worst and the best on the front of all networks: at sizes where
    nothing has been learned there is nothing to compare.

    Args:
        study: The search.
        count: How many of each.
        max_params: The most parameters that one may have.

    Raises:
        StudyError: The study has none.
    """
    grown = [rung for rung in _searched(study) if rung.milestone.dendrites]
    learned = [rung for rung in grown if rung.milestone.accepted and rung.milestone.config.dendrites.learned]
    small = [rung for rung in learned if max_params is None or rung.milestone.parameters <= max_params]
    picks = [
        rung
        for pruned in (False, True)
        for rung in _spread(study, [rung for rung in small if bool(rung.milestone.pruned) == pruned], count)
    ]
    if not picks:
        limit = "" if max_params is None else f" of up to {max_params:,} parameters"
        raise StudyError(
            f"The study {study.name!r} has no network with dendrites{limit} yet that could be compared: search on with "
            "more trials (pbp-search run), in a space with dendrites."
        )
    return sorted(picks, key=lambda rung: rung.milestone.parameters)


def _spread(study: Study, rungs: Sequence[Rung], count: int) -> list[Rung]:
    """Some of the front of some rungs, of evenly spread sizes."""
    own = study.definition
    scores = [rung.milestone.score for rung in (point.payload for point in front_of(_searched(study), own.direction))]
    middle = (min(scores) + max(scores)) / 2
    front = [
        point.payload
        for point in front_of(rungs, own.direction, own.size)
        if (point.score >= middle if own.direction == "maximize" else point.score <= middle)
    ]
    if not front:
        return []
    sizes = np.log([rung.milestone.size(own.size) for rung in front])
    chosen = {int(np.abs(sizes - size).argmin()) for size in np.linspace(sizes[0], sizes[-1], count)}
    return [front[number] for number in sorted(chosen)]


def plans_of(study: Study, task: Task, data: Data[Any], sizes: int, max_params: int | None = None) -> dict[Plan, int]:
    """The chains of a new comparison, for one replicate, each with a trial of the search that has its settings.

    Args:
        study: The search.
        task: Its task.
        data: The task's.
        sizes: At how many sizes arms are compared, if the front has as many.
        max_params: The most parameters that a network with dendrites may have.

    Raises:
        StudyError: The study has no network with dendrites.
        TaskError: The task cannot build a network.
    """
    number = str(1 + int(study.comparison() or 0))
    return {
        Plan(
            comparison=number,
            arm=chain.arm,
            group=chain.group,
            replicate=0,
            start=chain.start,
            config=chain.config,
            steps=chain.steps,
        ): chain.like
        for chain in _Arms(study, task, data, picks_of(study, sizes, max_params)).chains
    }


@dataclass(frozen=True)
class _Chain:
    arm: str
    group: int
    config: TrialConfig
    like: int
    start: int = 0
    steps: tuple[Step, ...] = ()


class _Arms:
    def __init__(self, study: Study, task: Task, data: Data[Any], picks: Sequence[Rung]) -> None:
        self._own = study.definition
        self._task = task
        self._data = data
        self._sizes = NetworkSizes(task, data)
        self._rungs = {rung.trial: rung for rung in _searched(study)}
        self._plain = [rung for rung in self._rungs.values() if rung.parent is None]
        self._widths = sorted(map(int, corners(self._own.space.width)))
        self.picks = picks
        self._starts = 1 + max(pick.milestone.dendrites for pick in self.picks)
        self.chains = [*self._dendritic(), *self._pruned(), *self._of_widths("plain", None), *self._deep()]
        self.chains += self._linear()

    def _dendritic(self) -> Iterator[_Chain]:
        for pick in self.picks:
            config, steps = pick.milestone.config, self._path(pick)
            yield _Chain("dendritic", pick.trial, config, pick.configuration, steps=steps)
            for variant in CONTROLS:
                spec = DendriteSpec(**{**config.dendrites.to_dict(), "variant": variant})
                control = config.model_copy(update={"dendrites": spec})
                yield _Chain(variant, pick.trial, control, pick.configuration, steps=steps)

    def _path(self, rung: Rung) -> tuple[Step, ...]:
        """The steps that have led to a network of the search."""
        steps: list[Step] = []
        while rung.parent is not None:
            before = self._rungs[rung.parent]
            steps.append("prune" if rung.milestone.pruned > before.milestone.pruned else "grow")
            rung = before
        return tuple(reversed(steps))

    def _of_widths(self, arm: str, depth: int | None) -> Iterator[_Chain]:
        """Networks around the sizes of those with dendrites and of their bases, so that little is read between the
        lines."""
        grown = [pick for pick in self.picks if not pick.milestone.pruned] or self.picks
        bases = [self._parameters(pick.milestone.config.width, None) for pick in grown]
        sizes = [pick.milestone.parameters for pick in self.picks]
        least = self._parameters(self._widths[0], depth)
        within = [size for size in (*sizes, max(sizes) * _MARGIN, min(bases)) if size >= least]
        for width in sorted({width for size in within for width in self._around(size, depth)}):
            yield from self._started(arm, width, depth, self._starts)

    def _deep(self) -> Iterator[_Chain]:
        if is_deep(self._task):
            default = inspect.signature(self._task.model).parameters["depth"].default
            if isinstance(default, int):
                yield from self._of_widths("deep", default + 1)

    def _pruned(self) -> Iterator[_Chain]:
        chains = [*self._pruned_in_the_search(), *self._pruned_from_wide()]
        yield from (replace(chain, group=number) for number, chain in enumerate(chains))

    def _pruned_in_the_search(self) -> Iterator[_Chain]:
        """The best that the search has found at each of the sizes."""
        pruned = [rung for rung in self._rungs.values() if rung.milestone.pruned and not rung.milestone.requested]
        front = front_of(pruned, self._own.direction)
        best: dict[int, Rung] = {}
        for pick in self.picks:
            fitting = [point.payload for point in front if point.size <= pick.milestone.parameters]
            if fitting:
                rung = fitting[-1]
                known = best.get(rung.configuration)
                if known is None or known.milestone.pruned < rung.milestone.pruned:
                    best[rung.configuration] = rung
        for rung in best.values():
            yield _Chain("pruned", 0, rung.milestone.config, rung.configuration, steps=self._path(rung))

    def _pruned_from_wide(self) -> Iterator[_Chain]:
        """Networks four times as large as the smallest and the largest one, and the widest, with the best settings at
        their sizes, down to the smallest."""
        smallest, largest = self.picks[0].milestone.parameters, self.picks[-1].milestone.parameters
        widest = max(rung.milestone.config.width for rung in self._plain)
        wider = [max(self._around(_WIDER * size, None)) for size in (smallest, largest)]
        for width in sorted({*wider, max(widest, *wider)}):
            (chain,) = self._started("pruned", width, None, 1)
            config = chain.config.model_copy(update={"prune_share": _SHARE})
            prune: Step = "prune"
            yield replace(chain, config=config, steps=(prune,) * self._steps_to(smallest, config))

    def _steps_to(self, size: int, config: TrialConfig) -> int:
        """How many pruning steps lead to a size, or to where the rest are biases."""
        weights = self._sizes.size(config, 0, "weights")
        rest = self._parameters(config.width, None) - weights
        steps = 0
        while rest + weights > size and weights > 1:
            weights = left_after(weights, config.prune_share)
            steps += 1
        return steps

    def _linear(self) -> Iterator[_Chain]:
        try:
            layer = linear_network(self._task, self._data.train)
        except TaskError:
            return
        size = sum(weight.numel() for weight in layer.parameters())
        for chain in self._started("linear", self._widths[0], None, self._starts, size):
            config = chain.config.model_copy(update={"network": "linear"})
            yield replace(chain, config=config)

    def _started(
        self, arm: str, width: int, depth: int | None, starts: int, size: int | None = None
    ) -> Iterator[_Chain]:
        """A plain network, from several starts with one of the best settings for its size each."""
        settings = best_settings(self._plain, size or self._parameters(width, depth), self._own.direction)
        for start in range(starts):
            rung = settings[start % len(settings)]
            changes = {"width": width, "depth": depth, "dendrites": DendriteSpec()}
            config = rung.milestone.config.model_copy(update=changes)
            yield _Chain(arm, width, config, rung.trial, start)

    def _around(self, size: float, depth: int | None) -> tuple[int, int]:
        """The widths of the largest network up to a size and of the next one: from the study's smallest on, or of
        those that it may choose from."""
        widths: Sequence[int] = self._widths
        if not isinstance(self._own.space.width, Choices):
            most = self._widths[0]
            while (now := self._parameters(most, depth)) <= size:
                most *= 2
                if self._parameters(most, depth) <= now:
                    break  # it does not grow with its width
            widths = range(self._widths[0], most + 1)
        place = bisect_right(widths, size, key=lambda width: self._parameters(width, depth))
        return widths[max(0, place - 1)], widths[min(place, len(widths) - 1)]

    def _parameters(self, width: int, depth: int | None) -> int:
        return self._sizes.parameters(TrialConfig(width=width, depth=depth), 0)


def best_settings(plain: Sequence[Rung], size: float, direction: Direction) -> list[Rung]:
    """Networks without dendrites of about a size, of the search, the best first: by what they lack to be on the front
    of all of them.

    Args:
        plain: Those of the search.
        size: In parameters.
        direction: Of the score.
    """

    def distance(rung: Rung) -> float:
        return abs(math.log(rung.milestone.parameters / size))

    nearest = sorted(plain, key=distance)
    near = [rung for rung in nearest if distance(rung) <= math.log(_NEAR)]
    candidates = near if len(near) >= _FEWEST else nearest[:_FEWEST]
    return sorted(candidates, key=lambda rung: (gap_to_front(rung, plain, direction), distance(rung)))


def _searched(study: Study) -> list[Rung]:
    return [rung for rung in study.rungs() if rung.plan is None]
