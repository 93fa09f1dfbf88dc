"""Studies that are stopped with Ctrl-C go on as if they never had been."""

import copy
import threading
from typing import Any

import pytest
from optuna.trial import TrialState
from torch import Tensor

from pbp_search.home import Home
from pbp_search.search import Study, worker
from pbp_search.search.claims import Claim
from pbp_search.search.recording import record_of
from pbp_search.search.sampler import KeyedSampler
from tests.quick_studies import Dots, quick_study, recorded, story

TRIALS = 7


class Interrupted(Dots):
    """Ctrl-C in the middle of a trial."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.batches -= len(outputs) > 2 and outputs.requires_grad  # not the checks of the task
        if self.batches == 0:
            raise KeyboardInterrupt
        return super().loss(outputs, targets)


def test_an_interrupted_trial_is_done_again_under_its_number(finished: Study, home: Home) -> None:
    for batches in (9, 9):
        with pytest.raises(KeyboardInterrupt):
            quick_study(home).run(Interrupted(batches), TRIALS)
        assert 0 < len(quick_study(home).finished()) < TRIALS
    study = quick_study(home)
    study.run(Dots(), TRIALS)
    assert story(study) == story(finished)
    assert recorded(home, "dots") == set(range(TRIALS))


# Of the parameters of the first trial: before the first one, between two, before the last one; and later trials.
@pytest.mark.parametrize("nth", [1, 3, 6, 11])
def test_a_study_interrupted_between_two_parameters_goes_on_as_if_it_was_not(
    finished: Study, home: Home, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    sample_independent = KeyedSampler.sample_independent
    calls: list[str] = []

    def interrupted(self: KeyedSampler, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        calls.append(param_name)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return sample_independent(self, study, trial, param_name, param_distribution)

    monkeypatch.setattr(KeyedSampler, "sample_independent", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick_study(home).run(Dots(), TRIALS)
    study = quick_study(home)
    assert len(study.finished()) < TRIALS
    study.run(Dots(), TRIALS)
    assert len(calls) > nth
    assert calls[nth] == calls[nth - 1], "the parameter that was not drawn is drawn first"
    assert story(study) == story(finished)


@pytest.mark.parametrize("place", ["begun", "claimed"])
def test_a_claim_ends_when_ctrl_c_comes_right_after_it(home: Home, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    owner, name = {"begun": (Claim, "begin"), "claimed": (worker.Worker, "_claim")}[place]
    function = getattr(owner, name)

    def interrupted(*arguments: Any) -> Any:
        function(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    study = quick_study(home)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        study.run(Dots(), 1)
    assert threading.active_count() == before
    study.folder.trial_lock(0).acquire(timeout=0)
    (trial,) = study._optuna.trials
    assert trial.state == TrialState.WAITING


def test_restarts_after_ctrl_c_do_not_count(finished: Study, home: Home) -> None:
    for _ in range(6):  # a trial whose worker dies as often is given up
        with pytest.raises(KeyboardInterrupt):
            quick_study(home).run(Interrupted(2), 1)
        (trial,) = quick_study(home)._optuna.trials
        assert trial.state == TrialState.WAITING
        assert "restarts" not in trial.user_attrs
    study = quick_study(home)
    study.run(Dots(), 1)
    assert study.failures() == {}
    assert "restarts" not in study.finished()[0].user_attrs
    assert story(study) == story(finished)[:1]


def test_a_trial_that_failed_before_it_succeeded_is_recorded_as_what_it_is(home: Home, finished: Study) -> None:
    trial = finished.finished()[0]
    failed_once = copy.deepcopy(trial)
    failed_once.user_attrs["failure"] = "RuntimeError: no memory for a moment"
    record = record_of(failed_once, ())
    assert record.failure is None
    assert record.milestone is not None
