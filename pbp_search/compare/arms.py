"""The arms of a comparison: which chains are trained to say whether dendrites pay.

The dendritic networks are taken from the study's front of networks with dendrites, by validation, at a few sizes. Each
arm besides them is what a user could have done instead:

* ``plain``: networks of the sizes just below and above, with as many starts as a dendritic network has trainings, each
  with the next best of the settings that the same search has found for networks without dendrites of about that size;
* ``deep``: the same with one layer more, if the task's ``model`` takes a depth;
* ``pruned``: plain networks of larger sizes, pruned by magnitude step by step;
* ``linear``: one linear layer;

or tells what it is that helps: ``sham`` has the same cycles and restarts and no dendrites, the dendrites of
``gradient`` train by backpropagation alone, and those of ``random`` not at all.

Every chain is trained once for each replicate, and all arms start from the same seeds.
"""

import inspect
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pbp_search.dendrites import DendriteSpec
from pbp_search.errors import StudyError, TaskError
from pbp_search.search import Rung, Study
from pbp_search.search.rungs import Plan, front_of
from pbp_search.search.sizes import NetworkSizes
from pbp_search.training import Data, Direction, Size, Task, TrialConfig, is_deep, linear_network
from pbp_search.training.streams import key

SIZES = 4
"""At how many sizes arms are compared, if the front has as many."""

CONTROLS = ("sham", "gradient", "random")

_NEAR = 2.0  # settings are those of networks up to so many times as large or small
_FEWEST = 5  # ... or of so many nearest ones
_WIDER = 4  # how much larger than the largest dendritic network one is that is pruned
_SHARE = 0.4
_MARGIN = 1.5  # how far beyond the dendritic networks' sizes the plain ones reach: indices make bytes larger


def picks_of(study: Study, count: int = SIZES) -> list[Rung]:
    """The networks with dendrites that are compared: of their front by validation some of evenly spread sizes.

    Raises:
        StudyError: The study has none.
    """
    own = study.definition
    grown = [rung for rung in _searched(study) if rung.milestone.dendrites and not rung.milestone.pruned]
    learned = [rung for rung in grown if rung.milestone.accepted and rung.milestone.config.dendrites.learned]
    front = [point.payload for point in front_of(learned, own.direction, own.size)]
    if not front:
        raise StudyError(
            f"The study {study.name!r} has no network with dendrites yet that could be compared: search on with more "
            "trials (pbp-search run), in a space with dendrites."
        )
    sizes = np.log([rung.milestone.size(own.size) for rung in front])
    wanted = np.linspace(sizes[0], sizes[-1], count)
    chosen = {int(np.abs(sizes - size).argmin()) for size in wanted}
    return [front[number] for number in sorted(chosen)]


def plans_of(study: Study, task: Task, data: Data[Any], replicates: int) -> dict[Plan, int]:
    """All chains of a comparison, replicate by replicate, each with a trial of the search that has its settings.

    Raises:
        StudyError: The study has no network with dendrites.
        TaskError: The task cannot build a network.
    """
    arms = _Arms(study, task, data)
    seeds = study.definition.seed
    plans: dict[Plan, int] = {}
    for replicate in range(replicates):
        for chain in arms.chains:
            seed = key(seeds, "replicate", replicate, chain.start) % 2**31
            config = chain.config.model_copy(update={"seed": seed})
            plan = Plan(
                arm=chain.arm,
                group=chain.group,
                replicate=replicate,
                start=chain.start,
                config=config,
                steps=("grow",) * chain.dendrites + ("prune",) * chain.prunings,
            )
            plans[plan] = chain.like
    return plans


@dataclass(frozen=True)
class _Chain:
    arm: str
    group: int
    config: TrialConfig
    like: int
    start: int = 0
    dendrites: int = 0
    prunings: int = 0


