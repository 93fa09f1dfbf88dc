"""What a dendrite learns: to correlate with the error that remains at its neuron.

The objective is that of S. Fahlman and C. Lebiere, The Cascade-Correlation Learning Architecture (NIPS 2, 1990), in
its scale-free form: for channel i, over all records,

    S_i = | mean (V_i - mean V_i)(E_i - mean E_i) | / (std V_i * std E_i)

with V the dendrite's output and E the error. A neuron can already use anything linear in its inputs, and everything
that its accepted dendrites say, so these are projected out of E first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# A standard deviation below this multiple of the type's precision, relative to the largest value, is rounding.
_ROUNDING = 32.0
# With fewer records than this many times the unknowns, plain least squares fits noise: the residual of other records
# grows beyond their errors.
_PLENTY = 2
# Directions with less than this share of the variance are left alone instead of being blown up: their type's precision
# cannot tell them from constant (dead pixels, a dendrite that is linear in x or says the same as another).
_WEAK = 1e-10
_WEAK_DOUBLE = 1e-13
# Ridges to choose from, relative to the mean variance of the inputs' directions.
_RIDGES = 10.0 ** torch.arange(-8, 3, dtype=torch.float64)


def standardise(values: Tensor) -> Tensor:
    """Values of mean 0 and standard deviation 1 over the records, shape (R, C); constant columns become 0.

    There is no absolute epsilon: values of any scale are standardised alike. Columns whose standard deviation is
    within rounding of their largest value count as constant; their gradient is 0.
    """
    largest = values.detach().abs().amax(0)
    scaled = values / torch.where(largest > 0, largest, 1.0)
    centred = scaled - scaled.mean(0)
    variance = centred.square().mean(0)
    varies = variance > (_ROUNDING * torch.finfo(values.dtype).eps) ** 2
    # The inner where keeps the square root's infinite derivative at 0 out of the graph.
    return torch.where(varies, centred / torch.where(varies, variance, 1.0).sqrt(), 0.0)


def correlation(outputs: Tensor, errors: Tensor) -> Tensor:
    """The score S_i of each channel, between 0 and 1.

    Args:
        outputs: V, shape (R, C).
        errors: E, shape (R, C), the residual of :class:`Projection`.

    Returns:
        Shape (C,). A channel whose V or E is constant scores 0, and its gradient is 0.
    """
    return (standardise(outputs) * standardise(errors)).mean(0).abs().clamp(max=1.0)


class Projection:
    """The least-squares fit of errors by [1, x, accepted a_e], fitted on some records, removed from any.

    Channel i has its own fit: its neuron sees all inputs x, but only its own dendrites' activations. The fit is done
    in two steps (Frisch, Waugh and Lovell): [1, x], which all channels share, is taken out of E and of a_e; what is
    left of a_e is then taken out of E, channel by channel. With few records for the unknowns plain least squares fits
    noise, so a ridge takes its place; that of the inputs is chosen for each column by generalised cross-validation.

    Args:
        inputs: x, shape (R, inputs).
        activations: The accepted generations' outputs, each (R, C).
        errors: E, shape (R, C).
    """

    def __init__(self, inputs: Tensor, activations: Sequence[Tensor], errors: Tensor) -> None:
        records, channels = errors.shape
        few = records <= _PLENTY * (1 + inputs.shape[1] + len(activations))
        self._channels = channels
        self._inputs = _Standard(inputs)
        self._activations = [_Standard(activation) for activation in activations]
        self._mean = errors.double().mean(0)
        weak = _WEAK_DOUBLE if inputs.dtype == torch.float64 else _WEAK
        fit = _ridge if few else _least_squares
        self._by_inputs = fit(self._inputs(inputs), self._joint(activations, errors), weak)
        left_errors, left_activations = self._without_inputs(inputs, activations, errors)
        gram = torch.einsum("rdc,rec->cde", left_activations, left_activations)
        cross = torch.einsum("rdc,rc->cd", left_activations, left_errors)
        if few:
            gram = gram + torch.diag_embed(gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).expand(cross.shape))
        # The activations have the variance 1: an absolute limit tells those of which only rounding is left.
        inverse: Tensor = torch.linalg.pinv(gram, atol=_WEAK * records, rtol=_WEAK, hermitian=True)
        self._by_dendrites = (inverse @ cross.unsqueeze(-1)).squeeze(-1)  # (C, D)

    def residual(self, inputs: Tensor, activations: Sequence[Tensor], errors: Tensor) -> Tensor:
        """E without what the fit explains, shape (R, C), of E's type; 0 where only rounding is left."""
        left_errors, left_activations = self._without_inputs(inputs, activations, errors)
        explained = torch.einsum("rdc,cd->rc", left_activations, self._by_dendrites)
        left = (left_errors - explained).to(errors.dtype)
        rounding = _ROUNDING * torch.finfo(errors.dtype).eps * errors.abs().amax(0)
        return torch.where(left.abs().amax(0) > rounding, left, 0.0)

    def _joint(self, activations: Sequence[Tensor], errors: Tensor) -> Tensor:
        """E and the standardised a_e side by side, shape (R, (1 + D) * C)."""
        standard = [scale(activation) for scale, activation in zip(self._activations, activations, strict=True)]
        return torch.cat([errors.double() - self._mean, *standard], 1)

    def _without_inputs(self, inputs: Tensor, activations: Sequence[Tensor], errors: Tensor) -> tuple[Tensor, Tensor]:
        """What [1, x] leaves of E, shape (R, C), and of a_e, shape (R, D, C)."""
        left = self._joint(activations, errors) - self._inputs(inputs) @ self._by_inputs
        split = left.reshape(len(left), 1 + len(activations), self._channels)
        return split[:, 0], split[:, 1:]


