"""Who trains which trial: workers of one place see each other die at once, others by their heartbeats."""

import contextlib
import datetime
import threading
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from pbp_search.home import Home, StudyFolder
from pbp_search.search import Study, claims
from pbp_search.search.claims import CLAIM, Claims
from pbp_search.search.storage import GRACE_SECONDS, open_storage
from tests.quick_studies import quick_study


@pytest.fixture
def study(home: Home) -> Study:
    return quick_study(home)


def claims_of(study: Study, folder: StudyFolder | None = None) -> Claims:
    """A worker's, in the study's home or elsewhere."""
    return Claims(folder or study.folder, study._optuna, open_storage(study.folder.home))


def elsewhere(study: Study, tmp_path: Path) -> Claims:
    """A worker's on a machine that shares the storage only."""
    return claims_of(study, StudyFolder(Home.at(tmp_path / "elsewhere"), study.folder.identity).create())


def new_trial(study: Study) -> FrozenTrial:
    storage = open_storage(study.folder.home)
    return storage.get_trial(storage.create_new_trial(study._optuna._study_id))


def numbers(found: list[FrozenTrial]) -> list[int]:
    return [trial.number for trial in found]


def trials(study: Study) -> list[FrozenTrial]:
    return study._optuna.get_trials(deepcopy=False)


def silence(study: Study, seconds: float) -> None:
    """Make all heartbeats older."""
    with open_storage(study.folder.home).engine.begin() as connection:
        for row in connection.execute(sqlalchemy.text("SELECT trial_heartbeat_id, heartbeat FROM trial_heartbeats")):
            earlier = datetime.datetime.fromisoformat(row.heartbeat) - datetime.timedelta(seconds=seconds)
            connection.execute(
                sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = :earlier WHERE trial_heartbeat_id = :id"),
                {"earlier": f"{earlier:%Y-%m-%d %H:%M:%S}", "id": row.trial_heartbeat_id},
            )


