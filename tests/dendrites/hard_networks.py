"""Small stand-ins for the networks that the paper names as unsolved: their layers have processing of their own.

EfficientDet, SpinalNet, BiBERT and IGMTF (R. Brenner and L. Itti, arXiv 2501.18018), each with the traits that make it
hard, a synthetic task that it is too small for, and the losses of single samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbp_search.dendrites import Adapter


class Separable(nn.Module):
    """A depthwise and a pointwise convolution (EfficientDet)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class Fusion(nn.Module):
    """Fast normalised fusion: a mean weighted by learned weights that are kept non-negative."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.mix = Separable(channels, channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, *levels: Tensor) -> Tensor:
        weights = functional.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        fused = sum(weight * level for weight, level in zip(weights, levels, strict=True))
        return self.norm(self.mix(functional.silu(fused)))


class Head(nn.Module):
    """One head for all levels of a pyramid: convolutions in common, a normalisation for each level."""

    def __init__(self, channels: int, outputs: int, levels: int) -> None:
        super().__init__()
        self.mix = Separable(channels, channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels))
        self.predict = Separable(channels, outputs)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Shape (N, positions of all levels, outputs)."""
        found = []
        for norm, level in zip(self.norms, levels, strict=True):
            hidden = functional.silu(norm(self.mix(level)), inplace=True)
            found.append(self.predict(hidden).flatten(2).transpose(1, 2))
        return torch.cat(found, 1)


class Detector(nn.Module):
    """Images (N, 1, 16, 16): a backbone, a pyramid fused from the top down and from the bottom up, two heads."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        widths = (1, channels, channels, channels)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU(inplace=True))
            for a, b in pairwise(widths)
        )
        self.down = nn.ModuleList(Fusion(2, channels) for _ in range(2))
        self.up = nn.ModuleList([Fusion(3, channels), Fusion(2, channels)])
        self.classes = Head(channels, 2, levels=3)
        self.boxes = Head(channels, 2, levels=3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stages[0](x)
        middle = self.stages[1](fine)
        coarse = self.stages[2](middle)
        between = self.down[0](middle, functional.interpolate(coarse, scale_factor=2))
        finest = self.down[1](fine, functional.interpolate(between, scale_factor=2))
        between = self.up[0](middle, between, functional.max_pool2d(finest, 2))
        coarsest = self.up[1](coarse, functional.max_pool2d(between, 2))
        levels = [finest, between, coarsest]
        return {"classes": self.classes(levels), "boxes": self.boxes(levels)}


def detection_data(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One square an image, bright or dark; its level goes by its size, its class by its sign."""
    images = 0.2 * torch.randn(samples, 1, 16, 16, generator=generator)
    targets = []
    for image in images:
        level, label = torch.randint(3, (), generator=generator), torch.randint(2, (), generator=generator)
        size = 3 * 2 ** int(level) - 1
        row, column = torch.randint(16 - size + 1, (2,), generator=generator).tolist()
        image[0, row : row + size, column : column + size] += 1 - 2 * label
        grids = []
        for index, side in enumerate((8, 4, 2)):
            grid = torch.zeros(4, side, side)
            if index == level:
                cell = ((row + size / 2) * side / 16, (column + size / 2) * side / 16)
                place = (int(cell[0]), int(cell[1]))
                grid[label, *place] = 1
                grid[2:, *place] = torch.tensor([cell[0] % 1, cell[1] % 1])
            grids.append(grid.flatten(1).T)
        targets.append(torch.cat(grids))
    return images, torch.stack(targets)


def detection_loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    """A focal loss of the classes at all positions, and of the offsets where there is an object."""
    labels, offsets = targets[..., :2], targets[..., 2:]
    entropy = functional.binary_cross_entropy_with_logits(outputs["classes"], labels, reduction="none")
    focal = (1 - (-entropy).exp()).square() * entropy
    there = labels.amax(-1, keepdim=True)
    boxes = there * functional.smooth_l1_loss(outputs["boxes"], offsets, reduction="none")
    return focal.sum((1, 2)) + boxes.sum((1, 2))


