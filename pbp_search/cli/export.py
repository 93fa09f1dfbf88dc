"""``pbp-search export``: the best network of a study as a file that runs elsewhere."""

from pathlib import Path
from typing import Any

import click

from pbp_search.cli import options


@click.command()
@click.argument("study")
@click.option("--max-params", type=click.IntRange(min=1), metavar="N", help="At most this many parameters.")
@click.option("--min-score", type=float, metavar="X", help="At least this validation score (at most, if minimised).")
@click.option("--task", metavar="FILE:CLASS", help="The study's task, if it is not a built-in one.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an exported network in the folder.")
@options.home
@options.artifacts
@options.storage
def export(
    study: str,
    max_params: int | None,
    min_score: float | None,
    task: str | None,
    output: Path,
    overwrite: bool,
    home: Path,
    artifacts: Path | None,
    storage: str | None,
) -> None:
    """Export a network of the front of STUDY as ONNX, run it and compare it.

    With --min-score the smallest network that reaches the score, otherwise the best one with at most --max-params
    parameters.
    """
    from pbp_search.cli.stored import task_of
    from pbp_search.export import export_onnx
    from pbp_search.home import Home
    from pbp_search.search import Study

    found = Study.load(study, Home.at(home, artifacts), storage)
    loaded = task_of(found, task)
    point = found.best(max_params, min_score)
    trial = point.payload.trial
    exported = export_onnx(
        found.checkpoint(trial), loaded, output, about={"study": study, "trial": trial}, overwrite=overwrite
    )
    click.echo(describe_export(exported.card, trial, str(exported.file)))


def describe_export(card: dict[str, Any], trial: int, file: str) -> str:
    """The lines that tell what was exported."""
    pruned = f"pruned in {card['pruned']} steps, " if card["pruned"] else ""
    return "\n".join(
        [
            f"Exported trial {trial}: width {card['config']['width']}, {card['dendrites']} dendrites, "
            f"{pruned}{card['parameters']:,} parameters, {card['file_bytes']:,} bytes",
            f"  {card['metric']}: validation {card['validation_score']:.4f}, test {card['test_score']:.4f} "
            "(test by the exported file)",
            f"  file and network agree: largest difference {card['largest_difference']:.1e}",
            f"  {file}",
        ]
    )
