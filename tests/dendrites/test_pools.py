"""The batches that candidates learn from."""

import pytest
import torch
from torch import nn

from pbp_search.dendrites import DendriteSpec, Dendritic, attach
from pbp_search.dendrites.pools import PatchPart
from pbp_search.dendrites.record import Part


def part(records: int, channels: int, pool: int = 1) -> PatchPart:
    network = nn.Sequential(nn.Linear(3, channels))
    attach(network, DendriteSpec(pool=pool))
    module = network[0]
    assert isinstance(module, Dendritic)
    return PatchPart(module, Part(torch.randn(records, 1, 1, 3), torch.randn(records, 1, channels)))


@pytest.mark.parametrize(("records", "channels", "size"), [(2000, 64, 500), (20_000, 64, 2048), (20_000, 4, 5000)])
def test_a_batch_is_a_quarter_of_the_records_or_large(records: int, channels: int, size: int) -> None:
    some = part(records, channels)
    steps = [rows for rows in some.batches(torch.Generator().manual_seed(0)) if rows is not None]
    assert len(steps) == 8
    for rows in steps:
        assert len(rows) == len(rows.unique()) == size
    # Four steps see nearly all records.
    assert len(torch.cat(steps[:4]).unique()) > min(0.9 * records, 4 * size - 1)


def test_few_records_are_taken_whole() -> None:
    assert list(part(500, 4).batches(torch.Generator())) == [None] * 8


def test_very_many_candidates_are_given_fewer_records_a_step() -> None:
    assert part(20_000, 512, pool=4).batch == 512
    assert part(20_000, 512, pool=64).batch == 256


def test_all_rows_are_scored_in_pieces() -> None:
    rows = torch.cat(list(part(5001, 64).pieces()))
    assert torch.equal(rows, torch.arange(5001))
