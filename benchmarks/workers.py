"""How much faster do two workers search than one?

    python benchmarks/workers.py --json benchmarks/results/workers.json

Studies of the digits with one and two workers in turn, everything included: training, drawing, both stores. Counted are
the rungs a second from the first ones on, which start the processes, to the last. Of one width and one fixed schedule,
so that rungs are alike; without dendrites, so that which of them are promoted makes no difference.
"""

import tempfile
import time
from pathlib import Path

import click
from form import figure, show

from pbp_search.home import Home
from pbp_search.search import Outcome, SearchSpace, Study
from pbp_search.tasks.digits import DigitsMLP

EPOCHS = 100
FIRST = 6  # rungs that are not counted


def rate(workers: int, rungs: int, seed: int) -> float:
    """Rungs a second of a study."""
    ends: list[float] = []

    def on_outcome(_: Outcome) -> None:
        ends.append(time.perf_counter())

    task = DigitsMLP()
    space = SearchSpace.for_task(task).changed(
        {"width": 32, "dendrites": 0, "schedule": "fixed", "neuron_epochs": EPOCHS, "learning_rate": (1e-3, 1e-2)}
    )
    with tempfile.TemporaryDirectory() as folder:
        study = Study.create(task, home=Home.at(folder), space=space, seed=seed)
        study.run(task, FIRST + rungs, workers=workers, on_outcome=on_outcome)
    return rungs / (ends[-1] - ends[FIRST - 1])


@click.command()
@click.option("--quick", is_flag=True, help="Few rungs: finishes within a minute.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
def main(quick: bool, json_file: Path | None) -> None:
    """Measure and print."""
    runs, rungs = (1, 10) if quick else (5, 60)
    one, two = [], []
    for seed in range(runs):
        one.append(rate(1, rungs, seed))
        two.append(rate(2, rungs, seed))
    figures = [
        figure("rungs a second, 1 worker", one, "1/s"),
        figure("rungs a second, 2 workers", two, "1/s"),
        figure(
            "rungs a second, 2 workers / 1",
            [double / single for single, double in zip(one, two, strict=True)],
            target=1.8,
            least=True,
        ),
    ]
    show(figures, json_file)


if __name__ == "__main__":
    main()
