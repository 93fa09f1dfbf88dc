"""Studies whose processes are killed: everything is done once, and nothing is lost."""

import errno
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from pbp_search.home import Home
from pbp_search.search import Study
from pbp_search.search.checkpoints import Checkpoints
from pbp_search.search.claims import Claim, restarts_of
from pbp_search.search.sampler import KeyedSampler, Sampler
from pbp_search.search.setup import Setup
from pbp_search.search.storage import open_storage
from pbp_search.search.worker import Worker
from tests.quick_studies import Dots, quick_space, quick_study, recorded, story
from tests.search import crashing
from tests.search.crashing import Mortal, random_batches
from tests.search.faulty import assert_nothing_lost, assert_recorded_once
from tests.tracking.recording import tracker_of

pytestmark = pytest.mark.slow

TRIALS = 7


def kill(processes: ForkServerContext, target: Callable[..., object], *arguments: object) -> None:
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def go_on(home: Home, trials: int = TRIALS) -> Study:
    study = Study.create(Dots(), home=home, space=quick_space(), seed=8)
    study.run(Dots(), trials)
    return study


def test_a_study_killed_anywhere_in_training_goes_on(home: Home, finished: Study, processes: ForkServerContext) -> None:
    for seed in (1, 2, 3):
        kill(processes, crashing.run, home.folder, 100, random_batches(seed))
    study = go_on(home, max(TRIALS, len(Study.load("dots", home).finished()) + 1))
    assert [trial.number for trial in study.finished()] == list(range(len(study.finished())))
    assert story(study)[:TRIALS] == story(finished)
    assert_recorded_once(home, study)


@pytest.mark.parametrize(
    "place", ["sampling", "claim", "milestone", "upload", "uploaded", "tell", "record", "metrics", "ended", "tidy"]
)
def test_a_study_killed_between_its_steps_goes_on(
    home: Home, finished: Study, processes: ForkServerContext, place: str
) -> None:
    kill(processes, crashing.run_and_die_before, home.folder, TRIALS, place, 3)
    study = go_on(home)
    assert story(study) == story(finished)
    assert_nothing_lost(home, study)


@pytest.mark.parametrize(("database", "statements"), [("optuna", 8), ("mlflow", 60), ("mlflow", 250), ("mlflow", 500)])
def test_a_first_start_that_is_killed_leaves_nothing_in_the_way(
    empty_home: Home, processes: ForkServerContext, database: str, statements: int
) -> None:
    kill(processes, crashing.open_and_die, empty_home.folder, database, statements)
    open_storage(empty_home)
    assert tracker_of(empty_home, "dots").recorded() == set()


def test_a_trial_that_always_kills_its_worker_is_given_up(home: Home, processes: ForkServerContext) -> None:
    for _ in range(4):
        kill(processes, crashing.run, home.folder, 3, 1)
    study = go_on(home, 3)
    assert study.failures() == {0: "The worker of this trial died 4 times."}
    assert len(study.finished()) == 3
    assert recorded(home, "dots") == {0, 1, 2}


Claiming = Callable[[], Claim]


@pytest.fixture
def claim(home: Home) -> Claiming:
    """Claims a trial of a study, each time as another worker."""
    study = quick_study(home)
    setup = setup_of(study, "random")

    def claim() -> Claim:
        claimed = Worker(setup)._claim(9)
        assert claimed is not None
        return claimed

    return claim


def setup_of(study: Study, sampler: Sampler) -> Setup:
    return Setup(
        study.folder, "dots", None, None, Dots(), study.definition.space, 8, "cpu", "parameters", None, sampler
    )


def die(*pool: Claim) -> None:
    """The system does this to the locks of the dead."""
    for claimed in pool:
        claimed.end()


def finish(home: Home, *pool: Claim) -> None:
    for claimed in pool:
        quick_study(home)._optuna.tell(claimed.trial.number, [0.5, 1.0])
        claimed.end()


def restarts(*pool: Claim) -> list[tuple[int, int]]:
    return [(claimed.trial.number, claimed.trial.user_attrs.get("restarts", 0)) for claimed in pool]


def test_trials_of_a_pool_that_died_twice_are_tried_again_one_at_a_time(home: Home, claim: Claiming) -> None:
    die(claim(), claim())
    together = claim(), claim()
    assert restarts(*together) == [(0, 1), (1, 1)]
    die(*together)
    pool = claim(), claim(), claim()
    assert restarts(*pool) == [(0, 2), (2, 0), (3, 0)]
    finish(home, *pool)
    again = claim()
    assert restarts(again) == [(1, 2)]
    again.end()


