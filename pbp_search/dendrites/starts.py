"""Where candidates begin: in the directions along which the errors rise or bend most.

Of all directions u of whitened inputs z, the errors correlate most with u'z along E[e z], and with its square along the
leading eigenvectors of E[e z z'], the principal Hessian directions of K.-C. Li (Journal of the American Statistical
Association 87, 1992). What is linear in a neuron's inputs is taken out of its error, so the second is what there is;
unless dendrites see something else, or there are too few records to take out all of it. One matrix product and small
eigendecompositions find them.
"""

from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional

_COMPONENTS = 32
"""The principal components of the inputs that directions are made of."""
_MOMENTS = 2**20
"""Numbers that the matrices of all neurons may have: with many neurons there are fewer components."""
_FEW = 64
_SAMPLE = 4096
"""The least and the most records that components are taken from."""
_NUMBERS = 2**21
"""How many are worked on at once."""
_ERRORS = 2**24
_PRODUCTS = 2**28
"""Errors, and products of components, that the matrices are taken from."""
_FEWEST = 1024
"""... but from so many records at least."""
_WEAK = 1e-6
"""Components of a smaller share of the variance are left out."""


class Directions:
    """The moments of each neuron's errors, of each kind, on the leading principal components of its inputs.

    Args:
        inputs: x, shape (R, G, F), for G groups of neurons.
        mean: Of x, shape (G, F).
        scale: What (x - mean) is multiplied by to have deviation 1, shape (G, F).
        errors: E, shape (R, K, C), of K kinds.
        index: Of neurons with some inputs only these, by their place among all G * F, shape (C, f), as mean and scale.
        numbers: How many may be worked on at once.

    Attributes:
        axes: Components of deviation 1 by standardised inputs, shape (G, F, k); (C, f, k) with an index.
        first: E[e z], shape (K, G, C / G, k); (K, C, 1, k).
        second: E[e z z'], shape (K, G, C / G, k, k); (K, C, 1, k, k).
    """

    def __init__(
        self,
        inputs: Tensor,
        mean: Tensor,
        scale: Tensor,
        errors: Tensor,
        index: Tensor | None = None,
        numbers: int = _NUMBERS,
    ) -> None:
        records, (groups, length) = len(inputs), mean.shape
        components = min(_COMPONENTS, length, isqrt(min(_MOMENTS, numbers // 2) // errors[0].numel()) or 1)
        rows = spread(records, max(_FEW, min(_SAMPLE, numbers // (groups * length))), inputs.device)
        standard = (_of(inputs[rows], index) - mean).mul_(scale).transpose(0, 1)
        # Some more than are taken: the last ones are inexact.
        _, deviation, axes = torch.pca_lowrank(standard, min(components + 8, length, len(rows)), center=False)
        deviation, axes = deviation[:, :components] / len(rows) ** 0.5, axes[..., :components]
        strong = deviation > _WEAK**0.5 * deviation[:, :1]
        self.axes = axes * torch.where(strong, 1 / deviation, 0.0).unsqueeze(1)
        components = self.axes.shape[2]
        most = min(_ERRORS // errors[0].numel(), _PRODUCTS // (groups * components**2))
        rows = spread(records, max(_FEWEST, most), inputs.device)
        self.first, self.second = self._moments(inputs, mean, scale, errors, index, rows, numbers // 2)

    def _moments(
        self,
        inputs: Tensor,
        mean: Tensor,
        scale: Tensor,
        errors: Tensor,
        index: Tensor | None,
        rows: Tensor,
        numbers: int,
    ) -> tuple[Tensor, Tensor]:
        groups, _, components = self.axes.shape
        whitening = self.axes * scale.unsqueeze(2)
        shift = torch.einsum("gf,gfk->gk", mean, whitening).unsqueeze(2)
        centre = errors.mean(0)
        first = errors.new_zeros(groups, components, errors[0].numel() // groups)
        second = errors.new_zeros(groups, components, *first.shape[1:])
        gathered = components if index is None else mean.shape[1]
        for some in rows.split(max(1, numbers // (groups * gathered))):
            z = torch.einsum("rgf,gfk->gkr", _of(inputs[some], index), whitening) - shift
            e = (errors[some] - centre).unflatten(2, (groups, -1)).permute(2, 0, 1, 3).flatten(2)  # (G, r, K * C / G)
            first += z @ e
            for one in range(components):
                second[:, one, one:] += (z[:, one : one + 1] * z[:, one:]) @ e
        kinds = (errors.shape[1], -1)
        first = first.div_(len(rows)).permute(0, 2, 1).unflatten(1, kinds)
        second = second.div_(len(rows)).permute(0, 3, 1, 2)
        second = (second + second.triu(1).mT).unflatten(1, kinds)
        return first.transpose(0, 1), second.transpose(0, 1)

    def leading(self, most: int, linear: bool = False) -> Tensor:
        """The leading directions of each neuron by standardised inputs, along which their deviation is about 1.

        Args:
            most: How many.
            linear: Rank only by what is linear along them.

        Returns:
            Shape (K, most, C, F or f); at most one more than there are components, and 0 where the errors say nothing.
        """
        bent, vectors = torch.linalg.eigh(self.second)
        # The correlations with u'z and with its square, if it is normal.
        strength = torch.cat([self.first.norm(dim=-1, keepdim=True), (0.0 if linear else 0.5**0.5) * bent.abs()], -1)
        vectors = torch.cat([functional.normalize(self.first, dim=-1).unsqueeze(-1), vectors], -1)
        chosen = strength.topk(min(most, strength.shape[-1]), -1).indices
        weights: Tensor = self.axes.unsqueeze(1) @ vectors.take_along_dim(chosen.unsqueeze(-2), -1)
        return weights.flatten(1, 2).permute(0, 3, 1, 2)


def spread(records: int, most: int, device: torch.device) -> Tensor:
    """Some of the records, of all parts: a sample's positions stand side by side."""
    some = min(records, most)
    return torch.arange(some, device=device) * records // some


def _of(inputs: Tensor, index: Tensor | None) -> Tensor:
    return inputs if index is None else inputs.flatten(1)[:, index]
