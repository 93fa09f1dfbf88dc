"""Networks that a first look at a task must see through, or say what is wrong with."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbp_search.errors import TaskError
from pbp_search.training import check_task
from tests.training.tiny_tasks import Bowl


class Experts(nn.Module):
    """Samples are sent to one of many experts, by their own."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(2, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        sent = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        outputs = x.new_zeros(len(x), 1)
        for number, expert in enumerate(self.experts):
            outputs = outputs.index_add(0, rows := (sent == number).nonzero()[:, 0], expert(x[rows]))
        return outputs


class Overwriting(nn.Module):
    """Changes what the backward pass needs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x) * 1.0
        outputs: Tensor = self.second(hidden)
        hidden.mul_(2)
        return outputs


def bowl_of(network: type[nn.Module]) -> Any:
    class Other(Bowl):
        def model(self, width: int) -> nn.Module:
            return network()

    return Other()


def test_experts_that_the_first_samples_are_not_sent_to_take_dendrites_all_the_same() -> None:
    task = bowl_of(Experts)
    x = task.data().train.inputs
    assert len(torch.unique((x[:64] > 0).long() @ torch.tensor([1, 2]))) == 4, "all are reached by some"
    check_task(task)


def test_a_backward_pass_that_fails_is_said_in_a_sentence() -> None:
    with pytest.raises(TaskError, match=r"the backward pass failed: .*inplace operation"):
        check_task(bowl_of(Overwriting))
