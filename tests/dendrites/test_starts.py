import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pbp_search.dendrites import starts
from pbp_search.dendrites.starts import Directions

RECORDS = 3000


def correlated(groups: int, length: int, seed: int = 0) -> Tensor:
    """Inputs (R, G, F) of any mean and deviation that hang together."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(groups, length, length, generator=generator) / length**0.5 + torch.eye(length)
    x = torch.randn(RECORDS, groups, length, generator=generator)
    return 3 + torch.einsum("rgf,gfh->rgh", x, mixing)


def directions(inputs: Tensor, errors: Tensor, index: Tensor | None = None, numbers: int = 2**21) -> Directions:
    mean, deviation = inputs.mean(0), inputs.std(0)
    scale = torch.where(deviation > 0, 1 / deviation.clamp(min=1e-6), 0.0)
    if index is not None:
        mean, scale = mean.flatten()[index], scale.flatten()[index]
    return Directions(inputs, mean, scale, errors, index, numbers)


def standardised(inputs: Tensor) -> Tensor:
    return (inputs - inputs.mean(0)) / inputs.std(0).clamp(min=1e-6)


def curved(outputs: Tensor) -> Tensor:
    """Nothing linear, and some noise."""
    squares = outputs.square()
    noise = torch.randn(squares.shape, generator=torch.Generator().manual_seed(9))
    return (squares - squares.mean(0)) / squares.std(0) + 0.3 * noise


def alike(left: Tensor, right: Tensor) -> Tensor:
    """|cosine| along the last dimension."""
    return functional.cosine_similarity(left, right, dim=-1).abs()


@pytest.mark.parametrize("groups", [1, 2])
def test_each_neuron_of_each_kind_finds_the_direction_that_its_errors_are_curved_in(groups: int) -> None:
    inputs = correlated(groups, 6)
    wanted = torch.randn(2, 2 * groups, 6, generator=torch.Generator().manual_seed(1))  # (K, C, F)
    x = standardised(inputs).repeat_interleave(2, 1)  # the inputs of each channel
    errors = curved(torch.einsum("rcf,kcf->rkc", x, wanted))
    found = directions(inputs, errors).leading(1)
    assert found.shape == (2, 1, 2 * groups, 6)
    outputs = torch.einsum("rcf,kcf->kcr", x, found[:, 0])
    assert bool((alike(outputs, torch.einsum("rcf,kcf->kcr", x, wanted)) > 0.97).all())
    torch.testing.assert_close(outputs.std(-1), torch.ones(2, 2 * groups), rtol=0.02, atol=0.0)


def test_further_directions_are_those_that_bend_less_and_say_something_else() -> None:
    inputs = torch.randn(RECORDS, 1, 5, generator=torch.Generator().manual_seed(0))
    errors = (2 * inputs[:, 0, 3].square() - inputs[:, 0, 1].square()).reshape(-1, 1, 1)
    found = directions(inputs, errors).leading(2)[0, :, 0]
    for direction, wanted in zip(found, (3, 1), strict=True):
        assert int(direction.abs().argmax()) == wanted
        assert float(direction.abs().max()) > 0.95 * float(direction.norm())


def test_of_some_inputs_the_directions_are_those_of_records_without_the_others() -> None:
    inputs = correlated(1, 6)
    few = torch.tensor([[0, 2, 5], [1, 2, 3]])
    x = standardised(inputs)[:, 0]
    wanted = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    outputs = torch.stack([x[:, some] @ w for some, w in zip(few, wanted, strict=True)], 1)
    found = directions(inputs, curved(outputs).unsqueeze(1), few).leading(1)[0, 0]
    for channel, some in enumerate(few):
        assert float(alike(x[:, some] @ found[channel], outputs[:, channel])) > 0.97
        alone = directions(inputs[..., some], curved(outputs)[:, channel].reshape(-1, 1, 1)).leading(1)[0, 0, 0]
        assert float(alike(found[channel], alone)) > 0.999


def test_the_few_inputs_of_a_neuron_are_those_of_its_group() -> None:
    inputs = torch.randn(RECORDS, 2, 4, generator=torch.Generator().manual_seed(3))
    errors = torch.stack([inputs[:, 0, 2].square(), inputs[:, 1, 1].square()], 1).unsqueeze(1)
    found = directions(inputs, errors, torch.tensor([[1, 2], [5, 6]])).leading(1)[0, 0].abs()
    assert int(found[0].argmax()) == 1
    assert int(found[1].argmax()) == 0


@pytest.mark.parametrize("constant", [0, 3])
def test_constant_inputs_have_no_part(constant: int) -> None:
    inputs = correlated(1, 4)
    inputs[:, :, constant] = 2.0
    errors = curved(standardised(inputs).sum(2)).unsqueeze(1)
    found = directions(inputs, errors).leading(4)
    assert bool(found.isfinite().all())
    assert float(found[..., constant].abs().max()) == 0.0


def test_inputs_that_say_the_same_are_one_direction() -> None:
    inputs = torch.randn(RECORDS, 1, 2, generator=torch.Generator().manual_seed(4)).repeat(1, 1, 2)
    errors = curved(inputs[:, 0, :1]).unsqueeze(1)
    found = directions(inputs, errors).leading(1)[0, 0, 0]
    assert bool(found.isfinite().all())
    assert float(alike(inputs[:, 0] @ found, inputs[:, 0, 0])) > 0.97
    assert float(found.norm()) < 2.0


def test_no_more_directions_than_components_and_the_linear_one_are_found() -> None:
    assert directions(correlated(1, 3), torch.randn(RECORDS, 1, 2)).leading(8).shape == (1, 4, 2, 3)


def test_errors_of_nothing_make_no_infinity() -> None:
    inputs = correlated(1, 3)
    assert bool(directions(inputs, torch.zeros(RECORDS, 1, 2)).leading(2).isfinite().all())
    assert bool(directions(torch.ones(50, 1, 3), torch.randn(50, 1, 2)).leading(2).isfinite().all())


def test_pieces_do_not_change_the_directions() -> None:
    inputs = correlated(2, 4)
    errors = curved(standardised(inputs)[:, :, 0]).unsqueeze(1)
    found, rows = directions(inputs, errors), torch.arange(RECORDS)
    pieces, whole = (
        found._moments(inputs, inputs.mean(0), 1 / inputs.std(0), errors, None, rows, numbers)
        for numbers in (100, 10**9)
    )
    for one, other in zip(pieces, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_what_is_linear_comes_first_where_it_says_more() -> None:
    x = torch.randn(RECORDS, 1, 5, generator=torch.Generator().manual_seed(0))
    weak, strong = 0.3 * x[:, 0, 1], x[:, 0, 2]
    for errors, wanted in ((weak.square() + strong, 2), (strong.square() + weak, 2), (weak + 0.1 * strong.square(), 1)):
        found = directions(x, errors.reshape(-1, 1, 1))
        assert int(found.leading(1)[0, 0, 0].abs().argmax()) == wanted
    # Of the last: only linear candidates ask for what is linear alone.
    assert (
        int(directions(x, (strong.square() + weak).reshape(-1, 1, 1)).leading(1, linear=True)[0, 0, 0].abs().argmax())
        == 1
    )


@pytest.mark.parametrize("length", [64, 256])
def test_of_few_inputs_among_many_the_directions_have_deviation_1_and_are_found(length: int) -> None:
    x = torch.randn(6000, 1, length, generator=torch.Generator().manual_seed(1))
    few = torch.stack([torch.randperm(length, generator=torch.Generator().manual_seed(c))[:16] for c in range(3)])
    wanted = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    outputs = torch.stack([x[:, 0, some] @ w for some, w in zip(few, wanted, strict=True)], 1)
    squares = outputs.square()
    errors = ((squares - squares.mean(0)) / squares.std(0)).unsqueeze(1)
    found = directions(x, errors, few).leading(1)[0, 0]
    said = torch.stack([x[:, 0, some] @ w for some, w in zip(few, found, strict=True)], 1)
    assert bool((alike(found, wanted) > 0.95).all())
    torch.testing.assert_close(said.std(0), torch.ones(3), rtol=0.15, atol=0.0)


def test_many_groups_and_little_room_leave_enough_records_for_components() -> None:
    x = torch.randn(2000, 96, 4, generator=torch.Generator().manual_seed(3))
    errors = (x[:, :, 2].square() - 1).unsqueeze(1)
    found = directions(x, errors, numbers=4000).leading(1)[0, 0]
    wanted = torch.zeros(4)
    wanted[2] = 1.0
    assert float(alike(found, wanted.expand(96, -1)).median()) > 0.95


@pytest.mark.parametrize(("limit", "value"), [("_MOMENTS", 18), ("_ERRORS", 1000), ("_SAMPLE", 500)])
def test_within_any_limit_the_strongest_direction_is_found(
    limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, limit, value)
    inputs = torch.randn(RECORDS, 1, 10, generator=torch.Generator().manual_seed(5))
    inputs[:, :, :2] *= 20  # scaled below as they are: these two are the leading components
    errors = curved(inputs[:, 0, 1:2]).repeat(1, 2).unsqueeze(1)
    found = Directions(inputs, inputs.mean(0), torch.ones(1, 10), errors).leading(1)[0, 0]
    outputs = inputs[:, 0] @ found.T
    assert bool((alike(outputs.T, inputs[:, 0, 1].expand(2, -1)) > 0.95).all())
