"""How much memory does recording take? Peaks of whole processes, read from outside.

    python benchmarks/memory.py --json benchmarks/results/memory.json

A record is to fit its budget, and so is what it takes to make it: the process that records may take the budget and a
tenth more beyond one that makes the same passes and keeps nothing. All samples x positions may be kept, so the budget
is what binds.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from arms import error_passes, image_network, perceptron
from fashion import training_part
from form import Figure, figure, show
from processes import stages
from torch import nn

from pbp_search.dendrites import attach, record
from pbp_search.tasks.digits import DigitsMLP
from pbp_search.training import Split

MIB = 2**20
_BATCH = 512
_NETWORKS = {
    "mlp": "Fashion-MNIST MLP 784-64-64-10",
    "cnn": "Fashion-MNIST CNN",
    "maps": "Conv2d 16-32-32 on 32x32",
}


def _problem(network: str, samples: int) -> tuple[nn.Module, Split]:
    if network == "maps":
        layers = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
        count = min(samples, 4096)
        return nn.Sequential(*layers, *head), Split(torch.randn(count, 16, 32, 32), torch.randint(10, (count,)))
    images = training_part()
    assert images is not None
    model = perceptron(784, 64, 64, 10) if network == "mlp" else image_network()
    return model, Split(images.inputs[:samples].clone(), images.targets[:samples].clone())


def passes(network: str, samples: int) -> Iterator[tuple[str, None]]:
    """All samples forward and backward in evaluation mode."""
    model, split = _problem(network, samples)
    attach(model)
    yield "start", None
    error_passes(model, DigitsMLP().loss, split.inputs, split.targets, _BATCH)
    yield "passes", None


def recording(network: str, samples: int, budget: int) -> Iterator[tuple[str, int]]:
    """The same with records; yields their size."""
    model, split = _problem(network, samples)
    attach(model)
    yield "start", 0
    loss = DigitsMLP().loss
    records = record(model, loss, split.inputs, split.targets, _BATCH, budget=budget, rows=sys.maxsize)
    kept = [part for one in records.values() for part in (one.inputs, one.errors) if part is not None]
    yield "record", sum(part.nbytes for part in kept)


@click.command()
@click.option("--quick", is_flag=True, help="Few samples and the smaller budget: finishes within a minute.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
def main(quick: bool, json_file: Path | None) -> None:
    """Measure and print."""
    networks = list(_NETWORKS)
    if training_part() is None:
        click.echo("No Fashion-MNIST: PBP_SEARCH_DATA names no folder with fashion_mnist.", err=True)
        networks = ["maps"]
    figures: list[Figure] = []
    for network in networks:
        samples = 4096 if quick else 60_000
        plain = stages(passes, network, samples)["passes"].peak
        for budget in (64, 1024)[: 1 if quick else 2]:
            found = stages(recording, network, samples, budget * MIB)["record"]
            name = f"{_NETWORKS[network]}, budget {budget} MiB"
            figures += [
                figure(f"peak above plain passes, {name}", [(found.peak - plain) / (budget * MIB)], "budgets", 1.1),
                figure(f"records, {name}", [found.result / (budget * MIB)], "budgets"),
            ]
    show(figures, json_file)


if __name__ == "__main__":
    main()
