"""A study's record in MLflow, in step with its storage: what one process has left out, the next one records."""

import logging
from typing import TYPE_CHECKING, Literal

from pbp_search.errors import CheckpointError, StudyError
from pbp_search.search.rungs import FAILURE, MILESTONE
from pbp_search.training import EpochRecord

if TYPE_CHECKING:
    from pbp_search.search.study import Study
    from pbp_search.tracking import Tracker

logger = logging.getLogger(__name__)


def record_missing(study: "Study", tracker: "Tracker") -> None:
    """Record the finished trials of a study that are not recorded yet."""
    from pbp_search.search.worker import record_of

    recorded = tracker.recorded()
    for trial in study.finished():
        ours = MILESTONE in trial.user_attrs or FAILURE in trial.user_attrs
        if ours and trial.number not in recorded:
            tracker.log_trial(record_of(trial, _history(study, trial.number)))


def record_end(study: "Study", tracker: "Tracker", status: Literal["FINISHED", "KILLED", "FAILED"]) -> None:
    """Mark a study's run as ended, with its figures."""
    tracker.end(status, {"trials": len(study.finished()), "front_size": len(study.front())})


def _history(study: "Study", trial: int) -> tuple[EpochRecord, ...]:
    try:
        return study.checkpoint(trial).history
    except (CheckpointError, StudyError) as error:
        logger.warning("Trial %d is recorded without its epochs: %s", trial, error)
        return ()
