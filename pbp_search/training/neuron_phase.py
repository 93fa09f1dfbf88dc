"""The neuron phase: ordinary training of the base network and W, with all dendrites frozen."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pbp_search.errors import TrainingError
from pbp_search.training.config import TrialConfig
from pbp_search.training.milestone import weights_of
from pbp_search.training.stopping import Stopper, better
from pbp_search.training.streams import global_stream
from pbp_search.training.task import Data, Split, Task

_EVALUATION_BATCH = 4096


def train_neurons(
    network: nn.Module,
    task: Task,
    data: Data,
    config: TrialConfig,
    generation: int,
    attempt: int,
    on_epoch: Callable[[int, dict[str, float]], None],
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

    Returns:
        The best validation score.

    Raises:
        TrainingError: The loss or the score became NaN or infinite.
    """
    # A new optimiser, and so a new start of the learning rate, in each cycle.
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=config.learning_rate, fused=True)
    stop = Stopper(config.schedule.neuron, generation, task.direction)
    best: tuple[float, dict[str, Tensor]] | None = None
    epoch, over = 0, False
    while not over:
        with global_stream(config.seed, "neuron", generation, attempt, epoch):
            loss = _train_epoch(network, task, data.train, config.batch_size, optimiser)
        score = evaluate(network, task, data.validation)
        on_epoch(epoch, {"train_loss": loss, "validation_score": score})
        if best is None or better(score, best[0], task.direction):
            best = score, weights_of(network)
        over = stop(score)
        epoch += 1
    assert best is not None
    network.load_state_dict(best[1])
    return best[0]


def _train_epoch(
    network: nn.Module, task: Task, split: Split, batch_size: int, optimiser: torch.optim.Optimizer
) -> float:
    """One pass over the data in a new order. Returns the mean loss."""
    network.train()
    total = torch.zeros((), dtype=torch.float64)
    for batch in _batches(len(split.inputs), batch_size):
        losses = task.loss(network(split.inputs[batch]), split.targets[batch])
        optimiser.zero_grad()
        losses.mean().backward()
        optimiser.step()
        total += losses.detach().sum()
    mean = float(total) / len(split.inputs)
    if not math.isfinite(mean):
        raise TrainingError(f"The training loss became {mean}: try a smaller learning rate.")
    return mean


def _batches(samples: int, batch_size: int) -> Sequence[Tensor]:
    """All samples in a new order. A single left-over sample joins the batch before: it has no batch statistics."""
    batches = list(torch.randperm(samples).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) < min(2, batch_size):
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@torch.no_grad()
def evaluate(network: nn.Module, task: Task, split: Split) -> float:
    """The task's score of a network on a part of the data. Random numbers drawn meanwhile are always the same.

    Raises:
        TrainingError: The score is NaN or infinite.
    """
    network.eval()
    with global_stream(0, "evaluate"):
        outputs = torch.cat([network(inputs) for inputs in split.inputs.split(_EVALUATION_BATCH)])
        score = float(task.score(outputs, split.targets))
    if not math.isfinite(score):
        raise TrainingError(f"The score ({task.metric}) became {score}.")
    return score
