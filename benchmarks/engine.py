"""What a rung costs besides its training: asking, promoting, telling, storing the checkpoint, recording in MLflow.

    python benchmarks/engine.py --json benchmarks/results/engine.json

A study in which training takes no time: the scores of networks are a formula with noise. Both stores are SQLite
files. The CPU time of a rung is that of this process, all threads, averaged over the rungs around 200 and 2,000.
"""

import math
import tempfile
import time
from functools import cache
from pathlib import Path
from unittest.mock import patch

import click
import numpy as np
import torch
from form import Figure, figure, show

from pbp_search.front import Front, Point
from pbp_search.home import Home
from pbp_search.search import Outcome, Study, worker
from pbp_search.tasks.digits import DigitsMLP
from pbp_search.training import Checkpoint, EpochRecord, Milestone, TrialConfig, build_network
from pbp_search.training.milestone import weights_of
from pbp_search.training.streams import key

EPOCHS = 30
AROUND = 50


@cache
def _trained(width: int, dendrites: int) -> tuple[dict[str, torch.Tensor], int]:
    network = build_network(DigitsMLP(), TrialConfig(width=width), dendrites)
    return weights_of(network), sum(parameter.numel() for parameter in network.parameters())


def instant_rung(task: object, config: TrialConfig, previous: Checkpoint | None = None, *_: object) -> Checkpoint:
    """A rung of a plausible score that nobody trained, with the records of a short training."""
    dendrites = 0 if previous is None else previous.milestone.dendrites + 1
    weights, parameters = _trained(config.width, dendrites)
    noise = np.random.default_rng(key(config.seed, "noise", dendrites)).normal()
    off = math.log10(config.learning_rate / 0.008) ** 2
    score = 1 - 0.5 * (parameters / 100) ** -0.5 - 0.05 * off + 0.01 * float(noise)
    milestone = Milestone(
        config=config,
        requested=dendrites,
        dendrites=dendrites,
        parameters=parameters,
        weight_bytes=4 * parameters,
        macs=parameters,
        score=score,
        train_score=score,
        epochs=EPOCHS,
        seconds=1.0,
    )
    values = {"train_loss": 0.5, "validation_score": 0.5}
    history = tuple(
        EpochRecord(phase="neuron", generation=dendrites, attempt=0, epoch=epoch, values=values)
        for epoch in range(EPOCHS)
    )
    return Checkpoint(milestone, weights, history)


def overhead(rungs: int, sampler: str) -> list[float]:
    """The CPU milliseconds of each rung of a study."""
    spent: list[float] = []
    last = time.process_time()

    def on_outcome(_: Outcome) -> None:
        nonlocal last
        now = time.process_time()
        spent.append(1000 * (now - last))
        last = now

    with tempfile.TemporaryDirectory() as folder, patch.object(worker, "run_rung", instant_rung):
        task = DigitsMLP()
        study = Study.create(task, home=Home.at(folder))
        last = time.process_time()
        study.run(task, rungs, sampler=sampler, on_outcome=on_outcome)
    return spent


def fronts(points: int, runs: int) -> Figure:
    """Milliseconds for the front and the hypervolume of many points."""
    numbers = np.random.default_rng(0)
    sizes = 10 ** numbers.uniform(2, 6, points)
    scores = 1 - sizes**-0.3 + 0.02 * numbers.normal(size=points)
    everything = [Point(float(score), float(size), None) for score, size in zip(scores, sizes, strict=True)]
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        Front(everything, "maximize").hypervolume((0.0, 6.0))
        seconds.append(1000 * (time.perf_counter() - start))
    return figure(f"front and hypervolume of {points:,} points", seconds, "ms", target=50)


@click.command()
@click.option("--quick", is_flag=True, help="200 rungs only: finishes within a minute.")
@click.option("--sampler", default="auto", show_default=True, help="What draws configurations.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
def main(quick: bool, sampler: str, json_file: Path | None) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    figures = [fronts(10_000, 20)]
    spent = overhead(200 if quick else 2_000, sampler)
    for rungs, target in ((200, 150), (2_000, 300)):
        if rungs <= len(spent):
            name = f"engine's CPU time a rung at {rungs:,} rungs, SQLite, {sampler}"
            figures.append(figure(name, spent[rungs - AROUND : rungs], "ms", target))
    show(figures, json_file)


if __name__ == "__main__":
    main()
