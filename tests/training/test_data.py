"""Tensors, Datasets and loaders, on their way through every phase."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pbp_search.dendrites import DendriteSpec, attach, record
from pbp_search.errors import InputError, TaskError
from pbp_search.training import Data, Source, Split, check_task, evaluate, run_chain, run_rung
from pbp_search.training.data import evaluation_batches, in_memory, recording_batches, training_batches
from pbp_search.training.device import device_of
from tests.training.tiny_tasks import Bowl, BowlWithDropout, Rings, assert_same_checkpoint, config

NAN = float("nan")


class Pairs(Dataset[Any]):
    """Any Dataset: not tensors inside."""

    def __init__(self, split: Split) -> None:
        self.pairs = list(zip(split.inputs, split.targets, strict=True))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pairs[index]


class Stream(IterableDataset[Any]):
    """A Dataset without a length."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.split.inputs, self.split.targets, strict=True)


def own_generator(split: Split) -> Source:
    return DataLoader(Pairs(split), 32, shuffle=True, generator=torch.Generator().manual_seed(7))


def iter_again(batches: list[Any]) -> Any:
    """The batches, without a length."""

    class Again:
        def __iter__(self) -> Iterator[Any]:
            return iter(batches)

    return Again()


SOURCES: dict[str, Callable[[Split], Source]] = {
    "tensors": lambda split: split,
    "dataset": Pairs,
    "tensor dataset": lambda split: TensorDataset(split.inputs, split.targets),
    "dataset without a length": Stream,
    "loader": lambda split: DataLoader(Pairs(split), 32, shuffle=True),
    "loader without a length": lambda split: DataLoader(Stream(split), 32),
    "loader with a generator of its own": own_generator,
    "loader with workers": lambda split: DataLoader(Pairs(split), 128, shuffle=True, num_workers=1),
    "list of one batch": lambda split: [(split.inputs, split.targets)],
    "loader without a length, of one batch": lambda split: DataLoader(Stream(split), 1000),
    "list of batches": lambda split: list(zip(split.inputs.split(32), split.targets.split(32), strict=True)),
}


def bowl(source: Callable[[Split], Source], base: type[Bowl] = Bowl) -> Any:
    class Other(base):  # type: ignore[valid-type, misc]
        def data(self) -> Any:
            data = super().data()
            return Data(*map(source, (data.train, data.validation, data.test)))

    return Other()


def split_of(samples: int) -> Split:
    return Split(torch.arange(float(samples)).unsqueeze(1), torch.arange(samples))


def targets_of(batches: Any) -> list[int]:
    return [int(target) for _, targets in batches for target in targets]


@pytest.mark.parametrize("samples", [2, 31, 33, 97])
@pytest.mark.parametrize("kind", [kind for kind in SOURCES if "workers" not in kind])
def test_every_sample_comes_once_with_its_target(kind: str, samples: int) -> None:
    source = SOURCES[kind](split_of(samples))
    torch.manual_seed(0)
    batches = list(training_batches(source, 16))
    seen = targets_of(batches)
    alone = samples % 16 == 1 and "dataset" in kind and "length" not in kind  # a single one has no batch statistics
    assert len(set(seen)) == len(seen) == samples - alone
    assert all(torch.equal(inputs[:, 0], targets.float()) for inputs, targets in batches)
    if samples > 2 and "list" not in kind and "length" not in kind:
        assert seen != sorted(seen)
        assert targets_of(training_batches(source, 16)) != seen, "another order in the next epoch"
        torch.manual_seed(0)
        assert targets_of(training_batches(source, 16)) == seen, "and the same from the same stream"
    if kind not in ("loader", "loader with a generator of its own"):
        assert targets_of(evaluation_batches(source)) == list(range(samples))


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if "workers" not in kind])
def test_held_out_samples_are_others(kind: str) -> None:
    source = SOURCES[kind](split_of(200))
    training, held_out = recording_batches(source, 16, torch.Generator().manual_seed(0))
    if held_out is None:
        assert sorted(targets_of(training)) == list(range(200))
        return
    sides = targets_of(training), targets_of(held_out)
    assert sorted(sides[0] + sides[1]) == list(range(200))
    assert len(sides[1]) == 50
    assert sides[0] != sorted(sides[0]), "any samples, if not all are wanted"


@pytest.mark.parametrize(("samples", "sizes"), [(200, [50] * 4), (9, [3, 2, 2, 2]), (5, [3, 2]), (2, [1, 1]), (1, [1])])
def test_a_batch_that_is_alone_comes_in_pieces(samples: int, sizes: list[int]) -> None:
    split = split_of(samples)
    named = [({"x": split.inputs, "whole": torch.zeros(samples + 1)}, {"sum": split.targets})]
    generator = torch.Generator()
    for pieces in (recording_batches(named, 16, generator)[0], recording_batches(iter_again(named), 16, generator)[0]):
        found = list(pieces)
        assert [len(targets["sum"]) for _, targets in found] == sizes
        assert [int(target) for _, targets in found for target in targets["sum"]] == list(range(samples))
        assert all(torch.equal(inputs["x"][:, 0], targets["sum"].float()) for inputs, targets in found)
        assert all(len(inputs["whole"]) == samples + 1 for inputs, _ in found)


