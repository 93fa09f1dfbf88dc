"""The raw results of a comparison: one row for each network that was trained, all that the verdict is computed from."""

import csv
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch

from pbp_search.compare.searched import choices, importances
from pbp_search.search import Study
from pbp_search.search.plans import Chain
from pbp_search.search.rungs import Plan, Rung
from pbp_search.settings import Settings
from pbp_search.training import Data, Direction, Size, Task, evaluate
from pbp_search.training.device import device_of

_ABOUT = "results.json"
_ROWS = "networks.csv"
_DIGITS = 7  # of scores: float32 has no more


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
        size: What the search made small.
        samples: Of the training, validation and test part; None where that is not known.
        searched: The finished trials of the search.
        search_epochs: That it took, of both phases.
        search_seconds: The same, all trials one after the other.
        machine: Where the test part was read, and most likely all was trained.
        space: What was searched.
        importances: How much each parameter of the search tells networks near its front from others.
        choices: Of each parameter with choices and each value: how many networks with dendrites of the search had it,
            and the median of what they lack to its front.
        replicates: How many replicates were wanted.
        lost: Chains that have failed, of the replicates that are complete.
        rows: Those of the replicates that are complete.
    """

    study: str
    task: str
    metric: str
    direction: Direction
    size: Size
    samples: tuple[int | None, int | None, int | None]
    searched: int
    search_epochs: int
    search_seconds: float
    machine: str
    space: dict[str, str]
    importances: dict[str, float]
    choices: dict[str, dict[str, tuple[int, float]]]
    replicates: int
    lost: int
    rows: tuple[Row, ...]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What :meth:`save` has written.

        Raises:
            OSError: A file is missing.
            SettingsError: A value is not allowed.
        """
        with (folder / _ROWS).open(newline="", encoding="utf-8") as file:
            rows = [{name: value or None for name, value in row.items()} for row in csv.DictReader(file)]
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        return cls.from_dict({**about, "rows": rows})

    def save(self, folder: Path) -> None:
        """Write ``networks.csv``, a line for each network, and ``results.json``, which has the rest."""
        about = self.to_dict()
        rows = about.pop("rows")
        (folder / _ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        with (folder / _ROWS).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(Row.model_fields), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def results_of(
    study: Study, task: Task, data: Data[Any], plans: Collection[Plan], replicates: int, device: str = "cpu"
) -> Results:
    """Read the test part: the scores of all networks of a comparison, of the replicates that are complete.

    Args:
        study: The search.
        task: Its task.
        data: The task's.
        plans: The comparison's chains.
        replicates: How many were wanted.
        device: Where to compute the scores.
    """
    chains = {plan: chain for plan, chain in study.chains().items() if plan in plans}
    complete = complete_replicates(chains, plans)
    place = device_of(device)
    rows, lost = [], 0
    for plan, chain in chains.items():
        if plan.replicate not in complete:
            continue
        if not _ended(plan, chain):
            lost += 1
            continue
        for rung in chain.rungs:
            network = study.checkpoint_of(rung).network(task, data).to(place)
            rows.append(_row(rung, plan, evaluate(network, task, data.test)))
    parts = (data.train, data.validation, data.test)
    rungs = study.rungs()
    spent = list(_spent(rungs))
    own = study.definition
    return Results(
        study=study.name,
        task=own.task,
        metric=own.metric,
        direction=own.direction,
        size=own.size,
        samples=(_count(parts[0]), _count(parts[1]), _count(parts[2])),
        searched=study.progress().finished,
        search_epochs=sum(epochs for epochs, _ in spent),
        search_seconds=round(sum(seconds for _, seconds in spent)),
        machine=f"{os.cpu_count()} CPU cores, {place.type}, torch {torch.__version__}",
        space=own.space.texts(),
        importances=importances(study),
        choices=choices(study),
        replicates=replicates,
        lost=lost,
        rows=tuple(sorted(rows, key=lambda row: row.trial)),
    )


def complete_replicates(chains: Mapping[Plan, Chain], plans: Collection[Plan]) -> set[int]:
    """The replicates whose chains have all come to an end, be it a failure."""
    open_ = {
        plan.replicate
        for plan in plans
        if plan not in chains or not (chains[plan].failed or _ended(plan, chains[plan]))
    }
    return {plan.replicate for plan in plans} - open_


def _ended(plan: Plan, chain: Chain) -> bool:
    """Whether a chain has a last network: all steps are taken, or what has failed is a generation, after which its
    user would keep the network before."""
    if not chain.rungs:
        return False
    last = chain.rungs[-1].milestone
    step = plan.step_after(last)
    return step is None or (chain.failed and step == "grow" and "prune" not in plan.steps)


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
        validation=_rounded(milestone.score),
        test=_rounded(test),
        epochs=milestone.epochs,
        seconds=round(milestone.seconds, 3),
    )


def _rounded(score: float) -> float:
    return float(f"{score:.{_DIGITS}g}")


def _count(source: object) -> int | None:
    try:
        return len(getattr(source, "dataset", getattr(source, "targets", source)))  # type: ignore[arg-type]
    except TypeError:
        return None
