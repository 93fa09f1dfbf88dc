import copy

import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites.optimiser import Adam, flatten


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3, bias=False)).to(dtype)


def loss_of(trained: nn.Module, x: Tensor) -> Tensor:
    return trained(x).square().mean()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_those_of_torchs_adam(weight_decay: float) -> None:
    ours, theirs, x = network(), network(), torch.randn(20, 5)
    adam = Adam(list(ours.parameters()), 0.01, weight_decay)
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    reference = kind(theirs.parameters(), lr=0.01, weight_decay=weight_decay)
    for _ in range(25):
        for trained, optimiser in ((ours, adam), (theirs, reference)):
            optimiser.zero_grad()
            loss_of(trained, x).backward()
            optimiser.step()
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_some_parameters_take_no_weight_decay() -> None:
    decayed, kept = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    adam = Adam([decayed], 0.1, weight_decay=0.5, undecayed=[kept])
    adam.zero_grad()
    adam.step()
    assert torch.equal(kept, torch.ones(3))
    torch.testing.assert_close(decayed.detach(), torch.full((3,), 0.95))


def test_parameters_of_different_types_and_none_at_all_are_trained() -> None:
    single, double, empty = (
        nn.Parameter(torch.ones(2)),
        nn.Parameter(torch.ones(2).double()),
        nn.Parameter(torch.ones(0)),
    )
    adam = Adam([single, double, empty], 0.1)
    (single.sum() + double.sum() + empty.sum()).backward()
    adam.step()
    torch.testing.assert_close(single.detach(), torch.full((2,), 0.9))
    torch.testing.assert_close(double.detach(), torch.full((2,), 0.9).double())
    Adam([], 0.1).step()


def test_flat_parameters_are_the_parameters() -> None:
    trained, x = network(), torch.randn(4, 5)
    before, state = trained(x).detach(), copy.deepcopy(trained.state_dict())
    (flat,) = flatten(list(trained.parameters()))
    assert flat.numel() == sum(parameter.numel() for parameter in trained.parameters())
    assert torch.equal(trained(x), before)
    loss_of(trained, x).backward()
    assert flat.grad is not None
    assert bool(flat.grad.any())
    with torch.no_grad():
        flat.zero_()
    assert not any(bool(parameter.any()) for parameter in trained.parameters())
    trained.load_state_dict(state)  # copies into the buffer
    assert bool(flat.any())
    assert torch.equal(trained(x), before)


def test_gradients_stay_views_over_steps() -> None:
    trained, x = network(), torch.randn(4, 5)
    adam = Adam(list(trained.parameters()), 0.01)
    places = [parameter.grad.data_ptr() for parameter in trained.parameters() if parameter.grad is not None]
    for _ in range(3):
        adam.zero_grad()
        assert not any(bool(parameter.grad.any()) for parameter in trained.parameters() if parameter.grad is not None)
        loss_of(trained, x).backward()
        adam.step()
    assert places == [parameter.grad.data_ptr() for parameter in trained.parameters() if parameter.grad is not None]
    assert len(places) == 3
