"""Candidates side by side, on the record of one module: what they compute, and the dendrites they become.

Of a Linear or a convolution the candidates of all neurons are one matrix product over patches, and each neuron chooses
its own. Modules without patches are in ``call_pools.py``.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbp_search.dendrites.module import Dendrite, Dendritic
from pbp_search.dendrites.objective import mean_and_deviation, rounding, signed_correlation
from pbp_search.dendrites.patches import Patches
from pbp_search.dendrites.probe import precise
from pbp_search.dendrites.record import BUDGET, Part
from pbp_search.dendrites.spec import FUNCTIONS
from pbp_search.dendrites.starts import Directions, spread

_BATCH = 2048
"""Records a step. Correlations of 0.02 drown in the noise of smaller batches, whose own is 1 / sqrt(records). But the
noise of a quarter of the records, averaged over ten steps by Adam, is below that of all."""
_CHEAP = 2**18
"""Numbers that all candidates may say in a step for the price of fewer: few candidates learn from more records."""
_STEPS = 8
"""Steps an epoch; fewer than two batches of records are taken whole each time."""
_NARROW = 64
"""The number of inputs up to which the learning rate is taken as it is."""
_NUMBERS = 2**21
"""How many are worked on at once: with very many candidates, a step takes fewer records."""
_SHARE = 512
"""... and the bytes of the budget for each: the work on one takes an eighth of them, about."""
_FEWEST = 256
_GAINS = (0.5, 1.0, 2.0)
_BIASES = (-3.0, 0.0, 3.0)
EVERY = slice(None)
_BENT = 4
"""Batches that gains and biases are chosen by."""


class PatchPart:
    """Rows of patches of some samples.

    Attributes:
        samples: Their number.
        inputs: What is linear already for the neurons, shape (R, G, F).
        seen: What dendrites see: the same, or another tensor.
        activations: The accepted dendrites', each (R, C).
        errors: E, shape (R, C).
        numbers: How many may be worked on at once.
    """

    def __init__(self, module: Dendritic, part: Part, budget: int = BUDGET) -> None:
        assert part.inputs is not None
        own, view = Patches.of(module.module), Patches.of(module.base())
        self.samples = len(part.errors)
        self.inputs = part.inputs.reshape(-1, own.groups, own.length)
        self.seen = self.inputs if part.seen is None else part.seen.reshape(-1, view.groups, view.length)
        self.errors = part.errors.reshape(-1, module.channels)
        self.activations = _activations(module, view, self.seen)
        self.numbers = min(_NUMBERS, budget // _SHARE)
        said = 2 * module.spec.pool * module.channels
        most = min(len(self.errors) // 4, max(_BATCH, _CHEAP // said), self.numbers // said)
        self.batch = max(_FEWEST, most)
        self.piece = max(1, min(self.batch, self.numbers // said))

    def first(self, batches: int) -> Tensor:
        """As many rows as some batches have, to begin with."""
        return spread(len(self.errors), batches * self.batch, self.errors.device)

    def pieces(self) -> Sequence[Tensor]:
        """All rows, some at once."""
        rows = torch.arange(len(self.errors), device=self.errors.device)
        pieces: Sequence[Tensor] = rows.split(self.piece)
        return pieces

    def batches(self, generator: torch.Generator) -> Iterator[Tensor | None]:
        """The rows of each step of an epoch; None for all."""
        rows, batch = len(self.errors), self.batch
        if rows < 2 * batch:
            yield from [None] * _STEPS
            return
        order, whole = torch.empty(0, dtype=torch.long), rows // batch * batch
        while len(order) < _STEPS * batch:
            order = torch.cat([order, torch.randperm(rows, generator=generator)[:whole]])
        yield from order[: _STEPS * batch].split(batch)


class PatchPool(nn.Module):
    """P candidates for each neuron of a layer with patches.

    They learn as if the inputs were standardised, so that inputs of any scale and offset are learned from alike;
    without a bias only the scale is taken out.

    Args:
        module: The module.
        part: The records to learn from.
        candidates: P.

    Attributes:
        weight: By standardised inputs, shape (P, C, F), or (P, C, fan_in) beside an ``index`` of that shape.
        bias: Shape (P, C), or None.
        incoming: U, shape (P, e, C).
    """

    def __init__(self, module: Dendritic, part: PatchPart, candidates: int) -> None:
        super().__init__()
        self.module = [module]  # not a part of this one
        self.view = Patches.of(module.base())
        self.nonlinearity = FUNCTIONS[module.spec.nonlinearity]
        starts = [module.dendrite() for _ in range(candidates)]
        sparse = module.spec.fan_in is not None
        weights = [precise(start.module.get_parameter("weight").detach()) for start in starts]
        weight = torch.stack([w if sparse else self.view.matrix(w) for w in weights])
        if sparse and module.spec.pattern == "chosen":  # from all: see choose_inputs
            weight = weight.new_empty(*weight.shape[:2], self.view.length).uniform_(-1, 1) / self.view.length**0.5
            sparse = False
        self.weight = nn.Parameter(weight)
        self.index = torch.stack([start.module.get_buffer("index") for start in starts]) if sparse else None
        biased = getattr(starts[0].module, "bias", None) is not None
        biases = [precise(start.module.get_parameter("bias").detach()) for start in starts] if biased else []
        self.bias = nn.Parameter(torch.stack(biases)) if biased else None
        self.incoming = nn.Parameter(torch.stack([precise(start.incoming.detach()) for start in starts]))
        # The step of a sum is that of its weights times their number: wide sums learn by smaller ones (G. Yang et al.,
        # Tensor Programs V, 2022, for Adam). A factor beside the weights does it.
        self.factor = min(1.0, _NARROW / self.weight.shape[2])
        self.weight.data /= self.factor
        self.standard = self._standard(part.seen)
        self.mean, self.scale = (self._of_each_weight(value) for value in self.standard)

    @classmethod
    @torch.no_grad()
    def searched(cls, module: Dendritic, part: PatchPart, errors: Tensor, linear: bool) -> "PatchPool":
        """A pool for each kind of errors, (R, K, C), one after the other: K * P candidates for each neuron.

        They start along the neuron's leading directions, with the gain and the bias that correlate best.
        """
        kinds, wanted = errors.shape[1], module.spec.pool
        pool = cls(module, part, kinds * wanted)
        weight = pool.weight.unflatten(0, (kinds, wanted))
        if pool.index is None:
            found = Directions(part.seen, *pool.standard, errors, numbers=part.numbers).leading(wanted, linear)
        else:
            # Every candidate has inputs of its own.
            group = torch.arange(module.channels, device=errors.device) * pool.view.groups // module.channels
            index = pool.index + (group * pool.view.length).unsqueeze(1)
            candidates = zip(pool.mean, pool.scale, index, strict=True)
            every = [
                Directions(part.seen, mean, scale, errors[:, i // wanted, None], some, part.numbers).leading(1, linear)
                for i, (mean, scale, some) in enumerate(candidates)
            ]
            found = torch.stack([one[0, 0] for one in every]).unflatten(0, (kinds, wanted))
        # Where the errors say nothing the start stays a random one.
        some_found, kept = found.any(-1, keepdim=True), weight[:, : found.shape[1]]
        weight[:, : found.shape[1]] = torch.where(some_found, found / pool.factor, kept)
        if linear:
            pool.nonlinearity = identity
        else:
            pool._bend(part, errors)
        return pool

    def _bend(self, part: PatchPart, errors: Tensor) -> None:
        """Choose each candidate's gain and bias. Far out a nonlinearity is most unlike a line."""
        rows = part.first(_BENT).split(part.batch)
        if self.bias is not None:
            self.bias.zero_()
        choices = list(product(_GAINS, _BIASES if self.bias is not None else (0.0,)))
        scores = self.weight.new_zeros(len(choices), *self.weight.shape[:2])
        for some, batch in product(self.turns(part), rows):
            z, e = self.sums(part, batch, some), for_candidates(errors[batch], self.module[0].spec.pool, some)
            for score, (gain, bias) in zip(scores, choices, strict=True):
                score[some] += signed_correlation(self.nonlinearity(gain * z + bias), e)
        gains, biases = self.weight.new_tensor(choices)[scores.abs().argmax(0)].unbind(-1)
        self.weight.mul_(gains.unsqueeze(2))
        if self.bias is not None:
            self.bias.copy_(biases)

    def _standard(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of each input, and the inverse of its deviation; 0 for constant ones. Shapes (G, F).

        Inputs that are nearly always the same would dwarf all others where they are not: none gets beyond 10. Where
        they vary so little that products with the inverse might overflow, they count as constant.
        """
        mean, deviation = mean_and_deviation(inputs)
        varies = deviation > rounding(inputs, inputs.dtype).clamp(min=torch.finfo(inputs.dtype).tiny * 2**40)
        if self.bias is None:
            # Nothing takes up the mean, so inputs stay where they are: their scale is then that of their squares.
            mean, deviation = torch.zeros_like(mean), (mean.square() + deviation.square()).sqrt()
        low, high = inputs.amin(0), inputs.amax(0)
        deviation = torch.maximum(deviation, torch.maximum(high - mean, mean - low) / 10)
        scale = torch.where(varies, 1 / torch.where(varies, deviation, 1.0), 0.0).to(inputs.dtype)
        return mean.to(inputs.dtype), scale

    def _of_each_weight(self, values: Tensor) -> Tensor:
        """Values (G, F) of a shape that broadcasts with the weight's."""
        values = values.repeat_interleave(self.weight.shape[1] // len(values), 0)  # (C, F)
        return values if self.index is None else values.expand(len(self.index), -1, -1).gather(2, self.index)

    @property
    def dense(self) -> bool:
        """Whether candidates still see all inputs, of which each is to choose a few."""
        return self.index is None and self.module[0].spec.fan_in is not None

    @torch.no_grad()
    def choose_inputs(self) -> None:
        """Keep the inputs of each candidate that its output varies with most, by ``|weight| * std(x)``."""
        fan_in = min(self.module[0].spec.fan_in or self.view.length, self.view.length)
        weight = self.weight.where(self.scale != 0, 0.0)  # by standardised inputs, of which constant ones are 0
        self.index = weight.abs().topk(fan_in, 2).indices.sort(2).values
        self.weight = nn.Parameter(weight.gather(2, self.index))
        self.mean, self.scale = (value.expand_as(weight).gather(2, self.index) for value in (self.mean, self.scale))

    def turns(self, part: PatchPart) -> list[slice]:
        """Candidates that learn at a time: they do not depend on each other."""
        rows = min(len(part.errors), 2 * part.batch)
        size = max(1, 2 * part.numbers // (rows * self.weight.shape[1]))
        return [slice(start, start + size) for start in range(0, len(self.weight), size)]

    def raw(self, some: slice = EVERY) -> tuple[Tensor, Tensor | None]:
        """Weights and biases by the inputs as they are."""
        scale, mean = (value if self.index is None else value[some] for value in (self.scale, self.mean))
        weight = self.weight[some] * (self.factor * scale)
        return weight, None if self.bias is None else self.bias[some] - (weight * mean).sum(-1)

    def outputs(self, part: PatchPart, rows: Tensor | None = None, some: slice = EVERY) -> Tensor:
        """V of some candidates, shape (R, P, C)."""
        return self.nonlinearity(self.sums(part, rows, some))

    def sums(self, part: PatchPart, rows: Tensor | None = None, some: slice = EVERY) -> Tensor:
        """What the nonlinearity is taken of, shape (R, P, C)."""
        inputs = part.seen if rows is None else part.seen[rows]
        weight, bias = self.raw(some)
        z = _product(inputs, weight if self.index is None else _dense(self.index[some], weight, self.view.length))
        if bias is not None:
            z = z + bias
        for e, activation in enumerate(part.activations):
            z = z + self.incoming[some, e] * (activation if rows is None else activation[rows]).unsqueeze(1)
        return z

    def choice(self, scores: Tensor) -> Tensor:
        """Of scores (P, C), each neuron's own best candidates: shape (per_neuron, C)."""
        return scores.topk(self.module[0].spec.per_neuron, 0).indices

    @torch.no_grad()
    def chosen(self, best: Tensor) -> list[Dendrite]:
        """Each neuron's own candidates, a dendrite for each row of ``best``, shape (per_neuron, C)."""
        module = self.module[0]
        dendrites = module.generation()
        channels = torch.arange(module.channels, device=best.device)
        weights, biases = self.raw()
        for dendrite, choice in zip(dendrites, best, strict=True):
            weight = weights[choice, channels]
            if self.index is None:
                dendrite.module.get_parameter("weight").copy_(self.view.weight(weight))
            else:
                dendrite.module.get_parameter("weight").copy_(weight)
                dendrite.module.get_buffer("index").copy_(self.index[choice, channels])
            if biases is not None:
                dendrite.module.get_parameter("bias").copy_(biases[choice, channels])
            dendrite.incoming.copy_(self.incoming[choice, :, channels].T)
        return dendrites


def for_candidates(errors: Tensor, candidates: int, some: slice = EVERY) -> Tensor:
    """Errors (R, K, C) beside the outputs of some of the candidates of every kind, (R, some, C)."""
    if candidates == 1:
        return errors[:, some]
    kinds = torch.arange(candidates * errors.shape[1], device=errors.device) // candidates
    return errors[:, kinds[some]]


def identity(z: Tensor) -> Tensor:
    """In the place of a nonlinearity that is left out."""
    return z


def _dense(index: Tensor, weight: Tensor, length: int) -> Tensor:
    return weight.new_zeros(*weight.shape[:-1], length).scatter(-1, index, weight)


def _product(inputs: Tensor, weight: Tensor) -> Tensor:
    """Inputs (R, G, F) by weights (P, C, F), where channel i is of group i // (C / G): shape (R, P, C)."""
    rows, groups, length = inputs.shape
    candidates, channels, _ = weight.shape
    if groups == 1:
        return functional.linear(inputs[:, 0], weight.reshape(-1, length)).reshape(rows, candidates, channels)
    grouped = weight.reshape(candidates, groups, -1, length)
    return torch.einsum("rgf,pgcf->rpgc", inputs, grouped).reshape(rows, candidates, channels)


@torch.no_grad()
def _activations(module: Dendritic, view: Patches, inputs: Tensor) -> list[Tensor]:
    """The activations of the accepted dendrites at rows of patches, each (R, C)."""
    seen: list[Tensor] = []
    for dendrite in module.dendrites:
        assert isinstance(dendrite, Dendrite)
        weight = precise(dendrite.module.get_parameter("weight"))
        sparse = module.spec.fan_in is not None
        matrix = _dense(dendrite.module.get_buffer("index"), weight, view.length) if sparse else view.matrix(weight)
        z = _product(inputs, matrix.unsqueeze(0))[:, 0]
        if getattr(dendrite.module, "bias", None) is not None:
            z = z + precise(dendrite.module.get_parameter("bias"))
        for row, activation in zip(precise(dendrite.incoming), seen, strict=False):
            z = z + row * activation
        seen.append(dendrite.nonlinearity(z))
    return seen
