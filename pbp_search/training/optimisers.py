"""The optimiser and the learning-rate schedule of a neuron phase: the task's own, or Adam."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from pbp_search.dendrites import Adam, dendritic_modules
from pbp_search.training.config import TrialConfig


def optimiser_of(
    network: nn.Module, task: object, config: TrialConfig
) -> tuple[Adam | torch.optim.Optimizer, LRScheduler | None]:
    """A new optimiser, and its schedule if the task has one. W takes no weight decay, which would pull it back to 0.

    Args:
        network: Its parameters that take a gradient are trained.
        task: May have the methods ``optimiser`` and ``scheduler``.
        config: Learning rate and weight decay.
    """
    outgoing = [module.outgoing for module in dendritic_modules(network).values()]
    known = {id(parameter) for parameter in outgoing}
    others = [parameter for parameter in network.parameters() if parameter.requires_grad and id(parameter) not in known]
    make, schedule = getattr(task, "optimiser", None), getattr(task, "scheduler", None)
    if make is None and schedule is None:
        return Adam(others, config.learning_rate, config.weight_decay, undecayed=outgoing), None
    groups: list[dict[str, Any]] = [{"params": others}, {"params": outgoing, "weight_decay": 0.0}]
    optimiser: torch.optim.Optimizer
    if make is None:  # a schedule takes one of torch's
        optimiser = torch.optim.AdamW(groups, config.learning_rate, weight_decay=config.weight_decay)
    else:
        optimiser = make(groups, config)
    return optimiser, None if schedule is None else schedule(optimiser, config)