def test_a_single_training_sample_is_refused_in_a_sentence() -> None:
    for kind in ("list of one batch", "dataset without a length", "dataset", "loader"):

        def first(split: Split, kind: str = kind) -> Source:
            return SOURCES[kind](Split(split.inputs[:1], split.targets[:1]))

        task = bowl(first)
        with pytest.raises(TaskError, match=r"The task Other: the training data failed in a dendrite phase"):
            check_task(task)


class Shaken(Pairs):
    """Its samples are augmented."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = super().__getitem__(index)
        return inputs + 0.1 * torch.randn(2), targets


@pytest.mark.parametrize("workers", [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}])
def test_random_transforms_are_the_same_for_the_same_seed_wherever_a_chain_goes_on(workers: dict[str, Any]) -> None:
    task = bowl(lambda split: DataLoader(Shaken(split), 100, shuffle=True, **workers))
    first, second = run_chain(task, config(seed=2), 1)
    assert second.milestone.growth
    torch.manual_seed(999)
    assert_same_checkpoint(run_rung(task, config(seed=2), first), second)  # with a loader that has not run before


@pytest.mark.parametrize("kind", SOURCES)
def test_a_chain_grows_on_any_source_and_can_be_continued_anywhere(kind: str) -> None:
    task = bowl(SOURCES[kind], BowlWithDropout)
    check_task(task)
    first, second = run_chain(task, config(seed=2), 1)
    assert second.milestone.growth
    torch.manual_seed(999)
    assert_same_checkpoint(run_rung(task, config(seed=2), first), second)
    score = second.milestone.score
    assert evaluate(second.network(task), task, Bowl().data().validation) == pytest.approx(score, rel=1e-5)


def test_batches_may_be_the_networks_arguments_and_have_several_targets() -> None:
    class Two(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.x, self.y, self.head = nn.Linear(1, width), nn.Linear(1, width), nn.Linear(width, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(torch.tanh(self.x(x) + self.y(y)))

    class Named(Bowl):
        def data(self) -> Any:
            data = super().data()
            parts = []
            for split in (data.train, data.validation, data.test):
                rows = [
                    ({"x": x[:, :1], "y": x[:, 1:]}, {"sum": t, "none": t})
                    for x, t in zip(split.inputs.split(25), split.targets.split(25), strict=True)
                ]
                parts.append(rows)
            return Data(*parts)

        def model(self, width: int) -> nn.Module:
            return Two(width)

        def loss(self, outputs: Tensor, targets: Any) -> Tensor:
            return super().loss(outputs, targets["sum"])

    task = Named()
    check_task(task)
    chain = run_chain(task, config(), 1)
    assert chain[0].milestone.score > 0
    with pytest.raises(TaskError, match=r"more than one tensor"):
        in_memory(task.data().test)


def test_augmentation_is_drawn_in_training_and_recording_only() -> None:
    drawn: list[int] = []

    def noisy(inputs: Tensor) -> Tensor:
        drawn.append(len(inputs))
        return inputs + torch.randn_like(inputs)

    class Augmented(Bowl):
        def data(self) -> Data:
            data = super().data()
            parts = (data.train, data.validation, data.test)
            return Data(*(Split(part.inputs, part.targets, noisy) for part in parts))

    task = Augmented()
    evaluate(task.model(1), task, task.data().validation)
    assert not drawn
    chain = run_chain(task, config(seed=2), 1)
    samples = len(task.data().train.inputs)
    epochs = sum(epoch.phase == "neuron" for checkpoint in chain for epoch in checkpoint.history)
    phases = len({(growth.generation, growth.attempt) for one in chain for growth in one.milestone.growth})
    assert sum(drawn) == samples * (epochs + phases)
    again = run_chain(task, config(seed=2), 1)
    for left, right in zip(chain, again, strict=True):
        assert_same_checkpoint(left, right)


class SomeLabels(Bowl):
    """Two targets, of which some are missing."""

    def data(self) -> Data:
        data = super().data()
        parts = []
        for split in (data.train, data.validation, data.test):
            targets = torch.cat([split.targets, -split.targets], 1)
            targets[::3, 0] = NAN
            targets[1::5, 1] = NAN
            parts.append(Split(split.inputs, targets))
        return Data(*parts)

    def model(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        known = targets.isfinite()
        return torch.where(known, outputs - targets.nan_to_num(), 0.0).square().sum(1)


def test_labels_may_be_missing() -> None:
    check_task(SomeLabels())
    chain = run_chain(SomeLabels(), config(seed=2), 1)
    assert chain[1].milestone.growth
    assert all(growth.score > 0 for growth in chain[1].milestone.growth)


def test_a_loss_that_does_not_know_of_missing_labels_is_refused() -> None:
    class Forgetful(SomeLabels):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs - targets).square().sum(1)

    with pytest.raises(TaskError, match=r"NaN|finite"):
        check_task(Forgetful())


def test_the_weight_of_a_class_is_that_of_its_errors_and_of_its_training() -> None:
    class Weighted(Rings):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            weight = torch.tensor([1.0, 0.0])
            return nn.functional.cross_entropy(outputs, targets, weight, reduction="none")

    task, split = Weighted(), Rings().data().train
    network = task.model(2)
    attach(network)
    head = record(network, task.loss, [(split.inputs[:64], split.targets[:64])], [(split.inputs, split.targets)])["2"]
    errors = head.held_out.errors.flatten(1)
    assert torch.equal((errors == 0).all(1), split.targets == 1)
    check_task(task)
    trained = run_chain(task, config(width=2), 0)[0].network(task)
    assert (trained(split.inputs).argmax(1) == 0).double().mean() > 0.9


@pytest.mark.parametrize("variant", ["perforated", "gradient", "random"])
def test_mixed_precision_trains_in_bfloat16_and_keeps_full_weights(variant: str) -> None:
    seen: set[torch.dtype] = set()

    class Watched(Bowl):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            seen.add(outputs.dtype)
            return super().loss(outputs.float(), targets)

    settings = config(mixed_precision=True, dendrites=DendriteSpec(variant=variant), seed=2)
    chain = run_chain(Watched(), settings, 2)
    assert seen == {torch.bfloat16, torch.float32}, "float32 is that of records and scores"
    assert len(chain) > 1
    assert all(value.dtype == torch.float32 for value in chain[-1].weights.values())
    assert_same_checkpoint(run_rung(Watched(), settings, chain[0]), chain[1])


@pytest.mark.parametrize("name", ["cuda:99", "mps", "tpu", "meta", ""])
def test_a_device_that_is_not_there_is_refused_in_a_sentence(name: str) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(InputError, match=name or "''"):
        run_chain(Bowl(), config(), 0, device=name)


def test_the_device_is_found_by_itself() -> None:
    found = device_of("auto").type
    assert found == ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_chain_grows_on_cuda() -> None:
    task = bowl(SOURCES["tensors"], BowlWithDropout)
    chain = run_chain(task, config(seed=2), 1, device="cuda")
    assert all(value.device.type == "cpu" for value in chain[-1].weights.values())
    assert_same_checkpoint(run_rung(task, config(seed=2), chain[0], device="cuda"), chain[1])


def drawn_with(sampler: Sampler[int]) -> DataLoader[Any]:
    return DataLoader(Pairs(split_of(60)), 10, sampler=sampler)


@pytest.mark.parametrize(
    ("loader", "samples"),
    [
        (lambda: drawn_with(RandomSampler(range(60), replacement=True, num_samples=300)), range(60)),
        (lambda: drawn_with(WeightedRandomSampler([1.0] * 60, 300)), range(60)),
        (lambda: drawn_with(SubsetRandomSampler(range(20))), range(20)),
        (lambda: DataLoader(Pairs(split_of(60)), batch_sampler=[[1, 2, 3], [2, 4]]), range(1, 5)),
    ],
)
def test_a_sampler_says_which_samples_there_are_and_none_is_on_both_sides(
    loader: Callable[[], DataLoader[Any]], samples: range
) -> None:
    torch.manual_seed(0)
    training, held_out = recording_batches(loader(), 16, torch.Generator().manual_seed(0))
    assert held_out is not None
    sides = targets_of(training), targets_of(held_out)
    assert not set(sides[0]) & set(sides[1])
    assert len(sides[0] + sides[1]) == len(set(sides[0] + sides[1])) > 0.9 * len(samples)
    assert set(sides[0] + sides[1]) <= set(samples)


def test_a_samplers_own_generator_starts_from_the_global_stream() -> None:
    generator = torch.Generator().manual_seed(7)
    loader = drawn_with(RandomSampler(range(60), generator=generator))
    orders = []
    for _ in range(2):
        torch.manual_seed(0)
        orders.append(targets_of(training_batches(loader, 16)))
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("samples", [513, 684, 2, 3])
def test_no_recorded_batch_is_a_single_sample_if_there_are_others(samples: int) -> None:
    for kind in ("tensors", "dataset", "loader"):
        training, held_out = recording_batches(SOURCES[kind](split_of(samples)), 64, torch.Generator())
        assert held_out is not None
        for side in (training, held_out):
            sizes = [len(targets) for _, targets in side]
            assert min(sizes) > 1 or sizes == [1]
