"""How much faster do two workers search than one?

    python benchmarks/workers.py --json benchmarks/results/workers.json

Studies of the digits with one and two workers in turn, everything included: training, drawing, both stores. Counted are
the rungs a second from the first ones on, which start the processes, to the last. Of one width and one fixed schedule,
so that rungs are alike; without dendrites, so that which of them are promoted makes no difference. Beside it the same
training without a study: what the machine has for a second process, whoever uses it.
"""

import tempfile
import time
from pathlib import Path

import click
import torch
from form import figure, ratios, show
from joblib import Parallel, delayed

from pbp_search.home import Home
from pbp_search.search import Outcome, SearchSpace, Study
from pbp_search.tasks.digits import DigitsMLP
from pbp_search.training import CycleSchedule, Fixed, TrialConfig, run_rung

WIDTH = 32
EPOCHS = 100
FIRST = 6  # rungs that are not counted


def rate(workers: int, rungs: int, seed: int) -> float:
    """Rungs a second of a study."""
    ends: list[float] = []

    def on_outcome(_: Outcome) -> None:
        ends.append(time.perf_counter())

    task = DigitsMLP()
    space = SearchSpace.for_task(task).changed(
        {"width": WIDTH, "dendrites": 0, "schedule": "fixed", "neuron_epochs": EPOCHS, "learning_rate": (1e-3, 1e-2)}
    )
    with tempfile.TemporaryDirectory() as folder:
        study = Study.create(task, home=Home.at(folder), space=space, seed=seed)
        study.run(task, FIRST + rungs, workers=workers, on_outcome=on_outcome)
    return rungs / (ends[-1] - ends[FIRST - 1])


def bare_rate(workers: int, rungs: int, seed: int) -> float:
    """Rungs a second of the training alone."""
    pool = Parallel(workers)
    calls = [delayed(train)(trial, seed) for trial in range(rungs)]
    pool(calls[:workers])  # starts the processes
    start = time.perf_counter()
    pool(calls)
    return rungs / (time.perf_counter() - start)


def train(trial: int, seed: int) -> None:
    """What one rung trains."""
    torch.set_num_threads(1)
    task = DigitsMLP()
    schedule = CycleSchedule(neuron=Fixed(epochs=EPOCHS))
    run_rung(task, TrialConfig(width=WIDTH, schedule=schedule, seed=1000 * seed + trial))


@click.command()
@click.option("--quick", is_flag=True, help="Few rungs: finishes within a minute.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
def main(quick: bool, json_file: Path | None) -> None:
    """Measure and print."""
    runs, rungs = (1, 10) if quick else (5, 60)
    one, two, bare_one, bare_two = [], [], [], []
    for seed in range(runs):
        one.append(rate(1, rungs, seed))
        two.append(rate(2, rungs, seed))
        bare_one.append(bare_rate(1, rungs, seed))
        bare_two.append(bare_rate(2, rungs, seed))
    figures = [
        figure("rungs a second, 1 worker", one, "1/s"),
        figure("rungs a second, 2 workers", two, "1/s"),
        figure(
            "rungs a second, 2 workers / 1",
            ratios({"1": one, "2": two}, "2", "1"),
            target=1.8,
            least=True,
        ),
        figure("training alone, 2 processes / 1", ratios({"1": bare_one, "2": bare_two}, "2", "1")),
    ]
    show(figures, json_file)


if __name__ == "__main__":
    main()
