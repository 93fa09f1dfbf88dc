"""What a dendrite learns: to correlate with the error that remains at its neuron.

The objective is that of S. Fahlman and C. Lebiere, The Cascade-Correlation Learning Architecture (NIPS 2, 1990), in
its scale-free form: for channel i, over all records,

    S_i = | mean (V_i - mean V_i)(E_i - mean E_i) | / (std V_i * std E_i)

with V the dendrite's output and E the error. A neuron can already use anything linear in its inputs, and everything
that its accepted dendrites say, so these are projected out of E first.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# A standard deviation below this multiple of the type's precision, relative to the largest value, is rounding.
_ROUNDING = 32.0
# With fewer records than this many times the unknowns, plain least squares fits noise, and leaves little to learn from.
_PLENTY = 2
# Directions with less than this share of the variance are left alone instead of being blown up: their type's precision
# cannot tell them from constant (dead pixels, a dendrite that is linear in x or says the same as another).
_WEAK = 1e-10
_WEAK_DOUBLE = 1e-13
_WEAK_LARGE = 1e-8
_LARGE = 2**20  # numbers of inputs: 8 MiB in double precision
_COLUMNS = 128  # of products at once, at least
_PIECE = 2**18  # numbers of inputs at once: they stay near the processor
# Ridges to choose from, relative to the mean variance of the inputs' directions.
_RIDGES = 10.0 ** torch.arange(-8, 3, dtype=torch.float64)


def standardise(values: Tensor) -> Tensor:
    """Values of mean 0 and standard deviation 1 over the records, shape (R, C); constant columns become 0.

    There is no absolute epsilon: values of any scale are standardised alike. Columns whose standard deviation is
    within rounding of their largest value count as constant. Not to be differentiated.
    """
    return _standardised(values)[0]


def _standardised(values: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and the inverse of each column's standard deviation; 0 for constant columns."""
    largest = _largest(values)
    largest = torch.where(largest > 0, largest, 1.0)
    scaled = values / largest
    centred = scaled.sub_(scaled.mean(0))
    variance = centred.square().mean(0)
    varies = variance > (_ROUNDING * torch.finfo(values.dtype).eps) ** 2
    inverse = torch.where(varies, variance.rsqrt(), 0.0)
    # Beyond that a gradient would overflow.
    return centred.mul_(inverse), (inverse / largest).clamp(max=torch.finfo(values.dtype).max / 64)


def _largest(values: Tensor) -> Tensor:
    """The largest absolute value of each column. On a processor torch's ``aminmax`` takes many times as long."""
    return torch.maximum(values.amax(0), -values.amin(0))


def correlation(outputs: Tensor, errors: Tensor) -> Tensor:
    """The score S_i of each channel, between 0 and 1.

    Args:
        outputs: V, shape (R, ..., C).
        errors: E, the residual of :class:`Projection`, of a shape that broadcasts with V's.

    Returns:
        Shape (..., C). A channel whose V or E is constant scores 0, and its gradient is 0.
    """
    return signed_correlation(outputs, standardise(errors)).abs().clamp(max=1.0)


def signed_correlation(outputs: Tensor, standard: Tensor) -> Tensor:
    """The same with its sign, with errors that are standardised already."""
    found: Tensor = _SignedCorrelation.apply(outputs, standard)  # type: ignore[no-untyped-call]
    return found


