"""Candidates for a module without patches (recurrent, attention, a block): each is a copy of the whole."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pbp_search.dendrites.module import Dendrite, Dendritic
from pbp_search.dendrites.pools import EVERY, identity
from pbp_search.dendrites.probe import precise
from pbp_search.dendrites.record import BUDGET, Part

_STEPS = 4
"""Steps an epoch, each over whole calls."""
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class CallPart:
    """The calls of a module without patches.

    Attributes:
        samples, inputs, activations, errors: As in :class:`PatchPart`.
    """

    def __init__(self, module: Dendritic, part: Part, budget: int = BUDGET) -> None:
        self.samples = len(part.errors)
        self.calls = [call for batch in part.calls for call in batch]
        self.sizes = [len(batch) for batch in part.calls]
        with torch.no_grad(), _evaluation(module.module):
            base = [module.adapter.neurons(module.module(*c.args, **c.kwargs)) for c in self.calls]
            self.seen = [module.activations(*c.args, **c.kwargs) for c in self.calls]
        # The module may be anything: what its neuron has already is its own output, and its dendrites'.
        self.inputs = self.rows(module, base).unsqueeze(2)
        self.activations = [self.rows(module, parts) for parts in zip(*self.seen, strict=True)]
        self.errors = part.errors.reshape(-1, module.channels)
        # A single row has no batch statistics.
        self.single = any(module.adapter.rows(one)[..., 0].numel() == 1 for one in base)

    def rows(self, module: Dendritic, neurons: Sequence[Tensor]) -> Tensor:
        """The neurons of every call as rows (samples x positions, C)."""
        calls = iter(module.adapter.rows(part) for part in neurons)
        batches = [torch.cat([next(calls) for _ in range(size)], 1) for size in self.sizes]
        return precise(torch.cat([batch.flatten(0, 1) for batch in batches]))

    def first(self, batches: int) -> None:
        """All rows."""
        return

    def pieces(self) -> Sequence[None]:
        """All rows at once."""
        return [None]

    def batches(self, generator: torch.Generator) -> Iterator[Tensor | None]:
        """All rows in each step: a copy of a module runs on whole calls."""
        yield from [None] * _STEPS


class CallPool(nn.Module):
    """P candidates, each a copy of the whole module: its channels are not independent.

    Statistics of batches inside them begin as those of the records.
    """

    dense = False

    def __init__(self, module: Dendritic, part: CallPart, candidates: int) -> None:
        super().__init__()
        self.module = [module]
        self.candidates = nn.ModuleList([module.dendrite() for _ in range(candidates)])
        self.single = part.single
        self.eval()
        if not self.single:
            self._settle(part)

    def train(self, mode: bool = True) -> "CallPool":
        return super().train(mode and not self.single)

    @classmethod
    def searched(cls, module: Dendritic, part: CallPart, errors: Tensor, linear: bool) -> "CallPool":
        """A pool for each kind of errors, (R, K, C), at the same random start: copies are too costly for many."""
        pool = cls(module, part, module.spec.pool)
        first = list(pool.candidates)
        for _ in range(errors.shape[1] - 1):
            pool.candidates.extend(copy.deepcopy(candidate) for candidate in first)
        for candidate in pool.candidates if linear else ():
            assert isinstance(candidate, Dendrite)
            candidate.nonlinearity = identity
        return pool

    @torch.no_grad()
    def _settle(self, part: CallPart) -> None:
        norms = [one for one in self.eval().modules() if isinstance(one, _NORMS) and one.track_running_stats]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train().reset_running_stats()
            norm.momentum = None  # the mean of all calls
        if norms:
            self.outputs(part)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def turns(self, part: CallPart) -> list[slice]:
        """Each candidate alone: what its gradient takes may be most of the phase's memory."""
        return [slice(index, index + 1) for index in range(len(self.candidates))]

    def outputs(self, part: CallPart, rows: Tensor | None = None, some: slice = EVERY) -> Tensor:
        """V of some candidates, shape (R, P, C)."""
        module = self.module[0]
        columns = []
        for candidate in list(self.candidates)[some]:
            calls = zip(part.calls, part.seen, strict=True)
            columns.append(part.rows(module, [candidate(seen, *call.args, **call.kwargs) for call, seen in calls]))
        return torch.stack(columns, 1)

    def choice(self, scores: Tensor) -> Tensor:
        """Of scores (P, C), the candidates that are best for all neurons together: shape (per_neuron, C)."""
        best = scores.mean(1).topk(self.module[0].spec.per_neuron).indices
        return best.unsqueeze(1).expand(-1, scores.shape[1])

    def chosen(self, best: Tensor) -> list[Dendrite]:
        """Copies of the chosen candidates, with nothing of the training left on them."""
        dendrites = []
        for index in best[:, 0]:
            dendrite = copy.deepcopy(self.candidates[int(index)])
            assert isinstance(dendrite, Dendrite)
            for parameter in dendrite.parameters():
                parameter.data, parameter.grad = parameter.data.clone(), None
            dendrites.append(dendrite)
        return dendrites


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode, and back: nothing of it changes in the dendrite phase, batch statistics neither."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
