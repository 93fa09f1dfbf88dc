"""Small networks with dendrites at random values, and comparison to the last bit."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pbp_search.dendrites import DendriteSpec, Dendritic, Record, attach, dendritic_modules, record
from pbp_search.dendrites.record import Loss, Part

NONLINEARITIES = ("tanh", "sigmoid", "relu", "gelu")

WIDTHS = (1, 3, 16)


def perceptron(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def without_bias(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width, bias=False), nn.Tanh(), nn.Linear(width, 3, bias=False))


def normalised(width: int) -> nn.Module:
    hidden = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Dropout(0.3))
    return nn.Sequential(hidden, nn.Linear(width, width), nn.Sigmoid(), nn.Linear(width, 3))


class Sequences(nn.Module):
    """Inputs (N, T, 4): a module for every position, then one for their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.positions = nn.Linear(4, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.positions(x)).mean(1))


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "perceptron": perceptron,
    "without_bias": without_bias,
    "normalised": normalised,
    "sequences": Sequences,
}


def inputs_for(builder: str, samples: int, dtype: torch.dtype = torch.float32, seed: int = 7) -> Tensor:
    shape = (samples, 5, 4) if builder == "sequences" else (samples, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def grown(
    builder: str, width: int, generations: int, nonlinearity: str = "tanh", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A network with random weights everywhere: M, M_d, U and W."""
    torch.manual_seed(width + 100 * generations)
    network = BUILDERS[builder](width).to(dtype)
    for module in attach(network, DendriteSpec(nonlinearity=nonlinearity)).values():
        add_generations(module, generations)
    return network


def add_generations(module: Dendritic, count: int) -> None:
    """Accept generations with random U, then set W at random."""
    for _ in range(count):
        (candidate,) = module.generation()
        nn.init.normal_(candidate.incoming)
        module.accept([candidate])
    nn.init.normal_(module.outgoing)


def dendritic(inputs: int, channels: int, generations: int, nonlinearity: str = "tanh", **options: Any) -> Dendritic:
    """One module with random weights everywhere."""
    torch.manual_seed(inputs + 10 * channels + 100 * generations)
    module = Dendritic(nn.Linear(inputs, channels, **options), DendriteSpec(nonlinearity=nonlinearity))
    add_generations(module, generations)
    return module


def bits(values: Tensor) -> Tensor:
    """The bits of floating-point numbers, as integers."""
    return values.detach().contiguous().view({4: torch.int32, 8: torch.int64}[values.element_size()])


def assert_same_bits(left: Tensor, right: Tensor) -> None:
    assert left.dtype == right.dtype
    assert torch.equal(bits(left), bits(right))


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def assert_same_state(before: dict[str, Tensor], network: nn.Module) -> None:
    after = network.state_dict()
    assert list(before) == list(after)
    for name, value in before.items():
        assert value.dtype == after[name].dtype, name
        assert torch.equal(value.view(-1).view(torch.uint8), after[name].view(-1).view(torch.uint8)), name


def all_modules(network: nn.Module) -> list[Dendritic]:
    modules = list(dendritic_modules(network).values())
    assert modules
    return modules


def in_batches(inputs: Tensor, targets: Tensor, batch_size: int = 512) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))


def recorded(
    network: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, batch_size: int = 512, **options: Any
) -> dict[str, Part]:
    """What is kept of all samples in their order, if nothing is held out."""
    batches = in_batches(inputs, targets, batch_size)
    kept = record(network, loss, batches, held_out=batches, rows=options.pop("rows", 10**6), **options)
    return {name: one.training for name, one in kept.items()}


def parted(inputs: Tensor, errors: Tensor, seed: int = 0) -> Record:
    """A record of which a quarter of the samples is held out."""
    order = torch.randperm(len(errors), generator=torch.Generator().manual_seed(seed))
    count = max(1, round(len(errors) / 4))
    return Record(*(Part(inputs[rows], errors[rows]) for rows in (order[count:], order[:count])))
