"""Recording what a dendrite phase needs: inputs and errors at every dendritic module, in one pass over the data.

In the dendrite phase the network is frozen and in evaluation mode, so for every sample the input x of a module and
the error E = dL_n/dy at its output never change. L_n is the sample's own loss: E does not depend on the batch size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pbp_search.dendrites.attach import dendritic_modules
from pbp_search.dendrites.module import Dendritic
from pbp_search.errors import TrainingError, UnsupportedModuleError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs and targets of N samples to N losses, shape (N,)."""


@dataclass(frozen=True)
class Record:
    """Inputs and errors of one module for N samples.

    Attributes:
        inputs: x, shape (N, ..., inputs).
        errors: E = dL_n/dy, shape (N, ..., C).
    """

    inputs: Tensor
    errors: Tensor

    def rows(self, samples: Tensor) -> "Record":
        """The records of some samples, with all leading axes flattened: shapes (R, inputs) and (R, C)."""
        return Record(self.inputs[samples].flatten(0, -2), self.errors[samples].flatten(0, -2))

    def shuffled(self, parts: Sequence[Tensor], generator: torch.Generator) -> "Record":
        """The same inputs beside the errors of other samples, each of the same part of the samples."""
        errors = self.errors.clone()
        for part in parts:
            errors[part] = self.errors[part[torch.randperm(len(part), generator=generator)]]
        return Record(self.inputs, errors)


class _Probe:
    """Catches one module's input, and adds a zero to its output at which the error can be read."""

    def __init__(self, name: str, module: Dendritic) -> None:
        self.name = name
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.handle: RemovableHandle = module.register_forward_hook(self._catch)

    def _catch(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # A sum with a leaf, not retain_grad on the output: an in-place activation behind the module may overwrite it.
        zero = torch.zeros_like(output, requires_grad=True)
        self.seen.append((inputs[0].detach().clone(), zero))
        return output + zero

    def take(self, samples: int) -> tuple[Tensor, Tensor]:
        if len(self.seen) != 1:
            raise UnsupportedModuleError(
                f"The module {self.name!r} was called {len(self.seen)} times in one forward pass: "
                "dendrites can be grown on modules that are called exactly once."
            )
        seen, zero = self.seen.pop()
        if seen.ndim < 2 or len(seen) != samples:
            raise UnsupportedModuleError(
                f"The module {self.name!r} was given inputs of the shape {tuple(seen.shape)} for {samples} samples: "
                "dendrites can be grown on modules whose inputs have the samples on their first axis."
            )
        return seen, zero


def _no_error(name: str) -> str:
    return f"The loss does not depend on the module {name!r}: dendrites have no error to learn."


def record(network: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, batch_size: int = 512) -> dict[str, Record]:
    """Pass data through a frozen network once and keep x and E of every dendritic module.

    The network is put into evaluation mode for the pass, and back. Its parameters take no gradient.

    Args:
        network: A network with dendritic modules.
        loss: One loss per sample.
        inputs: Shape (N, ...).
        targets: Shape (N, ...).
        batch_size: How many samples pass at once. It does not change the records beyond rounding.

    Returns:
        A record for each dendritic module, by its name.

    Raises:
        UnsupportedModuleError: A module is called twice in a pass or never, its inputs do not have the samples on their
            first axis, or the loss does not depend on it.
        TrainingError: An input or error is NaN or infinite.
    """
    modes = {part: part.training for part in network.modules()}
    probes = [_Probe(name, module) for name, module in dendritic_modules(network).items()]
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {probe.name: [] for probe in probes}
    network.eval()
    try:
        with torch.enable_grad():
            for x, target in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
                losses = loss(network(x), target)
                taken = [probe.take(len(x)) for probe in probes]
                if not losses.requires_grad:
                    raise UnsupportedModuleError(_no_error(probes[0].name))
                # The sum of the samples' own losses: in evaluation mode samples do not mix, so the gradient at a
                # sample's output is that of its own loss.
                errors = torch.autograd.grad(losses.sum(), [zero for _, zero in taken], allow_unused=True)
                for probe, (seen, _), error in zip(probes, taken, errors, strict=True):
                    if error is None:
                        raise UnsupportedModuleError(_no_error(probe.name))
                    if not bool(torch.isfinite(error).all() and torch.isfinite(seen).all()):
                        raise TrainingError(f"An input or error of the module {probe.name!r} is NaN or infinite.")
                    parts[probe.name].append((seen, error))
    finally:
        for probe in probes:
            probe.handle.remove()
        for part, mode in modes.items():
            part.training = mode
    return {
        name: Record(torch.cat([seen for seen, _ in pairs]), torch.cat([error for _, error in pairs]))
        for name, pairs in parts.items()
    }
