"""How much memory does a dendrite phase take? Peaks of whole processes, read from outside.

    python benchmarks/memory.py --json benchmarks/results/memory.json

Records and the work on them are to fit the budget: the process that records and grows may take the budget and a tenth
more beyond one that makes the same passes and keeps nothing. All samples x positions may be kept, so the budget
is what binds.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import torch
from arms import error_passes, image_network, perceptron
from fashion import training_part
from form import Figure, figure, show
from processes import stages
from torch import nn

from pbp_search.dendrites import DendriteSpec, attach, grow, record
from pbp_search.dendrites.module import Dendritic
from pbp_search.tasks.digits import DigitsMLP
from pbp_search.training import Fixed, Split, Stopper

MIB = 2**20
_BATCH = 64
_NETWORKS = {
    "mlp": "Fashion-MNIST MLP 784-64-64-10",
    "cnn": "Fashion-MNIST CNN",
    "maps": "Conv2d 16-32-32 on 32x32",
    "sequences": "LSTM of 32 on 28 steps of 28",
    "wide": "MLP 64-512-10, pool of 8",
}
_IMAGES = ("mlp", "cnn")


class _Last(nn.Module):
    def forward(self, outputs: tuple[torch.Tensor, object]) -> torch.Tensor:
        return outputs[0][:, -1]


def _problem(network: str, samples: int) -> tuple[nn.Module, Split]:
    if network in _IMAGES:
        images = training_part()
        assert images is not None
        model = perceptron(784, 64, 64, 10) if network == "mlp" else image_network()
        return model, Split(images.inputs[:samples].clone(), images.targets[:samples].clone())
    shape: tuple[int, ...] = (samples, 64)
    if network == "maps":
        layers = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
        shape = (min(samples, 4096), 16, 32, 32)
    elif network == "sequences":
        model, shape = nn.Sequential(nn.LSTM(28, 32, batch_first=True), _Last(), nn.Linear(32, 10)), (samples, 28, 28)
    else:
        model = perceptron(64, 512, 10)
    return model, Split(torch.randn(shape), torch.randint(10, shape[:1]))


def _attached(network: str, model: nn.Module) -> dict[str, Dendritic]:
    return attach(model, DendriteSpec(pool=8 if network == "wide" else 1))


def passes(network: str, samples: int) -> Iterator[tuple[str, None]]:
    """All samples forward and backward in evaluation mode."""
    model, split = _problem(network, samples)
    _attached(network, model)
    yield "start", None
    error_passes(model, DigitsMLP().loss, split.inputs, split.targets, _BATCH)
    yield "passes", None


def recording(network: str, samples: int, budget: int) -> Iterator[tuple[str, int]]:
    """The same with records, and a generation of every module; yields the records' size."""
    model, split = _problem(network, samples)
    modules = _attached(network, model)
    yield "start", 0
    batches = list(zip(split.inputs.split(_BATCH), split.targets.split(_BATCH), strict=True))
    records = record(model, DigitsMLP().loss, batches, budget=budget, rows=sys.maxsize)
    parts = [part for one in records.values() for part in (one.training, one.held_out)]
    kept = [values for part in parts for values in (part.inputs, part.errors) if values is not None]
    size = sum(values.nbytes for values in kept)
    del parts, kept
    yield "record", size
    for name, module in modules.items():
        grow(module, records.pop(name), partial(Stopper, Fixed(epochs=2), 0, "maximize"), torch.Generator())
    yield "grow", size


@click.command()
@click.option("--quick", is_flag=True, help="Few samples and the smaller budget: finishes within a minute.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
def main(quick: bool, json_file: Path | None) -> None:
    """Measure and print."""
    networks = list(_NETWORKS)
    if training_part() is None:
        click.echo("No Fashion-MNIST: PBP_SEARCH_DATA names no folder with fashion_mnist.", err=True)
        networks = [name for name in networks if name not in _IMAGES]
    figures: list[Figure] = []
    for network in networks:
        samples = 4096 if quick else 60_000
        plain = stages(passes, network, samples)["passes"].peak
        for budget in (64, 1024)[: 1 if quick else 2]:
            found = stages(recording, network, samples, budget * MIB)
            name = f"{_NETWORKS[network]}, budget {budget} MiB"
            figures += [
                figure(f"peak of {stage} above plain passes, {name}", [(peak - plain) / (budget * MIB)], "budgets", 1.1)
                for stage, peak in ((stage, found[stage].peak) for stage in ("record", "grow"))
            ]
            figures.append(figure(f"records, {name}", [found["grow"].result / (budget * MIB)], "budgets"))
    show(figures, json_file)


if __name__ == "__main__":
    main()
