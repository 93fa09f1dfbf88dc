"""``pbp-search front`` and ``pbp-search studies``: what studies have found."""

from pathlib import Path

import click

from pbp_search.cli import options


@click.command()
@click.argument("study")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="How."
)
@options.home
@options.storage
def front(study: str, form: str, home: Path, storage: str | None) -> None:
    """Print the front of STUDY: the networks that no other one beats in score and size."""
    from pbp_search.cli.tables import print_table
    from pbp_search.home import Home
    from pbp_search.report import front_csv, front_json, front_table
    from pbp_search.search import Study

    found = Study.load(study, Home.at(home), storage)
    if form == "table":
        print_table(front_table(found))
    else:
        click.echo(front_json(found.front()) if form == "json" else front_csv(found.front()).rstrip("\n"))


@click.command()
@options.home
@options.storage
def studies(home: Path, storage: str | None) -> None:
    """List the studies."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from pbp_search.cli.tables import print_table
    from pbp_search.home import Home
    from pbp_search.search import list_studies

    table = Table(box=box.SIMPLE)
    for column in ("study", "task", "metric", "trials", "failed", "front"):
        table.add_column(column, justify="left" if column in ("study", "task", "metric") else "right", no_wrap=True)
    for study in list_studies(Home.at(home), storage):
        counts = (len(study.finished()), len(study.failures()), len(study.front()))
        names = (study.name, study.definition.task, study.definition.metric)
        table.add_row(*map(escape, names), *map(str, counts))
    print_table(table)
