import copy

import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites import DendriteSpec, Dendritic, attach
from pbp_search.dendrites.ahead import Ahead
from tests.dendrites.grown_networks import add_generations, all_modules, dendritic

ENOUGH = 2**20


def looking_ahead(module: Dendritic, samples: Tensor, limit: int = ENOUGH) -> Tensor:
    """A module that knows all samples, and batches of which it is told."""
    rows = torch.randperm(len(samples))
    gathered = samples[rows]
    module.ahead = Ahead(samples, limit)
    module.ahead.gather(gathered, rows)
    return gathered


def same_as_alone(module: Dendritic, x: Tensor) -> bool:
    """The activations at x are what the module says of it alone. Returns whether they were known."""
    alone = copy.deepcopy(module)
    alone.ahead = None
    found = module.activations(x)
    for left, right in zip(found, alone.activations(x.clone()), strict=True):
        assert left.shape == right.shape
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)
    assert not any(activation.requires_grad for activation in found)
    return all(activation.untyped_storage().nbytes() > activation.nbytes for activation in found)


@pytest.mark.parametrize("leading", [(), (5,)])
def test_activations_of_batches_are_those_of_all_samples(leading: tuple[int, ...]) -> None:
    module = dendritic(3, 4, 3, dtype=torch.float64)
    samples = torch.randn(11, *leading, 3, dtype=torch.float64)
    for _ in range(2):  # epochs
        gathered = looking_ahead(module, samples)
        for x in gathered.split([4, 4, 3]):
            assert same_as_alone(module, x)
            assert same_as_alone(module, x.flatten(1).reshape(x.shape)), "still a view"
    module.ahead = None
    assert not same_as_alone(module, gathered[:4])


@pytest.mark.parametrize("fan_in", [None, 2])
def test_convolutions_know_the_samples_too(fan_in: int | None) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Unflatten(1, (2, 6)), nn.Conv1d(2, 3, 3)).double()
    (module,) = attach(network, DendriteSpec(fan_in=fan_in)).values()
    add_generations(module, 2)
    samples = torch.randn(9, 12, dtype=torch.float64)
    gathered = looking_ahead(module, samples)
    for x in gathered.split(3):
        assert same_as_alone(module, network[0](x))


def test_dendrites_are_asked_once_whatever_the_epochs() -> None:
    module = dendritic(3, 4, 2)
    asked: list[int] = []
    layer = module.get_submodule("dendrites.1").module

    class Counting(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            asked.append(len(input))
            return nn.Linear.forward(self, input)

    samples = torch.randn(12, 3)
    layer.__class__ = Counting
    ahead = module.ahead = Ahead(samples, ENOUGH)
    for _ in range(3):
        rows = torch.randperm(12)
        gathered = samples[rows]
        ahead.gather(gathered, rows)
        for x in gathered.split(4):
            module(x)
    assert asked == [1, 12], "one to learn how large it is"


@pytest.mark.parametrize("view", ["changed", "changed before", "another", "part", "transposed", "single", "regrouped"])
def test_what_is_not_a_batch_of_the_samples_as_they_were_is_worked_out_by_itself(view: str) -> None:
    module = dendritic(3, 4, 2, dtype=torch.float64)
    gathered = looking_ahead(module, torch.randn(12, 3, 3, dtype=torch.float64))
    if view == "changed before":
        gathered[:4].mul_(3)
    assert same_as_alone(module, gathered[:4]) == (view != "changed before")
    x = {
        "changed": gathered[4:8],
        "changed before": gathered[4:8],
        "another": torch.randn(4, 3, 3, dtype=torch.float64).view(12, 3),
        "part": gathered[4:8, 1],
        "transposed": gathered[4:8].transpose(0, 1),
        "single": gathered[5, 1],
        "regrouped": gathered[4:8].view(-1, 3),
    }[view]
    if "changed" in view:
        x.add_(1)
    assert not same_as_alone(module, x)
    assert same_as_alone(module, gathered[8:]) == ("changed" not in view)


def test_samples_that_change_and_dendrites_that_come_are_noticed() -> None:
    module = dendritic(3, 4, 1, dtype=torch.float64)
    samples = torch.randn(12, 3, dtype=torch.float64)
    gathered = looking_ahead(module, samples)
    assert same_as_alone(module, gathered[:4])
    add_generations(module, 1)
    assert same_as_alone(module, gathered[:4])


def test_activations_that_are_too_large_are_not_kept() -> None:
    module = dendritic(3, 4, 2, dtype=torch.float64)
    samples = torch.randn(12, 3, dtype=torch.float64)
    assert same_as_alone(module, looking_ahead(module, samples, 2 * 2 * 12 * 4 * 8)[:4])
    assert not same_as_alone(module, looking_ahead(module, samples, 2 * 2 * 12 * 4 * 8 - 1)[:4])


def test_other_modules_work_batch_by_batch() -> None:
    recurrent = nn.Sequential(nn.GRU(3, 4, batch_first=True))
    attach(recurrent)
    joint = nn.Sequential(nn.Linear(3, 4))
    attach(joint, DendriteSpec(variant="gradient"))
    for network, shape in ((recurrent, (6, 5, 3)), (joint, (6, 3))):
        (module,) = all_modules(network)
        add_generations(module, 1)
        gathered = looking_ahead(module, torch.randn(shape))
        known = [activation.untyped_storage().nbytes() for activation in module.activations(gathered[:2])]
        assert known == [activation.nbytes for activation in module.activations(gathered[:2])]


def test_hooks_of_a_dendrites_layer_see_every_batch() -> None:
    module, seen = dendritic(3, 4, 2), list[int]()
    module.get_submodule("dendrites.1.module").register_forward_hook(
        lambda layer, args, output: seen.append(len(args[0]))
    )
    for x in looking_ahead(module, torch.randn(6, 3)).split(2):
        module(x)
    assert seen == [2, 2, 2]
