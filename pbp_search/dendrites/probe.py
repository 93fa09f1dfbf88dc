"""Catching one module's calls in a pass, and keeping of their rows what there is room for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from pbp_search.dendrites.module import Dendritic
from pbp_search.dendrites.patches import Patches
from pbp_search.dendrites.seen import Seen
from pbp_search.errors import TrainingError, UnsupportedModuleError


@dataclass(frozen=True)
class Call:
    """What a module was called with for some samples, cut off from the graph."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Inputs and errors of one module for N samples.

    Attributes:
        inputs: x, the patches of a layer, shape (N, positions, G, F); None for other modules.
        seen: What dendrites see if it is not x, shape (N, 1, 1, F); None if it is.
        errors: E = dL_n/dy, shape (N, positions, C).
        calls: What a module without patches was called with, in the samples' order: for each pass its calls, whose
            positions stand side by side in the errors.
    """

    inputs: Tensor | None
    errors: Tensor
    seen: Tensor | None = None
    calls: tuple[tuple[Call, ...], ...] = ()


def row_bytes(module: Dendritic) -> int:
    """Bytes of a row of a layer with patches."""
    view = Patches.of(module.module)
    seen = 0 if module.seen is None else module.features or 0
    # In single precision at least: see precise().
    return max(4, module.outgoing.element_size()) * (view.groups * view.length + seen + view.channels)


def work_bytes(module: Dendritic, rows: int) -> int:
    """Bytes that the work on so many rows takes beside them, about.

    Standardised inputs; errors of both kinds and what the accepted dendrites say, some of them in double precision; the
    products of all inputs or of all rows, and what decomposes them; the candidates, and what their optimiser knows.
    """
    view = Patches.of(module.module)
    length = view.length if module.seen is None else module.features or 0
    a_row = 4 * view.groups * view.length + 32 * view.channels * (1 + len(module.dendrites))
    products = 28 * view.groups * min(rows, view.length) ** 2
    candidates = 40 * 2 * module.spec.pool * view.channels * length
    return rows * a_row + products + candidates


class _Caught:
    """A call of a module, and the error at its neurons once it is known."""

    def __init__(self, kept: Tensor | Call) -> None:
        self.kept = kept
        self.errors: Tensor | None = None  # (N, positions, C)


class Probe:
    """Catches one module's calls in a pass, and keeps their rows while there is room.

    Args:
        name: The module's.
        module: The module.
        room: Bytes.
        rows: How many to keep at most.
        samples: How many there will be, about.
        generator: Draws positions.
    """

    def __init__(
        self, name: str, module: Dendritic, room: int, rows: int, samples: int, generator: torch.Generator
    ) -> None:
        self.name = name
        self.module = module
        self.view = Patches.of(module.module) if Patches.fit(module.module) else None
        self.room = room
        self.rows = max(1, min(rows, room // row_bytes(module))) if self.view else rows
        self.samples = samples
        self.generator = generator
        self.called = self.graph = False
        self.inputs: Tensor | None = None
        self.errors: Tensor | None = None
        self.filled = 0  # samples with patches, or rows of calls
        self.calls: list[tuple[Call, ...]] = []
        self.of_calls: list[Tensor] = []
        self.start(0)

    def start(self, batch: int, keeping: bool = True) -> None:
        """Get ready for the pass of a number of samples, which is only measured unless something is to be kept."""
        self.measured = 0  # bytes of what goes in and comes out
        self.batch = batch
        self.keeping = keeping and not self.full()
        self.backward = False
        self.caught: list[_Caught] = []
        self.leaves: list[Tensor] = []

    def listen(self) -> None:
        """The backward pass begins: errors arrive from now on, and what is called again is checkpointed."""
        self.backward = True

    def full(self) -> bool:
        if self.view is None:
            return self.filled >= self.rows or self.room <= 0
        return self.inputs is not None and self.filled == len(self.inputs)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook: see what the module does to what it is called with."""
        self.versions = _versions((args, kwargs))

    def catch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """A forward hook: keep what the module is called with, and see to it that the error arrives."""
        neurons = self._neurons(output)
        self._check_plain([*_tensors((args, kwargs)), neurons])
        if self.versions != _versions((args, kwargs)):
            raise UnsupportedModuleError(
                f"The module {self.name!r} works in place on what it is called with, which its dendrites see: let it "
                "work on a copy, or leave it out by the placement."
            )
        self.called |= neurons.numel() > 0
        self.graph |= torch.is_grad_enabled() and not self.backward
        self.measured += sum(value.nbytes for value in (*_tensors((args, kwargs)), neurons))
        # Calls without a gradient or without samples (an expert that none was sent to) teach nothing.
        if not self.keeping or not torch.is_grad_enabled() or not neurons.numel():
            return output
        if not neurons.requires_grad:  # everything before is frozen
            self.leaves.append(neurons := neurons.detach().requires_grad_())
        # A tensor of its own: what comes behind the module may overwrite it, and a hook still sees the error at it.
        neurons = neurons.clone()
        if self.backward:  # with activation checkpointing: the call is known
            return self.module.adapter.replace(output, neurons)
        if self.view is not None:
            self._catch_patches(_tensors((args, kwargs))[0].detach(), neurons)
        else:
            self._catch_call(args, kwargs, neurons)
        return self.module.adapter.replace(output, neurons)

    def _neurons(self, output: Any) -> Tensor:
        axis = self.module.adapter.axis
        neurons = self.module.adapter.neurons(output)
        there = isinstance(neurons, Tensor) and neurons.ndim >= -axis
        if not there or neurons.shape[axis] != self.module.channels:
            found = tuple(neurons.shape) if isinstance(neurons, Tensor) else type(neurons).__name__
            raise UnsupportedModuleError(
                f"The module {self.name!r} has {self.module.channels} neurons, but {found} where its adapter looks for "
                f"them on axis {axis}: give it an adapter of its own (attach(..., adapters={{...}}))."
            )
        return neurons

    def _check_plain(self, values: list[Tensor]) -> None:
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor
        if any(value.layout is not torch.strided or value.is_nested or wrapped(value) for value in values):
            raise UnsupportedModuleError(
                f"The module {self.name!r} is called with sparse or nested tensors, or inside of torch.func's "
                "transforms (vmap, grad): what its dendrites see cannot be recorded. Leave it out by the placement."
            )

    def _check_backward(self) -> None:
        if not self.backward:
            raise UnsupportedModuleError(
                f"The module {self.name!r} is in a gradient that the network or the loss takes itself (forces of an "
                "energy), and dendrites have none: leave it out by the placement."
            )

    def _catch_patches(self, x: Tensor, neurons: Tensor) -> None:
        assert self.view is not None
        view = self.view.resized(x, neurons)
        x, by_samples = _by_samples(view, x, self.batch)
        samples, positions_there, _ = by_samples(neurons).shape
        positions = self._draw(samples, positions_there, x.device)
        patches = view.gather(x, positions)
        if self.module.seen is not None:
            patches = torch.cat([patches, self._seen(self.module.seen, patches)], 3)
        # Frames: several rows of inputs for each sample. They stay together.
        first = self.batch if self.batch and len(patches) % self.batch == 0 else len(patches)
        caught = _Caught(patches.reshape(first, -1, *patches.shape[2:]).clone())
        self.caught.append(caught)

        def keep_error(error: Tensor) -> None:
            self._check_backward()
            some = by_samples(error)
            if positions is not None:
                some = some.take_along_dim(positions.unsqueeze(2), 1)
            caught.errors = some.reshape(first, -1, some.shape[2]).clone()

        neurons.register_hook(keep_error)

    def _seen(self, seen: Seen, patches: Tensor) -> Tensor:
        """What dendrites see instead of the patches, shape (N, 1, 1, F)."""
        value = seen.value().detach().to(patches.dtype)
        if patches.shape[:2] != (len(value), 1):
            raise UnsupportedModuleError(
                f"The module {self.name!r} has outputs for {len(patches)} samples x {patches.shape[1]} positions, but "
                f"its dendrites see {seen.name!r} for {len(value)} samples: only layers with one output for each "
                "sample can see another tensor. Leave it out by the placement."
            )
        return value.reshape(len(value), 1, 1, -1)

    def _draw(self, samples: int, positions: int, device: torch.device) -> Tensor | None:
        """Positions of each sample, shape (samples, some); None for all."""
        frames = max(1, samples // max(1, self.batch))
        some = max(1, self.rows // (self.samples * frames))
        if some >= positions:
            return None
        return torch.rand(samples, positions, generator=self.generator).topk(some).indices.to(device)

    def _catch_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], neurons: Tensor) -> None:
        size = neurons.nbytes + sum({id(value): value.nbytes for value in _tensors((args, kwargs))}.values())
        if self.calls and size > self.room:  # one call is kept in any case
            self.room = 0
            return
        copies: dict[int, Tensor] = {}  # a tensor may be several arguments

        def copied(value: Tensor) -> Tensor:
            if id(value) not in copies:
                copies[id(value)] = _as_called(value.detach(), self.module.outgoing.dtype).clone()
            return copies[id(value)]

        caught = _Caught(Call(*tree_map_only(Tensor, copied, (args, kwargs))))
        self.room -= size
        self.caught.append(caught)

        def keep_error(error: Tensor) -> None:
            self._check_backward()
            caught.errors = self.module.adapter.rows(error).clone()

        neurons.register_hook(keep_error)

    def keep(self) -> None:
        """Keep the calls that an error arrived at."""
        caught = [(one.kept, one.errors) for one in self.caught if one.errors is not None]
        self.caught, self.leaves = [], []
        # Positions of the same samples stand side by side; calls with other samples than the batch's follow each other.
        same = bool(caught) and all(len(errors) == self.batch for _, errors in caught)
        for some in [caught] if same else [[one] for one in caught]:
            errors = torch.cat([error for _, error in some], 1)
            if self.view is None:
                self.calls.append(tuple(call for call, _ in some if isinstance(call, Call)))
                self.of_calls.append(precise(errors))
                self.filled += errors[..., 0].numel()
            else:
                self._fill(torch.cat([patches for patches, _ in some if isinstance(patches, Tensor)], 1), errors)

    def _fill(self, patches: Tensor, errors: Tensor) -> None:
        patches, errors = precise(patches), precise(errors)
        if self.inputs is None or self.errors is None:
            # All at once, where they will stay: memory is taken when it is written to.
            row = patches[0, 0].nbytes + errors[0, 0].nbytes
            capacity = max(1, min(self.rows, self.room // row) // patches.shape[1])
            self.inputs = patches.new_empty(capacity, *patches.shape[1:])
            self.errors = errors.new_empty(capacity, *errors.shape[1:])
        if patches.shape[1] != self.inputs.shape[1]:
            raise UnsupportedModuleError(_other_positions(self.name))
        end = min(self.filled + len(patches), len(self.inputs))
        self.inputs[self.filled : end] = patches[: end - self.filled]
        self.errors[self.filled : end] = errors[: end - self.filled]
        self.filled = end

    def part(self) -> Part:
        """What was kept."""
        if not self.called:
            raise UnsupportedModuleError(_no_part(self.name))
        if not self.filled:
            raise UnsupportedModuleError(_no_error(self.name) if self.graph else _no_graph(self.name))
        if self.inputs is not None and self.errors is not None:
            assert self.view is not None
            inputs, errors = self.inputs[: self.filled], self.errors[: self.filled]
            seen = None if self.module.seen is None else inputs[..., self.view.length :]
            part = Part(inputs[..., : self.view.length], errors, seen)
        else:
            if len({errors.shape[1] for errors in self.of_calls}) > 1:
                raise UnsupportedModuleError(_other_positions(self.name))
            part = Part(None, torch.cat(self.of_calls), calls=tuple(self.calls))
        known = [part.errors] if self.inputs is None else [self.inputs[: self.filled], part.errors]
        # A mask of attention may hold minus infinity.
        given = [value for batch in part.calls for call in batch for value in _tensors((call.args, call.kwargs))]
        if not all(map(_finite, known)) or any(bool(value.isnan().any()) for value in given):
            raise TrainingError(f"An input or error of the module {self.name!r} is NaN or infinite.")
        return part


def _by_samples(view: Patches, x: Tensor, batch: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Inputs with the samples first, and what arranges the layer's outputs as (samples, positions, C)."""
    if view.dimensions:
        single = x.ndim == view.dimensions + 1

        def space_last(y: Tensor) -> Tensor:
            return (y.unsqueeze(0) if single else y).flatten(2).transpose(1, 2)

        return x.unsqueeze(0) if single else x, space_last
    turned = x.shape[0] != batch and x.ndim > 2 and x.shape[1] == batch
    # Rows that belong to no sample in particular count as samples themselves.
    whole = batch > 0 and x.ndim > 1 and x.shape[int(turned)] % batch == 0
    first = batch if whole else x[..., 0].numel()

    def channels_last(y: Tensor) -> Tensor:
        return (y.transpose(0, 1) if turned else y).reshape(first, -1, y.shape[-1])

    return channels_last(x), channels_last


def precise(values: Tensor) -> Tensor:
    """In single precision at least: shorter types cannot tell a weak correlation from none."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _versions(tree: Any) -> list[int]:
    """How often tensors were changed in place, as far as torch counts it."""
    leaves = (leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor))
    return [leaf._version for leaf in leaves if not leaf.is_inference()]


def _as_called(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A module's input as the module takes it: under autocast, which casts it on the way, of the module's own type."""
    cast = value.is_floating_point() and torch.is_autocast_enabled(value.device.type)
    return value.to(dtype) if cast else value


def _finite(values: Tensor) -> bool:
    """Whether all are. Unlike a mask of them, the extremes take no memory."""
    return bool(torch.stack(values.aminmax()).isfinite().all())


def _other_positions(name: str) -> str:
    return (
        f"The module {name!r} has another number of positions for other samples: leave it out by the placement, or "
        "pass inputs of one size."
    )


def _no_error(name: str) -> str:
    return (
        f"The loss does not depend on the module {name!r}, or not on that of its outputs where its neurons are looked "
        "for: dendrites have no error to learn. Leave it out by the placement, or give it an adapter (LastState() for "
        "a recurrent layer of which only the last state is used)."
    )


def _no_graph(name: str) -> str:
    return (
        f"The module {name!r} is called without a graph (torch.no_grad, or checkpoint(..., use_reentrant=True)): "
        "dendrites have no error to learn. Leave it out by the placement, or pass use_reentrant=False."
    )


def _no_part(name: str) -> str:
    return (
        f"The module {name!r} took no part in the forward pass: leave it out by the placement, "
        "dendrites have nothing to learn there."
    )
