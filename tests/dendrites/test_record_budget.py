import pytest
import torch
from torch import nn

from pbp_search.dendrites import attach, record
from tests.dendrites.test_record import squared_loss


@pytest.mark.parametrize("budget", [2_000, 20_000, 10**9])
def test_records_obey_a_budget(budget: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    inputs, targets = torch.randn(300, 2, 20), torch.randn(300, 4)
    attach(network)
    kept = record(network, squared_loss, inputs, targets, batch_size=10, budget=budget)
    sizes = {name: one.inputs.nbytes + one.errors.nbytes for name, one in kept.items() if one.inputs is not None}
    assert set(sizes) == {"0", "2"}
    for name, one in kept.items():
        assert one.inputs is not None
        a_batch = 10 * one.errors.shape[1] * (one.inputs.shape[-1] + 4) * 4
        assert sizes[name] <= budget // 2 + a_batch, "the last batch may pass the limit"
    if budget == 10**9:
        assert [one.errors.shape[:2] for one in kept.values()] == [(300, 18), (300, 16)]


def test_samples_and_positions_are_drawn_where_there_are_more_than_enough() -> None:
    network = nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    inputs, targets = torch.randn(100, 2, 20), torch.randn(100, 4)
    attach(network)
    some = record(network, squared_loss, inputs, targets, rows=200)["0"]
    assert some.errors.shape == (100, 2, 4)
    fewer = record(network, squared_loss, inputs, targets, rows=40)["0"]
    assert fewer.errors.shape == (40, 1, 4)
    assert fewer.inputs is not None
    # Every kept row is a patch of some sample at some position.
    everything = record(network, squared_loss, inputs, targets)["0"]
    assert everything.inputs is not None
    rows = {tuple(row) for row in everything.inputs.flatten(0, 2).tolist()}
    assert all(tuple(row) in rows for row in fewer.inputs.flatten(0, 2).tolist())
    again = record(network, squared_loss, inputs, targets, rows=40)["0"]
    assert again.inputs is not None
    assert torch.equal(fewer.inputs, again.inputs)