class _Standard:
    """Columns by the mean and deviation that they had on the records of the fit, in double precision."""

    def __init__(self, values: Tensor) -> None:
        values = values.double()
        self._mean = values.mean(0)
        deviation = (values - self._mean).square().mean(0).sqrt()
        rounding = _ROUNDING * torch.finfo(values.dtype).eps * values.abs().amax(0)
        self._deviation = torch.where(deviation > rounding, deviation, torch.inf)  # constant columns become 0

    def __call__(self, values: Tensor) -> Tensor:
        return (values.double() - self._mean) / self._deviation


def _least_squares(x: Tensor, y: Tensor, weak: float) -> Tensor:
    """Coefficients of y, shape (R, K), by standardised x, shape (R, P): shape (P, K)."""
    inverse: Tensor = torch.linalg.pinv(x.T @ x, rtol=weak, hermitian=True)
    return inverse @ (x.T @ y)


def _ridge(x: Tensor, y: Tensor, weak: float) -> Tensor:
    """The same with a ridge for each column of y: of some, that with the least generalised cross-validation error.

    ``R * rss / (R - df)^2`` with the residual sum of squares and the degrees of freedom that a ridge leaves and takes
    (G. Golub, M. Heath and G. Wahba, Technometrics 21, 1979). It has a closed form in the directions of x.
    """
    records = len(x)
    left, singular, right = torch.linalg.svd(x, full_matrices=False)
    strong = singular.square() > weak * singular.square().amax(0, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    variance = torch.where(strong, singular.square(), torch.inf)  # weak directions get no coefficient
    ridges = _RIDGES.to(x.device) * singular.square().mean().clamp(min=torch.finfo(x.dtype).tiny)
    shrunk = ridges.unsqueeze(1) / (torch.where(strong, variance, 0.0) + ridges.unsqueeze(1))  # (ridges, directions)
    along = left.T @ y  # (directions, K)
    outside = (y.square().sum(0) - along.square().sum(0)).clamp(min=0.0)
    residual = outside + shrunk.square() @ along.square()  # (ridges, K)
    freedom = records - 1 - (1 - shrunk).sum(1, keepdim=True)
    # A fit that leaves no freedom leaves no residual either, and tells nothing.
    error = torch.where(freedom > 0.01 * records, residual / freedom.clamp(min=1e-300).square(), torch.inf)
    ridge = ridges[error.argmin(0)]  # (K,)
    coefficients: Tensor = right.T @ (along * singular.unsqueeze(1) / (variance.unsqueeze(1) + ridge))
    return coefficients
