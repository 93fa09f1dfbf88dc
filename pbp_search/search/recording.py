"""A study's record in MLflow, in step with its storage: what one process has left out, the next one records."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from optuna.trial import FrozenTrial

from pbp_search.errors import CheckpointError, StudyError
from pbp_search.search.rungs import FAILURE, MILESTONE, rung_of
from pbp_search.training import EpochRecord

if TYPE_CHECKING:
    from pbp_search.search.study import Study
    from pbp_search.tracking import Tracker, TrialRecord

logger = logging.getLogger(__name__)


def record_missing(study: "Study", tracker: "Tracker") -> set[int]:
    """Record the finished trials of a study that are not recorded yet.

    Returns:
        All that are recorded now.
    """
    recorded = tracker.recorded()
    for trial in study.finished():
        ours = MILESTONE in trial.user_attrs or FAILURE in trial.user_attrs
        if ours and trial.number not in recorded:
            tracker.log_trial(record_of(trial, _history(study, trial.number)))
            recorded.add(trial.number)
    return recorded


def record_of(trial: FrozenTrial, history: Sequence[EpochRecord]) -> "TrialRecord":
    """What MLflow keeps of a finished trial."""
    from pbp_search.tracking import TrialRecord

    assert trial.datetime_start is not None
    assert trial.datetime_complete is not None
    rung = rung_of(trial)
    return TrialRecord(
        number=trial.number,
        params=trial.params,
        started=int(trial.datetime_start.timestamp() * 1000),
        ended=int(trial.datetime_complete.timestamp() * 1000),
        milestone=None if rung is None else rung.milestone,
        # A trial that was done again after a failure, because its worker died in between, has the reason still.
        failure=trial.user_attrs.get(FAILURE) if rung is None else None,
        history=tuple(history),
    )


def record_end(study: "Study", tracker: "Tracker", status: Literal["FINISHED", "KILLED", "FAILED"]) -> None:
    """Mark a study's run as ended, with its figures."""
    tracker.end(status, {"trials": len(study.finished()), "front_size": len(study.front())})


def _history(study: "Study", trial: int) -> tuple[EpochRecord, ...]:
    try:
        return study.checkpoint(trial).history
    except (CheckpointError, StudyError) as error:
        logger.warning("Trial %d is recorded without its epochs: %s", trial, error)
        return ()
