import copy
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites import Record, attach, dendritic_modules, record
from pbp_search.dendrites.probe import work_bytes
from pbp_search.dendrites.record import Part
from pbp_search.errors import InputError
from tests.dendrites.grown_networks import assert_same_bits, in_batches
from tests.dendrites.test_record import squared_loss


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())


def parts(kept: Record) -> tuple[Part, Part]:
    return kept.training, kept.held_out


def inputs_of(part: Part) -> Tensor:
    assert part.inputs is not None
    return part.inputs


def size(kept: Record) -> int:
    return sum(inputs_of(part).nbytes + part.errors.nbytes for part in parts(kept))


@pytest.mark.parametrize("budget", [4_000, 40_000, 10**9])
def test_records_obey_a_budget(budget: int) -> None:
    network, inputs, targets = convolutions(), torch.randn(300, 2, 20), torch.randn(300, 4)
    attach(network)
    kept = record(network, squared_loss, in_batches(inputs, targets, 10), budget=budget, rows=10**5)
    assert set(kept) == {"0", "2"}
    assert sum(map(size, kept.values())) <= budget / 2
    (first, _) = dendritic_modules(network).values()
    work = work_bytes(first, kept["0"].training.errors[..., 0].numel())
    assert work + sum(map(size, kept.values())) <= budget
    if budget < 10**9:
        assert work > 0.6 * 0.75 * budget / 2, "and it is made use of"
    else:
        assert [part.errors.shape for one in kept.values() for part in parts(one)] == [
            (220, 18, 4),
            (80, 18, 4),
            (220, 16, 4),
            (80, 16, 4),
        ]


