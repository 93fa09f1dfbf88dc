import copy

import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites import attach
from pbp_search.dendrites.optimiser import Adam
from pbp_search.errors import TrainingError


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
    for parameter in (decayed, kept):
        parameter.grad = torch.zeros(3)
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


class Tied(nn.Module):
    """Two layers with one weight, and a part that only some batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.rare = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.right.weight = self.left.weight
        self.never = nn.Linear(3, 3)

    def forward(self, x: Tensor, rarely: bool = False) -> Tensor:
        y = self.right(torch.tanh(self.left(x)))
        return self.rare(y) if rarely else y


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_parameter_without_a_gradient_is_treated_as_by_torchs_adam(weight_decay: float) -> None:
    torch.manual_seed(0)
    ours, x = Tied(), torch.randn(4, 3)
    theirs = copy.deepcopy(ours)
    start = copy.deepcopy(ours.never.state_dict())
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=weight_decay)
    adam = Adam(list(ours.parameters()), 0.01, weight_decay)
    for step in range(12):
        for trained, optimiser in ((ours, adam), (theirs, reference)):
            optimiser.zero_grad()
            trained(x, rarely=step % 3 == 1).square().sum().backward()
            optimiser.step()
    assert ours.left.weight is ours.right.weight
    for (name, left), right in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6, msg=name)
    assert all(torch.equal(start[name], value) for name, value in ours.never.state_dict().items())


def test_modules_used_twice_are_trained_as_by_torchs_adam() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    ours = nn.Sequential(layer, nn.Tanh(), layer)
    for module in attach(ours).values():
        module.accept(module.generation())
    theirs, x = copy.deepcopy(ours), torch.randn(4, 3)
    adam = Adam([parameter for parameter in ours.parameters() if parameter.requires_grad], 0.01)
    reference = torch.optim.Adam(theirs.parameters(), lr=0.01)
    for _ in range(9):
        for trained, optimiser in ((ours, adam), (theirs, reference)):
            optimiser.zero_grad()
            loss_of(trained, x).backward()
            optimiser.step()
    assert [parameter.shape for parameter in ours.parameters()] == [
        parameter.shape for parameter in theirs.parameters()
    ]
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_gradients_and_values_may_be_exchanged_by_the_user() -> None:
    trained, x = network(), torch.randn(4, 5)
    adam = Adam(list(trained.parameters()), 0.01)
    for _ in range(2):
        trained.zero_grad(set_to_none=True)
        for parameter in trained.parameters():
            parameter.data = parameter.detach().clone()
        before = copy.deepcopy(trained.state_dict())
        loss_of(trained, x).backward()
        adam.step()
        assert not any(torch.equal(before[name], value) for name, value in trained.state_dict().items())


def test_a_network_that_changes_its_type_while_it_is_trained_is_an_error() -> None:
    trained = network()
    adam = Adam(list(trained.parameters()), 0.01)
    loss_of(trained.double(), torch.randn(4, 5).double()).backward()
    with pytest.raises(TrainingError, match=r"moved to another type or device while it was trained: move it"):
        adam.step()