class Clock:
    """This process's."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(claims, "monotonic", clock)
    return clock


def look(by: Claims, study: Study, clock: Clock, seconds: float = GRACE_SECONDS + 5) -> list[int]:
    """What a worker finds abandoned that looks every few seconds for a time, in the end."""
    end = clock.now + seconds
    while clock.now <= end:
        found = numbers(by.abandoned(trials(study)))
        clock.now += 5
    return found


@contextlib.contextmanager
def taken(by: Claims, trial: FrozenTrial) -> Iterator[claims.Claim]:
    with by.deciding():
        claim = by.take(trial)
    try:
        yield claim
    finally:
        claim.end()


def test_a_trial_is_abandoned_once_its_worker_is_gone(study: Study) -> None:
    one, other = claims_of(study), claims_of(study)
    with taken(one, new_trial(study)) as claim:
        assert other.abandoned(trials(study)) == []
        assert one.holds(claim)
    assert numbers(other.abandoned(trials(study))) == [0]


def test_a_trial_without_a_claim_belongs_to_somebody_who_died_while_deciding(study: Study) -> None:
    new_trial(study)
    assert numbers(claims_of(study).abandoned(trials(study))) == [0]


def test_waiting_and_finished_trials_are_nobodys(study: Study) -> None:
    for state in (TrialState.WAITING, TrialState.FAIL):
        study._optuna.add_trial(optuna.trial.create_trial(state=state))
    assert claims_of(study).abandoned(trials(study)) == []


def test_another_machine_goes_by_heartbeats(study: Study, tmp_path: Path, clock: Clock) -> None:
    here, there = claims_of(study), elsewhere(study, tmp_path)
    with taken(here, new_trial(study)):
        assert look(there, study, clock) == []
        silence(study, GRACE_SECONDS - 10)
        assert there.abandoned(trials(study)) == []
    # The lock is free now. Only here that means something.
    assert there.abandoned(trials(study)) == []
    assert numbers(here.abandoned(trials(study))) == [0]
    silence(study, 20)
    assert numbers(there.abandoned(trials(study))) == [0]


def test_old_heartbeats_are_believed_after_a_minute_of_contact_only(study: Study, tmp_path: Path, clock: Clock) -> None:
    here, there = claims_of(study), elsewhere(study, tmp_path)
    with taken(here, new_trial(study)):
        pass
    silence(study, 2 * GRACE_SECONDS)
    assert look(there, study, clock, GRACE_SECONDS - 5) == []
    assert numbers(there.abandoned(trials(study), at_once=True)) == [0]
    clock.now += 300  # the storage was away
    assert look(there, study, clock, GRACE_SECONDS - 5) == []
    assert look(there, study, clock, 10) == [0]
    assert look(elsewhere(study, tmp_path), study, clock) == [0], "a worker that has just begun"


def test_own_heartbeats_are_contact(
    study: Study, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = claims_of(study), elsewhere(study, tmp_path)
    with taken(here, new_trial(study)):
        pass
    silence(study, 2 * GRACE_SECONDS)
    assert numbers(there.abandoned(trials(study))) == []
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 10_000)  # sent by the test
    with taken(there, new_trial(study)) as claim:
        monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 15)
        for _ in range(5):
            clock.now += 15
            claim._beat()
    assert numbers(there.abandoned(trials(study))) == [0, 1]


def test_who_cannot_tell_yet_whether_a_silent_worker_is_dead_is_in_doubt(
    study: Study, tmp_path: Path, clock: Clock
) -> None:
    here, there = claims_of(study), elsewhere(study, tmp_path)
    with taken(here, new_trial(study)):
        assert not there.is_in_doubt(trials(study))
    assert not there.is_in_doubt(trials(study)), "it may be at it still"
    silence(study, 2 * GRACE_SECONDS)
    assert there.is_in_doubt(trials(study))
    assert not here.is_in_doubt(trials(study)), "its lock is free"
    assert look(there, study, clock) == [0]
    assert not there.is_in_doubt(trials(study))


def test_a_silent_worker_in_the_same_place_is_alive_while_it_holds_its_lock(study: Study) -> None:
    with taken(claims_of(study), new_trial(study)):
        silence(study, 2 * GRACE_SECONDS)
        assert claims_of(study).abandoned(trials(study)) == []


def test_a_worker_whose_trial_was_given_away_does_not_hold_it(study: Study, tmp_path: Path, clock: Clock) -> None:
    here, there = claims_of(study), elsewhere(study, tmp_path)
    with taken(here, new_trial(study)) as claim:
        assert look(there, study, clock) == []
        silence(study, 2 * GRACE_SECONDS)
        (found,) = there.abandoned(trials(study))
        with taken(there, found) as theirs:
            assert there.holds(theirs)
            assert not here.holds(claim)
            assert here.abandoned(trials(study)) == []


def test_heartbeats_are_sent_while_a_trial_is_held(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    by = claims_of(study)
    beaten = threading.Event()
    beats = 0

    def record_heartbeat(trial_id: int) -> None:
        nonlocal beats
        beats += 1
        if beats == 2:
            raise optuna.exceptions.StorageInternalError from sqlalchemy.exc.OperationalError("", {}, Exception("gone"))
        if beats == 4:
            beaten.set()

    monkeypatch.setattr(by._storage, "record_heartbeat", record_heartbeat)
    with taken(by, new_trial(study)) as claim:
        assert beaten.wait(30), "a storage that is away for a moment does not end them"
    seen = beats
    claim._thread.join(0)
    assert not claim._thread.is_alive()
    assert beats == seen


def test_a_trial_that_was_put_back_is_not_held(study: Study) -> None:
    here = claims_of(study)
    trial = new_trial(study)
    with taken(here, trial) as claim:
        here._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        assert not here.holds(claim)


def test_what_another_machine_lost_is_not_taken_while_it_is_trained_here(
    study: Study, tmp_path: Path, clock: Clock
) -> None:
    here, there = claims_of(study), elsewhere(study, tmp_path)
    trial = new_trial(study)
    with taken(here, trial):
        with taken(there, trial):
            pass
        silence(study, 2 * GRACE_SECONDS)
        other = claims_of(study)
        assert look(other, study, clock) == []
    assert numbers(other.abandoned(trials(study))) == [0]


def test_a_claim_has_a_heartbeat_from_the_start(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    by = claims_of(study)

    def refused(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(by._storage, "record_heartbeat", refused)
    with pytest.raises(RuntimeError), taken(by, new_trial(study)):
        pass
    assert CLAIM not in trials(study)[0].user_attrs


def test_one_worker_decides_at_a_time(study: Study) -> None:
    order: list[str] = []
    first_is_in = threading.Event()

    def second() -> None:
        first_is_in.wait(30)
        with claims_of(study).deciding():
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with claims_of(study).deciding():
        first_is_in.set()
        thread.join(0.3)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_a_claim_names_its_place_and_no_other(study: Study, tmp_path: Path) -> None:
    trial = new_trial(study)
    places = set()
    for by in (claims_of(study), elsewhere(study, tmp_path)):
        with taken(by, trial):
            places.add(trials(study)[0].user_attrs[CLAIM]["place"])
    assert len(places) == 2
