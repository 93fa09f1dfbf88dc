"""How a run of a study ends that could not even begin, or whose time is up while dendrites grow."""

from typing import Any

import mlflow
import pytest
from optuna.trial import TrialState

from pbp_search.home import Home
from pbp_search.search.promotion import REDUCTION
from pbp_search.search.worker import Worker
from pbp_search.tracking import Tracker
from tests.quick_studies import Dots, quick_study


class Connection:
    """To a cluster: nobody is there."""

    workers = 1
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_that_fails_at_its_beginning_ends_in_good_order(
    home: Home, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    connection = Connection()
    begin = Tracker.begin

    def begin_and_fail(self: Tracker, params: dict[str, Any]) -> None:
        begin(self, params)
        raise error

    monkeypatch.setattr(Tracker, "begin", begin_and_fail)
    monkeypatch.setattr("pbp_search.search.workers.cluster_of", lambda *_: connection)
    with pytest.raises(type(error)):
        quick_study(home).run(Dots(), 1)
    assert connection.closed
    client = mlflow.MlflowClient(home.tracking_uri)
    experiment = client.get_experiment_by_name("dots")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == [status]


def test_time_that_is_up_ends_a_dendrite_phase(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    study = quick_study(home)
    study.run(Dots(), REDUCTION)
    calls: list[str] = []

    def grow(module: object, record: object, stop: Any, *_: object) -> None:
        monkeypatch.setattr(Worker, "_is_over", lambda *_: True)
        calls.append("before an epoch")
        stop()(0.5)
        calls.append("after it")
        raise AssertionError

    monkeypatch.setattr("pbp_search.training.rung.grow", grow)
    study.run(Dots(), REDUCTION + 1)
    assert calls == ["before an epoch"]
    *_, trial = study._trials()
    assert trial.state == TrialState.WAITING
    assert trial.params["dendrites"] == 1
    assert study.failures() == {}
