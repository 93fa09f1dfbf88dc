"""Recording what a dendrite phase needs: inputs and errors at every dendritic module, in one pass over the data.

In the dendrite phase the network is frozen and in evaluation mode, so for every sample the input x of a module and
the error E = dL_n/dy at its neurons never change. L_n is the sample's own loss: E does not depend on the batch size.

Of a Linear or a convolution the patches at some positions are kept; of any other module, what it was called with.
Positions are drawn before anything is unfolded and rows go where they will stay, so that records obey a budget.
"""

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten, tree_map_only

from pbp_search.dendrites.attach import dendritic_modules
from pbp_search.dendrites.module import Dendritic
from pbp_search.dendrites.patches import Patches
from pbp_search.dendrites.probe import Call, Part, Probe, row_bytes, work_bytes
from pbp_search.errors import InputError, UnsupportedModuleError

__all__ = ["Call", "Part", "Record", "record"]

Loss = Callable[[Any, Any], Tensor]
"""Outputs (whatever the network returns) and targets of N samples to N losses, shape (N,)."""

BUDGET = 2**30
"""Bytes that the dendrite phase may take: the records of all modules, and the work on one of them at a time."""
ROWS = 2**15
"""Rows (samples x positions) of a module that are enough to learn one generation of dendrites from."""
HELD_OUT = 0.25
"""The share of the rows on which candidates are stopped, chosen and scored."""

_FIRST = 16 * 2**20
"""Bytes that libraries and the allocator take beside that, about; of a small budget a quarter."""
_CALLS = 0.125  # the share of the budget that may take the record of a module without patches, whose work is not known
_ACTIVATIONS = 1 / 16  # ... and that a pass through the network may take, about
_SAVED = 3  # activations that autograd keeps for each neuron, about
_PASSED = 512  # samples a pass at most
_MANY = 4096  # samples that a stream of unknown length is taken to have


@dataclass(frozen=True)
class Record:
    """What one module's dendrites learn from.

    Attributes:
        training: The samples that candidates are trained on.
        held_out: Other samples, on which they are stopped, chosen and scored.
        budget: Bytes that the dendrite phase may take.
    """

    training: Part
    held_out: Part
    budget: int = field(default=BUDGET, kw_only=True)