class _Arms:
    def __init__(self, study: Study, task: Task, data: Data[Any]) -> None:
        self._own = study.definition
        self._task = task
        self._data = data
        self._sizes = NetworkSizes(task, data)
        rungs = _searched(study)
        self._plain = [rung for rung in rungs if rung.parent is None]
        self.picks = picks_of(study)
        self._starts = 1 + max(pick.milestone.dendrites for pick in self.picks)
        self.chains = [*self._dendritic(), *self._pruned(), *self._of_widths("plain", None), *self._deep()]
        self.chains += self._linear()

    def _dendritic(self) -> Iterator[_Chain]:
        for pick in self.picks:
            config, dendrites = pick.milestone.config, pick.milestone.dendrites
            yield _Chain("dendritic", pick.trial, config, pick.configuration, dendrites=dendrites)
            for variant in CONTROLS:
                spec = DendriteSpec(**{**config.dendrites.to_dict(), "variant": variant})
                control = config.model_copy(update={"dendrites": spec})
                yield _Chain(variant, pick.trial, control, pick.configuration, dendrites=dendrites)

    def _of_widths(self, arm: str, depth: int | None) -> Iterator[_Chain]:
        """Networks around the sizes of those with dendrites, so that little is read between the lines."""
        sizes = [pick.milestone.parameters for pick in self.picks]
        widths = {width for size in sizes for width in self._around(size, depth)}
        widths |= {min(self._around(sizes[0] / _MARGIN, depth)), max(self._around(sizes[-1] * _MARGIN, depth))}
        for width in sorted(widths):
            yield from self._started(arm, width, depth, self._starts)

    def _deep(self) -> Iterator[_Chain]:
        if is_deep(self._task):
            default = inspect.signature(self._task.model).parameters["depth"].default
            yield from self._of_widths("deep", 2 if default is inspect.Parameter.empty else default + 1)

    def _pruned(self) -> Iterator[_Chain]:
        if self._own.size == "macs":  # pruned weights are computed all the same
            return
        smallest, largest = self.picks[0].milestone.parameters, self.picks[-1].milestone.parameters
        widest = max(rung.milestone.config.width for rung in self._plain)
        wider = max(self._around(_WIDER * largest, None))
        for width in sorted({wider, max(widest, wider)}):
            (chain,) = self._started("pruned", width, None, 1)
            size = self._parameters(width, None)
            steps = math.ceil(math.log(size / smallest) / -math.log(1 - _SHARE)) + 1
            config = chain.config.model_copy(update={"prune_share": _SHARE})
            yield _Chain("pruned", width, config, chain.like, prunings=steps)

    def _linear(self) -> Iterator[_Chain]:
        try:
            linear_network(self._task, self._data.train)
        except TaskError:
            return
        for chain in self._started("linear", 1, None, self._starts):
            config = chain.config.model_copy(update={"network": "linear"})
            yield _Chain("linear", 1, config, chain.like, chain.start)

    def _started(self, arm: str, width: int, depth: int | None, starts: int) -> Iterator[_Chain]:
        """A plain network, from several starts with one of the best settings each."""
        settings = best_settings(self._plain, self._parameters(width, depth), self._own.direction)
        for start in range(starts):
            rung = settings[start % len(settings)]
            changes = {"width": width, "depth": depth, "dendrites": DendriteSpec()}
            config = rung.milestone.config.model_copy(update=changes)
            yield _Chain(arm, width, config, rung.trial, start)

    def _around(self, size: float, depth: int | None) -> tuple[int, int]:
        """The widths of the largest network up to a size and of the next one."""
        most = 1
        while self._parameters(most, depth) <= size:
            most *= 2
        width = bisect_right(range(1, most + 1), size, key=lambda width: self._parameters(width, depth))
        return max(1, width), width + 1

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
    sign = 1 if direction == "maximize" else -1
    kind: Size = "parameters"

    def distance(rung: Rung) -> float:
        return abs(math.log(rung.milestone.size(kind) / size))

    def gap(rung: Rung) -> float:
        small = (other for other in plain if other.milestone.size(kind) <= rung.milestone.size(kind))
        return max(sign * other.milestone.score for other in small) - sign * rung.milestone.score

    nearest = sorted(plain, key=distance)
    near = [rung for rung in nearest if distance(rung) <= math.log(_NEAR)]
    candidates = near if len(near) >= _FEWEST else nearest[:_FEWEST]
    return sorted(candidates, key=lambda rung: (gap(rung), distance(rung)))


def _searched(study: Study) -> list[Rung]:
    return [rung for rung in study.rungs() if rung.plan is None]
