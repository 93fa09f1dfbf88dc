"""What is told of a study while it runs: one line that lives on a terminal, plain lines elsewhere, and its log."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from pbp_search.search import Progress, Study
from pbp_search.search.storage import is_away

logger = logging.getLogger(__name__)

Verbosity = Literal["quiet", "normal", "verbose"]

LIVING_SECONDS = 1.0
"""How often the line on a terminal is made anew."""

PLAIN_SECONDS = 10.0
"""How often there may be a plain line."""

_LEVELS = {"quiet": logging.ERROR, "normal": logging.WARNING, "verbose": logging.INFO}
_OURS = (
    "pbp_search",
    "pbp_search.search.study",
)  # the second one is quiet otherwise: failed trials are told at the end
_BAR = 12
_WIDE = 105


@contextmanager
def watched(study: Study, trials: int, timeout: float | None, verbosity: Verbosity, console: Console) -> Iterator[None]:
    """Tell how far a study is, as long as the block runs that runs it.

    Args:
        study: The study.
        trials: The finished trials that it shall reach.
        timeout: The seconds after which it stops.
        verbosity: ``quiet`` tells of errors only, ``verbose`` also what came of each trial.
        console: Where to. What lives needs a terminal.
    """
    with _logging_to(console, verbosity):
        if verbosity == "quiet":
            yield
            return
        display = _LivingLine(console, trials) if console.is_interactive else _PlainLines(console, trials)
        with display.shown():
            yield from _updating(display, study, TimeLeft(study.progress().finished, trials, timeout))


class TimeLeft:
    """How long a study still takes, from the trials that have finished since this was made.

    Args:
        before: The trials that had finished before.
        trials: Those that shall have finished at the end.
        timeout: The seconds after which the study stops, if it has not reached that by then.
    """

    def __init__(self, before: int, trials: int, timeout: float | None) -> None:
        self._before = before
        self._trials = trials
        self._timeout = timeout
        self._started = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self._started

    def after(self, finished: int) -> float | None:
        """Seconds; None if nothing is known."""
        estimates = [] if self._timeout is None else [max(0.0, self._timeout - self.spent)]
        done = finished - self._before
        if finished >= self._trials:
            return 0.0
        if done > 0:
            estimates.append(self.spent / done * (self._trials - finished))
        return min(estimates, default=None)


def parts_of(progress: Progress, trials: int) -> list[str]:
    """How far a study is, the most important first."""
    return [
        f"{progress.finished}/{trials} rungs",
        f"{progress.running} running",
        f"{progress.failed} failed",
        counted(progress.configurations, "configuration"),
        f"front {progress.front_size}",
        *hypervolume_of(progress),
    ]


def hypervolume_of(progress: Progress) -> list[str]:
    """How good the front is, if that can be said yet."""
    return [] if progress.hypervolume is None else [f"hypervolume {progress.hypervolume:.3f}"]


def counted(number: int, noun: str) -> str:
    """A number of things in words: ``1 rung``, ``2 rungs``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class _Display(Protocol):
    """Shows how far a study is, and a word on its time."""

    seconds: float

    def show(self, progress: Progress, when: str) -> None: ...


class _LivingLine:
    """One line on a terminal. On a narrow one it has no bar, and fewer figures."""

    seconds = LIVING_SECONDS

    def __init__(self, console: Console, trials: int) -> None:
        self._console = console
        self._trials = trials
        line = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._has_bar = console.width >= _WIDE
        columns: list[ProgressColumn] = [BarColumn(_BAR), line] if self._has_bar else [line]
        self._bar = Bar(*columns, console=console)
        self._task: TaskID = self._bar.add_task("", total=trials)

    @contextmanager
    def shown(self) -> Iterator[None]:
        with self._bar:
            yield

    def show(self, progress: Progress, when: str) -> None:
        parts = parts_of(progress, self._trials)
        parts.insert(1, when)
        room = self._console.width - (_BAR + 1 if self._has_bar else 0)
        while len(", ".join(parts)) > room and len(parts) > 1:
            parts.pop()
        self._bar.update(self._task, completed=progress.finished, description=", ".join(parts))


class _PlainLines:
    """A line now and then, where something has happened since the last one."""

    seconds = PLAIN_SECONDS

    def __init__(self, console: Console, trials: int) -> None:
        self._console = console
        self._trials = trials
        self._last: Progress | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        yield

    def show(self, progress: Progress, when: str) -> None:
        if progress != self._last:
            self._last = progress
            _print(self._console, ", ".join([*parts_of(progress, self._trials), when]))


def _updating(display: _Display, study: Study, time_left: TimeLeft) -> Iterator[None]:
    """Show a study's progress from time to time, and at its end, unless that is an error."""
    ended = threading.Event()

    def update() -> None:
        while not ended.wait(display.seconds):
            try:
                progress = study.progress()
            except Exception as error:
                if not is_away(error):
                    raise
                logger.debug("The storage does not say how far the study is: %s", error)
            else:
                left = time_left.after(progress.finished)
                display.show(progress, "? left" if left is None else f"{_clock(left)} left")

    # Not when a trial has finished: what is running is of interest too, and others may work on the same study.
    thread = threading.Thread(target=update, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5)  # it may be waiting for a storage that is away
    display.show(study.progress(), f"in {_clock(time_left.spent)}")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class _ToConsole(logging.Handler):
    """Log lines go above the line that lives."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        _print(self._console, record.getMessage())


@contextmanager
def _logging_to(console: Console, verbosity: Verbosity) -> Iterator[None]:
    """Print this package's log as far as it is wanted. Afterwards loggers are as they were."""
    loggers = [logging.getLogger(name) for name in _OURS]
    before = [(each.level, each.propagate) for each in loggers]
    handler = _ToConsole(console)
    loggers[0].addHandler(handler)
    loggers[0].propagate = False
    for each in loggers:
        each.setLevel(_LEVELS[verbosity])
    if verbosity == "normal":
        loggers[1].setLevel(logging.ERROR)
    try:
        yield
    finally:
        loggers[0].removeHandler(handler)
        for each, (level, propagate) in zip(loggers, before, strict=True):
            each.setLevel(level)
            each.propagate = propagate


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
