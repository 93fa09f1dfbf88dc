"""Whole chains: random configurations, each taken to its end, however hopeless. What promotion rules are judged on.

    python benchmarks/chains.py digits --configurations 200 --csv benchmarks/results/chains_digits.csv

One row a rung, in the order of training: the configuration, what it reached and what that cost since its chain began.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import optuna
import torch
from joblib import Parallel, delayed
from signals import Signals

from pbp_search.search import SearchSpace
from pbp_search.tasks.digits import DigitsMLP
from pbp_search.training import Milestone, Task, TrialConfig, run_chain
from pbp_search.training.streams import key

TASKS: dict[str, type[Task]] = {"digits": DigitsMLP, "mnist1d": Signals}


def configurations(space: SearchSpace, count: int, seed: int) -> Iterator[tuple[dict[str, Any], TrialConfig]]:
    """Random configurations, with their parameters as Optuna has them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for number in range(count):
        trial = study.ask()
        config = space.suggest(trial, key(seed, "configuration", number) % 2**31)
        yield trial.params, config


def chain_of(task: Task, config: TrialConfig, dendrites: int) -> list[Milestone]:
    """The milestones of a configuration, the one that was thrown away included."""
    torch.set_num_threads(1)
    return [checkpoint.milestone for checkpoint in run_chain(task, config, dendrites)]


@click.command()
@click.argument("name", type=click.Choice(list(TASKS)))
@click.option("--configurations", "count", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--jobs", default=2, show_default=True)
@click.option("--csv", "file", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(name: str, count: int, seed: int, jobs: int, file: Path) -> None:
    """Train and write."""
    task = TASKS[name]()
    space = SearchSpace.for_task(task)
    drawn = list(configurations(space, count, seed))
    work = (delayed(chain_of)(task, config, space.dendrites) for _, config in drawn)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(
            ["configuration", "dendrites", "accepted", "score", "parameters", "epochs", "seconds", "params"]
        )
        for number, chain in enumerate(Parallel(jobs, return_as="generator")(work)):
            params = json.dumps(drawn[number][0])
            for one in chain:
                figures = (one.score, one.parameters, one.epochs, round(one.seconds, 3))
                writer.writerow([number, one.requested, int(one.accepted), *figures, params])
            stream.flush()


if __name__ == "__main__":
    main()
