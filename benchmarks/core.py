"""How fast is the training core? Ratios on one thread, medians of interleaved runs.

    python benchmarks/core.py --json benchmarks/results/core.json

Steps and epochs are those of the neuron phase with frozen dendrites; the other arm is a loop as PyTorch's tutorials
write it, with torch.optim.Adam as it comes, on the plain network.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import torch
from arms import image_network, ours, perceptron, seconds_of, signal_network, stock_loop, stock_step, with_dendrites
from fashion import training_part
from form import Figure, figure, interleaved, ratios, show
from torch import Tensor, nn

from pbp_search.dendrites import DendriteSpec, Growth, attach, fold, grow, parameter_count, record
from pbp_search.tasks.digits import DigitsMLP
from pbp_search.training import Fixed, Split, Stopper
from pbp_search.training.data import recording_batches

_PASSES = 100


def steps(runs: int) -> list[Figure]:
    """Training steps of the digits MLP."""
    task = DigitsMLP()
    split = task.data().train
    figures = []
    for width in (16, 64):
        seconds = interleaved(
            {
                "stock": stock_step(task.model(width), split, 64),
                **{f"{d}": ours(with_dendrites(task.model(width), d), task, split, 64) for d in (0, 1, 4)},
            },
            runs,
        )
        for generations, target in ((0, None), (1, 0.7), (4, 1.0)):
            name = f"step, digits MLP {width}, {generations} generations / stock plain step"
            figures.append(figure(name, ratios(seconds, f"{generations}", "stock"), target=target))
    return figures


def epochs(runs: int) -> list[Figure]:
    """Epochs of plain networks over a stock loop with a DataLoader."""
    digits = DigitsMLP()
    generator = torch.Generator().manual_seed(0)
    signals = Split(torch.randn(4000, 1, 40, generator=generator), torch.randint(10, (4000,), generator=generator))
    figures = []
    arms: list[tuple[str, Callable[[], nn.Module], Split, int]] = [
        ("digits MLP 16", lambda: digits.model(16), digits.data().train, 64),
        ("40-point signals, Conv1d 8", signal_network, signals, 100),
    ]
    for name, build, split, batch_size in arms:
        seconds = interleaved(
            {
                "loop": stock_loop(build(), split, batch_size),
                "ours": ours(with_dendrites(build(), 0), digits, split, batch_size),
            },
            runs,
        )
        figures.append(figure(f"epoch, {name} / DataLoader loop", ratios(seconds, "ours", "loop"), target=0.1))
    return figures


def convolutions(runs: int) -> list[Figure]:
    """Steps of a 16-channel 3x3 convolution on 14x14, batch 128."""
    task = DigitsMLP()
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randn(512, 16, 14, 14, generator=generator), torch.randint(10, (512,), generator=generator))

    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    spec = DendriteSpec(placement="first")
    seconds = interleaved(
        {f"{d}": ours(with_dendrites(build(), d, spec), task, split, 128) for d in (0, 1, 2, 4)}, runs
    )
    return [
        figure(f"step, Conv2d 16 on 14x14, {d} generations / plain", ratios(seconds, f"{d}", "0"), target=target)
        for d, target in ((1, 1.4), (2, 1.9), (4, 2.8))
    ]


def folded(runs: int) -> list[Figure]:
    """The folded network over a plain one of equal parameters, in evaluation, batch 256."""
    inputs = torch.randn(256, 64)
    task = DigitsMLP()
    figures = []
    for generations, target in ((1, 1.5), (4, 2.0)):
        network = fold(with_dendrites(task.model(32), generations))
        wider = next(
            width for width in range(32, 999) if parameter_count(task.model(width)) >= parameter_count(network)
        )
        plain = task.model(wider).eval()
        seconds = interleaved({"folded": _forwards(network, inputs), "plain": _forwards(plain, inputs)}, runs)
        name = f"folded MLP 32 with {generations} generations / plain MLP {wider}, batch 256"
        figures.append(figure(name, ratios(seconds, "folded", "plain"), target=target))
    return figures


def _forwards(network: nn.Module, inputs: Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> None:
        for _ in range(100):
            network(inputs)

    return run


def dendrite_phases() -> list[Figure]:
    """The dendrite phase of a network in plain epochs of it, until 95% of what a hundred passes reach.

    The recording, the projections and the passes of all modules count, and with them the floor, which is learned side
    by side.
    """
    split = training_part()
    if split is None:
        click.echo("No dendrite phases: PBP_SEARCH_DATA names no folder with fashion_mnist.", err=True)
        return []
    networks: list[tuple[str, Callable[[], nn.Module], float]] = [
        ("MLP 784-64-64-10", lambda: perceptron(784, 64, 64, 10), 5.0),
        ("CNN", image_network, 2.0),
    ]
    return [
        figure(f"dendrite phase, Fashion-MNIST {name}", [_phase(build(), split)], "epochs", target)
        for name, build, target in networks
    ]


def _phase(network: nn.Module, split: Split) -> float:
    task = DigitsMLP()  # for its loss and score
    modules = attach(network)
    epoch = ours(network, task, split, 64)
    plain = min(seconds_of(epoch) for _ in range(3))
    start = time.perf_counter()
    records = record(network, task.loss, *recording_batches(split, 64, torch.Generator()))
    spent = time.perf_counter() - start
    for name, module in modules.items():
        grown: dict[int, tuple[float, Growth]] = {}
        for passes in (1, _PASSES):
            start = time.perf_counter()
            rule = Fixed(epochs=passes)
            _, growth = grow(module, records[name], partial(Stopper, rule, 0, "maximize"), torch.Generator())
            grown[passes] = time.perf_counter() - start, growth
        a_pass = (grown[_PASSES][0] - grown[1][0]) / (_PASSES - 1)
        scores = grown[_PASSES][1].scores
        needed = next(index for index, score in enumerate(scores) if score >= 0.95 * max(scores))
        spent += grown[1][0] + needed * a_pass
    return spent / plain


@click.command()
@click.option("--quick", is_flag=True, help="Fewer runs: finishes within a minute.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
def main(quick: bool, json_file: Path | None) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    runs = 5 if quick else 31
    phases = [] if quick else dendrite_phases()
    show([*steps(runs), *epochs(runs), *convolutions(runs), *folded(runs), *phases], json_file)


if __name__ == "__main__":
    main()
