"""Rungs that fail: the reason is kept, and the study goes on."""

import errno
import math
import re
from collections.abc import Callable
from typing import NoReturn

import mlflow
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from torch import Tensor, nn

from pbp_search.errors import CheckpointError, StorageError
from pbp_search.home import Home
from pbp_search.search import Outcome, Study
from pbp_search.search.promotion import REDUCTION
from pbp_search.search.worker import Worker
from tests.quick_studies import (
    Dots,
    checkpoint_file,
    quick_space,
    quick_study,
    recorded,
    story,
)

TRIALS = 7


class NaNInBetween(Dots):
    """Width 3 learns nothing but NaN. A check of the widths 1, 2 and 4 does not see it."""

    def model(self, width: int) -> nn.Module:
        class ToNaN(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * math.nan

        network = super().model(width)
        return nn.Sequential(network, ToNaN()) if width == 3 else network


class UnsayableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class RaisesInBetween(Dots):
    """The same, with an error."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error or LookupError("no network of width 3")

    def model(self, width: int) -> nn.Module:
        if width == 3:
            raise self.error
        return super().model(width)


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (NaNInBetween(), "The training loss became nan: try a smaller learning rate."),
        (RaisesInBetween(), "LookupError: no network of width "),
        (RaisesInBetween(SystemExit(0)), "SystemExit: 0"),
        (RaisesInBetween(GeneratorExit()), "GeneratorExit"),
        (RaisesInBetween(ValueError("bad \udcff\n\nname\0" + 2000 * "x")), "ValueError: bad ? name xxx"),
        (RaisesInBetween(UnsayableError()), "UnsayableError"),
    ],
)
def test_a_failed_rung_keeps_its_reason_and_the_study_goes_on(
    home: Home, task: Dots, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    study = quick_study(home, task)
    outcomes: list[Outcome] = []
    study.run(task, 16, on_outcome=outcomes.append)
    failures = study.failures()
    assert 0 < len(failures) < 16
    assert len(study.finished()) == 16
    assert len(study.rungs()) == 16 - len(failures)
    for trial in study.finished():
        bad = trial.params["width"] == 3
        assert (trial.number in failures) == bad
        assert (trial.state == TrialState.FAIL) == bad
        assert ("checkpoint" in trial.user_attrs) != bad
    assert all(failure.startswith(reason) for failure in failures.values())
    assert {outcome.trial: outcome.failure for outcome in outcomes if outcome.failure} == failures
    assert all(f"Trial {number} failed: {failure}" in caplog.text for number, failure in failures.items())
    assert recorded(home, "dots") == set(range(16))


def test_a_failed_trial_keeps_its_epochs_in_mlflow(home: Home) -> None:
    class NaNAfterAWhile(Dots):
        """Two batches an epoch: NaN in the third one."""

        batches = 0

        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            self.batches += len(outputs) > 2 and outputs.requires_grad
            return super().loss(outputs, targets) * (math.nan if self.batches > 4 else 1)

    study = quick_study(home, NaNAfterAWhile(), space=quick_space(schedule="fixed", neuron_epochs=4))
    study.run(NaNAfterAWhile(), 1)
    assert list(study.failures()) == [0]
    client = mlflow.MlflowClient(home.tracking_uri)
    experiment = client.get_experiment_by_name("dots")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.`pbp_search.trial` = '0'")
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == "The training loss became nan: try a smaller learning rate."
    assert run.data.metrics.keys() == {"train_loss", "validation_score"}
    for name in run.data.metrics:
        points = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == [0, 1]
        assert all(math.isfinite(point.value) for point in points)


def test_a_damaged_parent_fails_its_promotion_only(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    study = quick_study(home)
    study.run(Dots(), REDUCTION)
    for trial in range(REDUCTION):
        checkpoint_file(study, trial).write_bytes(b"damaged")
    study.run(Dots(), REDUCTION + 2)
    assert list(study.failures()) == [REDUCTION]
    assert "is damaged" in study.failures()[REDUCTION]
    assert f"Trial {REDUCTION} failed" in caplog.text
    assert [rung.trial for rung in study.rungs()] == [*range(REDUCTION), REDUCTION + 1]
    with pytest.raises(CheckpointError, match="is damaged"):
        study.checkpoint(0)
    with pytest.raises(CheckpointError, match=f"Trial {REDUCTION} of the study 'dots' has left no milestone"):
        study.checkpoint(REDUCTION)


def fail(error: Exception) -> Callable[..., NoReturn]:
    def failing(*_: object, **__: object) -> NoReturn:
        raise error

    return failing


@pytest.mark.parametrize("fault", ["the folder is away", "the file cannot be read", "the storage fails"])
def test_a_parent_that_cannot_be_read_here_fails_no_rung(
    home: Home, finished: Study, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    study = quick_study(home)
    milestones = study.folder.milestones
    elsewhere = milestones.with_name("elsewhere")
    error: type[Exception] = StorageError
    sentence = f"The milestones in {milestones} cannot be read on this machine any more: "
    if fault == "the storage fails":
        error, sentence = StorageInternalError, "of a kind that does not pass"

    def happen(outcome: Outcome) -> None:
        if outcome.trial != REDUCTION - 1:  # the next one is a promotion
            return
        if fault == "the folder is away":
            milestones.rename(elsewhere)
        elif fault == "the file cannot be read":
            monkeypatch.setattr("pbp_search.training.milestone.safe_open", fail(OSError(errno.EIO, "a bad disk")))
        else:
            monkeypatch.setattr(Worker, "_rung", fail(StorageInternalError(sentence)))

    with pytest.raises(error, match=f"^{re.escape(sentence)}"):
        study.run(Dots(), TRIALS, on_outcome=happen)
    trial = study._optuna.trials[REDUCTION]
    assert (trial.state, trial.user_attrs["parent"] < REDUCTION) == (TrialState.WAITING, True)
    monkeypatch.undo()
    if elsewhere.exists():
        elsewhere.rename(milestones)
    study.run(Dots(), TRIALS)
    assert study.failures() == {}
    assert not any("restarts" in trial.user_attrs for trial in study.finished())
    assert story(study) == story(finished)
