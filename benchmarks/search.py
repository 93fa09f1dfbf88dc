"""Is the search worth its promotion? Hypervolume at equal CPU time, against searches that do without a part of it.

    python benchmarks/search.py --json benchmarks/results/search.json --csv benchmarks/results/search.csv
    python benchmarks/search.py --json benchmarks/results/search.json --recorded benchmarks/results/search.csv

ours         the engine as it comes: rungs, promotion by the gap to the front, sampler auto
to the end   the same loop, but every configuration grows as far as it can; all its milestones count
plain        an Optuna study with its default sampler that draws the number of dendrites too; a trial is one point
random       ours with configurations drawn at random

All arms search the task's default space and pay for all they do in CPU time of their one process: training, drawing,
both stores (the plain study has Optuna's storage only); but not for making empty stores. Hypervolumes are of validation
score against log10 of the parameters, from the score of guessing and the largest network of the space. Arms compare
by the signed rank test of F. Wilcoxon over seeds, one-sided, with Holm's correction over the three of a task.
"""

import csv
import logging
import math
import statistics
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import click
import joblib
import optuna
import torch
from form import Figure, figure, show
from scipy import stats
from signals import Signals, signals

from pbp_search.compare.statistics import holm
from pbp_search.front import Front, Point
from pbp_search.home import Home
from pbp_search.search import Outcome, Rung, SearchSpace, Study, promotion
from pbp_search.search.sizes import NetworkSizes
from pbp_search.search.values import Range
from pbp_search.tasks.digits import DigitsMLP
from pbp_search.tracking import check_store
from pbp_search.training import Direction, Size, Task, TrialConfig, run_chain
from pbp_search.training.streams import key

GUESSING = 0.1
TASKS: dict[str, type[Task]] = {"digits": DigitsMLP, "mnist1d": Signals}
SECONDS = {"digits": 60.0, "mnist1d": 240.0}
PARTS = (0.25, 0.5, 1.0)  # of the time: when the hypervolumes are compared
ARMS = ("ours", "to the end", "plain", "random")


@dataclass(frozen=True)
class Found:
    """A network that an arm found, and the CPU seconds until then."""

    seconds: float
    score: float
    parameters: int


class _SpentError(Exception):
    """The CPU time is over."""


def to_the_end(
    rungs: Sequence[Rung],
    continued: Collection[int],
    direction: Direction,
    size: Size,
    next_size: Callable[[Rung], int | None],
) -> Rung | None:
    """Instead of promotion: whatever can grow does."""
    for rung in reversed(rungs):
        if rung.trial not in continued and rung.milestone.accepted and next_size(rung) is not None:
            return rung
    return None


def by_engine(task: Task, seed: int, seconds: float, sampler: str) -> list[Found]:
    """What our engine finds."""
    found: list[Found] = []

    def on_outcome(outcome: Outcome) -> None:
        spent = time.process_time() - start
        if outcome.milestone is not None:
            found.append(Found(spent, outcome.milestone.score, outcome.milestone.parameters))
        if spent > seconds:
            raise _SpentError

    with tempfile.TemporaryDirectory() as folder:
        study = Study.create(task, home=Home.at(folder), seed=seed)
        check_store(study.folder.home)
        start = time.process_time()
        try:
            study.run(task, 10**6, sampler=sampler, on_outcome=on_outcome)
        except _SpentError:
            return found
    raise AssertionError("a million rungs are not reached")


def by_optuna(task: Task, seed: int, seconds: float) -> list[Found]:
    """What a study finds in which the dendrites are a parameter like any other."""
    space, data = SearchSpace.for_task(task), task.data()
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as folder:
        sampler = optuna.samplers.TPESampler(seed=seed)  # the default one, but with a seed
        study = optuna.create_study(
            storage=f"sqlite:///{folder}/optuna.db", directions=["maximize", "minimize"], sampler=sampler
        )
        start = time.process_time()
        while (spent := time.process_time() - start) <= seconds:
            trial = study.ask()
            dendrites = trial.suggest_int("dendrites", 0, space.dendrites)
            config = space.suggest(trial, key(seed, "configuration", trial.number) % 2**31)
            last = run_chain(task, config, dendrites, data)[-1].milestone
            study.tell(trial, [last.score, math.log10(last.parameters)])
            spent = time.process_time() - start
            found.append(Found(spent, last.score, last.parameters))
    return found


def run(name: str, arm: str, seed: int, seconds: float) -> list[Found]:
    """One arm with one seed, on one thread."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    task = TASKS[name]()
    if arm == "plain":
        return by_optuna(task, seed, seconds)
    if arm == "to the end":
        with patch.object(promotion, "next_promotion", to_the_end):
            return by_engine(task, seed, seconds, "auto")
    return by_engine(task, seed, seconds, "random" if arm == "random" else "auto")


def largest(name: str) -> int:
    """The parameters of the largest network of a task's space."""
    task = TASKS[name]()
    space = SearchSpace.for_task(task)
    assert isinstance(space.width, Range)
    return NetworkSizes(task).parameters(TrialConfig(width=int(space.width.high)), space.dendrites)


def curve(found: Sequence[Found], reference: tuple[float, float]) -> list[float]:
    """The hypervolume after each find."""
    volumes = []
    front: list[Point[None]] = []
    for one in found:
        whole = Front([*front, Point(one.score, one.parameters, None)], "maximize")
        front = whole.points
        volumes.append(whole.hypervolume(reference))
    return volumes


