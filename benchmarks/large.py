"""One generation on ResNet-50 and BERT-base, on the CPU and from random weights: time and peak memory.

    python benchmarks/large.py --json benchmarks/results/large.json

Every module that dendrites go to is recorded and grown, within a small budget and with a short dendrite phase: what is
measured is whether a generation fits beside the network, not whether it helps. Times are in plain training steps (both
directions and Adam) of a batch of 8; peaks are those of the whole process, read from outside.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from arms import error_passes, with_dendrites
from form import Figure, figure, interleaved, ratios, show
from processes import Stage, stages
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

from pbp_search.dendrites import Adam, Dendrite, attach, dendritic_modules, grow, record
from pbp_search.training import Fixed, Stopper

MIB = 2**20
BUDGET = 256 * MIB
_BATCH = 8
_PASSES = 3  # of each module's candidates over its records; the floor's are as many again
_CLASSES = 10


@dataclass(frozen=True)
class Problem:
    """A network, and random samples of the shape that it takes."""

    network: nn.Module
    inputs: Tensor
    targets: Tensor


def problem(name: str, quick: bool) -> Problem:
    """ResNet-50 with 64 images of 224x224, or BERT-base with 64 texts of 64 tokens; small ones for a trial run."""
    samples, side, tokens = (16, 32, 16) if quick else (64, 224, 64)
    targets = torch.randint(_CLASSES, (samples,))
    if name == "ResNet-50":
        small: dict[str, Any] = {"depths": [1, 1], "hidden_sizes": [32, 64], "embedding_size": 16} if quick else {}
        images = torch.randn(samples, 3, side, side)
        return Problem(ResNetForImageClassification(ResNetConfig(num_labels=_CLASSES, **small)), images, targets)
    small = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96} if quick else {}
    config = BertConfig(num_labels=_CLASSES, **small)
    texts = torch.randint(config.vocab_size, (samples, tokens))
    return Problem(BertForSequenceClassification(config), texts, targets)


def loss(outputs: Any, targets: Tensor) -> Tensor:
    """Of each sample. The networks return a dataclass."""
    return functional.cross_entropy(outputs.logits, targets, reduction="none")


def step(case: Problem) -> Callable[[], object]:
    """A training step of a batch."""
    case.network.train()
    optimiser = Adam([parameter for parameter in case.network.parameters() if parameter.requires_grad], 1e-4)

    def run() -> None:
        optimiser.zero_grad()
        loss(case.network(case.inputs[:_BATCH]), case.targets[:_BATCH]).mean().backward()
        optimiser.step()

    return run


def plain(name: str, quick: bool) -> Iterator[tuple[str, None]]:
    """Training steps of the network as it is: the first one also makes what Adam keeps."""
    run = step(problem(name, quick))
    yield "build", None
    run()
    yield "first step", None
    run()
    yield "step", None


def passes(name: str, quick: bool) -> Iterator[tuple[str, None]]:
    """The passes that records are read from, with none kept."""
    case = problem(name, quick)
    attach(case.network)
    yield "build", None
    error_passes(case.network, loss, case.inputs, case.targets, _BATCH)
    yield "passes", None


def generation(name: str, quick: bool) -> Iterator[tuple[str, Any]]:
    """A generation from attaching to the first training steps."""
    case = problem(name, quick)
    yield "build", None
    placement = attach(case.network)
    yield "attach", (len(placement), len(placement.places))
    batches = zip(case.inputs.split(_BATCH), case.targets.split(_BATCH), strict=True)
    records = record(case.network, loss, list(batches), budget=BUDGET)
    yield "record", None
    grown: dict[str, list[Dendrite]] = {}
    for module_name, module in dendritic_modules(case.network).items():
        stop = partial(Stopper, Fixed(epochs=_PASSES), 0, "maximize")
        grown[module_name], _ = grow(module, records.pop(module_name), stop, torch.Generator())
    yield "grow", None
    before = _outputs(case)
    yield "look", None
    for module_name, module in dendritic_modules(case.network).items():
        module.accept(grown.pop(module_name))
    yield "accept", None
    if not torch.equal(before, _outputs(case)):
        raise RuntimeError(f"Accepting a generation changed what {name} computes.")
    run = step(case)
    run()
    yield "first step", None
    run()
    yield "step", None


@torch.no_grad()
def _outputs(case: Problem) -> Tensor:
    logits: Tensor = case.network.eval()(case.inputs[:2]).logits
    return logits


def step_ratios(name: str, quick: bool, runs: int) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Plain steps and steps with one generation in turn: yields their seconds."""
    dendritic = problem(name, quick)
    with_dendrites(dendritic.network, 1)
    yield "steps", interleaved({"plain": step(problem(name, quick)), "dendritic": step(dendritic)}, runs)


def measure(name: str, quick: bool, runs: int) -> list[Figure]:
    """All figures of a network."""
    peaks = stages(plain, name, quick) | stages(passes, name, quick)
    ours = stages(generation, name, quick)
    seconds = stages(step_ratios, name, quick, runs)["steps"].result
    a_step = figure("", seconds["plain"]).value
    wrapped, looked_at = ours["attach"].result
    name = f"small {name}" if quick else name
    record_peak = (ours["record"].peak - peaks["passes"].peak) / BUDGET
    whole = max(ours[stage].peak for stage in ("record", "grow", "accept", "step"))

    def mib(label: str, stage: Stage) -> Figure:
        return figure(f"peak memory, {name}, {label}", [stage.peak / MIB], "MiB")

    return [
        figure(f"modules with dendrites, {name}", [wrapped], f"of {looked_at}"),
        figure(f"plain step, {name}, batch {_BATCH}", seconds["plain"], "s"),
        figure(f"step, {name}, 1 generation / plain", ratios(seconds, "dendritic", "plain")),
        *(
            figure(f"{stage}, {name}", [ours[stage].seconds / a_step], "plain steps")
            for stage in ("attach", "record", "grow", "accept")
        ),
        figure(f"passes without records, {name}", [peaks["passes"].seconds / a_step], "plain steps"),
        mib("plain step", peaks["step"]),
        mib("passes without records", peaks["passes"]),
        mib("record", ours["record"]),
        mib("grow", ours["grow"]),
        mib("step, 1 generation", ours["step"]),
        figure(f"peak of record above its passes, {name}, budget {BUDGET // MIB} MiB", [record_peak], "budgets", 1.1),
        figure(f"peak of a generation / plain step's, {name}", [whole / peaks["step"].peak]),
    ]


@click.command()
@click.option("--quick", is_flag=True, help="Small networks: finishes within a minute.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
def main(quick: bool, json_file: Path | None) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    runs = 3 if quick else 5
    show([one for name in ("ResNet-50", "BERT-base") for one in measure(name, quick, runs)], json_file)


if __name__ == "__main__":
    main()
