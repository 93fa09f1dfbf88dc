"""Recording from several processes at the same moment."""

from pathlib import Path
from typing import Any

from pbp_search.home import Home, StudyFolder
from pbp_search.tracking import Tracker, TrialRecord
from pbp_search.training import EpochRecord
from tests.quick_studies import milestone


def record(number: int, epochs: int = 2, **changes: Any) -> TrialRecord:
    """A finished trial that nobody trained."""
    history = tuple(
        EpochRecord(
            phase="neuron",
            generation=0,
            attempt=0,
            epoch=epoch,
            values={"train_loss": 1 / (epoch + 1), "validation_score": 0.5 + epoch / 10_000},
        )
        for epoch in range(epochs)
    )
    values = {
        "number": number,
        "params": {"width": 2, "learning_rate": 0.01, "schedule": "fixed"},
        "started": 1_700_000_000_000,
        "ended": 1_700_000_005_000,
        "milestone": milestone(0.5 + number / 100, 10 + number),
        "history": history,
    }
    return TrialRecord(**{**values, **changes})


def tracker_of(home: Home, study: str, uri: str | None = None) -> Tracker:
    """The tracker of a study whose folder has the study's name."""
    return Tracker(StudyFolder(home, study).create(), study, uri)


def open_and_record(folder: Path, study: str, barrier: Any, numbers: list[int]) -> None:
    """What a process does that opens the store at the same moment as another one."""
    barrier.wait()
    tracker = tracker_of(Home.at(folder), study)
    for number in numbers:
        tracker.log_trial(record(number))
