"""Several workers at once. Starting processes that load torch takes seconds: one test does it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from joblib.externals.loky import get_reusable_executor
from torch import Tensor

from pbp_search.home import Home
from pbp_search.search import Outcome, Study
from pbp_search.training import run_rung
from tests.quick_studies import Dots, figures, quick_space, recorded, weight_bits


@pytest.fixture
def _no_processes_left() -> Iterator[None]:
    yield
    get_reusable_executor().shutdown(wait=True)


class Watched(Dots):
    """Leaves a file for each process that trains it. The first one of the third trial is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if len(outputs) > 2 and outputs.requires_grad:
            (self.folder / str(os.getpid())).touch()
            self._die_once()
        return super().loss(outputs, targets)

    def _die_once(self) -> None:
        milestones = len(list((self.folder.parent / "home/studies").rglob("*.safetensors")))
        if milestones >= 2:
            try:
                (self.folder / "killed").touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("_no_processes_left")
def test_two_workers_of_which_one_is_killed(home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "processes"
    folder.mkdir()
    study = Study.create(Watched(folder), home=home, space=quick_space(), seed=8)
    outcomes: list[Outcome] = []
    front = study.run(Watched(folder), 8, workers=2, on_outcome=outcomes.append)

    assert (folder / "killed").exists()
    assert "A worker was killed: its trial is done again." in caplog.text
    processes = {int(file.name) for file in folder.iterdir() if file.name != "killed"}
    assert len(processes) >= 3
    assert os.getpid() not in processes

    assert [trial.number for trial in study.finished()] == list(range(8))
    assert study.failures() == {}
    assert len({outcome.trial for outcome in outcomes}) == len(outcomes)
    assert recorded(home, "dots") == set(range(8))
    assert len(front) > 0

    # Every rung is what its configuration and its parent make of it, whoever trained it.
    assert any(rung.parent is not None for rung in study.rungs())
    for rung in study.rungs():
        previous = None if rung.parent is None else study.checkpoint(rung.parent)
        expected = run_rung(Dots(), rung.milestone.config, previous)
        assert figures(rung.milestone) == figures(expected.milestone)
        assert weight_bits(study.checkpoint(rung.trial)) == weight_bits(expected)