def test_what_one_module_does_not_need_is_left_to_the_others() -> None:
    network = nn.Sequential(nn.Linear(200, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    attach(network)
    batches = in_batches(torch.randn(500, 200), torch.randn(500, 2), 50)
    kept = record(network, squared_loss, batches, budget=400_000, rows=400)
    assert [one.training.errors.shape[0] for one in kept.values()] == [51, 300, 300]
    # A quarter is left alone; of the rest three quarters are for the work, because products and candidates take much.
    (first, *_) = dendritic_modules(network).values()
    assert work_bytes(first, 69) == 69 * (4 * 200 + 32 * 2) + 28 * 69**2 + 40 * 2 * 2 * 200
    assert work_bytes(first, 69) <= 225_000 < work_bytes(first, 70)
    assert int(0.75 * 69) == 51


def test_samples_and_positions_are_drawn_where_there_are_more_than_enough() -> None:
    network, inputs, targets = convolutions(), torch.randn(100, 2, 20), torch.randn(100, 4)
    attach(network)
    batches = in_batches(inputs, targets, 10)
    some = record(network, squared_loss, batches, rows=200)["0"]
    assert [part.errors.shape for part in parts(some)] == [(70, 2, 4), (25, 2, 4)]
    fewer = record(network, squared_loss, batches, rows=40)["0"]
    assert [part.errors.shape for part in parts(fewer)] == [(30, 1, 4), (10, 1, 4)]
    # Every kept row is a patch of some sample at some position, with the error there.
    every = record(network, squared_loss, batches, rows=10**6)["0"]
    pairs = {
        (*x, *e)
        for part in parts(every)
        for x, e in zip(inputs_of(part).flatten(0, 2).tolist(), part.errors.flatten(0, 1).tolist(), strict=True)
    }
    for one in (some, fewer):
        for part in parts(one):
            rows = zip(inputs_of(part).flatten(0, 2).tolist(), part.errors.flatten(0, 1).tolist(), strict=True)
            assert all((*x, *e) in pairs for x, e in rows)
    again = record(network, squared_loss, batches, rows=40)["0"]
    assert_same_bits(inputs_of(fewer.training), inputs_of(again.training))


def test_each_sample_has_positions_of_its_own() -> None:
    network = nn.Sequential(nn.Conv1d(1, 2, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    attach(network)
    inputs = torch.arange(20.0).expand(64, 1, 20)  # what a position sees tells which it is
    kept = record(network, squared_loss, in_batches(inputs, torch.randn(64, 2), 16), rows=3 * 64)["0"]
    drawn = inputs_of(kept.training)[:, :, 0, 0]
    assert drawn.shape == (48, 3)
    assert all(len(set(row)) == 3 for row in drawn.tolist()), "none of a sample twice"
    assert len({tuple(row) for row in drawn.tolist()}) > 30


def test_no_sample_is_on_both_sides_whatever_a_layer_does_to_the_rows() -> None:
    class Twice(nn.Module):
        """Samples twice in a batch, and steps of time before samples, flattened."""

        def __init__(self) -> None:
            super().__init__()
            self.twice = nn.Linear(3, 3)
            self.steps = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:  # (N, T, 3)
            doubled = self.twice(torch.cat([x.sum(1), -x.sum(1)]))
            steps = self.steps(x.transpose(0, 1).flatten(0, 1))
            return doubled.unflatten(0, (2, -1)).sum(0) + steps.unflatten(0, (x.shape[1], -1)).sum(0)

    network, inputs = Twice(), torch.zeros(40, 5, 3)
    inputs[:, :, 0] = torch.arange(1.0, 41).unsqueeze(1)  # names the sample
    attach(network)
    for kept in record(network, squared_loss, in_batches(inputs, torch.randn(40, 3), 10)).values():
        sides = [set(inputs_of(part)[..., 0].abs().flatten().tolist()) for part in parts(kept)]
        assert not sides[0] & sides[1]
        assert [len(side) for side in sides] == [30, 10]


def stream(batches: int, passed: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    for index in range(batches):
        passed.append(index)
        yield torch.randn(8, 2, 20), torch.randn(8, 4)


def test_a_stream_of_unknown_length_is_passed_until_the_records_are_full() -> None:
    network, passed = convolutions(), list[int]()
    attach(network)
    kept = record(network, squared_loss, stream(1000, passed), rows=160)
    assert [part.errors.shape[:2] for one in kept.values() for part in parts(one)] == [(120, 1), (40, 1)] * 2
    assert len(passed) == 21, "15 batches and 5 to hold out, and one to find that it is enough"


def test_a_single_batch_cannot_be_held_out() -> None:
    network = convolutions()
    attach(network)
    with pytest.raises(InputError, match=r"at least 2 batches.*pass smaller batches"):
        record(network, squared_loss, in_batches(torch.randn(8, 2, 20), torch.randn(8, 4)))


def test_inputs_may_be_the_networks_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(2, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.left(x) + self.right(y)

    network, x, y, targets = Two(), torch.randn(8, 2), torch.randn(8, 3), torch.randn(8, 3)
    attach(network)
    rows = [slice(0, 4), slice(4, 8)]
    by_place = record(network, squared_loss, [((x[some], y[some]), targets[some]) for some in rows])
    by_name = record(network, squared_loss, [({"y": y[some], "x": x[some]}, targets[some]) for some in rows])
    for name, expected in (("left", x), ("right", y)):
        for kept in (by_place[name], by_name[name]):
            assert_same_bits(inputs_of(kept.training)[:, 0, 0], expected[:4])
            assert_same_bits(inputs_of(kept.held_out)[:, 0, 0], expected[4:])


def test_large_batches_pass_in_pieces_that_the_budget_affords() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.sizes = nn.Linear(100, 100), list[int]()

        def forward(self, x: Tensor) -> Tensor:
            self.sizes.append(len(x))
            return self.layer(x)

    network = Counting()
    attach(network)
    batches = in_batches(torch.randn(400, 100), torch.randn(400, 100), 100)
    whole = record(network, squared_loss, batches)["layer"]
    assert set(network.sizes) == {2, 100}
    network.sizes.clear()
    pieces = record(network, squared_loss, batches, budget=2**20)["layer"]
    # A sixteenth of the budget for three times the 800 bytes that each sample brings in and out.
    assert max(network.sizes) <= 2**16 / 2400 < 2 * max(network.sizes)
    for one, other in zip(parts(whole), parts(pieces), strict=True):
        assert_same_bits(inputs_of(one)[: len(inputs_of(other))], inputs_of(other))


def test_calls_of_a_block_obey_the_budget() -> None:
    network = nn.Sequential(nn.GRU(8, 8, batch_first=True), Last())
    attach(network)
    batches = in_batches(torch.randn(400, 10, 8), torch.randn(400, 8), 100)
    kept = record(network, squared_loss, batches, budget=200_000)["0"]
    taken = sum(
        part.errors.nbytes + sum(call.args[0].nbytes for calls in part.calls for call in calls) for part in parts(kept)
    )
    assert 7_000 < taken <= 12_500, "a sixteenth of the budget: candidates of both kinds of errors run on it"


class Last(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0][:, -1]


def test_recording_leaves_no_python_memory_behind() -> None:
    network = convolutions()
    attach(network)
    batches = in_batches(torch.randn(64, 2, 20), torch.randn(64, 4), 16)
    record(network, squared_loss, batches)
    before = copy.deepcopy(network.state_dict())
    tracemalloc.start()
    first = tracemalloc.take_snapshot()
    for _ in range(20):
        record(network, squared_loss, batches)
    grown = sum(stat.size_diff for stat in tracemalloc.take_snapshot().compare_to(first, "filename"))
    tracemalloc.stop()
    assert grown < 100_000
    for name, value in network.state_dict().items():
        assert_same_bits(value, before[name])


def test_a_loss_that_is_not_one_number_for_each_sample_is_refused() -> None:
    network = convolutions()
    attach(network)
    batches = in_batches(torch.randn(16, 2, 20), torch.randn(16, 4), 8)
    with pytest.raises(InputError, match=r"shape \(\) for 8 samples: it must be one loss per sample, shape \(8,\)"):
        record(network, lambda outputs, targets: (outputs - targets).square().mean(), batches)


@pytest.mark.parametrize("batches", [[{"x": 1, "y": 2}], [(torch.ones(2, 2, 20),)], ["ab"]])
def test_a_batch_that_is_no_pair_is_refused(batches: list[Any]) -> None:
    network = convolutions()
    attach(network)
    with pytest.raises(InputError, match=r"A batch must be a pair of inputs and targets, not (dict|tuple|str)"):
        record(network, squared_loss, batches)


def test_a_network_without_dendrites_is_refused() -> None:
    with pytest.raises(InputError, match=r"attach dendrites to it first"):
        record(convolutions(), squared_loss, in_batches(torch.randn(8, 2, 20), torch.randn(8, 4), 4))


def test_empty_batches_are_passed_over() -> None:
    network, inputs, targets = convolutions(), torch.randn(16, 2, 20), torch.randn(16, 4)
    attach(network)
    batches = [(inputs[:0], targets[:0]), *in_batches(inputs, targets, 4)]
    kept = record(network, squared_loss, batches)["0"]
    assert [len(part.errors) for part in parts(kept)] == [12, 4]
