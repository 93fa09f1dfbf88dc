"""The rows of a layer: every output of a Linear or a convolution is a product of a weight vector and a patch of inputs.

With its patches gathered, the dendrite phase of such a layer is a small dense problem, whatever its kernel, stride,
padding, dilation or groups: z = patch . weight + bias, for rows (samples x positions) and G groups of channels.
"""

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Patches:
    """How a layer's outputs at single positions follow from its inputs.

    Attributes:
        channels: C, in G groups of equal size.
        length: F, how many numbers a patch has.
        groups: G: the outputs of a group of channels see the inputs of that group only.
        weight_shape: Of the layer's weight.
        kernel: The kernel's sizes; none for a Linear.
        stride: Between the positions of neighbouring outputs.
        dilation: Between the kernel's elements.
        sides: The padding before and after each axis of space.
        mode: The padding's, as ``torch.nn.functional.pad`` names it.
        transposed: A transposed convolution is one of stride 1 over inputs with zeros in between, by a mirrored kernel.
    """

    channels: int
    length: int
    groups: int
    weight_shape: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    sides: tuple[tuple[int, int], ...] = ()
    mode: str = "constant"
    transposed: bool = False

    @staticmethod
    def fit(layer: nn.Module) -> bool:
        """Whether a layer's outputs are products of weights and patches. Subclasses may compute something else."""
        return type(layer) in (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)

    @classmethod
    def of(cls, layer: Any) -> "Patches":
        """Those of a layer that fits."""
        shape = tuple(layer.weight.shape)
        if isinstance(layer, nn.Linear):
            return cls(shape[0], shape[1], 1, shape)
        transposed = isinstance(layer, _TRANSPOSED)
        spans = [dilation * (size - 1) for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        if transposed:
            extras = layer.output_padding
            borders = [span - padding for span, padding in zip(spans, layer.padding, strict=True)]
            sides = tuple((border, border + extra) for border, extra in zip(borders, extras, strict=True))
        elif layer.padding == "same":
            sides = tuple((span // 2, span - span // 2) for span in spans)
        else:
            padding = (0,) * len(spans) if layer.padding == "valid" else layer.padding
            sides = tuple((side, side) for side in padding)
        return cls(
            channels=layer.out_channels,
            length=layer.weight.numel() // layer.out_channels,
            groups=layer.groups,
            weight_shape=shape,
            kernel=tuple(layer.kernel_size),
            stride=tuple(layer.stride),
            dilation=tuple(layer.dilation),
            sides=sides,
            mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode,
            transposed=transposed,
        )

    @property
    def dimensions(self) -> int:
        """Axes of space; 0 for a Linear."""
        return len(self.kernel)

    def resized(self, x: Tensor, y: Tensor) -> "Patches":
        """The same for outputs of the size of y: a transposed convolution may be asked for one (``output_size``)."""
        if not self.transposed:
            return self
        sides = []
        spans = [dilation * (size - 1) for size, dilation in zip(self.kernel, self.dilation, strict=True)]
        for axis, (span, stride, (before, _)) in enumerate(zip(spans, self.stride, self.sides, strict=True)):
            inputs, outputs = (value.shape[axis - self.dimensions] for value in (x, y))
            sides.append((before, outputs - before - (inputs - 1) * stride - 1 + span))
        return replace(self, sides=tuple(sides))

    def gather(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """The patches of a batch.

        Args:
            x: The layer's inputs, shape (N, ..., F) for a Linear, (N, channels, *space) for a convolution.
            positions: Which of each sample's output positions, flattened, shape (N, P); all by default.

        Returns:
            Shape (N, P, G, F).
        """
        if not self.dimensions:
            rows = x.reshape(len(x), -1, self.length)
            return (rows if positions is None else rows.take_along_dim(positions.unsqueeze(2), 1)).unsqueeze(2)
        padded, corners, offsets, _ = self._laid_out(x)
        corners = corners.unsqueeze(0) if positions is None else corners[positions]
        index = corners.unsqueeze(2) + offsets  # (N or 1, P, kernel)
        patches = padded.flatten(2).take_along_dim(index.flatten(1).unsqueeze(1), 2)
        patches = patches.reshape(len(x), self.groups, -1, *index.shape[1:])
        return patches.permute(0, 3, 1, 2, 4).flatten(3)

    def sparse(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """The layer's outputs without bias if each channel saw a few numbers of its patch only.

        Args:
            x: The layer's inputs, shape (..., F) for a Linear, (N, channels, *space) for a convolution.
            index: Which numbers of its patch each channel sees, shape (C, K).
            weight: Their weights, shape (C, K).
        """
        if not self.dimensions:
            return (x[..., index] * weight).sum(-1)
        padded, corners, offsets, out = self._laid_out(x)
        inputs_a_group = self.length // len(offsets)
        group = torch.arange(self.channels, device=x.device) // (self.channels // self.groups)
        channel = group.unsqueeze(1) * inputs_a_group + index // len(offsets)
        place = channel * prod(padded.shape[2:]) + offsets[index % len(offsets)]
        seen = padded.flatten(1)[:, (place.unsqueeze(2) + corners).flatten()]
        seen = seen.reshape(x.shape[0], *index.shape, len(corners))  # not len(x): exporters fix that
        return (seen * weight.unsqueeze(2)).sum(2).reshape(x.shape[0], self.channels, *out)

    def _laid_out(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Padded inputs; in their flattened space each output's first place, and each kernel element's offset from it;
        the output's space."""
        if self.transposed:
            for axis, stride in enumerate(self.stride):
                x = _spread(x, 2 + axis, stride)
        sides = [side for pair in reversed(self.sides) for side in pair]  # torch wants the last axis first
        padded = functional.pad(x, sides, mode=self.mode)
        steps = (1,) * self.dimensions if self.transposed else self.stride
        space = padded.shape[2:]
        corners, offsets = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        out = []
        for size, count, dilation, step in zip(space, self.kernel, self.dilation, steps, strict=True):
            places = torch.arange(0, size - dilation * (count - 1), step)
            kernel = dilation * torch.arange(count)
            corners = (corners.unsqueeze(1) * size + places).flatten()
            offsets = (offsets.unsqueeze(1) * size + (kernel.flip(0) if self.transposed else kernel)).flatten()
            out.append(len(places))
        return padded, corners.to(x.device), offsets.to(x.device), out

    def matrix(self, weight: Tensor) -> Tensor:
        """A layer's weight as a vector for each channel, shape (C, F)."""
        if not self.transposed:
            return weight.reshape(self.channels, self.length)
        grouped = weight.reshape(self.groups, -1, self.weight_shape[1], prod(self.kernel))
        return grouped.transpose(1, 2).reshape(self.channels, self.length)

    def weight(self, matrix: Tensor) -> Tensor:
        """The layer's weight that :meth:`matrix` turns into a matrix."""
        if not self.transposed:
            return matrix.reshape(self.weight_shape)
        grouped = matrix.reshape(self.groups, self.weight_shape[1], -1, prod(self.kernel))
        return grouped.transpose(1, 2).reshape(self.weight_shape)


def _spread(x: Tensor, axis: int, stride: int) -> Tensor:
    """Put ``stride - 1`` zeros between neighbours along an axis."""
    if stride == 1:
        return x
    shape = list(x.shape)
    shape[axis] = (shape[axis] - 1) * stride + 1
    spread = x.new_zeros(shape)
    spread[(slice(None),) * axis + (slice(None, None, stride),)] = x
    return spread
