"""Small dendrites: each sees a few of a layer's inputs, stored and computed as such.

Biological dendrites sample few inputs (S. Chavlis and P. Poirazi, Nature Communications 16:943, 2025). Only the weights
are parameters; which inputs they belong to is a buffer of indices.
"""

import math
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from pbp_search.dendrites.patches import Patches
from pbp_search.dendrites.spec import DendriteSpec
from pbp_search.errors import UnsupportedModuleError


class SparsePatches(nn.Module):
    """C outputs like a layer's, each of ``fan_in`` numbers of the layer's patch of inputs.

    Attributes:
        index: Which numbers of the patch, shape (C, fan_in).
        weight: Shape (C, fan_in).
        bias: Shape (C,).
    """

    def __init__(self, base: nn.Module, spec: DendriteSpec) -> None:
        super().__init__()
        if not Patches.fit(base) or spec.fan_in is None:
            raise UnsupportedModuleError(
                f"A {type(base).__name__} takes no dendrites with a fan_in: only Linear layers and convolutions do."
            )
        self.patches = Patches.of(base)
        size = min(spec.fan_in, self.patches.length)
        parameter = next(base.parameters())
        self.index: Tensor
        self.register_buffer("index", _draw(self.patches, size, spec).to(parameter.device))
        bound = 1 / math.sqrt(size)  # that of torch's own layers of this fan-in
        self.weight = nn.Parameter(parameter.new_empty(self.patches.channels, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(parameter.new_empty(self.patches.channels).uniform_(-bound, bound))

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:  # torch's names
        x = input
        single = x.ndim == self.patches.dimensions + 1 and self.patches.dimensions > 0  # without an axis of samples
        patches = self.patches if output_size is None else self.patches.resized(x, x.new_empty(*output_size))
        z = patches.sparse(x.unsqueeze(0) if single else x, self.index, self.weight) + self._shaped_bias()
        return z.squeeze(0) if single else z

    def _shaped_bias(self) -> Tensor:
        return self.bias.reshape(-1, *(1,) * self.patches.dimensions)


def _draw(patches: Patches, size: int, spec: DendriteSpec) -> Tensor:
    """Which inputs each channel sees, in rising order, shape (C, size)."""
    if spec.pattern != "window":  # those that are chosen start anywhere
        order = torch.rand(patches.channels, patches.length).argsort(1)
        return order[:, :size].sort(1).values
    grid = spec.grid or (patches.length,)
    if prod(grid) != patches.length:
        grid = (patches.length,)  # of another layer
    # The nearest points of the grid to one drawn at random.
    points = torch.cartesian_prod(*(torch.arange(side) for side in grid)).reshape(patches.length, -1).float()
    centres = points[torch.randint(patches.length, (patches.channels,))]
    distance = torch.cdist(centres, points, p=float("inf")) + 0.001 * torch.cdist(centres, points)
    nearest = distance.argsort(dim=1, stable=True)[:, :size]
    return nearest.sort(1).values