def seconds_to(found: Sequence[Found], volumes: Sequence[float], goal: float) -> float:
    """The CPU seconds until a hypervolume is reached; infinite if it never is."""
    reached = bisect_right(volumes, goal - 1e-12)
    return found[reached].seconds if reached < len(found) else math.inf


def compared(name: str, runs: dict[tuple[str, int], list[Found]], seeds: int) -> list[Figure]:
    """The figures of a task."""
    end = min(found[-1].seconds for found in runs.values())
    figures = [one for part in PARTS for one in at(part * end, name, runs, seeds)]
    within = {which: _until(end, found) for which, found in runs.items()}
    curves = {which: curve(found, reference_of(name)) for which, found in within.items()}
    where = f"{name}, {end:.0f} s of CPU"
    for arm, target in (("plain", 1 / 3), ("to the end", 0.6)):
        shares = [
            seconds_to(within["ours", seed], curves["ours", seed], _last(curves[arm, seed])) / end
            for seed in range(seeds)
        ]
        figures.append(figure(f"CPU time to the end of {arm} / its own, {where}", shares, "ratio", target=target))
    networks = [statistics.median(len(within[arm, seed]) for seed in range(seeds)) for arm in ARMS]
    figures += [
        figure(f"networks found, {arm}, {where}", [count], "networks")
        for arm, count in zip(ARMS, networks, strict=True)
    ]
    return figures


def at(seconds: float, name: str, runs: dict[tuple[str, int], list[Found]], seeds: int) -> list[Figure]:
    """The hypervolumes after some CPU time."""
    reference, where = reference_of(name), f"{name}, {seconds:.0f} s of CPU"
    volumes = {
        arm: [_last(curve(_until(seconds, runs[arm, seed]), reference)) for seed in range(seeds)] for arm in ARMS
    }
    figures = [figure(f"hypervolume, {arm}, {where}", volumes[arm], "volume") for arm in ARMS]
    others = ARMS[1:]
    p_values = [
        float(stats.wilcoxon(volumes["ours"], volumes[arm], alternative="greater").pvalue) if seeds > 1 else 1.0
        for arm in others
    ]
    figures += [
        figure(f"p, ours above {arm}, {where}", [p_value], "p", target=0.05)
        for arm, p_value in zip(others, holm(p_values), strict=True)
    ]
    return figures


def reference_of(name: str) -> tuple[float, float]:
    """The reference point of a task's hypervolumes."""
    return GUESSING, math.log10(largest(name))


def _until(seconds: float, found: Sequence[Found]) -> list[Found]:
    return [one for one in found if one.seconds <= seconds]


def _last(volumes: Sequence[float]) -> float:
    return volumes[-1] if volumes else 0.0


def read(csv_file: Path) -> dict[str, dict[tuple[str, int], list[Found]]]:
    """The finds of each task, arm and seed that were written before; seeds are counted from zero."""
    with csv_file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    tasks: dict[str, dict[tuple[str, int], list[Found]]] = {}
    for row in rows:
        found = Found(float(row["seconds"]), float(row["score"]), int(row["parameters"]))
        tasks.setdefault(row["task"], {}).setdefault((row["arm"], int(row["seed"])), []).append(found)
    for name, runs in tasks.items():
        first = min(seed for _, seed in runs)
        tasks[name] = {(arm, seed - first): found for (arm, seed), found in runs.items()}
    return tasks


@click.command()
@click.option("--quick", is_flag=True, help="One seed, a few seconds each: shows that it runs.")
@click.option("--seeds", default=10, show_default=True)
@click.option("--first-seed", default=0, show_default=True)
@click.option("--jobs", default=2, show_default=True)
@click.option("--task", "names", multiple=True, type=click.Choice(list(TASKS)), help="Of the tasks, these.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write all finds.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
@click.option(
    "--recorded",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Search nothing: compare the finds of this CSV.",
)
def main(
    quick: bool,
    seeds: int,
    first_seed: int,
    jobs: int,
    names: Sequence[str],
    csv_file: Path | None,
    json_file: Path | None,
    recorded: Path | None,
) -> None:
    """Search and print."""
    figures: list[Figure] = []
    rows: list[tuple[object, ...]] = []
    if recorded is not None:
        for name, runs in read(recorded).items():
            figures += compared(name, runs, len({seed for _, seed in runs}))
        names = []
    else:
        names = names or (["digits"] if quick or signals() is None else list(TASKS))
    seeds = 1 if quick else seeds
    for name in names:
        cases = [(arm, seed) for seed in range(seeds) for arm in ARMS]
        seconds = 5.0 if quick else SECONDS[name]
        calls = (joblib.delayed(run)(name, arm, first_seed + seed, seconds) for arm, seed in cases)
        runs = dict(zip(cases, joblib.Parallel(jobs, verbose=5)(calls), strict=True))
        figures += compared(name, runs, seeds)
        rows += [
            (name, arm, first_seed + seed, round(one.seconds, 3), one.score, one.parameters)
            for (arm, seed), found in runs.items()
            for one in found
        ]
    if csv_file is not None:
        with csv_file.open("w", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["task", "arm", "seed", "seconds", "score", "parameters"])
            writer.writerows(rows)
    show(figures, json_file)


if __name__ == "__main__":
    main()