def record(
    network: nn.Module,
    loss: Loss,
    batches: Iterable[tuple[Any, Any]],
    held_out: Iterable[tuple[Any, Any]] | None = None,
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
        batches: Inputs and targets, as a DataLoader gives them, in random order: the pass ends when the records are
            full. Inputs that are a tuple or a mapping are the network's arguments, and pass as a whole: their batches
            should not be large.
        held_out: Batches of other samples to hold out; every fourth of the batches if there are none.
        budget: Bytes that the dendrite phase may take; the records take half of it. Samples and positions are drawn
            until they fit.
        rows: Samples x positions to keep of each layer at most.
        generator: Draws positions.

    Returns:
        A record for each dendritic module, by its name.

    Raises:
        InputError: There are fewer than 2 batches, a lazy module has not been run yet, or the loss is not one number
            for each sample.
        UnsupportedModuleError: A module takes no part in a pass, has other neurons than its adapter says, or the loss
            does not depend on it.
        TrainingError: An input or error is NaN or infinite.
    """
    generator = generator or torch.Generator().manual_seed(0)
    modules = dendritic_modules(network)
    if not modules:
        raise InputError("The network has no dendritic modules: attach dendrites to it first.")
    shares = _shares(modules, budget, rows)

    def recorder(share: float, samples: int) -> _Recorder:
        probes = [
            Probe(name, module, int(share * shares[name]), max(1, int(share * rows)), samples, generator)
            for name, module in modules.items()
        ]
        return _Recorder(network, loss, probes, budget)

    if held_out is None:
        count = _count(batches)
        training, held = (recorder(share, max(1, int(share * count))) for share in (1 - HELD_OUT, HELD_OUT))
        stream = ((batch, held if index % 4 == 1 else training) for index, batch in enumerate(batches))
    else:
        training = recorder(1 - HELD_OUT, _count(batches))
        held = recorder(HELD_OUT, _count(held_out))
        stream = ((batch, part) for some, part in ((batches, training), (held_out, held)) for batch in some)
    with _frozen(network):
        for batch, part in stream:
            if not part.full():
                part.add(*_pair(batch))
            elif training.full() and held.full():
                break
    if not (training.passed and held.passed):
        raise InputError("Records need at least 2 batches, one to train on and one to hold out: pass smaller batches.")
    probes = zip(training.probes, held.probes, strict=True)
    return {one.name: Record(one.part(), other.part(), budget=budget) for one, other in probes}


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(
            f"A batch must be a pair of inputs and targets, not {type(batch).__name__}: of a loader whose batches are "
            "mappings, make pairs, for example by its collate_fn."
        )
    inputs, targets = batch
    return dict(inputs) if isinstance(inputs, Mapping) else inputs, targets


def _count(batches: Iterable[tuple[Any, Any]]) -> int:
    """The number of samples, as far as it can be told without a pass."""
    if isinstance(batches, list | tuple):
        return sum(_length(_pair(batch)[1]) for batch in batches)
    sampler = getattr(batches, "sampler", None)  # it may draw some of a Dataset only
    for one in (sampler, getattr(batches, "dataset", None)):
        with suppress(TypeError):  # without a length
            return len(one)  # type: ignore[arg-type]
    return _MANY


def _shares(modules: Mapping[str, Dendritic], budget: int, rows: int) -> dict[str, int]:
    """Bytes for the record of each module: what one does not need is left to the others."""
    budget -= min(_FIRST, budget // 4)
    work = _work(modules, budget, rows)
    wanted = {
        name: _affordable_rows(module, work, rows) * row_bytes(module)
        if Patches.fit(module.module)
        else int(_CALLS * budget / (2 * module.spec.pool))  # each candidate runs on all of it
        for name, module in modules.items()
    }
    left, shares = budget - work, dict[str, int]()
    for index, name in enumerate(sorted(wanted, key=wanted.__getitem__)):
        shares[name] = min(wanted[name], left // (len(wanted) - index))
        left -= shares[name]
    return shares


def _work(modules: Mapping[str, Dendritic], budget: int, rows: int) -> int:
    """Bytes for the work on a module: half of what is left beside what the largest takes for any number of rows."""
    layers = [module for module in modules.values() if Patches.fit(module.module)]
    needed = [work_bytes(layer, min(rows, Patches.of(layer.module).length)) for layer in layers]
    return (budget + min(max(needed, default=0), budget // 2)) // 2


def _affordable_rows(module: Dendritic, room: int, rows: int) -> int:
    """The most rows that the work on takes no more than some room, by bisection."""
    room = max(room, room // 4 + work_bytes(module, 0))  # however large candidates are, they have to learn of some
    return 1 + bisect_right(range(rows - 1), room, key=lambda more: work_bytes(module, more + 2))


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """A network in evaluation mode whose parameters take no gradient, and back."""
    if any(map(is_lazy, network.parameters())):
        raise InputError("The network has lazy modules without parameters yet: run it once before recording.")
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with evaluating(network):
        try:
            for parameter in learning:
                parameter.requires_grad_(False)
            with torch.enable_grad(), _without_cudnn() if _recurrent(network) else nullcontext(), uncompiled():
                yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A network in evaluation mode, and back."""
    modes = {part: part.training for part in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def _reentrant_refused() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise UnsupportedModuleError(
            "The network calls checkpoint(..., use_reentrant=True), through which no errors can be recorded: pass "
            "use_reentrant=False."
        ) from error


def uncompiled() -> AbstractContextManager[None]:
    """What is compiled runs as it is written: a compiler cannot follow hooks. It is there only if it has been used."""
    used = "torch._dynamo" in sys.modules
    context: AbstractContextManager[None] = torch.compiler.set_stance("force_eager") if used else nullcontext()
    return context


def _without_cudnn() -> AbstractContextManager[None]:
    """cuDNN refuses a backward pass through recurrent layers in evaluation mode. All else about it stays as it is."""
    cudnn = torch.backends.cudnn
    kept = {name: getattr(cudnn, name) for name in ("benchmark", "deterministic", "allow_tf32")}
    context: AbstractContextManager[None] = cudnn.flags(enabled=False, **kept)
    return context


def _recurrent(network: nn.Module) -> bool:
    return any(isinstance(part, nn.RNNBase) for part in network.modules())


class _Recorder:
    """Passes batches of one part through the network."""

    def __init__(self, network: nn.Module, loss: Loss, probes: list[Probe], budget: int) -> None:
        self.network = network
        self.loss = loss
        self.probes = probes
        self.budget = budget
        self.device = probes[0].module.outgoing.device
        self.passed = False
        self._pass: int | None = None  # samples

    def full(self) -> bool:
        return all(probe.full() for probe in self.probes)

    def add(self, inputs: Any, targets: Any) -> None:
        """Pass a batch, in pieces if it is one tensor of samples: a piece of a batch takes less memory."""
        samples = _length(targets)
        if not samples:
            return
        self.passed = True
        inputs, targets = tree_map_only(Tensor, lambda value: value.detach().to(self.device), (inputs, targets))
        if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor) or len(inputs) != samples:
            self._add(inputs, targets, samples)
            return
        if self._pass is None:
            self._pass = self._affordable(inputs[:2])
        pieces = -(-samples // self._pass)
        for x, y in zip(inputs.tensor_split(pieces), targets.tensor_split(pieces), strict=True):
            self._add(x, y, len(y))

    def _affordable(self, few: Tensor) -> int:
        """How many samples can pass at once."""
        for probe in self.probes:
            probe.start(len(few), keeping=False)
        with self._hooks():
            self.network(few)
        sizes = [probe.measured / len(few) for probe in self.probes]
        limits = [_ACTIVATIONS * self.budget / (_SAVED * max(1.0, sum(sizes)))]
        # Calls are kept as a whole: several of them shall fit.
        limits += [
            probe.room / 4 / max(1.0, size) for probe, size in zip(self.probes, sizes, strict=True) if not probe.view
        ]
        return max(2, min(_PASSED, int(min(limits))))

    def _add(self, inputs: Any, targets: Any, samples: int) -> None:
        for probe in self.probes:
            probe.start(samples)
        # Activation checkpointing calls modules again in the backward pass: the hooks stay until that is over.
        with self._hooks():
            losses = self.loss(called(self.network, inputs), targets)
            if losses.shape != (samples,):
                raise InputError(
                    f"The loss has the shape {tuple(losses.shape)} for {samples} samples: it must be one loss per "
                    f'sample, shape ({samples},). With torch\'s losses, pass reduction="none".'
                )
            leaves = [leaf for probe in self.probes for leaf in probe.leaves]
            for probe in self.probes:
                probe.listen()
            if leaves and losses.requires_grad:
                # The sum of the samples' own losses: in evaluation mode samples do not mix, so the gradient at a
                # sample's neurons is that of its own loss. The errors are kept on the way.
                with _reentrant_refused():
                    torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
        for probe in self.probes:
            probe.keep()

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = [probe.module.register_forward_hook(probe.catch, with_kwargs=True) for probe in self.probes]
        handles += [probe.module.register_forward_pre_hook(probe.before, with_kwargs=True) for probe in self.probes]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def called(network: nn.Module, inputs: Any) -> Any:
    """What a network returns for inputs: a mapping is its keyword arguments, a tuple or list its positional ones."""
    if isinstance(inputs, Tensor):
        return network(inputs)
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, tuple | list) else network(inputs)


def _length(targets: Any) -> int:
    """The number of samples, which is that of their targets."""
    tensors = [leaf for leaf in tree_flatten(targets)[0] if isinstance(leaf, Tensor) and leaf.ndim]
    if not tensors:
        raise InputError(f"A batch's targets hold no tensor with a row for each sample: {type(targets).__name__}.")
    return len(tensors[0])
