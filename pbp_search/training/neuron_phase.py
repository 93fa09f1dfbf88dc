"""The neuron phase: ordinary training of the base network and W, with all dendrites frozen."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pbp_search.dendrites import Adam, dendritic_modules
from pbp_search.dendrites.ahead import Ahead
from pbp_search.dendrites.record import called
from pbp_search.errors import TrainingError
from pbp_search.training.config import TrialConfig
from pbp_search.training.data import Batch, Data, Source, Split, evaluation_batches, joined, moved, training_batches
from pbp_search.training.milestone import weights_of
from pbp_search.training.optimisers import optimiser_of
from pbp_search.training.pruning import held
from pbp_search.training.stopping import Stopper, better
from pbp_search.training.streams import global_stream
from pbp_search.training.task import Task

_AHEAD = 1 / 2  # the share of the record budget that all modules' activations at all samples may take


def train_neurons(
    network: nn.Module,
    task: Task,
    data: Data[Any],
    config: TrialConfig,
    generation: int,
    attempt: int,
    on_epoch: Callable[[int, dict[str, float]], None],
    pruned: int = 0,
) -> float:
    """Train until the schedule says so, and leave the network at its best validation weights.

    Args:
        network: Trained in place. Parameters that take no gradient (accepted dendrites) stay as they are.
        task: Loss and score.
        data: Trained on ``train``, stopped on ``validation``.
        config: Schedule, optimiser settings and seed.
        generation: How many generations the network has.
        attempt: Which try of the last generation.
        on_epoch: Told each epoch and its ``train_loss`` and ``validation_score``.
        pruned: Its pruning steps; if there are any, weights that are zero stay zero.

    Returns:
        The best validation score.

    Raises:
        TrainingError: The loss or the score became NaN or infinite.
    """
    # A new optimiser, and so a new start of the learning rate, in each cycle.
    optimiser, scheduler = optimiser_of(network, task, config)
    stop = Stopper(config.schedule.neuron, generation, task.direction)
    best: tuple[float, dict[str, Tensor]] | None = None
    epoch, over = 0, False
    stream: tuple[int | str, ...] = ("neuron", generation, attempt)
    if pruned:
        stream = (*stream, "pruned", pruned)
    with (
        _looking_ahead(network, data.train, config) as on_gathered,
        held(network, optimiser) if pruned else nullcontext(),
    ):
        while not over:
            with global_stream(config.seed, *stream, epoch):
                loss = _train_epoch(network, task, data.train, config, optimiser, on_gathered)
            score = evaluate(network, task, data.validation)
            on_epoch(epoch, {"train_loss": loss, "validation_score": score})
            if best is None or better(score, best[0], task.direction):
                best = score, weights_of(network)
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(score)
            elif scheduler is not None:
                scheduler.step()
            over = stop(score)
            epoch += 1
    assert best is not None
    network.load_state_dict(best[1])
    return best[0]


@contextmanager
def _looking_ahead(
    network: nn.Module, source: Source, config: TrialConfig
) -> Iterator[Callable[[Tensor, Tensor], None] | None]:
    """While it lasts, dendrites that see the samples themselves say once what they say in every epoch.

    Yields what is to be told of samples that are gathered for many batches.
    """
    if not isinstance(source, Split) or source.augment is not None:
        yield None
        return
    modules = list(dendritic_modules(network).values())
    ahead = [Ahead(source.inputs, int(_AHEAD * config.record_budget / len(modules))) for _ in modules]

    def on_gathered(gathered: Tensor, rows: Tensor) -> None:
        for one in ahead:
            one.gather(gathered, rows)

    try:
        for module, one in zip(modules, ahead, strict=True):
            module.ahead = one
        yield on_gathered
    finally:
        for module in modules:
            module.ahead = None


def _train_epoch(
    network: nn.Module,
    task: Task,
    source: Source,
    config: TrialConfig,
    optimiser: Adam | torch.optim.Optimizer,
    on_gathered: Callable[[Tensor, Tensor], None] | None = None,
) -> float:
    """One pass over the data in a new order. Returns the mean loss."""
    network.train()
    device = _device(network)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    told: list[Tensor] = []
    share: Tensor | None = None
    for batch in training_batches(source, config.batch_size, on_gathered):
        losses = _losses(network, task, moved(batch, device), config.mixed_precision)
        if share is None or share.shape != losses.shape:
            share = torch.full_like(losses, 1 / losses.numel(), requires_grad=False)
        optimiser.zero_grad()
        losses.backward(share)  # of their mean
        if config.gradient_clip is not None:
            nn.utils.clip_grad_norm_(trained, config.gradient_clip)
        optimiser.step()
        told.append(losses.detach())
    mean = float(torch.cat(told).cpu().double().mean())
    if not math.isfinite(mean):
        raise TrainingError(f"The training loss became {mean}: try a smaller learning rate.")
    return mean


def _losses(network: nn.Module, task: Task, batch: Batch, mixed_precision: bool) -> Tensor:
    inputs, targets = batch
    if not mixed_precision:
        return task.loss(called(network, inputs), targets)
    with torch.autocast(_device(network).type, torch.bfloat16):
        return task.loss(called(network, inputs), targets)


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


@torch.no_grad()
def evaluate(network: nn.Module, task: Task, source: Source) -> float:
    """The task's score of a network on a part of the data, in full precision, as the network ships.

    Random numbers drawn meanwhile are always the same.

    Raises:
        TrainingError: The score is NaN or infinite.
    """
    network.eval()
    outputs, targets = [], []
    with global_stream(0, "evaluate"):
        for batch in evaluation_batches(source):
            x, y = moved(batch, _device(network))
            outputs.append(called(network, x))
            targets.append(y)
        score = float(task.score(joined(outputs), joined(targets)))
    if not math.isfinite(score):
        raise TrainingError(f"The score ({task.metric}) became {score}.")
    return score
