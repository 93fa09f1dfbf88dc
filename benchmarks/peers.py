"""Our training step beside that of the open package perforatedai (Apache-2.0), on one thread and in turn.

    make bench-peers

That package trains "gradient dendrites": jointly with the network and by ordinary backpropagation, with no dendrite
phase and nothing detached. Our `gradient` variant is the like of it, here in the same loop with the same optimiser; our
own method, whose dendrites are frozen in the neuron phase, stands beside it as it trains. It runs in an environment of
its own. The closed package perforatedbp changes what perforatedai does and must not be there.
"""

import contextlib
import importlib.util
import io
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import click
import torch
from arms import LEARNING_RATE, ours, stock_step, with_dendrites
from form import Figure, figure, interleaved, ratios, show
from torch import nn

from pbp_search.dendrites import DendriteSpec
from pbp_search.tasks.digits import DigitsMLP

_BATCH = 64
_EPOCHS = 2  # between the peer's switches: with 1 it fails


def _present(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def peer(network: nn.Module, dendrites: int) -> nn.Module:
    """A network with dendrites of the peer's on every layer, added by its own schedule."""
    from perforatedai import globals_perforatedai, utils_perforatedai

    settings: Any = globals_perforatedai.pc
    settings.set_configuration_confirmed(True)
    settings.set_unwrapped_modules_confirmed(True)
    settings.set_testing_dendrite_capacity(False)  # else it adds three at once
    settings.set_test_saves(False)
    settings.set_silent(True)
    settings.set_use_cuda(False)
    settings.set_device(torch.device("cpu"))
    settings.set_switch_mode(settings.DOING_FIXED_SWITCH)
    settings.set_fixed_switch_num(_EPOCHS)
    settings.set_first_fixed_switch_num(_EPOCHS)
    name = f"peer_{dendrites}_{id(network)}"  # settings leak between runs through its folder of this name
    network = utils_perforatedai.perforate_model(network, save_name=name, making_graphs=False, maximizing_score=True)
    tracker: Any = globals_perforatedai.pai_tracker
    tracker.set_optimizer(torch.optim.Adam)
    added, score = 0, 0.0
    split = DigitsMLP().data().train
    while added < dendrites:
        optimiser, _ = tracker.setup_optimizer(network, {"params": network.parameters(), "lr": LEARNING_RATE}, None)
        restructured = False
        while not restructured:
            # It shapes its dendrites by what went through the network forward and backward.
            optimiser.zero_grad()
            DigitsMLP().loss(network.train()(split.inputs[:_BATCH]), split.targets[:_BATCH]).mean().backward()
            optimiser.step()
            score += 0.01  # always better: it keeps what it adds
            network, restructured, done = tracker.add_validation_score(score, network.eval())
            if done:
                raise RuntimeError(f"perforatedai stopped at {added} dendrites.")
        added += 1
    found = [part.num_dendrites for part in network.modules() if hasattr(part, "num_dendrites")]
    if found != [dendrites] * len(found) or not found:
        raise RuntimeError(f"perforatedai made {found} dendrites a neuron, not {dendrites}.")
    return network.train()


def measure(runs: int) -> list[Figure]:
    """Steps of the digits MLP."""
    task = DigitsMLP()
    split = task.data().train
    figures = []
    for width in (16, 64):
        for dendrites in (1, 4):
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
                theirs = peer(task.model(width), dendrites)
            joint = with_dendrites(task.model(width), dendrites, DendriteSpec(variant="gradient"))
            frozen = with_dendrites(task.model(width), dendrites)
            seconds = interleaved(
                {
                    "plain": stock_step(task.model(width), split, _BATCH),
                    "theirs": stock_step(theirs, split, _BATCH),
                    "joint": stock_step(joint, split, _BATCH),
                    "frozen": ours(frozen, task, split, _BATCH),
                },
                runs,
            )
            where = f"digits MLP {width}, {dendrites} generation{'s' * (dendrites > 1)}"
            figures += [
                figure(f"step, {where}, our gradient variant / perforatedai", ratios(seconds, "joint", "theirs")),
                figure(f"step, {where}, ours as it trains / perforatedai", ratios(seconds, "frozen", "theirs")),
                figure(f"step, {where}, perforatedai / plain", ratios(seconds, "theirs", "plain")),
            ]
    return figures


@click.command()
@click.option("--quick", is_flag=True, help="Fewer runs: finishes within a minute.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
def main(quick: bool, json_file: Path | None) -> None:
    """Measure and print."""
    if _present("perforatedbp"):
        raise click.ClickException("perforatedbp is installed here: remove it, this benchmark is not for it.")
    if not _present("perforatedai"):
        raise click.ClickException("perforatedai is not installed here: run this benchmark by `make bench-peers`.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    target = json_file and json_file.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # it saves where it runs
        os.environ["HOME"] = folder
        figures = measure(5 if quick else 31)
    show(figures, target)


if __name__ == "__main__":
    main()
