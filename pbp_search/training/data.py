"""A task's data, as tensors, Datasets or anything that gives batches, and the batches that each phase takes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.data import DataLoader, Dataset, IterableDataset
from typing_extensions import TypeVar

from pbp_search.dendrites.record import HELD_OUT
from pbp_search.errors import TaskError

Batch = tuple[Any, Any]
"""Inputs and targets of some samples. Inputs that are a tuple or a mapping are the network's arguments."""

_EVALUATED = 4096  # samples at once, of tensors in memory
_EVALUATED_BYTES = 2**26
_RECORDED = 512
_GATHERED_BYTES = 2**24


@dataclass(frozen=True)
class Split:
    """Tensors in memory: the fastest form of one part of the data.

    Attributes:
        inputs: Shape (N, ...).
        targets: Shape (N, ...). NaN may stand for labels that are missing, if the task's loss and score know it.
        augment: What becomes of a batch of inputs in training, drawn from torch's global stream. Never applied in
            evaluation.
    """

    inputs: Tensor
    targets: Tensor
    augment: Callable[[Tensor], Tensor] | None = None


Source = Split | Dataset[Any] | Iterable[Batch]
"""One part of the data. Datasets are put into batches by the configuration's batch size; a DataLoader (or any other
iterable of batches that can be passed again and again) comes with its own, in an order drawn from torch's global
stream."""


S = TypeVar("S", bound=Source, default=Split)


@dataclass(frozen=True)
class Data(Generic[S]):
    """The three parts of a task's data.

    Training sees ``train``; stopping, choosing and searching see ``validation``; ``test`` is read when a network is
    exported. Each is a ``Split`` of tensors, a ``Dataset``, or an iterable of batches such as a ``DataLoader``.
    """

    train: S
    validation: S
    test: S


def training_batches(
    source: Source, batch_size: int, on_gathered: Callable[[Tensor, Tensor], None] | None = None
) -> Iterator[Batch]:
    """All samples once, in a new order drawn from torch's global stream.

    Args:
        source: Where they come from.
        batch_size: Of tensors and Datasets; others have batches of their own.
        on_gathered: Told the tensor of which the inputs of the next batches are views, and which samples it holds.
    """
    if isinstance(source, Split):
        yield from _gathered(source, batch_size, on_gathered)
    elif isinstance(source, Dataset):
        shuffled = not isinstance(source, IterableDataset)
        # A single left-over sample has no batch statistics.
        odd = shuffled and batch_size > 1 and len(source) % batch_size == 1 < len(source)  # type: ignore[arg-type]
        yield from DataLoader(source, batch_size, shuffle=shuffled, drop_last=odd)
    else:
        yield from _restarted(source)


