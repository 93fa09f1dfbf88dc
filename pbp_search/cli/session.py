"""What running a study shows: how far it is, its front when it is done, how to go on when it was stopped."""

import logging
import os
import shlex
import sys
import time
from typing import TYPE_CHECKING

import click
import optuna
from rich.console import Console

from pbp_search.cli.again import continuing_command
from pbp_search.cli.live import Verbosity, counted, hypervolume_of, watched
from pbp_search.cli.tables import print_table
from pbp_search.report import front_table, publish_front
from pbp_search.search import Progress, Study
from pbp_search.training import Task

if TYPE_CHECKING:
    from pbp_search.search.workers import Backend


def quiet_libraries() -> None:
    """Keep the libraries' own progress messages off the terminal."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # read when MLflow is imported
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it tells of each retry


def run_and_show(
    study: Study,
    task: Task,
    trials: int,
    *,
    timeout: float | None = None,
    stagnation: int | None = None,
    workers: int | None = None,
    threads: int = 1,
    backend: "Backend" = "loky",
    scheduler: str | None = None,
    device: str = "auto",
    sampler: str = "auto",
    tracking_uri: str | None = None,
    verbosity: Verbosity = "normal",
) -> int:
    """Run a study and tell how far it is, print its front and where to look.

    Returns:
        The exit code: 0, or 1 if no trial has succeeded.
    """
    started = time.monotonic()
    try:
        before = len(study.finished())
        with watched(study, trials, timeout, verbosity, Console(stderr=True)):
            study.run(
                task,
                trials,
                timeout=timeout,
                stagnation=stagnation,
                workers=workers,
                threads=threads,
                backend=backend,
                scheduler=scheduler,
                device=device,
                sampler=sampler,
                tracking_uri=tracking_uri,
            )
        if verbosity != "quiet":
            progress, spent = study.progress(), time.monotonic() - started
            click.echo(f"{progress.finished - before} trials in {spent:.0f} s, {progress.finished} in all.", err=True)
            click.echo(f"{_why(progress, trials, timeout, stagnation, spent)}: {_found(progress)}.", err=True)
            _tell_failures(study)
        return _publish(study, tracking_uri, verbosity)
    except (KeyboardInterrupt, SystemExit):
        click.echo(f"Stopped. Go on with: {continuing_command(sys.argv)}", err=True)
        raise


def ui_command(study: Study, tracking_uri: str | None = None) -> str:
    """The command that opens the MLflow UI on the study's record, from any folder."""
    if tracking_uri is not None:
        return "pbp-search ui --tracking-uri URI, with this command's URI"
    # Beside this interpreter, so that the command works where the environment is not activated.
    return shlex.join([sys.executable, "-m", "pbp_search", "ui", "--home", str(study.folder.home.folder)])


def _why(progress: Progress, trials: int, timeout: float | None, stagnation: int | None, spent: float) -> str:
    """Why a study has stopped."""
    if progress.finished >= trials:
        return "Target reached"
    if timeout is not None and spent >= timeout:
        return "Time is up"
    return f"No progress in the last {stagnation} trials"


def _found(progress: Progress) -> str:
    counts = [counted(progress.configurations, "configuration"), counted(progress.promoted, "promoted rung")]
    return ", ".join(counts + hypervolume_of(progress))


def _tell_failures(study: Study) -> None:
    failures = study.failures()
    for trial, reason in list(failures.items())[:5]:
        click.echo(f"Trial {trial} failed: {reason}", err=True)
    if len(failures) > 5:
        click.echo(f"... and {len(failures) - 5} more failed trials.", err=True)


def _publish(study: Study, tracking_uri: str | None, verbosity: Verbosity) -> int:
    if not study.rungs():
        click.echo("Error: No trial has succeeded, so there is no front.", err=True)
        return 1
    folder = publish_front(study, tracking_uri)
    if verbosity != "quiet":
        print_table(front_table(study))
        click.echo(f"Front: {folder / 'front.html'}")
        click.echo(f"MLflow: {ui_command(study, tracking_uri)}")
    return 0
