"""The command line of a study script: search a task, then say whether dendrites pay."""

import os
from pathlib import Path
from typing import Any, ClassVar

import click

from pbp_search.cli import options
from pbp_search.cli.compare import SEEDS, SIZES, show, train
from pbp_search.cli.live import Verbosity
from pbp_search.cli.session import quiet_libraries, run_and_show
from pbp_search.home import Home
from pbp_search.search import SearchSpace, Study
from pbp_search.tasks.published import FOLDER
from pbp_search.training import Data, Split, Task, check_task

_QUICK: dict[str, Any] = {
    "width": {"low": 2, "high": 6},
    "schedule": "fixed",
    "neuron_epochs": 3,
    "dendrite_epochs": 2,
    "dendrites": 1,
    "prunings": 1,
}
_QUICK_SAMPLES = 300


def study_script(*tasks: type[Task], max_params: int | None = None) -> click.Command:
    """The command of a script that searches tasks of its own, one after the other.

    Args:
        tasks: Their classes. A task has a ``space``, or the default one of its networks.
        max_params: The most parameters of a network with dendrites that is compared: larger ones take long.
    """

    @click.command(help=f"Search {', '.join(task.name for task in tasks)}, and say at which sizes dendrites pay.")
    @click.option(
        "--trials", type=click.IntRange(min=1), default=200, show_default=True, help="Of each search, in all."
    )
    @click.option(
        "--search-time", type=options.Duration(), help="Stop each search after this time. The same command goes on."
    )
    @click.option(
        "--seeds",
        type=click.IntRange(min=2),
        default=SEEDS,
        show_default=True,
        help="Of each network that is compared.",
    )
    @click.option("--budget", type=options.Duration(), help="Stop each comparison after this time.")
    @click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that train.")
    @click.option(
        "--rungs",
        type=click.Choice(["grow", "grow,prune"]),
        default="grow,prune",
        show_default=True,
        help="What may lead from a network to the next; grow alone is a study of its own, NAME_grown.",
    )
    @click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the search.")
    @click.option(
        "--data",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        envvar=FOLDER,
        help=f"A folder with the data sets.  [default: {FOLDER}, else they are fetched]",
    )
    @click.option(
        "--quick", is_flag=True, help="Only show that everything works: few samples, trials, seeds and epochs."
    )
    @options.home
    @options.verbosity
    def command(
        trials: int,
        search_time: float | None,
        seeds: int,
        budget: float | None,
        workers: int,
        rungs: str,
        seed: int,
        data: Path | None,
        quick: bool,
        home: Path,
        verbosity: Verbosity | None,
    ) -> int:
        quiet_libraries()
        if data is not None:
            os.environ[FOLDER] = str(data.resolve())  # worker processes inherit it
        sizes = SIZES
        if quick:
            trials, seeds, sizes = 10, 2, 1
        for own in tasks:
            task: Task = _quick(own)() if quick else own()
            check_task(task)
            space = SearchSpace.for_task(task).with_steps(rungs.split(","))
            name = task.name if space.prunings else f"{task.name}_grown"
            study = Study.create(task, name, Home.at(home), space=space, seed=seed)
            shown: Verbosity = verbosity or "normal"
            code = run_and_show(study, task, trials, timeout=search_time, workers=workers, verbosity=shown)
            if code:
                return code
            results = train(
                study,
                task,
                seeds,
                sizes=sizes,
                max_params=max_params,
                budget=budget,
                workers=workers,
                quiet=shown == "quiet",
            )
            show(study, results, quiet=shown == "quiet")
        return 0

    return command


def _quick(task: type[Task]) -> type[Task]:
    """A task with few samples and short phases, under a name of its own."""

    class Quick(task):  # type: ignore[misc,valid-type]
        name = f"{task.name}_quick"
        space: ClassVar = {**getattr(task, "space", {}), **_QUICK}
        few: ClassVar[Data[Any] | None] = None

        def data(self) -> Data[Any]:
            if Quick.few is None:  # reading all of them takes longer than the rest
                Quick.few = Data(*(_few(part) for part in vars(super().data()).values()))
            return Quick.few

    return Quick


def _few(part: Split) -> Split:
    return Split(part.inputs[:_QUICK_SAMPLES], part.targets[:_QUICK_SAMPLES])
