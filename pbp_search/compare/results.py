"""The raw results of a comparison: one row for each network that was trained, all that the verdict is computed from."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from pbp_search.search import Study
from pbp_search.search.rungs import Plan, Rung
from pbp_search.settings import Settings
from pbp_search.training import Data, Direction, Size, Task, evaluate
from pbp_search.training.device import device_of


class Row(Settings):
    """A network of a comparison.

    Attributes:
        trial: Its trial in the study.
        arm: See :mod:`pbp_search.compare.arms`.
        group: Tells the networks of an arm apart: the trial of the search that a dendritic network repeats, the width
            of others, a number for those that are pruned.
        replicate: Rows of different arms with the same number have the same seeds.
        start: Tells the starts of one network and replicate apart.
        width: The base width.
        depth: Where it is not the task's own.
        dendrites: Its generations.
        requested: The generations that were asked for.
        pruned: Its pruning steps.
        parameters: What it stores.
        weight_bytes: The bytes of that.
        macs: Multiply-accumulates for one sample.
        validation: The score that everything is selected by.
        test: The score that nothing is selected by.
        epochs: Of its chain up to here.
        seconds: Of its chain up to here.
    """

    trial: int
    arm: str
    group: int
    replicate: int
    start: int
    width: int
    depth: int | None
    dendrites: int
    requested: int
    pruned: int
    parameters: int
    weight_bytes: int
    macs: int
    validation: float
    test: float
    epochs: int
    seconds: float

    def size(self, kind: Size) -> int:
        """The figure of one kind; at least 1, for logarithms."""
        return max(1, int(getattr(self, kind)))


class Results(Settings):
    """A comparison's raw results.

    Attributes:
        study: The study's name.
        task: The task's.
        metric: What scores measure.
        direction: Of the score.
        samples: Of the training, validation and test part; None where that is not known.
        searched: The finished trials of the search.
        search_epochs: That it took, of both phases.
        search_seconds: The same, all trials one after the other.
        machine: Where the test part was read, and most likely all was trained.
        space: What was searched.
        replicates: How many replicates were wanted.
        rows: Those of the replicates that are complete.
    """

    study: str
    task: str
    metric: str
    direction: Direction
    samples: tuple[int | None, int | None, int | None]
    searched: int
    search_epochs: int
    search_seconds: float
    machine: str
    space: dict[str, str]
    replicates: int
    rows: tuple[Row, ...]


def results_of(study: Study, task: Task, data: Data[Any], plans: Sequence[Plan], device: str = "cpu") -> Results:
    """Read the test part: the scores of all networks of a comparison, of the replicates in which none is missing."""
    rungs = [rung for rung in study.rungs() if rung.plan is not None]
    complete = complete_replicates(rungs, plans)
    own = study.definition
    place = device_of(device)
    spent = list(_spent(study.rungs()))
    rows = []
    for rung in rungs:
        plan = rung.plan
        if plan is None or plan.replicate not in complete or plan not in complete[plan.replicate]:
            continue
        network = study.checkpoint_of(rung).network(task, data).to(place)
        rows.append(_row(rung, plan, evaluate(network, task, data.test)))
    parts = (data.train, data.validation, data.test)
    return Results(
        study=study.name,
        task=own.task,
        metric=own.metric,
        direction=own.direction,
        samples=(_count(parts[0]), _count(parts[1]), _count(parts[2])),
        searched=study.progress().finished,
        search_epochs=sum(epochs for epochs, _ in spent),
        search_seconds=round(sum(seconds for _, seconds in spent)),
        machine=f"{os.cpu_count()} CPU cores, {place.type}, torch {torch.__version__}",
        space=own.space.texts(),
        replicates=len({plan.replicate for plan in plans}),
        rows=tuple(rows),
    )


def _spent(rungs: Iterable[Rung]) -> Iterator[tuple[int, float]]:
    """The epochs and seconds that each rung of the search has added to its chain."""
    known = {rung.trial: rung.milestone for rung in rungs if rung.plan is None}
    for rung in rungs:
        if rung.plan is None:
            before = None if rung.parent is None else known[rung.parent]
            yield (
                rung.milestone.epochs - (before.epochs if before else 0),
                rung.milestone.seconds - (before.seconds if before else 0.0),
            )


def complete_replicates(rungs: Iterable[Rung], plans: Sequence[Plan]) -> dict[int, set[Plan]]:
    """The replicates whose chains have all come to an end, and their chains."""
    wanted: dict[int, set[Plan]] = {}
    for plan in plans:
        wanted.setdefault(plan.replicate, set()).add(plan)
    ended = {rung.plan for rung in rungs if rung.plan is not None and rung.plan.step_after(rung.milestone) is None}
    return {replicate: chains for replicate, chains in wanted.items() if chains <= ended}


def _row(rung: Rung, plan: Plan, test: float) -> Row:
    milestone = rung.milestone
    return Row(
        trial=rung.trial,
        arm=plan.arm,
        group=plan.group,
        replicate=plan.replicate,
        start=plan.start,
        width=plan.config.width,
        depth=plan.config.depth,
        dendrites=milestone.dendrites,
        requested=milestone.requested,
        pruned=milestone.pruned,
        parameters=milestone.parameters,
        weight_bytes=milestone.weight_bytes,
        macs=milestone.macs,
        validation=milestone.score,
        test=test,
        epochs=milestone.epochs,
        seconds=round(milestone.seconds, 3),
    )


def _count(source: object) -> int | None:
    try:
        return len(getattr(source, "dataset", getattr(source, "targets", source)))  # type: ignore[arg-type]
    except TypeError:
        return None
