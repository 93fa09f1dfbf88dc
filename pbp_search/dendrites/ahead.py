"""What frozen dendrites say of all training samples, worked out once.

In the neuron phase neither a dendrite's weights nor the samples change, so the dendrites of a layer that sees the
samples themselves say the same in every epoch. A training loop gathers the samples of many batches at once, and batches
are views of that: by this a layer knows which samples it sees.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pbp_search.dendrites.patches import Patches

if TYPE_CHECKING:
    from pbp_search.dendrites.module import Dendritic

_PASSED = 4096  # samples at once


class Ahead:
    """The activations of one module's dendrites at all samples, for as long as neither changes.

    Args:
        samples: All of them, shape (N, ...).
        limit: Bytes that the activations may take, with those of the samples gathered.
    """

    def __init__(self, samples: Tensor, limit: int) -> None:
        self._samples = samples
        self._limit = limit
        self._known: tuple[tuple[Any, ...], list[Tensor] | None] | None = None
        self._gathered: Tensor | None = None

    def gather(self, gathered: Tensor, rows: Tensor) -> None:
        """Say that the next batches are views of ``gathered``, memory of its own that holds ``samples[rows]``."""
        self._gathered, self._rows, self._version = gathered, rows, gathered._version
        self._here: list[Tensor] | None = None

    def slices(self, module: "Dendritic", x: Any) -> list[Tensor] | None:
        """The activations at a batch, if it is an unchanged view of what was gathered; else None."""
        gathered = self._gathered
        if gathered is None or not isinstance(x, Tensor) or x._base is not gathered or x.dtype != gathered.dtype:
            return None
        size = x.shape[1:].numel()
        start, rest = divmod(int(x.storage_offset()), size) if size else (0, 1)
        # The version counts changes in place, of any view.
        unchanged = gathered._version == self._version
        if rest or size != gathered.shape[1:].numel() or x.ndim < 2 or not x.is_contiguous() or not unchanged:
            return None
        key = (self._samples._version, x.shape[1:], len(module.dendrites._modules))
        if self._known is None or self._known[0] != key:
            self._known, self._here = (key, self._all(module, x.shape[1:])), None
        if self._known[1] is None:
            return None
        if self._here is None:
            self._here = [activation[self._rows] for activation in self._known[1]]
        return [activation[start : start + len(x)] for activation in self._here]

    @torch.no_grad()
    def _all(self, module: "Dendritic", shape: torch.Size) -> list[Tensor] | None:
        """The activations at all samples; None if they are too many, or do not follow from the samples alone."""
        if module.spec.unfrozen or not Patches.fit(module.base()) or module.hooked():
            return None
        samples = self._samples.reshape(-1, *shape)
        if 2 * sum(one.nbytes for one in module.cascade(samples[:1])) * len(samples) > self._limit:
            return None
        pieces = [module.cascade(piece) for piece in samples.split(_PASSED)]
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]
