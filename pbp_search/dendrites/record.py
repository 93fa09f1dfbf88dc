"""Recording what a dendrite phase needs: inputs and errors at every dendritic module, in one pass over the data.

In the dendrite phase the network is frozen and in evaluation mode, so for every sample the input x of a module and
the error E = dL_n/dy at its neurons never change. L_n is the sample's own loss: E does not depend on the batch size.

Of a Linear or a convolution the patches at some positions are kept; of any other module, what it was called with.
Samples and positions are drawn before anything is unfolded, so that records obey a budget.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.hooks import RemovableHandle

from pbp_search.dendrites.attach import dendritic_modules
from pbp_search.dendrites.module import Dendritic
from pbp_search.dendrites.patches import Patches
from pbp_search.errors import TrainingError, UnsupportedModuleError

Loss = Callable[[Any, Tensor], Tensor]
"""Outputs (whatever the network returns) and targets of N samples to N losses, shape (N,)."""

BUDGET = 2**30
"""Bytes that the records of all modules may take together."""
ROWS = 2**15
"""Rows (samples x positions) that are enough to learn one generation of dendrites from."""


@dataclass(frozen=True)
class Call:
    """What a module was called with for some samples, cut off from the graph."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """Inputs and errors of one module for N samples.

    Attributes:
        inputs: x, the patches of a layer, shape (N, ..., F) or (N, positions, G, F); None for other modules.
        errors: E = dL_n/dy, shape (N, ..., C).
        calls: What a module without patches was called with, in the samples' order: for each batch its calls, whose
            positions stand side by side in the errors.
    """

    inputs: Tensor | None
    errors: Tensor
    calls: tuple[tuple[Call, ...], ...] = ()


@dataclass
class _Probe:
    """Catches one module's calls, and adds a zero to its neurons at which the error can be read."""

    name: str
    module: Dendritic
    budget: int  # bytes
    samples: int  # in the whole pass
    rows: int  # of patches, at most
    generator: torch.Generator
    batch: int = 0
    seen: list[tuple[Call, Tensor, int]] = field(default_factory=list)
    patches: list[Tensor] = field(default_factory=list)
    calls: list[tuple[Call, ...]] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.view = Patches.of(self.module.module) if Patches.fit(self.module.module) else None
        self.handle: RemovableHandle = self.module.register_forward_hook(self._catch, with_kwargs=True)

    def _catch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        adapter = self.module.adapter
        neurons = adapter.neurons(output)
        if not isinstance(neurons, Tensor) or neurons.shape[adapter.axis] != self.module.channels:
            found = tuple(neurons.shape) if isinstance(neurons, Tensor) else type(neurons).__name__
            raise UnsupportedModuleError(
                f"The module {self.name!r} has {self.module.channels} neurons, but {found} where its adapter looks for "
                f"them on axis {adapter.axis}: give it an adapter of its own (attach(..., adapters={{...}}))."
            )
        # A sum with a leaf, not retain_grad on the output: an in-place activation behind the module may overwrite it.
        # Inputs are cloned for the same reason.
        zero = torch.zeros_like(neurons, requires_grad=True)
        kept = tree_map_only(Tensor, lambda value: value.detach().clone(), (args, kwargs))
        self.seen.append((Call(*kept), zero, self.batch))
        return adapter.replace(output, neurons + zero)

    def size(self) -> int:
        """Bytes that are kept."""
        kept = [*self.patches, *self.errors, *(x for batch in self.calls for call in batch for x in _tensors(call))]
        return sum(value.numel() * value.element_size() for value in kept)

    def keep(self, errors: Sequence[Tensor | None]) -> None:
        """Keep the calls seen, with their errors.

        Calls without an error (under no_grad) or without samples (an expert that none was sent to) teach nothing.
        """
        if self.size() >= self.budget:
            return
        patches, calls, rows = list[Tensor](), list[Call](), list[Tensor]()
        for (call, _, batch), error in zip(self.seen, errors, strict=True):
            if error is None or not error.numel():
                continue
            if not bool(torch.isfinite(error).all() and all(self._sound(x) for x in _tensors(call))):
                raise TrainingError(f"An input or error of the module {self.name!r} is NaN or infinite.")
            if self.view is None:
                samples = self.module.adapter.samples
                error = error.movedim(self.module.adapter.axis, -1).movedim(samples, 0)
                calls.append(call)
                rows.append(error.reshape(len(error), -1, error.shape[-1]))
                continue
            x, error = self._samples_first(_tensors(call)[0], error, batch)
            positions = self._draw(error.shape[1])
            patches.append(self.view.gather(x, positions))
            rows.append(error if positions is None else error[:, positions])
            if len(x) != batch and len(x) % batch == 0:  # frames of samples: all of a sample's stay together
                patches[-1] = patches[-1].reshape(batch, -1, *patches[-1].shape[2:])
                rows[-1] = rows[-1].reshape(batch, -1, rows[-1].shape[2])
        # Positions of the same samples stand side by side; calls with other samples than the batch's follow each other.
        same = len({len(part) for part in rows}) == 1
        self.patches += [torch.cat(patches, 1)] if same and patches else patches
        self.calls += [tuple(calls)] if same and calls else [(call,) for call in calls]
        self.errors += [torch.cat(rows, 1)] if same else rows

    def _sound(self, x: Tensor) -> bool:
        # A mask of attention may hold minus infinity.
        return not bool(x.isnan().any() if self.view is None else (~x.isfinite()).any())

    def _samples_first(self, x: Tensor, error: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Inputs with the samples first, and errors (samples, positions, C)."""
        assert self.view is not None
        if self.view.dimensions:
            if x.ndim == self.view.dimensions + 1:
                x, error = x.unsqueeze(0), error.unsqueeze(0)
            return x, error.flatten(2).transpose(1, 2)
        if x.shape[0] != batch and x.ndim > 2 and x.shape[1] == batch:
            x, error = x.transpose(0, 1), error.transpose(0, 1)
        # Rows that belong to no sample in particular count as samples themselves.
        first = batch if x.shape[0] % batch == 0 else x[..., 0].numel()
        return x.reshape(first, -1, x.shape[-1]), error.reshape(first, -1, error.shape[-1])

    def _draw(self, positions: int) -> Tensor | None:
        assert self.view is not None
        row = self.module.outgoing.element_size() * (self.view.groups * self.view.length + self.module.channels)
        wanted = max(1, min(self.rows, self.budget // row) // self.samples)
        return None if wanted >= positions else torch.randperm(positions, generator=self.generator)[:wanted]

    def record(self) -> Record:
        if not self.errors:
            raise UnsupportedModuleError(_no_part(self.name))
        if len({part.shape[1:] for part in self.errors}) > 1:
            raise UnsupportedModuleError(
                f"The module {self.name!r} has another number of positions for other samples: leave it out by the "
                "placement, or pass inputs of one size."
            )
        if self.view is None:
            return Record(None, torch.cat(self.errors), tuple(self.calls))
        return Record(torch.cat(self.patches), torch.cat(self.errors))


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Call):
        tree = (tree.args, tree.kwargs)
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _no_error(name: str) -> str:
    return (
        f"The loss does not depend on the module {name!r}, or not on that of its outputs where its neurons are looked "
        "for: dendrites have no error to learn. Leave it out by the placement, or give it an adapter."
    )


def _no_part(name: str) -> str:
    return (
        f"The module {name!r} took no part in the forward pass: leave it out by the placement, "
        "dendrites have nothing to learn there."
    )


def record(
    network: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    batch_size: int = 512,
    *,
    budget: int = BUDGET,
    rows: int = ROWS,
    generator: torch.Generator | None = None,
) -> dict[str, Record]:
    """Pass data through a frozen network once and keep x and E of every dendritic module.

    The network is put into evaluation mode for the pass, and back. Its parameters take no gradient.

    Args:
        network: A network with dendritic modules.
        loss: One loss per sample.
        inputs: Shape (N, ...).
        targets: Shape (N, ...).
        batch_size: How many samples pass at once. It does not change the records beyond rounding.
        budget: Bytes that all records may take together; samples and positions are drawn until they fit.
        rows: Samples x positions to keep of each layer at most.
        generator: Draws samples and positions.

    Returns:
        A record for each dendritic module, by its name.

    Raises:
        UnsupportedModuleError: A module takes no part in a pass, has other neurons than its adapter says, or the loss
            does not depend on it.
        TrainingError: An input or error is NaN or infinite.
    """
    generator = generator or torch.Generator().manual_seed(0)
    if len(inputs) > rows:
        drawn = torch.randperm(len(inputs), generator=generator)[:rows]
        inputs, targets = inputs[drawn], targets[drawn]
    modules = dendritic_modules(network)
    share = budget // max(1, len(modules))

    def passed(x: Tensor, y: Tensor) -> list[_Probe]:
        probes = [_Probe(name, module, share, len(inputs), rows, generator) for name, module in modules.items()]
        _pass(network, loss, x, y, batch_size, probes)
        return probes

    first = passed(inputs[:batch_size], targets[:batch_size])
    if len(inputs) > batch_size and any(probe.size() * len(inputs) > share * batch_size for probe in first):
        # Not all samples will fit: those that do must be any, not the first ones of data that may be in some order.
        drawn = torch.randperm(len(inputs), generator=generator)
        inputs, targets = inputs[drawn], targets[drawn]
    probes = first if len(inputs) <= batch_size else passed(inputs, targets)
    return {probe.name: probe.record() for probe in probes}


def _pass(
    network: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, batch_size: int, probes: list[_Probe]
) -> None:
    modes = {part: part.training for part in network.modules()}
    network.eval()
    try:
        with torch.enable_grad():
            for x, target in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
                if all(probe.size() >= probe.budget for probe in probes):
                    break
                _record_batch(network, loss, x, target, probes)
    finally:
        for probe in probes:
            probe.handle.remove()
        for part, mode in modes.items():
            part.training = mode


def _record_batch(network: nn.Module, loss: Loss, x: Tensor, target: Tensor, probes: list[_Probe]) -> None:
    for probe in probes:
        probe.seen.clear()
        probe.batch = len(x)
    losses = loss(network(x), target)
    seen = [(probe, zero) for probe in probes for _, zero, _ in probe.seen]
    if not seen:
        return
    if not losses.requires_grad:
        raise UnsupportedModuleError(_no_error(probes[0].name))
    # The sum of the samples' own losses: in evaluation mode samples do not mix, so the gradient at a sample's
    # neurons is that of its own loss.
    errors = iter(torch.autograd.grad(losses.sum(), [zero for _, zero in seen], allow_unused=True))
    for probe in probes:
        found = [next(errors) for _ in probe.seen]
        if found and all(error is None for error in found):
            raise UnsupportedModuleError(_no_error(probe.name))
        probe.keep(found)
