"""What is stored, found again, and removed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import FrozenTrial, TrialState

from pbp_search.errors import CheckpointError
from pbp_search.home import Home
from pbp_search.search import Rung, Study
from pbp_search.search.checkpoints import Checkpoints
from pbp_search.search.rungs import front_of
from pbp_search.search.storage import open_storage
from pbp_search.training import Checkpoint, Step
from tests.quick_studies import (
    Dots,
    finished_trial,
    milestone,
    other_trial,
    quick_space,
    quick_study,
    random_checkpoint,
    weight_bits,
)


@pytest.fixture
def study(home: Home) -> Study:
    return quick_study(home)


@pytest.fixture
def storage(study: Study) -> optuna.storages.RDBStorage:
    return open_storage(study.folder.home)


@pytest.fixture
def trial(study: Study, storage: optuna.storages.RDBStorage) -> FrozenTrial:
    return storage.get_trial(storage.create_new_trial(study._optuna._study_id))


def rung(trial: int, name: str, score: float = 0.5, parent: int | None = None, accepted: bool = True) -> Rung:
    dendrites = 0 if parent is None else 1
    reached = milestone(score, 10 + 10 * dendrites, dendrites=dendrites - (not accepted), requested=dendrites)
    return Rung(trial, trial, parent, {}, reached, name)


def files(study: Study) -> set[str]:
    return {file.name for file in study.folder.milestones.iterdir()}


def test_a_checkpoint_comes_back_as_it_was(
    study: Study, storage: optuna.storages.RDBStorage, trial: FrozenTrial
) -> None:
    stored, checkpoints = random_checkpoint(Dots(), 1), Checkpoints(study.folder)
    name = checkpoints.save(trial, stored, storage)
    found = checkpoints.load(rung(0, name))
    assert weight_bits(found) == weight_bits(stored)
    assert found.milestone == stored.milestone
    assert files(study) == {name}
    assert not list(study.folder.incoming.iterdir())
    (artifact,) = get_all_artifact_meta(storage.get_trial(trial._trial_id), storage=storage)
    assert (artifact.artifact_id, artifact.filename) == (name, "trial-00000.safetensors")


def test_what_an_earlier_worker_stored_is_discarded(
    study: Study, storage: optuna.storages.RDBStorage, trial: FrozenTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(study.folder)
    checkpoints.save(trial, random_checkpoint(Dots(), 0), storage)

    def fails(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(checkpoints._store, "write", fails)  # its name is told before it is there
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(trial, random_checkpoint(Dots(), 0), storage)
    assert not list(study.folder.incoming.iterdir())
    checkpoints.discard(storage.get_trial(trial._trial_id), storage)
    assert files(study) == set()


def test_what_a_killed_worker_was_writing_is_discarded(
    study: Study, storage: optuna.storages.RDBStorage, trial: FrozenTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming, names = study.folder.incoming, []

    def save(_: Checkpoint, file: Path) -> None:
        names.append(file.parent.name)
        raise OSError("no space")

    monkeypatch.setattr(Checkpoint, "save", save)
    with pytest.raises(OSError, match="no space"):
        Checkpoints(study.folder).save(trial, random_checkpoint(Dots(), 0), storage)
    for folder in (names[0], names[0].replace("00000", "00001")):
        (incoming / folder).mkdir()
        (incoming / folder / ".temporary").touch()  # as safetensors does: of no name that tells whose it is
    Checkpoints(study.folder).discard(trial, storage)
    assert [folder.name for folder in incoming.iterdir()] == [names[0].replace("00000", "00001")]


def test_names_lead_nowhere_else(study: Study) -> None:
    checkpoints = Checkpoints(study.folder)
    secret = study.folder.home.folder / "secret"
    secret.write_text("kept")
    for name in (f"../../../{secret.name}", str(secret), ".."):
        assert checkpoints.file(rung(0, name)).parent == study.folder.milestones
        with pytest.raises(CheckpointError):
            checkpoints.load(rung(0, name))
    checkpoints.remove(str(secret))
    assert secret.exists()


def test_what_is_missing_is_said(study: Study) -> None:
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(study.folder).load(rung(7, "gone"))
    assert str(caught.value) == (
        f"There is no checkpoint of trial 7 in {study.folder.milestones}: kept are those of the front, and of "
        "milestones that may still be continued."
    )


A = rung(0, "a", 0.6)
B = rung(1, "b")
FULL = rung(1, "full", 0.5, parent=7)
RUNNING, WAITING, FAILED = (
    other_trial(2, state, parent=1) for state in (TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL)
)


@pytest.mark.parametrize(
    ("rungs", "others", "kept"),
    [
        ([rung(0, "a")], [], {"a"}),
        ([rung(0, "a"), rung(1, "b", 0.4)], [], {"a", "b"}),  # not on the front, but it may be continued
        ([rung(0, "a"), rung(1, "b", 0.6, parent=0)], [], {"a", "b"}),  # continued, but on the front
        ([rung(0, "a", 0.4), rung(1, "b", 0.6, parent=0), rung(2, "c", 0.5)], [], {"b", "c"}),
        ([rung(0, "a"), rung(1, "b", 0.5, parent=0, accepted=False)], [], {"a"}),  # the same network twice
        ([A, B], [RUNNING], {"a", "b"}),  # its continuation needs it, and may need it again
        ([A, B], [WAITING], {"a", "b"}),
        ([A, B], [FAILED], {"a"}),
        ([A, FULL], [], {"a"}),  # it has one dendrite, and may have no more
        ([FULL], [], {"full"}),
    ],
)
def test_what_is_never_needed_again_is_removed(
    study: Study, rungs: list[Rung], others: list[FrozenTrial], kept: set[str]
) -> None:
    for one in rungs:
        Path(study.folder.milestones / one.checkpoint).touch()
    Path(study.folder.milestones / "of a rung that is running").touch()
    trials = [finished_trial(one.trial, one.milestone, one.parent) for one in rungs] + others
    front, everything = front_of(rungs, "maximize"), files(study)

    def steps(one: Rung) -> Sequence[Step]:
        return ["grow"] if one.milestone.dendrites == 0 else []

    def tidy(recorded: Sequence[int]) -> None:
        Checkpoints(study.folder).tidy(trials, rungs, front, steps, recorded)

    tidy([])
    assert files(study) == everything, "their epochs are nowhere else"
    tidy(range(10))
    assert files(study) == {*kept, "of a rung that is running"}


# Of width w a network has 5 w + 2 parameters, and with a dendrite more than 22 from width 2 on.
@pytest.mark.parametrize(
    ("space", "limit"), [({"dendrites": 0}, None), ({"width": (2, 4), "dendrites": 1}, 22)], ids=["dendrites", "limit"]
)
def test_what_may_not_grow_is_kept_on_the_front_only(home: Home, space: dict[str, Any], limit: int | None) -> None:
    study = quick_study(home, space=quick_space(**space), max_parameters=limit)
    study.run(Dots(), 8)
    front = {point.payload.checkpoint for point in study.front()}
    assert all(rung.milestone.dendrites == 0 for rung in study.rungs())
    assert len(front) < len(study.rungs())
    assert files(study) == front
    for rung in study.rungs():
        (study.folder.milestones / rung.checkpoint).touch()
    study.run(Dots(), 8)
    assert files(study) == front, "what a worker did not remove"


def test_a_checkpoint_is_read_by_no_other_format(study: Study) -> None:
    (study.folder.milestones / "name").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="is damaged"):
        Checkpoints(study.folder).load(rung(0, "name"))
