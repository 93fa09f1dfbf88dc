"""How small can a one-hidden-layer network get on scikit-learn's digits?

    python studies/digits_mlp.py --trials 20

searches width, dendrites, cycle schedule, thresholds and learning rate, prints the front of validation accuracy against
parameters, and exports the smallest network that is within one point of the best.
"""

from pathlib import Path

import click
import torch

from pbp_search import Home, Study, export_onnx
from pbp_search.cli import main, options
from pbp_search.cli.export import describe_export
from pbp_search.cli.session import quiet_libraries, run_and_show
from pbp_search.export import run_onnx
from pbp_search.tasks.digits import DigitsMLP


@click.command()
@click.option("--trials", type=click.IntRange(min=1), default=40, show_default=True, help="Finished trials in all.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that train.")
@options.home
@click.option("--output", type=click.Path(path_type=Path), default=Path("export"), show_default=True)
def digits_mlp(trials: int, workers: int, home: Path, output: Path) -> int:
    """Search the digits and export the best compressed network."""
    quiet_libraries()
    task = DigitsMLP()
    study = Study.create(task, home=Home.at(home))
    if code := run_and_show(study, task, trials, workers=workers):
        return code

    front = study.front()
    best = front.best(min_score=front.best().score - 0.01)
    checkpoint = study.checkpoint(best.payload.trial)
    exported = export_onnx(checkpoint, task, output, about={"study": study.name}, overwrite=True)
    click.echo(describe_export(exported.card, best.payload.trial, str(exported.file)))

    test = task.data().test.inputs
    with torch.no_grad():
        decisions = checkpoint.network(task).eval()(test).argmax(-1)
    agreement = (run_onnx(exported.file, test).argmax(-1) == decisions).sum()
    click.echo(f"  the exported file decides like the network on {agreement} of {len(test)} test images")
    return 0


if __name__ == "__main__":
    main(digits_mlp)
