"""``pbp-search compare``: do dendrites pay?"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pbp_search.cli import options

SEEDS = 10
"""Fewer are no ground for a claim."""

SIZES = 3

if TYPE_CHECKING:
    from pbp_search.compare import Results
    from pbp_search.search import Study
    from pbp_search.training import Size, Task


@click.command()
@click.argument("study")
@click.option("--task", metavar="FILE:CLASS", help="The study's task, if it is not a built-in one.")
@click.option(
    "--seeds",
    type=click.IntRange(min=2),
    default=SEEDS,
    show_default=True,
    help="How often every network is trained. Fewer than 10 are no ground for a claim.",
)
@click.option(
    "--sizes",
    type=click.IntRange(min=1),
    help="At how many sizes grown, and as many pruned, networks with dendrites are compared, if the front has as many."
    f"  [default: {SIZES}]",
)
@click.option(
    "--max-params",
    type=click.IntRange(min=1),
    metavar="N",
    help="Compare no network with dendrites of more parameters.",
)
@click.option(
    "--anew", is_flag=True, help="Choose the networks that are compared anew, as the search has gone on since."
)
@click.option(
    "--budget",
    type=options.Duration(),
    help="Stop after this time (30m, 1h), and compare the seeds that are complete. The same command goes on.",
)
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that train.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads of each of them.")
@click.option("--device", default="auto", show_default=True, help="Where to train: auto, cpu, cuda, cuda:0 or mps.")
@options.home
@options.artifacts
@options.storage
@options.tracking_uri
@options.verbosity
def compare(
    study: str,
    task: str | None,
    seeds: int,
    sizes: int | None,
    max_params: int | None,
    anew: bool,
    budget: float | None,
    workers: int,
    threads: int,
    device: str,
    home: Path,
    artifacts: Path | None,
    storage: str | None,
    tracking_uri: str | None,
    verbosity: str | None,
) -> int:
    """Say whether dendrites pay in STUDY, at a few sizes: against wider, deeper, pruned and linear networks.

    All are trained anew from the same seeds, as trials of the study, with the settings that its search has found best
    for each. The test part of the data is read when all are there.
    """
    from pbp_search.cli.session import quiet_libraries
    from pbp_search.cli.stored import task_of
    from pbp_search.home import Home
    from pbp_search.search import Study
    from pbp_search.training.device import device_of

    quiet_libraries()
    device_of(device)
    found = Study.load(study, Home.at(home, artifacts), storage)
    loaded = task_of(found, task)
    if not anew and found.comparison() and (sizes is not None or max_params is not None):
        raise click.UsageError(
            f"The networks that {study!r} compares are chosen already: --sizes and --max-params count with --anew."
        )
    results = train(
        found,
        loaded,
        seeds,
        sizes=sizes or SIZES,
        max_params=max_params,
        anew=anew,
        budget=budget,
        workers=workers,
        threads=threads,
        device=device,
        tracking_uri=tracking_uri,
        quiet=verbosity == "quiet",
    )
    return show(found, results, tracking_uri, quiet=verbosity == "quiet")


def train(
    study: "Study",
    task: "Task",
    seeds: int,
    *,
    sizes: int = SIZES,
    max_params: int | None = None,
    anew: bool = False,
    budget: float | None = None,
    workers: int = 1,
    threads: int = 1,
    device: str = "auto",
    tracking_uri: str | None = None,
    quiet: bool = False,
) -> "Results":
    """Train what a comparison needs and is not there yet, as far as the budget goes, and read the test part.

    Raises:
        StudyError: The study has no network with dendrites.
        PbpSearchError: Fewer than two seeds are complete.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pbp_search.compare import complete_replicates, plans_of, results_of
    from pbp_search.errors import PbpSearchError
    from pbp_search.search.plans import Planned

    data = task.data()
    if anew or study.comparison() is None:
        study.plan(plans_of(study, task, data, sizes, max_params))
    plans = study.planned(seeds)
    wanted = Planned(next(iter(plans)).comparison, seeds)
    there = sum(len(chain.rungs) for plan, chain in study.chains().items() if plan in plans)
    total = sum(1 + len(plan.steps) for plan in plans)
    columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("trainings,"), TimeRemainingColumn(), TextColumn("left"))
    console = Console(stderr=True, quiet=quiet)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total, completed=there)
        study.run(
            task,
            wanted,
            timeout=budget,
            workers=workers,
            threads=threads,
            device=device,
            tracking_uri=tracking_uri,
            on_outcome=lambda _: progress.advance(bar),
        )
    chains = study.chains()
    complete = complete_replicates(chains, plans)
    lost = sum(chain.failed for plan, chain in chains.items() if plan in plans)
    failed = f" {lost} networks could not be trained: the study's log tells why." if lost else ""
    if len(complete) < 2:
        raise PbpSearchError(
            f"{len(complete)} of {seeds} seeds of the comparison are complete, and two are needed: the same command "
            f"goes on, with a longer --budget.{failed}"
        )
    if len(complete) < seeds or failed:
        console.print(f"{len(complete)} of {seeds} seeds are complete.{failed}", markup=False, highlight=False)
    return results_of(study, task, data, plans, seeds, device)


def show(study: "Study", results: "Results", tracking_uri: str | None = None, quiet: bool = False) -> int:
    """Print the verdict, and write it into the study's folder and on its MLflow run."""
    from pbp_search.cli.tables import print_table
    from pbp_search.compare import findings
    from pbp_search.compare.figures import comparison_table, sentences
    from pbp_search.compare.page import publish_comparison

    kinds: list[Size] = ["parameters", "weight_bytes"]
    if results.size == "macs":
        kinds.append("macs")
    found = [findings(results, kind) for kind in kinds]
    folder = publish_comparison(study, results, found, tracking_uri)
    if not quiet:
        for one in found:
            print_table(comparison_table(one, results.metric))
            click.echo("\n".join(sentences(one, results.metric)) + "\n")
        click.echo(f"Raw results, verdict and figures: {folder}")
    return 0
