"""What is measured: networks, and epochs of training on them, ours and as PyTorch's tutorials write it."""

import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from pbp_search.dendrites import Adam, DendriteSpec, attach, dendritic_modules
from pbp_search.dendrites.record import Loss
from pbp_search.training import Split, Task, TrialConfig
from pbp_search.training.neuron_phase import _looking_ahead, _train_epoch

LEARNING_RATE = 0.001


def perceptron(*sizes: int) -> nn.Module:
    """Linear layers with relu in between."""
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def image_network() -> nn.Module:
    """A small convolutional network for images of 28x28, given as 784 numbers."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 49, 10),
    )


def signal_network(channels: int = 8) -> nn.Module:
    """A narrow network for signals of 40 points, as in MNIST-1D."""
    return nn.Sequential(
        nn.Conv1d(1, channels, 5, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(channels, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(channels, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * channels, 10),
    )


def with_dendrites(network: nn.Module, generations: int, spec: DendriteSpec | None = None) -> nn.Module:
    """A network with random dendrites, W included."""
    attach(network, spec)
    for module in dendritic_modules(network).values():
        for _ in range(generations):
            module.accept(module.generation())
        nn.init.normal_(module.outgoing, std=0.1)
    return network


def ours(network: nn.Module, task: Task, split: Split, batch_size: int) -> Callable[[], object]:
    """An epoch of the neuron phase."""
    optimiser = Adam([parameter for parameter in network.parameters() if parameter.requires_grad], LEARNING_RATE)
    config = TrialConfig(width=1, batch_size=batch_size)
    # The phase has begun: what the dendrites say of the samples is worked out in the first epoch, which warms up.
    phase = _looking_ahead(network, split, config)
    on_gathered = phase.__enter__()

    def epoch(phase: object = phase) -> None:
        _train_epoch(network, task, split, config, optimiser, on_gathered)

    return epoch


def stock_step(network: nn.Module, split: Split, batch_size: int) -> Callable[[], object]:
    """An epoch over batches that are there already: nothing but steps."""
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    batches = list(zip(split.inputs.split(batch_size), split.targets.split(batch_size), strict=True))

    def epoch() -> None:
        for inputs, targets in batches:
            optimiser.zero_grad()
            functional.cross_entropy(network(inputs), targets).backward()
            optimiser.step()

    return epoch


def stock_loop(network: nn.Module, split: Split, batch_size: int) -> Callable[[], object]:
    """An epoch with a DataLoader."""
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    loader = DataLoader(TensorDataset(split.inputs, split.targets), batch_size=batch_size, shuffle=True)

    def epoch() -> None:
        for inputs, targets in loader:
            optimiser.zero_grad()
            functional.cross_entropy(network(inputs), targets).backward()
            optimiser.step()

    return epoch


def error_passes(network: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, batch_size: int) -> None:
    """The passes that records are read from, with none kept: in evaluation mode, back to the first dendritic module."""
    network.eval()
    first = next(next(iter(dendritic_modules(network).values())).module.parameters())
    for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
        torch.autograd.grad(loss(network(x), y).sum(), first)


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
