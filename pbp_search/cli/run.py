"""``pbp-search run``: make a study, or go on with one."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pbp_search.cli import options

if TYPE_CHECKING:
    from pbp_search.cli.live import Verbosity
    from pbp_search.search.workers import Backend
    from pbp_search.training import Size


@click.command()
@click.argument("task")
@click.option("--study", "name", metavar="NAME", help="The study's name.  [default: the task's]")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Finished trials to reach in all, those of earlier runs included.",
)
@click.option(
    "--timeout", type=options.Duration(), help="Stop after this time: 90s, 10m, 2h. Running trials go on next time."
)
@click.option(
    "--stagnation",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop when N trials in a row have not made the front better, by its hypervolume.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Processes that train at a time.  [default: 1; with dask all of the cluster's]",
)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads of each of them.")
@click.option(
    "--backend",
    type=click.Choice(["loky", "dask"]),
    default="loky",
    show_default=True,
    help="Where they run: on this machine, or in a Dask cluster.",
)
@click.option("--scheduler", metavar="ADDRESS", help="The Dask cluster's scheduler: tcp://host:8786.")
@click.option("--device", default="auto", show_default=True, help="Where to train: auto, cpu, cuda, cuda:0 or mps.")
@click.option(
    "--sampler",
    type=click.Choice(["auto", "tpe", "nsga2", "gp", "random"]),
    default="auto",
    show_default=True,
    help="What draws new configurations; auto: a ladder of widths, then gp if all parameters are numbers, else tpe.",
)
@click.option("--seed", type=click.IntRange(min=0, max=2**31 - 1), help="Keys all random streams.  [default: 0]")
@options.space
@click.option(
    "--rungs",
    type=click.Choice(["grow", "prune", "grow,prune"]),
    help="What may lead from a network to the next: one more dendrite a neuron, fewer weights, or both.  "
    "[default: as the space has it]",
)
@click.option(
    "--size",
    type=click.Choice(["parameters", "weight_bytes", "macs"]),
    help="What the second objective counts; macs are multiply-accumulates a sample.  [default: parameters]",
)
@click.option("--max-params", type=click.IntRange(min=1), metavar="N", help="Train no network of more parameters.")
@click.option("--fresh", is_flag=True, help="Start anew; keep the old study under a dated name.")
@options.home
@options.artifacts
@options.storage
@options.tracking_uri
@options.verbosity
def run(
    task: str,
    name: str | None,
    trials: int,
    timeout: float | None,
    stagnation: int | None,
    workers: int | None,
    threads: int,
    backend: "Backend",
    scheduler: str | None,
    device: str,
    sampler: str,
    seed: int | None,
    space: Path | None,
    rungs: str | None,
    size: "Size | None",
    max_params: int | None,
    fresh: bool,
    home: Path,
    artifacts: Path | None,
    storage: str | None,
    tracking_uri: str | None,
    verbosity: "Verbosity | None",
) -> int:
    """Search TASK: a built-in task (digits_mlp), or your own as FILE.py:CLASS.

    The same command goes on with a study that exists until it has the wanted number of finished trials.
    """
    from pbp_search.cli.session import quiet_libraries, run_and_show
    from pbp_search.home import Home
    from pbp_search.search import SearchSpace, Study, list_studies
    from pbp_search.search.sizes import NetworkSizes, capped
    from pbp_search.search.storage import open_storage
    from pbp_search.search.workers import cluster_of
    from pbp_search.tasks import check_sendable, load_task
    from pbp_search.training import check_task
    from pbp_search.training.device import device_of

    quiet_libraries()
    device_of(device)
    loaded = load_task(task)
    check_task(loaded)
    cluster = cluster_of(backend, scheduler)
    if cluster is not None:
        cluster.close()  # it is there: the study may be made
    if cluster is not None or (workers or 1) > 1:
        check_sendable(loaded)
    searched = None
    if space is not None or rungs is not None:
        default = SearchSpace.for_task(loaded)
        searched = default if space is None else SearchSpace.from_toml(space, default)
        searched = searched if rungs is None else searched.with_steps(rungs.split(","))
    place = Home.at(home, artifacts)
    wanted = loaded.name if name is None else name
    if fresh:
        searched = searched or SearchSpace.for_task(loaded)
        capped(searched, max_params, NetworkSizes(loaded))  # what is refused archives nothing
        open_storage(place, storage)
        for existing in list_studies(place, storage):
            if existing.name == wanted:
                kept = existing.archive(tracking_uri)
                if verbosity != "quiet":
                    click.echo(f"The old study is kept as {kept}.", err=True)
    study = Study.create(
        loaded, wanted, place, space=searched, seed=seed, size=size, max_parameters=max_params, storage=storage
    )
    return run_and_show(
        study,
        loaded,
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
        verbosity=verbosity or "normal",
    )
