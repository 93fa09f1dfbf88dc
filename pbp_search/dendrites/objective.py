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
    left of a_e is then taken out of E, channel by channel. With more inputs than records plain least squares would
    leave nothing of E, so a ridge of the mean squared singular value takes its place.

    Args:
        inputs: x, shape (R, inputs).
        activations: The accepted generations' outputs, each (R, C).
        errors: E, shape (R, C).
    """

    def __init__(self, inputs: Tensor, activations: Sequence[Tensor], errors: Tensor) -> None:
        x = inputs.double()
        self._mean = x.mean(0)
        deviation = (x - self._mean).square().mean(0).sqrt()
        self._scale = torch.where(deviation > 0, deviation, 1.0)
        self._channels = errors.shape[1]
        joint = torch.cat([errors, *activations], 1).double()  # (R, (1 + D) * C)
        self._joint_mean = joint.mean(0)
        self._by_inputs = _fit((x - self._mean) / self._scale, joint - self._joint_mean)
        left_errors, left_activations = self._without_inputs(inputs, activations, errors)
        gram = torch.einsum("rdc,rec->cde", left_activations, left_activations)
        cross = torch.einsum("rdc,rc->cd", left_activations, left_errors)
        self._by_dendrites = (_pseudo_inverse(gram) @ cross.unsqueeze(-1)).squeeze(-1)  # (C, D)

    def residual(self, inputs: Tensor, activations: Sequence[Tensor], errors: Tensor) -> Tensor:
        """E without what the fit explains, shape (R, C), of E's type; 0 where only rounding is left."""
        left_errors, left_activations = self._without_inputs(inputs, activations, errors)
        explained = torch.einsum("rdc,cd->rc", left_activations, self._by_dendrites)
        left = (left_errors - explained).to(errors.dtype)
        rounding = _ROUNDING * torch.finfo(errors.dtype).eps * errors.abs().amax(0)
        return torch.where(left.abs().amax(0) > rounding, left, 0.0)

    def _without_inputs(self, inputs: Tensor, activations: Sequence[Tensor], errors: Tensor) -> tuple[Tensor, Tensor]:
        joint = torch.cat([errors, *activations], 1).double() - self._joint_mean
        left = joint - (inputs.double() - self._mean) / self._scale @ self._by_inputs
        split = left.reshape(len(left), 1 + len(activations), self._channels)
        return split[:, 0], split[:, 1:]


def _fit(x: Tensor, y: Tensor) -> Tensor:
    """Least-squares coefficients of y, shape (R, K), by centred x, shape (R, P): shape (P, K)."""
    records, width = x.shape
    if records > width:
        return _pseudo_inverse(x.T @ x) @ (x.T @ y)
    gram = x @ x.T
    ridge = gram.diagonal().mean()
    if ridge <= 0:  # every input is constant
        return y.new_zeros(width, y.shape[1])
    dual: Tensor = torch.linalg.solve(gram + ridge * torch.eye(records, dtype=x.dtype, device=x.device), y)
    return x.T @ dual


def _pseudo_inverse(gram: Tensor) -> Tensor:
    # Directions weaker than single precision can tell from constant (dead pixels, a dendrite that says the same as
    # another) are left alone instead of being blown up.
    inverse: Tensor = torch.linalg.pinv(gram, rtol=1e-11, hermitian=True)
    return inverse