def test_no_restart_runs_beside_the_later_ones(home: Home, claim: Claiming) -> None:
    die(claim())
    die(claim())
    suspect, other = claim(), claim()
    die(other)
    new = claim()
    assert restarts(suspect, other, new) == [(0, 2), (1, 0), (2, 0)], "a first restart waits for the later one"
    finish(home, suspect)
    first = claim()
    assert restarts(first) == [(1, 1)]
    die(first, new)
    pool = claim(), claim()
    assert restarts(*pool) == [(1, 2), (3, 0)], "and the later one for nobody now"
    finish(home, *pool)
    last = claim()
    assert restarts(last) == [(2, 1)]
    last.end()


def test_parameters_are_drawn_while_others_decide(home: Home) -> None:
    study = quick_study(home)
    seen: list[list[set[str]]] = []
    lock = FileLock(f"{home.folder / 'optuna.db'}.{study.folder.identity}.lock")

    class Watching(RandomSampler):
        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            with lock.acquire(timeout=0):
                seen.append([set(other.params) for other in study.get_trials(states=(TrialState.RUNNING,))])
            return super().sample_independent(study, trial, name, distribution)

    workers = [Worker(setup_of(study, Watching)) for _ in range(3)]
    claims = [worker._claim(9) for worker in workers]
    known: list[set[str]] = [set(), set(), set()]
    for number, (worker, claimed) in enumerate(zip(workers, claims, strict=True)):
        assert claimed is not None
        seen.clear()
        known[number] = set(worker._drawn(claimed.trial).params) - {"dendrites"}
        assert seen[-1] == [drawn for other, drawn in enumerate(known) if other != number]
    for worker in workers:
        worker._claims.end()


def test_a_full_store_lets_the_trial_wait(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    study = quick_study(home)
    worker = Worker(setup_of(study, "random"))  # nobody puts its trials in order after it, as on another machine

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(OSError, match="No space left"):
        worker.run_one(1, None)
    (trial,) = study._optuna.trials
    assert trial.state == TrialState.WAITING
    monkeypatch.undo()
    assert worker.run_one(1, None) is not None
    (trial,) = study._optuna.trials
    assert trial.state == TrialState.COMPLETE
    assert restarts_of(trial) == 0


def test_two_workers_may_draw_one_trial(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    study = quick_study(home)
    worker, sample = Worker(setup_of(study, "random")), KeyedSampler.sample_independent
    drawn: list[str] = []

    def beside_another(self: KeyedSampler, of: Any, trial: FrozenTrial, name: str, how: BaseDistribution) -> Any:
        drawn.append(name)
        if len(drawn) in (1, 4):  # who had the trial before was silent for long, and has just drawn this one
            worker._storage.set_trial_param(trial._trial_id, name, how.to_internal_repr(low_of(how)), how)
        return sample(self, of, trial, name, how)

    monkeypatch.setattr(KeyedSampler, "sample_independent", beside_another)
    outcome = worker.run_one(1, None)
    assert outcome is not None
    assert outcome.failure is None
    (rung,) = study.rungs()
    assert len(drawn) == len(set(drawn)) > 4, "nothing is drawn again that is there"
    for name in (drawn[0], drawn[3]):
        assert rung.params[name] == low_of(study._optuna.trials[0].distributions[name])


def low_of(distribution: BaseDistribution) -> Any:
    return getattr(distribution, "low", None) or distribution.choices[0]  # type: ignore[attr-defined]


def test_two_processes_start_one_study_at_once(empty_home: Home, processes: ForkServerContext) -> None:
    barrier = processes.Barrier(2)
    both = [processes.Process(target=crashing.run, args=(empty_home.folder, TRIALS, -1, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(100)
    assert [process.exitcode for process in both] == [0, 0]
    study = Study.load("dots", empty_home)
    assert [trial.number for trial in study.finished()] == list(range(TRIALS))
    assert len(study.rungs()) == TRIALS
    assert_recorded_once(empty_home, study)


def test_the_mortal_task_is_the_same_task() -> None:
    assert Mortal(0).name == Dots.name
    assert [random_batches(seed) for seed in (1, 2)] == [random_batches(seed) for seed in (1, 2)]
