"""How often does chance alone pass the gate of a generation, and how often does a weak signal?

    python benchmarks/noise_gate.py > benchmarks/results/noise_gate.csv

Each repeat trains a generation on errors that have nothing to do with the inputs, and on errors with a share of a
nonlinear function of the inputs. Noise is normal, or that of a confident classifier: 2% of the samples are mistakes and
have nearly all of the error. A line tells in which share of groups of repeats, each as many as there are tests
(modules x tries), at least one passed.
"""

import csv
import sys

import click
import torch
from joblib import Parallel, delayed
from torch import nn
from torch.nn import functional

from pbp_search.dendrites import DendriteSpec, Dendritic, Growth, Record, grow
from pbp_search.dendrites.record import Part
from pbp_search.training import CycleSchedule
from pbp_search.training.stopping import Stopper
from pbp_search.training.streams import generator

_INPUTS = 8


def grow_on(samples: int, channels: int, mistakes: bool, signal: float, repeat: int) -> Growth:
    """Grow one generation on a problem of its own."""
    torch.set_num_threads(1)
    stream = generator(0, "problem", samples, channels, str(signal), repeat)
    inputs = torch.randn(samples, _INPUTS, generator=stream)
    hidden = torch.tanh(2 * inputs @ torch.randn(_INPUTS, channels, generator=stream) / _INPUTS**0.5)
    nonlinear = hidden * hidden.roll(1, 1) if channels > 1 else hidden.abs()
    nonlinear = (nonlinear - nonlinear.mean(0)) / nonlinear.std(0)
    noise = _mistakes(samples, channels, stream) if mistakes else torch.randn(samples, channels, generator=stream)
    errors = signal**0.5 * nonlinear + (1 - signal) ** 0.5 * noise
    held_out = samples // 4
    record = Record(Part(inputs[held_out:], errors[held_out:]), Part(inputs[:held_out], errors[:held_out]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(repeat)
        module = Dendritic(nn.Linear(_INPUTS, channels), DendriteSpec())
    _, growth = grow(module, record, lambda: Stopper(CycleSchedule().dendrite, 0, "maximize"), stream)
    return growth


def _mistakes(samples: int, channels: int, stream: torch.Generator) -> torch.Tensor:
    """The gradient of the cross entropy at the logits of a classifier that is sure of itself, and wrong at random."""
    chosen = torch.randint(channels, (samples,), generator=stream)
    other = (chosen + torch.randint(1, channels, (samples,), generator=stream)) % channels
    wrong = torch.rand(samples, generator=stream) < 0.02
    logits = 5 * functional.one_hot(chosen, channels) + torch.randn(samples, channels, generator=stream)
    return logits.softmax(1) - functional.one_hot(torch.where(wrong, other, chosen), channels)


@click.command()
@click.option("--repeats", type=click.IntRange(min=16), default=160, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True)
def main(repeats: int, jobs: int) -> None:
    """Print a CSV of pass rates."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["samples", "channels", "noise", "share_of_signal", "tests", "passed"])
    problems = [
        (samples, channels, False, signal)
        for samples, channels in ((200, 2), (200, 16), (1000, 2), (1000, 16))
        for signal in (0.0, 0.05, 0.2)
    ]
    for problem in [*problems, (1000, 2, True, 0.0), (1000, 16, True, 0.0)]:
        samples, channels, mistakes, signal = problem
        calls = (delayed(grow_on)(*problem, repeat) for repeat in range(repeats))
        growths = Parallel(jobs)(calls)
        for tests in (1, 4, 16):
            groups = [growths[start : start + tests] for start in range(0, repeats - tests + 1, tests)]
            passed = sum(any(growth.above_floor(tests) for growth in group) for group in groups)
            writer.writerow(
                [samples, channels, "mistakes" if mistakes else "normal", signal, tests, f"{passed / len(groups):.3f}"]
            )


if __name__ == "__main__":
    main()
