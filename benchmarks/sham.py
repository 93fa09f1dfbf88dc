"""What does a run with three generations cost over one of equal epochs without? Rungs of both in turn.

    python benchmarks/sham.py --json benchmarks/results/sham.json

Both arms go through the same cycles of the same number of neuron epochs; the sham grows nothing. So the ratio counts
the dendrite phases (recording, candidates, floors; by the default rule) and the dearer steps. The longer a neuron
phase, the less the dendrite phase weighs: 20 epochs are about what the default plateau takes. All training data are
used: records are drawn up to a limit, so fewer data would make the dendrite phase look dearer than it is. Every
generation stays, whatever it is worth: the gate and validation are told so.
"""

import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import click
import torch
from arms import image_network, perceptron, signal_network
from fashion import training_part
from form import Figure, figure, show
from signals import signals
from torch import Tensor, nn

from pbp_search.dendrites import DendriteSpec, Growth
from pbp_search.training import (
    Checkpoint,
    ClassificationTask,
    CycleSchedule,
    Data,
    EpochRecord,
    Fixed,
    Split,
    TrialConfig,
    run_rung,
)

GENERATIONS = 3
EPOCHS = 20
_VALIDATION = 1 / 6


class Rising(ClassificationTask):
    """A classification whose validation score rises from call to call, so that every generation stays.

    Which of them validation would keep differs between the arms and between runs; their epochs would then too. What an
    epoch costs does not depend on its score, but for a copy of the weights at each new best one.
    """

    name = "rising"

    def __init__(self, build: Callable[[], nn.Module], split: Split) -> None:
        self.build = build
        self.calls = 0
        order = torch.randperm(len(split.inputs), generator=torch.Generator().manual_seed(0))
        held_out = order[: round(_VALIDATION * len(order))]
        train = order[len(held_out) :]
        parts = [Split(split.inputs[rows], split.targets[rows]) for rows in (train, held_out)]
        self.parts = Data(parts[0], parts[1], parts[1])

    def data(self) -> Data:
        """Training and validation data; nobody reads the test part."""
        return self.parts

    def model(self, width: int) -> nn.Module:
        """The network, of one width only."""
        return self.build()

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The accuracy, and one more with each call."""
        self.calls += 1
        return self.calls + super().score(outputs, targets)


def run_over_sham(build: Callable[[], nn.Module], split: Split, epochs: int, seed: int) -> tuple[float, float]:
    """The seconds of a perforated chain, and of its dendrite phases alone, over those of its sham."""
    schedule = CycleSchedule(neuron=Fixed(epochs=epochs), acceptance=0, tries=1)
    task = Rising(build, split)
    chains: dict[str, Checkpoint | None] = {"perforated": None, "sham": None}
    seconds = {"perforated": 0.0, "sham": 0.0, "dendrite": 0.0}

    def on_epoch(epoch: EpochRecord) -> None:
        if epoch.phase == "dendrite" and epoch.epoch == 0:  # told when the phase is over
            seconds["dendrite"] += time.perf_counter() - start

    for variant in ["perforated", "sham"] * (GENERATIONS + 1):
        spec = DendriteSpec.model_validate({"variant": variant})
        config = TrialConfig(width=1, dendrites=spec, schedule=schedule, seed=seed)
        start = time.perf_counter()
        with patch.object(Growth, "above_floor", return_value=True):  # as validation does with a score that rises
            found = run_rung(task, config, chains[variant], task.parts, on_epoch)
        seconds[variant] += time.perf_counter() - start
        trained = sum(epoch.phase == "neuron" for epoch in found.history)
        if trained != epochs or not found.milestone.accepted:
            raise RuntimeError(f"A {variant} rung has {trained} neuron epochs, not {epochs}: no like to compare.")
        chains[variant] = found
    return seconds["perforated"] / seconds["sham"], seconds["dendrite"] / seconds["sham"]


@click.command()
@click.option("--quick", is_flag=True, help="One run on MNIST-1D alone: finishes within a minute.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
def main(quick: bool, json_file: Path | None) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    images, short = training_part(), signals()
    runs = 1 if quick else 3
    cases: list[tuple[str, Callable[[], nn.Module], Split | None, int]] = [
        ("MNIST-1D, Conv1d 8", signal_network, short, runs),
        ("MNIST-1D, MLP 40-64-64-10", lambda: nn.Sequential(nn.Flatten(), perceptron(40, 64, 64, 10)), short, runs),
    ]
    if not quick:
        cases += [
            ("Fashion-MNIST MLP 784-64-64-10", lambda: perceptron(784, 64, 64, 10), images, 1),
            ("Fashion-MNIST CNN", image_network, images, 1),
        ]
    figures: list[Figure] = []
    for name, build, split, times in cases:
        if split is None:
            click.echo(f"Not measured, {name}: PBP_SEARCH_DATA names no folder with the data.", err=True)
            continue
        click.echo(f"Measuring {name} ...", err=True)
        found = [run_over_sham(build, split, EPOCHS, seed) for seed in range(times)]
        where = f"{name}, {EPOCHS} epochs a cycle"
        figures += [
            figure(f"{GENERATIONS} generations / sham, {where}", [run for run, _ in found], target=1.6),
            figure(f"their dendrite phases / sham, {where}", [phases for _, phases in found]),
        ]
    show(figures, json_file)


if __name__ == "__main__":
    main()
