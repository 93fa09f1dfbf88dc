"""``pbp-search space``: what a study of a task would search."""

from pathlib import Path

import click

from pbp_search.cli import options


@click.command()
@click.argument("task")
@options.space
def space(task: str, space: Path | None) -> None:
    """Print the search space of TASK: a built-in task (digits_mlp), or your own as FILE.py:CLASS.

    What is printed can be changed, saved as a file, and given to run with --space.
    """
    from pbp_search.search import SearchSpace
    from pbp_search.tasks import load_task
    from pbp_search.training import check_task

    loaded = load_task(task)
    check_task(loaded)
    searched = SearchSpace.for_task(loaded)
    if space is not None:
        searched = SearchSpace.from_toml(space, searched)
    click.echo(searched.to_toml(), nl=False)
