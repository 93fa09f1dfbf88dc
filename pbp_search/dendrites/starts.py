"""Where candidates begin: in the directions along which the errors bend most.

What is linear in a neuron's inputs is taken out of its error, so what is left is at first order a quadratic form of
them, E[e z z'] with whitened inputs z. Of all directions u the square (u'z)^2 correlates most with e along its leading
eigenvectors: the principal Hessian directions of K.-C. Li (Journal of the American Statistical Association 87, 1992).
They come from one matrix product and small eigendecompositions, where gradients from random starts take hundreds of
steps.
"""

from math import isqrt

import torch
from torch import Tensor

_COMPONENTS = 32
"""The principal components of the inputs that directions are made of."""
_MOMENTS = 2**20
"""Numbers that the matrices of all neurons may have: with many neurons there are fewer components."""
_SAMPLE = 4096
"""Records that components are taken from."""
_NUMBERS = 2**21
"""How many are worked on at once."""
_ERRORS = 2**24
"""Errors that the matrices are taken from."""
_WEAK = 1e-6
"""Components of a smaller share of the variance are left out."""


class Directions:
    """The matrix of each neuron and each kind of errors, on the leading principal components of the inputs.

    Args:
        inputs: x, shape (R, G, F), for G groups of neurons.
        mean: Of x, shape (G, F).
        scale: What (x - mean) is multiplied by to have deviation 1, shape (G, F).
        errors: E, shape (R, K, C), of K kinds.
        numbers: How many may be worked on at once.

    Attributes:
        loadings: What the components z make of standardised inputs: those are about ``loadings @ z``. Shape (G, F, k).
        moments: E[e z z'], shape (K, G, C / G, k, k).
    """

    def __init__(self, inputs: Tensor, mean: Tensor, scale: Tensor, errors: Tensor, numbers: int = _NUMBERS) -> None:
        records, groups, length = inputs.shape
        some = max(1, min(records, _SAMPLE, numbers // (groups * length)))
        standard = (inputs[:some] - mean).mul_(scale).transpose(0, 1)
        most = min(_COMPONENTS, length, some, isqrt(min(_MOMENTS, numbers // 2) // errors[0].numel()) or 1)
        _, deviation, axes = torch.pca_lowrank(standard, most, center=False)
        deviation = deviation / some**0.5
        strong = deviation > _WEAK**0.5 * deviation[:, :1]
        whitening = axes * torch.where(strong, 1 / deviation, 0.0).unsqueeze(1) * scale.unsqueeze(2)
        self.loadings = axes * torch.where(strong, deviation, 0.0).unsqueeze(1)
        rows = max(1, min(records, _ERRORS // errors[0].numel()))
        self.moments = _moments(inputs[:rows], mean, whitening, errors[:rows], numbers // 2)

    def leading(self, most: int, index: Tensor | None = None) -> Tensor:
        """The leading directions of each neuron by standardised inputs, along which their deviation is about 1.

        Args:
            most: How many.
            index: The inputs that each neuron's directions may use, shape (C, f); all by default.

        Returns:
            Shape (K, most, C, F or f); fewer than asked for where there are fewer components.
        """
        loadings = self.loadings.unsqueeze(1)  # (G, 1, F, k)
        if index is not None:
            index = index.unflatten(0, (len(loadings), -1)).unsqueeze(3)
            loadings = loadings.take_along_dim(index, 2)  # (G, C / G, f, k)
        # The components that these inputs can tell apart, whitened anew.
        variance, turn = torch.linalg.eigh(loadings.mT @ loadings)
        strong = variance > _WEAK * variance.amax(-1, keepdim=True)
        turn = turn * strong.unsqueeze(-2)
        bent, vectors = torch.linalg.eigh(turn.mT @ self.moments @ turn)  # (K, G, C / G, k), (K, G, C / G, k, k)
        chosen = bent.abs().topk(min(most, bent.shape[-1]), -1).indices
        vectors = vectors.take_along_dim(chosen.unsqueeze(-2), -1)
        weights: Tensor = loadings @ (turn / torch.where(strong, variance, 1.0).unsqueeze(-2)) @ vectors
        return weights.flatten(1, 2).permute(0, 3, 1, 2)


def _moments(inputs: Tensor, mean: Tensor, whitening: Tensor, errors: Tensor, numbers: int) -> Tensor:
    """E[e z z'] of the components z = (x - mean) @ whitening, shape (K, G, C / G, k, k)."""
    records, kinds, channels = errors.shape
    groups, _, most = whitening.shape
    shift = torch.einsum("gf,gfk->gk", mean, whitening).unsqueeze(2)
    centre = errors.mean(0)
    moments = errors.new_zeros(groups, most, most, kinds * channels // groups)
    size = max(1, numbers // (groups * most))
    for x, e in zip(inputs.split(size), errors.split(size), strict=True):
        z = torch.einsum("rgf,gfk->gkr", x, whitening) - shift
        e = (e - centre).unflatten(2, (groups, -1)).permute(2, 0, 1, 3).flatten(2)  # (G, r, K * C / G)
        for one in range(most):
            moments[:, one, one:] += (z[:, one : one + 1] * z[:, one:]) @ e
    moments = moments.div_(records).permute(0, 3, 1, 2)
    moments += moments.triu(1).mT
    split: Tensor = moments.unflatten(1, (kinds, -1))
    return split.transpose(0, 1)
