import time
from typing import Any, get_args

import pytest
import torch
from torch import nn

from pbp_search.dendrites import DendriteSpec
from pbp_search.errors import InputError, TaskError
from pbp_search.search.sizes import NetworkSizes, capped
from pbp_search.training import Data, Milestone, Size, Step, run_chain, run_rung
from tests.quick_studies import Dots, quick_config, quick_space

SPECS = [
    DendriteSpec(),
    DendriteSpec(variant="sham"),
    DendriteSpec(variant="random", pool=2, per_neuron=2),
    DendriteSpec(variant="random", fan_in=1),
    DendriteSpec(variant="random", sees="input", placement="head"),
]


class Counted(Dots):
    """It tells how many networks were built, and how often its data were loaded."""

    def __init__(self) -> None:
        self.built: list[int] = []
        self.loaded = 0

    def model(self, width: int) -> nn.Module:
        self.built.append(width)
        return super().model(width)

    def data(self) -> Data:
        self.loaded += 1
        return super().data()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_sizes_are_those_of_the_milestones(spec: DendriteSpec) -> None:
    sizes = NetworkSizes(Dots())
    config = quick_config(dendrites=spec)
    for checkpoint in run_chain(Dots(), config, 2):
        milestone = checkpoint.milestone
        for kind in get_args(Size):
            assert sizes.size(config, milestone.dendrites, kind) == milestone.size(kind)
        assert sizes.parameters(config, milestone.dendrites) == milestone.parameters


PATHS: list[tuple[Step, ...]] = [("prune", "prune", "grow"), ("grow", "prune", "grow"), ("grow", "grow", "prune")]


@pytest.mark.parametrize("steps", PATHS, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_sizes_after_a_step_are_those_of_the_milestones(spec: DendriteSpec, steps: tuple[Step, ...]) -> None:
    sizes, config = NetworkSizes(Dots()), quick_config(width=4, dendrites=spec, prune_share=0.3)
    checkpoint = run_rung(Dots(), config)
    for step in steps:
        expected = {kind: sizes.after(step, checkpoint.milestone, kind) for kind in get_args(Size)}
        checkpoint = run_rung(Dots(), config, checkpoint, step=step)
        milestone = checkpoint.milestone
        if not milestone.accepted:
            return
        zeros = expected["parameters"] - milestone.parameters
        assert zeros == 0 or (step == "grow" and milestone.pruned and 0 < zeros < 5)
        assert expected["macs"] == milestone.macs
        assert milestone.pruned or expected["weight_bytes"] == milestone.weight_bytes


def test_steps_are_those_of_the_space_and_within_the_limit() -> None:
    sizes, config = NetworkSizes(Dots()), quick_config(width=2)  # of 12, 28 and 48 parameters

    def steps(limit: int | None = None, dendrites: int = 0, pruned: int = 0, gone: int = 0, **space: int) -> list[Step]:
        reached = run_chain(Dots(), config, 0)[0].milestone
        size = sizes.parameters(config, dendrites) - gone
        changed = {"dendrites": dendrites, "requested": dendrites, "pruned": pruned, "parameters": size}
        milestone = Milestone.from_dict({**reached.to_dict(), **changed})
        return sizes.steps(milestone, quick_space(**space), limit)

    assert steps() == ["grow"]
    assert steps(dendrites=2) == []
    assert steps(limit=28) == ["grow"]
    assert steps(limit=27) == []
    assert steps(prunings=1) == ["grow", "prune"]
    assert steps(prunings=1, limit=27) == ["prune"]
    assert steps(prunings=1, dendrites=2) == ["prune"]
    assert steps(prunings=1, pruned=1) == ["grow"]
    assert steps(prunings=9, pruned=1, gone=7) == ["grow", "prune"]
    assert steps(prunings=9, pruned=1, gone=8) == ["grow"]  # only biases are left


def test_a_network_is_built_once() -> None:
    task = Counted()
    sizes = NetworkSizes(task)
    state = torch.get_rng_state()
    for seed in range(3):  # nothing else of a configuration matters
        sizes.parameters(quick_config(seed=seed, learning_rate=0.1 + seed), 1)
    assert (task.built, task.loaded) == ([2], 0)
    sizes.parameters(quick_config(width=3), 1)
    sizes.parameters(quick_config(), 2)
    sizes.parameters(quick_config(dendrites=DendriteSpec(fan_in=1)), 1)
    assert task.built == [2, 3, 2, 2]
    sizes.size(quick_config(), 1, "macs")
    sizes.size(quick_config(), 2, "macs")
    assert task.loaded == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_known_costs_next_to_nothing() -> None:
    sizes, config = NetworkSizes(Dots()), quick_config(width=4)
    times = []
    for _ in range(50):
        started = time.perf_counter()
        sizes.parameters(config, 3)
        times.append(time.perf_counter() - started)
    assert times[0] > 10 * sorted(times)[len(times) // 2]


def test_data_that_are_there_are_not_loaded_again() -> None:
    task = Counted()
    sizes = NetworkSizes(task, Dots().data())
    assert sizes.size(quick_config(), 0, "macs") == 2 * 2 + 2 * 2
    assert task.loaded == 0


def test_what_fits() -> None:
    sizes, config = NetworkSizes(Dots()), quick_config(width=2)
    assert sizes.parameters(config, 0) == 2 * 2 + 2 + 2 * 2 + 2
    assert sizes.parameters(config, 1) == 2 * 12 + 4
    assert sizes.fits(config, 1, 28)
    assert not sizes.fits(config, 1, 27)
    assert sizes.fits(config, 1, None)


@pytest.mark.parametrize("limit", range(5, 50))
def test_the_widest_network_within_a_limit(limit: int) -> None:
    # Of width w it has 5 w + 2 parameters.
    widths = range(2, 9)
    fitting = [width for width in widths if 5 * width + 2 <= limit]
    assert NetworkSizes(Dots()).widest((2, 8), limit) == (max(fitting) if fitting else None)


def test_the_widest_is_found_by_a_few_networks() -> None:
    task = Counted()
    assert NetworkSizes(task).widest((1, 4096), 5_002) == 1000
    assert len(task.built) <= 13


def test_a_space_is_capped_at_the_largest_width_within_the_limit() -> None:
    sizes, space = NetworkSizes(Dots()), quick_space(width=(1, 4))
    widths: dict[Any, Any] = {None: (1, 4), 22: (1, 4), 21: (1, 3), 16: (1, 2), 7: (1, 1)}
    for limit, width in widths.items():
        assert capped(space, limit, sizes) == quick_space(width=width)
    with pytest.raises(InputError, match=r"of width 2, has 12 parameters, more than the limit of 11: raise the limit"):
        capped(quick_space(width=(2, 4)), 11, sizes)


@pytest.mark.parametrize("error", [LookupError("no network"), SystemExit("no network")])
def test_a_network_that_fails_is_a_sentence(error: BaseException) -> None:
    class FailsInBetween(Dots):
        def model(self, width: int) -> nn.Module:
            if width == 3:
                raise error
            return super().model(width)

    sizes = NetworkSizes(FailsInBetween())
    with pytest.raises(TaskError, match=r"^The task FailsInBetween: its network of width 3 failed: .*: no network$"):
        capped(quick_space(width=(1, 4)), 16, sizes)
    assert sizes.parameters(quick_config(width=2), 0) == 12
