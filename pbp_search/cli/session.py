"""What running a study shows on a terminal: a progress bar while it runs, the front when it is done."""

import logging
import os
import shlex
import sys
import time
from typing import TYPE_CHECKING

import click
import optuna
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pbp_search.cli.tables import print_table
from pbp_search.report import front_table, publish_front
from pbp_search.search import Outcome, Study
from pbp_search.training import Task

if TYPE_CHECKING:
    from pbp_search.search.workers import Backend


def quiet_libraries() -> None:
    """Keep the libraries' own progress messages off the terminal."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # read when MLflow is imported
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("pbp_search.search.study").setLevel(logging.ERROR)  # failed trials: told at the end
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it tells of each retry


def run_and_show(
    study: Study,
    task: Task,
    trials: int,
    *,
    timeout: float | None = None,
    workers: int | None = None,
    threads: int = 1,
    backend: "Backend" = "loky",
    scheduler: str | None = None,
    device: str = "auto",
    sampler: str = "auto",
    tracking_uri: str | None = None,
) -> int:
    """Run a study with a progress bar, print its front and where to look.

    Returns:
        The exit code: 0, or 1 if no trial has succeeded.
    """
    started = time.monotonic()
    before = len(study.finished())
    try:
        _run(study, task, trials, timeout, workers, threads, backend, scheduler, device, sampler, tracking_uri)
    except (KeyboardInterrupt, SystemExit):
        click.echo("Stopped. The same command (without --fresh) goes on from here.", err=True)
        raise
    done = len(study.finished()) - before
    click.echo(f"{done} trials in {time.monotonic() - started:.0f} s, {before + done} in all.", err=True)
    failures = study.failures()
    for trial, reason in list(failures.items())[:5]:
        click.echo(f"Trial {trial} failed: {reason}", err=True)
    if len(failures) > 5:
        click.echo(f"... and {len(failures) - 5} more failed trials.", err=True)
    if not study.rungs():
        click.echo("Error: No trial has succeeded, so there is no front.", err=True)
        return 1
    folder = publish_front(study, tracking_uri)
    print_table(front_table(study))
    click.echo(f"Front: {folder / 'front.html'}")
    click.echo(f"MLflow: {ui_command(study, tracking_uri)}")
    return 0


def ui_command(study: Study, tracking_uri: str | None = None) -> str:
    """The command that opens the MLflow UI on the study's record, from any folder."""
    if tracking_uri is not None:
        return "pbp-search ui --tracking-uri URI, with this command's URI"
    # Beside this interpreter, so that the command works where the environment is not activated.
    return shlex.join([sys.executable, "-m", "pbp_search", "ui", "--home", str(study.folder.home.folder)])


def _run(
    study: Study,
    task: Task,
    trials: int,
    timeout: float | None,
    workers: int | None,
    threads: int,
    backend: "Backend",
    scheduler: str | None,
    device: str,
    sampler: str,
    tracking_uri: str | None,
) -> None:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(study.name, total=trials, completed=len(study.finished()))

        def on_outcome(outcome: Outcome) -> None:
            front = study.front()
            progress.update(bar, completed=len(study.finished()), description=f"{study.name}, front of {len(front)}")

        study.run(
            task,
            trials,
            timeout=timeout,
            workers=workers,
            threads=threads,
            backend=backend,
            scheduler=scheduler,
            device=device,
            sampler=sampler,
            tracking_uri=tracking_uri,
            on_outcome=on_outcome,
        )
