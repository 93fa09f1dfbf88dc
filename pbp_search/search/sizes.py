"""How large a network will be, known before it is trained: what limits of a study go by."""

from bisect import bisect_right
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from pbp_search.dendrites import parameter_count, weight_bytes
from pbp_search.errors import InputError
from pbp_search.search.space import SearchSpace
from pbp_search.search.values import Choices, Range, Value
from pbp_search.training import Data, Milestone, Size, Step, Task, TrialConfig, build_network
from pbp_search.training.milestone import macs_of
from pbp_search.training.pruning import left_after, prunable
from pbp_search.training.task import attempt


class NetworkSizes:
    """The sizes of a task's networks. One is built when it is first asked for; after that its sizes are known.

    They depend on the kind of network, its width and depth, the form of the dendrites and their number, and on nothing
    else of a configuration.

    Args:
        task: What builds the networks.
        data: Its data, if they are loaded already. They are needed for multiply-accumulates and for dendrites that see
            another tensor only.
    """

    def __init__(self, task: Task, data: Data[Any] | None = None) -> None:
        self.task = task
        self._data = data
        self._known: dict[tuple[TrialConfig, int, Size | Literal["weights"]], int] = {}

    def parameters(self, config: TrialConfig, dendrites: int) -> int:
        """The parameters of a configuration's network with a number of generations."""
        return self.size(config, dendrites, "parameters")

    def size(self, config: TrialConfig, dendrites: int, kind: Size | Literal["weights"]) -> int:
        """A size of a configuration's network with a number of generations, as its milestone will have it; or how many
        weights it has that can be pruned.

        Raises:
            TaskError: The task cannot build the network: not all widths have been tried before.
        """
        return self._looked_up(config, dendrites, kind)

    def _weights_left(self, milestone: Milestone) -> int:
        """Those of a milestone's weights that the next pruning step chooses from."""
        config, dendrites = milestone.config, milestone.dendrites
        gone = self.parameters(config, dendrites) - milestone.parameters
        return self._looked_up(config, dendrites, "weights") - gone

    def _looked_up(self, config: TrialConfig, dendrites: int, kind: Size | Literal["weights"]) -> int:
        alone = TrialConfig(network=config.network, width=config.width, depth=config.depth, dendrites=config.dendrites)
        key = (alone, dendrites, kind)
        if key not in self._known:
            what = f"The task {type(self.task).__name__}: its network of width {config.width} failed"
            self._known[key] = attempt(what, partial(self._measured, config, dendrites, kind))
        return self._known[key]

    def fits(self, config: TrialConfig, dendrites: int, limit: int | None) -> bool:
        """Whether a configuration's network with a number of generations is within a limit of parameters, if any."""
        return limit is None or self.parameters(config, dendrites) <= limit

    def steps(self, milestone: Milestone, space: SearchSpace, limit: int | None) -> list[Step]:
        """The steps after which a milestone's network is within a space and a limit of parameters, if any."""
        steps: list[Step] = []
        if milestone.dendrites < space.dendrites and (
            limit is None or self.after("grow", milestone, "parameters") <= limit
        ):
            steps.append("grow")
        if milestone.pruned < space.prunings and self._weights_left(milestone) > 0:
            steps.append("prune")
        return steps

    def after(self, step: Step, milestone: Milestone, kind: Size) -> int:
        """The size that a milestone's network will have after a step.

        Parameters are exact after a pruning step, and at most these after a generation on a pruned network, some of
        whose weights may be zero from the start. Bytes of pruned networks are an estimate: as many for each
        parameter as the milestone has.
        """
        config, dendrites = milestone.config, milestone.dendrites
        if step == "grow" and not milestone.pruned:
            return self.size(config, dendrites + 1, kind)
        if step == "grow":
            generation = self.size(config, dendrites + 1, kind) - self.size(config, dendrites, kind)
            return milestone.size(kind) + generation
        if kind == "macs":
            return milestone.macs
        weights = self._weights_left(milestone)
        parameters = milestone.parameters - weights + left_after(weights, config.prune_share)
        exact = kind == "parameters"
        return max(1, parameters if exact else round(milestone.weight_bytes * parameters / milestone.parameters))

    def widest(self, widths: tuple[int, int], limit: int) -> int | None:
        """The largest of a range of widths whose base network is within a limit of parameters, by bisection.

        Wider networks are taken to be larger. None if even the smallest width is above the limit.
        """
        lowest, highest = widths
        fitting = bisect_right(
            range(lowest, highest + 1), limit, key=lambda width: self.parameters(TrialConfig(width=width), 0)
        )
        return lowest + fitting - 1 if fitting else None

    def _measured(self, config: TrialConfig, dendrites: int, kind: Size | Literal["weights"]) -> int:
        if self._data is None and kind == "macs":
            self._data = self.task.data()
        network = build_network(self.task, config, dendrites, self._data)
        if kind == "macs":
            assert self._data is not None
            return macs_of(network, self._data)
        if kind == "weights":
            return sum(weight.numel() for weight in prunable(network))
        return parameter_count(network) if kind == "parameters" else weight_bytes(network)


def capped(space: SearchSpace, limit: int | None, sizes: NetworkSizes) -> SearchSpace:
    """A space without the widths whose base networks are above a limit of parameters.

    Raises:
        InputError: All of them are.
        TaskError: The task cannot build a network of one of the widths.
    """
    if limit is None:
        return space
    width: Value | None
    if isinstance(space.width, Range):
        smallest = int(space.width.low)
        widest = sizes.widest((smallest, int(space.width.high)), limit)
        width = None if widest is None else replace(space.width, high=widest)
    else:
        choices = space.width if isinstance(space.width, Choices) else (space.width,)
        smallest = min(map(int, choices))
        fitting = [one for one in map(int, choices) if sizes.fits(TrialConfig(width=one), 0, limit)]
        width = None if not fitting else Choices(fitting) if isinstance(space.width, Choices) else space.width
    if width is None:
        least = sizes.parameters(TrialConfig(width=smallest), 0)
        raise InputError(
            f"The smallest network of the task {sizes.task.name!r}, of width {smallest}, has {least:,} parameters, "
            f"more than the limit of {limit:,}: raise the limit, or lower the smallest width."
        )
    return space.changed({"width": width})
