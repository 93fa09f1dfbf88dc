import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import optim
from torch.optim import lr_scheduler

from pbp_search.errors import TaskError
from pbp_search.training import Checkpoint, TrialConfig, build_network, check_task, run_chain
from pbp_search.training.optimisers import optimiser_of
from tests.training import optimised_tasks
from tests.training.optimised_tasks import TASKS
from tests.training.tiny_tasks import Rings, assert_same_checkpoint, config


def test_a_chain_goes_on_in_another_process_bit_for_bit_with_any_optimiser_and_schedule(tmp_path: Path) -> None:
    chains = {task.name: run_chain(task, config(seed=3), 2) for task in TASKS}
    for name, chain in chains.items():
        assert chain[1].milestone.accepted
        chain[1].save(tmp_path / f"{name}.before")
    program = [sys.executable, "-m", optimised_tasks.__name__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "77"}
    subprocess.run(program, check=True, env=environment, cwd=Path(optimised_tasks.__file__).parents[2])
    for name, chain in chains.items():
        assert_same_checkpoint(Checkpoint.load(tmp_path / f"{name}.after"), chain[2])


def optimised(make: Callable[[Any], optim.Optimizer]) -> Rings:
    class Own(Rings):
        def optimiser(self, parameters: list[dict[str, Any]], config: TrialConfig) -> optim.Optimizer:
            return make(parameters)

    return Own()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (optim.LBFGS, "optimiser or scheduler failed .*: ValueError: LBFGS doesn't support per-parameter options"),
        (
            lambda groups: optim.LBFGS([parameter for group in groups for parameter in group["params"]]),
            "a step of the optimiser LBFGS failed: .*'closure'",
        ),
        (optim.SparseAdam, "a step of the optimiser SparseAdam failed: .*does not support dense gradients"),
        (lambda groups: None, "optimiser returned NoneType: it must return one of torch's optimisers"),
    ],
)
def test_an_optimiser_that_cannot_be_used_is_refused_in_a_sentence(
    make: Callable[[Any], optim.Optimizer], sentence: str
) -> None:
    with pytest.raises(TaskError, match=f"The task Own: {sentence}"):
        check_task(optimised(make))


@pytest.mark.parametrize(("length", "kind"), [("epochs", "plateau"), ("max_epochs", "fixed")])
def test_a_learning_rate_schedule_knows_both_kinds_of_cycle(length: str, kind: str) -> None:
    class Scheduled(Rings):
        def scheduler(self, optimiser: optim.Optimizer, config: TrialConfig) -> lr_scheduler.LRScheduler:
            return lr_scheduler.CosineAnnealingLR(optimiser, getattr(config.schedule.neuron, length))

    with pytest.raises(TaskError, match=f"optimiser or scheduler failed for a schedule of the kind {kind}: Attribute"):
        check_task(Scheduled())


def test_a_schedule_without_an_optimiser_schedules_adam() -> None:
    class Scheduled(Rings):
        def scheduler(self, optimiser: optim.Optimizer, config: TrialConfig) -> lr_scheduler.LRScheduler:
            return lr_scheduler.ExponentialLR(optimiser, 0.5)

    check_task(Scheduled())
    network = build_network(Scheduled(), config(), 1)
    optimiser, scheduler = optimiser_of(network, Scheduled(), config(weight_decay=0.25))
    assert isinstance(optimiser, optim.AdamW)
    assert scheduler is not None
    assert [(group["lr"], group["weight_decay"]) for group in optimiser.param_groups] == [(0.02, 0.25), (0.02, 0.0)]
    assert sum(len(group["params"]) for group in optimiser.param_groups) == 6
    flat = run_chain(Rings(), config(), 0)[0]
    assert any(
        not torch.equal(value, flat.weights[name])
        for name, value in run_chain(Scheduled(), config(), 0)[0].weights.items()
    )
