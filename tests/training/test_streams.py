import itertools

import pytest
import torch

from pbp_search.training.streams import generator, global_stream, key


def test_every_part_of_a_key_counts() -> None:
    parts = itertools.product((0, 1, 11), ("neuron", "dendrite"), (0, 1, 11), (0, 1, 11))
    keys = [key(*part) for part in parts]
    assert len(set(keys)) == len(keys)
    assert all(0 <= value < 2**63 for value in keys)
    assert key(1, "neuron", 2) == key(1, "neuron", 2)
    assert key(1, "neuron") != key(1, "neuron", 0)


def test_a_generator_is_the_stream_of_its_key() -> None:
    first = torch.rand(5, generator=generator(3, "dendrite", 1))
    torch.rand(7)
    assert torch.equal(first, torch.rand(5, generator=generator(3, "dendrite", 1)))
    assert not torch.equal(first, torch.rand(5, generator=generator(3, "dendrite", 2)))


def test_the_global_stream_is_keyed_inside_and_restored_outside() -> None:
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    with global_stream(0, "neuron", 5):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(2)
    with global_stream(0, "neuron", 5):
        assert torch.equal(torch.rand(4), inside)
        with global_stream(0, "neuron", 6):
            assert not torch.equal(torch.rand(4), inside)


def test_the_global_stream_is_restored_after_an_error() -> None:
    state = torch.get_rng_state()

    @global_stream(0, "neuron")
    def failing() -> None:
        torch.rand(4)
        raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert torch.equal(torch.get_rng_state(), state)