def evaluation_batches(source: Source) -> Iterator[Batch]:
    """All samples once, in their order."""
    if isinstance(source, Split):
        size = max(1, min(_EVALUATED, _EVALUATED_BYTES // max(1, source.inputs[:1].nbytes)))
        yield from zip(source.inputs.split(size), source.targets.split(size), strict=True)
    elif isinstance(source, Dataset):
        yield from DataLoader(source, _RECORDED)
    else:
        yield from _restarted(source)


def recording_batches(
    source: Source, batch_size: int, generator: torch.Generator
) -> tuple[Iterable[Batch], Iterable[Batch] | None]:
    """Batches of training samples for the dendrite phase, and of others to hold out; None if those are among them.

    A training sample is seen once, augmented as in training.
    """
    if isinstance(source, Split):
        training, held_out = _parted(len(source.inputs), generator)
        return _Drawn(source, training), _Drawn(source, held_out)
    if isinstance(source, IterableDataset):
        return _Several(DataLoader(source, batch_size)), None
    if isinstance(source, Dataset):
        return _loaders(source, list(range(len(source))), batch_size, generator)  # type: ignore[arg-type]
    source = _restarted(source)
    if isinstance(source, DataLoader) and source.batch_sampler is not None and not _streams(source):
        # Its samples, each once: a sampler may draw some of a Dataset only, and some of them again and again.
        samples = list(dict.fromkeys(index for batch in source.batch_sampler for index in batch))
        size = source.batch_size or batch_size
        return _loaders(source.dataset, samples, size, generator, source.collate_fn, source.num_workers)
    if isinstance(source, list | tuple):  # of which it is known how many samples it holds
        return _pieces(source[0]) if len(source) == 1 else source, None
    return _Several(source), None


def _streams(loader: DataLoader[Any]) -> bool:
    """Whether it has no samples to choose from: its sampler goes on for ever."""
    return isinstance(loader.dataset, IterableDataset)


class _Several:
    """Batches as they come. One that is alone comes in pieces, so that some of its samples can be held out."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self.dataset = getattr(batches, "dataset", None)  # its length is that of the batches together

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._batches)
        some = list(islice(batches, 2))
        yield from _pieces(some[0]) if len(some) == 1 else some
        yield from batches


def _pieces(batch: Batch) -> list[Batch]:
    """A batch in up to four pieces of at least two samples, as far as it has as many."""
    inputs, targets = batch
    inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    samples = len(next(leaf for leaf in tree_leaves(targets) if isinstance(leaf, Tensor) and leaf.ndim))
    count = min(samples, max(2, min(4, samples // 2)))

    def piece(index: int) -> Batch:
        def of(value: Tensor) -> Tensor:
            return value.tensor_split(count)[index] if value.ndim and len(value) == samples else value

        x, y = tree_map_only(Tensor, of, (inputs, targets))
        return x, y

    return [piece(index) for index in range(count)]


def _loaders(
    dataset: Dataset[Any],
    samples: Sequence[Any],
    batch_size: int,
    generator: torch.Generator,
    collate: Callable[[list[Any]], Any] | None = None,
    workers: int = 0,
) -> tuple[Iterable[Batch], Iterable[Batch]]:
    """Batches of about a size of samples to train on, and of samples to hold out."""

    def loader(rows: Tensor) -> DataLoader[Any]:
        batches = [[samples[row] for row in some.tolist()] for some in _evenly(rows, batch_size)]
        return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers)

    training, held_out = _parted(len(samples), generator)
    return loader(training), loader(held_out)


def _evenly(rows: Tensor, size: int) -> Sequence[Tensor]:
    """Pieces of at most a size. A single sample is no piece, if there are others: it has no batch statistics."""
    return rows.tensor_split(max(1, -(-len(rows) // max(2, size))))


def first_batch(source: Source, samples: int) -> Batch:
    """A few samples, in their order; of an iterable the whole first batch."""
    if isinstance(source, Split):
        return source.inputs[:samples], source.targets[:samples]
    batches: Iterable[Batch] = DataLoader(source, samples) if isinstance(source, Dataset) else _restarted(source)
    return cut(next(iter(batches)), samples)


def cut(batch: Batch, samples: int) -> Batch:
    """The first samples of a batch; all of one that is not a pair of tensors."""
    inputs, targets = batch
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
        return inputs[:samples], targets[:samples]
    return inputs, targets


def on_device(source: Source, device: torch.device) -> Source:
    """Tensors in memory are moved at once; batches of other sources are moved as they come: see :func:`moved`."""
    if not isinstance(source, Split):
        return source
    return replace(source, inputs=source.inputs.to(device), targets=source.targets.to(device))


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device."""
    x, y = batch
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.to(device, non_blocking=True), y.to(device, non_blocking=True)
    if isinstance(x, Mapping):  # one of a library's own, which torch would take as a whole
        x = dict(x)
    x, y = tree_map_only(Tensor, lambda value: value.to(device, non_blocking=True), (x, y))
    return x, y


def joined(batches: Sequence[Any]) -> Any:
    """Outputs or targets of several batches one after the other."""
    return batches[0] if len(batches) == 1 else tree_map(lambda *parts: torch.cat(parts), *batches)


def in_memory(source: Source) -> Split:
    """All samples in their order as two tensors.

    Raises:
        TaskError: Inputs or targets are more than one tensor each.
    """
    if isinstance(source, Split):
        return source
    inputs, targets = (joined(parts) for parts in zip(*evaluation_batches(source), strict=True))
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        raise TaskError("The network takes more than one tensor, or has more than one tensor of targets.")
    return Split(inputs, targets)


class _Drawn:
    """Some samples of tensors in memory, in batches. It tells how many, and draws no more than are asked for."""

    def __init__(self, split: Split, rows: Tensor) -> None:
        self.split = split
        self.dataset: Sequence[int] = range(len(rows))
        self._rows = rows

    def __iter__(self) -> Iterator[Batch]:
        for rows in _evenly(self._rows, _RECORDED):
            inputs = self.split.inputs[rows]
            yield inputs if self.split.augment is None else self.split.augment(inputs), self.split.targets[rows]


def _parted(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Samples to train on and samples to hold out, in random order."""
    order = torch.randperm(samples, generator=generator)
    count = min(max(round(HELD_OUT * samples), 1), samples - 1)
    return order[count:], order[:count]


def _restarted(source: Any) -> Iterable[Batch]:
    """A generator or workers of a loader's own would remember the epochs before: they start anew, from the global
    stream."""
    if isinstance(source, DataLoader) and source.persistent_workers:
        source._iterator = None
    sampler, batches = getattr(source, "sampler", None), getattr(source, "batch_sampler", None)
    for one in (source, sampler, batches, getattr(batches, "sampler", None)):
        generator = getattr(one, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(int(torch.randint(2**62, ())))
    again: Iterable[Batch] = source
    return again


def _gathered(split: Split, batch_size: int, on_gathered: Callable[[Tensor, Tensor], None] | None) -> Iterator[Batch]:
    """The batches of an epoch. Many are gathered at once: a slice of that costs less than an index of its own."""
    batches = _orders(len(split.inputs), batch_size)
    together = max(1, _GATHERED_BYTES // max(1, batch_size * split.inputs[:1].nbytes))
    for start in range(0, len(batches), together):
        some = batches[start : start + together]
        sizes = [len(batch) for batch in some]
        rows = torch.cat(some)
        gathered, targets = split.inputs[rows].contiguous(), split.targets[rows]
        if on_gathered is not None:
            on_gathered(gathered, rows)
        for x, y in zip(gathered.split(sizes), targets.split(sizes), strict=True):
            yield x if split.augment is None else split.augment(x), y


def _orders(samples: int, batch_size: int) -> list[Tensor]:
    """All samples in a new order. A single left-over sample joins the batch before: it has no batch statistics."""
    batches = list(torch.randperm(samples).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) < min(2, batch_size):
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