class _SignedCorrelation(torch.autograd.Function):
    """With v the standardised V: S = mean v E, and dS/dV_n = (E_n - mean E - v_n S) / (R std V).

    By hand, because it is most of a small dendrite phase: automatic differentiation takes three times the kernels.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, standard: Tensor) -> Tensor:
        v, inverse = _standardised(outputs)
        score = (v * standard).mean(0)
        ctx.save_for_backward(v, standard, score, inverse)
        return score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        v, standard, score, inverse = ctx.saved_tensors
        left = torch.addcmul(standard - standard.mean(0), v, score, value=-1)
        return left.mul_(gradient * inverse / len(v)), None


class CorrelationSums:
    """The signed correlation of outputs with standardised errors by sums over pieces of the records, in double
    precision: the same number as :func:`signed_correlation` without all outputs at once."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._largest = torch.zeros(())
        self._records = 0

    def add(self, outputs: Tensor, standard: Tensor) -> None:
        """Take V (rows, ..., C) and E of some records in."""
        v, e = outputs.double(), standard.double()
        sums = [v.sum(0), v.square().sum(0), e.sum(0), (v * e).sum(0)]
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums
        self._largest = torch.maximum(self._largest.to(v), v.abs().amax(0))
        self._records += len(v)
        self._rounding = _ROUNDING * torch.finfo(outputs.dtype).eps

    def correlation(self) -> Tensor:
        """Shape (..., C); 0 where V is constant."""
        v, squares, e, products = (one / self._records for one in self._sums)
        deviation = (squares - v.square()).clamp(min=0.0).sqrt()
        varies = deviation > self._rounding * self._largest
        return torch.where(varies, (products - v * e) / torch.where(varies, deviation, 1.0), 0.0)


def signed_covariance(outputs: Tensor, standard: Tensor) -> Tensor:
    """The score of Fahlman and Lebiere, ``mean (V_i - mean V_i)(E_i - mean E_i)``, signed, with E of deviation 1.

    Channels are independent, so the scale of E_i does not change what is learned. Unbounded in V.

    Args:
        outputs: V, shape (R, ..., C).
        standard: Standardised errors of a shape that broadcasts with V's.

    Returns:
        Shape (..., C).
    """
    return ((outputs - outputs.mean(0)) * standard).mean(0)


class Projection:
    """The least-squares fit of errors by [1, x, accepted a_e], removed from the records that it is fitted on.

    Channel i has its own fit: its neuron sees the inputs x of its group, but only its own dendrites' activations. The
    fit is done in two steps (Frisch, Waugh and Lovell): [1, x], which the channels of a group share, is taken out of E
    and of a_e; what is left of a_e is then taken out of E, channel by channel. With few records for the unknowns plain
    least squares fits noise, so a ridge takes its place; that of the inputs is chosen for each column by generalised
    cross-validation.

    Args:
        inputs: x, shape (R, F), or (R, G, F) for G groups of channels.
        activations: The accepted dendrites' outputs, each (R, C).
        errors: E, shape (R, C).
        fit: The fit of the same inputs for other errors: its costly part is used again.

    Attributes:
        left: E without what the fit explains, shape (R, C), of E's type; 0 where only rounding is left.
    """

    def __init__(
        self, inputs: Tensor, activations: Sequence[Tensor], errors: Tensor, fit: "LinearFit | None" = None
    ) -> None:
        inputs = inputs.unsqueeze(1) if inputs.ndim == 2 else inputs
        records, groups, length = inputs.shape
        few = records <= _PLENTY * (1 + length + len(activations))
        self.fit = fit or LinearFit(inputs, ridge=few)
        # E and the standardised a_e side by side for each group: one copy in double precision, worked on in place.
        joint = errors.new_empty(groups, records, 1 + len(activations), errors.shape[1] // groups, dtype=torch.float64)
        columns = joint.permute(1, 2, 0, 3)
        columns[:, 0] = errors.unflatten(1, (groups, -1))
        columns[:, 0] -= columns[:, 0].mean(0)
        for e, activation in enumerate(activations, 1):
            columns[:, e] = _Standard(activation, torch.float64)(activation).unflatten(1, (groups, -1))
        self.fit.take_out(joint.flatten(2))
        left, said = columns[:, 0].flatten(1), columns[:, 1:].flatten(2)  # (R, C), (R, D, C)
        gram = torch.einsum("rdc,rec->cde", said, said)
        cross = torch.einsum("rdc,rc->cd", said, left)
        if few:
            gram = gram + torch.diag_embed(gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).expand(cross.shape))
        # The activations have the variance 1: an absolute limit tells those of which only rounding is left.
        inverse: Tensor = torch.linalg.pinv(gram, atol=_WEAK * records, rtol=_WEAK, hermitian=True)
        by_dendrites = (inverse @ cross.unsqueeze(-1)).squeeze(-1)  # (C, D)
        for e, row in enumerate(by_dendrites.T):
            left.addcmul_(said[:, e], row, value=-1)
        rounding = _ROUNDING * torch.finfo(errors.dtype).eps * errors.abs().amax(0)
        self.left = left.to(errors.dtype)
        self.left = torch.where(self.left.abs().amax(0) > rounding, self.left, 0.0)