class Spinal(nn.Module):
    """Inputs (N, 8): every layer sees one half of them beside the outputs of the layer before, all feed the head."""

    def __init__(self, width: int = 2, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4 + (width if layer else 0), width) for layer in range(layers))
        self.head = nn.Linear(layers * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            half = x[:, 4 * (index % 2) : 4 * (index % 2) + 4]
            found.append(functional.relu(layer(torch.cat([half, *found[-1:]], 1)), inplace=True))
        return self.head(torch.cat(found, 1)).squeeze(1)


def halves_data(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(samples, 8, generator=generator)
    return x, (2 * x[:, 0]).cos() + (2 * x[:, 5]).cos() + 0.5 * x[:, 1]


class _Sign(torch.autograd.Function):
    """The sign, with the gradient of the identity between -1 and 1 (straight through)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


def sign(x: Tensor) -> Tensor:
    found: Tensor = _Sign.apply(x)  # type: ignore[no-untyped-call]
    return found


class BinaryLinear(nn.Linear):
    """Signs of inputs by signs of centred weights, times the weights' mean absolute value (BiBERT)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(1, keepdim=True)
        scale = self.weight.abs().mean(1, keepdim=True).detach()
        return functional.linear(sign(x), scale * sign(weight), self.bias)


class BinaryAttention(nn.Module):
    """Attention that either looks at a token or does not: bool(score), no softmax."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = BinaryLinear(width, width)
        self.key = BinaryLinear(width, width)
        self.value = BinaryLinear(width, width)
        self.out = BinaryLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        scores = sign(self.query(x)) @ sign(self.key(x)).transpose(1, 2) / x.shape[2] ** 0.5
        looked_at = (sign(scores) + 1) / 2
        return self.out(looked_at @ sign(self.value(x)))


class BinaryTransformer(nn.Module):
    """Tokens (N, T): one layer of binarised attention and a binarised feed-forward part, with normalised residuals."""

    def __init__(self, tokens: int = 6, length: int = 5, width: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.attention = BinaryAttention(width)
        self.wide = BinaryLinear(width, width)
        self.narrow = BinaryLinear(width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embedding(x) + self.position
        hidden = self.norms[0](hidden + self.attention(hidden))
        hidden = self.norms[1](hidden + self.narrow(functional.gelu(self.wide(hidden))))
        return self.head(hidden.mean(1)).squeeze(1)


def token_data(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """How often the commonest token occurs, and whether the first and the last are alike."""
    tokens = torch.randint(6, (samples, 5), generator=generator)
    counts = functional.one_hot(tokens, 6).sum(1).amax(1)
    return tokens, counts.float() + (tokens[:, 0] == tokens[:, -1]).float()


class Neighbours(nn.Module):
    """Series (N, T, 3): a recurrent encoder, and attention over those of remembered series that are most alike (IGMTF).

    Attributes:
        bank: Hidden states of training samples, shape (samples, width).
    """

    bank: Tensor

    def __init__(self, width: int = 5, neighbours: int = 4) -> None:
        super().__init__()
        self.encoder = nn.GRU(3, width, batch_first=True)
        self.register_buffer("bank", torch.randn(16, width))
        self.here = nn.Linear(width, width)
        self.there = nn.Linear(width, width)
        self.head = nn.Linear(2 * width, 1)
        self.neighbours = neighbours

    def encode(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(x)[0][:, -1]
        return hidden

    @torch.no_grad()
    def remember(self, x: Tensor) -> None:
        """Fill the bank with the hidden states of these series."""
        self.bank = self.encode(x)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encode(x)
        here, there = self.here(hidden), self.there(self.bank)
        likeness = functional.normalize(here, dim=1) @ functional.normalize(there, dim=1).T
        strength, nearest = likeness.topk(self.neighbours, 1)
        around = (strength.softmax(1).unsqueeze(2) * self.bank[nearest]).sum(1)
        return self.head(torch.cat([hidden, functional.leaky_relu(around)], 1)).squeeze(1)


def series_data(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(samples, 6, 3, generator=generator)
    return x, x[:, -1, 0].abs() + x[:, -1, 1] * x[:, -1, 2] + 0.5 * x[:, -2, 0]


def squared_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square()


class Pointwise(Adapter):
    """A block of one's own: its user says on which axis its neurons are, and how many there are."""

    axis = -3

    def channels(self, module: Separable) -> int:
        return module.pointwise.out_channels


@dataclass(frozen=True)
class Hard:
    """A network, its task, and what its user says to attach dendrites.

    Attributes:
        build: Makes the network.
        data: Inputs and targets of some samples.
        loss: One loss per sample.
        wrapped: The kinds of modules that get dendrites, and how many of each.
        finds: A module whose dendrites have a residual to find.
        adapters: Where the neurons of modules of its own are.
        samples: How many there are.
    """

    build: Callable[[], nn.Module]
    data: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    loss: Callable[[Any, Tensor], Tensor]
    wrapped: dict[str, int]
    finds: str
    adapters: dict[str | type[nn.Module], Adapter] | None = None
    samples: int = 768


def detector(wrapped: dict[str, int], **options: Any) -> Hard:
    return Hard(Detector, detection_data, detection_loss, wrapped, samples=256, **options)


HARD: dict[str, Hard] = {
    # The separable convolutions get dendrites on each of their two parts, or as a whole.
    "EfficientDet": detector({"Conv2d": 19}, finds="classes.predict.pointwise"),
    "EfficientDet, blocks": detector(
        {"Conv2d": 3, "Separable": 8}, finds="classes.predict", adapters={Separable: Pointwise()}
    ),
    "SpinalNet": Hard(Spinal, halves_data, squared_loss, {"Linear": 5}, finds="layers.3", samples=1536),
    "BiBERT": Hard(
        BinaryTransformer,
        token_data,
        squared_loss,
        {"BinaryLinear": 6, "Linear": 1},
        finds="wide",
        samples=3072,
        adapters={BinaryLinear: Adapter()},
    ),
    "IGMTF": Hard(Neighbours, series_data, squared_loss, {"GRU": 1, "Linear": 3}, finds="encoder"),
}


def trained(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network after a few epochs of its task, in evaluation mode, and the task's data."""
    hard = HARD[name]
    torch.manual_seed(1)
    network = hard.build()
    inputs, targets = hard.data(hard.samples, torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(20):
        if isinstance(network, Neighbours):
            network.remember(inputs[:64])
        for batch in torch.randperm(len(inputs)).split(len(inputs) // 8):
            optimiser.zero_grad()
            hard.loss(network(inputs[batch]), targets[batch]).mean().backward()
            optimiser.step()
    return network.eval(), inputs, targets