class LinearFit:
    """Least squares by the same inputs for any errors: what depends on the inputs alone is computed once.

    With fewer records than inputs the products of records are decomposed, else those of inputs: the smaller problem has
    the same solution.

    Args:
        inputs: x, shape (R, G, F).
        ridge: Add a ridge for each column: of some, that with the least generalised cross-validation error
            ``R * rss / (R - df)^2``, with the residual sum of squares and the degrees of freedom that a ridge leaves
            and takes (G. Golub, M. Heath and G. Wahba, Technometrics 21, 1979).
    """

    def __init__(self, inputs: Tensor, ridge: bool) -> None:
        self.ridge = ridge
        # Large products are taken in the inputs' own precision: double costs several times as much.
        large = inputs.numel() > _LARGE
        self._precision = inputs.dtype if large else torch.float64
        standard = _Standard(inputs, self._precision)
        # What a single step leaves in weak directions goes by another.
        self._steps = 2 if not ridge and self._precision == inputs.dtype else 1
        self._by_records = ridge and len(inputs) <= inputs.shape[2]
        # In smaller pieces the sum of F x F products would take as long as they do.
        rows = max(inputs.shape[2], _rows(inputs, _PIECE))
        self._pieces = [standard(piece).transpose(0, 1) for piece in inputs.split(rows)]
        weak = _WEAK_DOUBLE if inputs.dtype == torch.float64 else _WEAK_LARGE if large else _WEAK
        products = self._products()
        if ridge:
            tiny = torch.finfo(products.dtype).tiny
            variance, self._directions = torch.linalg.eigh(products)  # (G, directions), (G, R or F, directions)
            self._ridges = variance.clamp(min=0.0).mean(1, keepdim=True).clamp(min=tiny) * _RIDGES.to(variance.device)
            # Weak directions get no coefficient.
            strong = variance > weak * variance.amax(1, keepdim=True).clamp(min=tiny)
            self._variance = torch.where(strong, variance, torch.inf).unsqueeze(2)
        else:
            self._factor = _factor(products, weak)

    def _products(self) -> Tensor:
        """Of all pairs of records, shape (G, R, R), or of inputs, (G, F, F)."""
        if self._by_records:
            x = self._pieces[0]
            return (x @ x.mT).double()
        groups, _, length = self._pieces[0].shape
        products = torch.zeros(groups, length, length, dtype=torch.float64, device=self._pieces[0].device)
        some = max(_COLUMNS, -(-length // 4))
        for x in self._pieces:  # one after the other: all of them would take memory
            for start in range(0, length, some):  # the products are symmetric
                block = x[..., start : start + some].mT @ x[..., : start + some]
                products[:, start : start + some, : start + some] += block
        return products.tril() + products.tril(-1).mT

    def take_out(self, values: Tensor) -> None:
        """Remove from values (G, R, K) of mean 0 what the inputs say of them, in place."""
        for _ in range(self._steps):
            by = self._coefficients(values).to(self._precision)
            for x, some in self._beside(values):
                some -= x @ by

    def _coefficients(self, values: Tensor) -> Tensor:
        """Those of values by standardised inputs, shape (G, F, K)."""
        if not self.ridge:
            return torch.cholesky_solve(self._crossed(values), self._factor)
        projected = self._directions.mT @ (values if self._by_records else self._crossed(values))
        found: Tensor = self._directions @ (projected / (self._variance + self._chosen_ridge(projected, values)))
        return self._crossed(found) if self._by_records else found

    def _chosen_ridge(self, projected: Tensor, values: Tensor) -> Tensor:
        """That of each column, shape (G, 1, K)."""
        strong = self._variance.isfinite()
        along = projected.square() if self._by_records else projected.square() / self._variance
        along = torch.where(strong, along, 0.0)  # the part of |y|^2 along each direction, (G, directions, K)
        outside = (values.square().sum(1) - along.sum(1)).clamp(min=0.0).unsqueeze(1)
        ridges = self._ridges.unsqueeze(2)
        left = torch.where(strong.mT, ridges / (self._variance.mT + ridges), 1.0)  # (G, ridges, directions)
        residual = outside + left.square() @ along  # (G, ridges, K)
        freedom = values.shape[1] - 1 - (1 - left).sum(2, keepdim=True)
        # A fit that leaves no freedom leaves no residual either, and tells nothing.
        tiny = torch.finfo(values.dtype).tiny
        error = torch.where(freedom > 0.01 * values.shape[1], residual / freedom.clamp(min=tiny).square(), torch.inf)
        ridge: Tensor = self._ridges.gather(1, error.argmin(1)).unsqueeze(1)
        return ridge

    def _crossed(self, values: Tensor) -> Tensor:
        """The products of all inputs with values (G, R, K): shape (G, F, K)."""
        crossed = values.new_zeros(len(values), self._pieces[0].shape[2], values.shape[2])
        for x, some in self._beside(values):
            crossed += x.mT @ some.to(x.dtype)
        return crossed

    def _beside(self, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Standardised inputs in pieces, each (G, some of the R, F), and those rows of values (G, R, K)."""
        return zip(self._pieces, values.split(self._pieces[0].shape[1], 1), strict=True)


def _factor(products: Tensor, weak: float) -> Tensor:
    """Cholesky's factor of products (G, F, F), in which directions of a weak share of the variance weigh more."""
    diagonal = products.diagonal(dim1=1, dim2=2)
    largest = torch.linalg.matrix_norm(products, torch.inf).clamp(min=torch.finfo(products.dtype).tiny).unsqueeze(1)
    factor, failed = products, torch.ones(())
    while failed.any() and weak < 1:  # by rounding
        diagonal += weak * largest
        factor, failed = torch.linalg.cholesky_ex(products)
        weak *= 10
    return factor


def _rows(values: Tensor, numbers: int) -> int:
    """Of so many numbers."""
    return max(1, numbers // max(1, values[0].numel()))


def mean_and_deviation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, in double precision and in pieces: copies would take memory."""
    records = len(values)
    pieces = values.split(_rows(values, _PIECE // 2))
    mean = torch.stack([piece.sum(0, dtype=torch.float64) for piece in pieces]).sum(0) / records
    near = mean.to(values.dtype)  # differences of like numbers are exact enough in their own precision
    squares = [(piece - near).double().square_().sum(0) for piece in pieces]
    variance = torch.stack(squares).sum(0) / records - (mean - near).square()
    return mean, variance.clamp(min=0.0).sqrt()


def rounding(values: Tensor, precision: torch.dtype) -> Tensor:
    """The deviation of each column that is within rounding of its largest value."""
    return _ROUNDING * torch.finfo(precision).eps * _largest(values).double()


class _Standard:
    """Columns by the mean and deviation of some values; constant ones become 0."""

    def __init__(self, values: Tensor, precision: torch.dtype) -> None:
        mean, deviation = mean_and_deviation(values)
        varies = deviation > rounding(values, torch.float64)
        self._mean = mean.to(precision)
        self._deviation = torch.where(varies, deviation, torch.inf).to(precision)

    def __call__(self, values: Tensor) -> Tensor:
        return (values - self._mean).div_(self._deviation)
