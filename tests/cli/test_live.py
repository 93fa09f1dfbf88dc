import io
import logging
import re
import time
from typing import Any

import pytest
import sqlalchemy
from rich.console import Console

from pbp_search.cli import live
from pbp_search.cli.live import TimeLeft, Verbosity, watched
from pbp_search.search import Progress

BEFORE = Progress(2, 1, 0, 0, 3, 0, 1, None)
LATER = Progress(12, 2, 1, 0, 8, 4, 5, 0.8734)
END = Progress(50, 0, 1, 0, 20, 29, 7, 0.9)


class Told:
    """Stands for a study that is as far as it is told to be."""

    def __init__(self, *progress: Progress | Exception) -> None:
        self.left = list(progress)

    def progress(self) -> Progress:
        told = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        if isinstance(told, Exception):
            raise told
        return told


def watch(monkeypatch: pytest.MonkeyPatch, told: Told, console: Console, verbosity: Verbosity = "normal") -> str:
    """What is printed while a study is run for long enough to tell everything but its end."""
    for kind in (live._LivingLine, live._PlainLines):
        monkeypatch.setattr(kind, "seconds", 0.005)
    study: Any = told
    with watched(study, 50, 600.0, verbosity, console):
        for _ in range(1000):
            if len(told.left) == 1 or verbosity == "quiet":
                break
            time.sleep(0.005)
        time.sleep(0.05)
        told.left = [END]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, _environ={})


def last_line(printed: str) -> str:
    """What is on a terminal's last line at the end."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed).replace("\r", "\n").strip().splitlines()[-1].strip()


@pytest.fixture(autouse=True)
def _a_minute_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.TimeLeft, "spent", property(lambda _: 60.0))


def test_one_line_lives_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = watch(monkeypatch, Told(BEFORE, BEFORE, LATER), terminal(120))
    line = "50/50 rungs, in 0:01:00, 0 running, 1 failed, 20 configurations, front 7, hypervolume 0.900"
    assert re.fullmatch(rf"\S{{12}} {line}", last_line(printed)), last_line(printed)
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (100, "50/50 rungs, in 0:01:00, 0 running, 1 failed, 20 configurations, front 7, hypervolume 0.900"),
        (80, "50/50 rungs, in 0:01:00, 0 running, 1 failed, 20 configurations, front 7"),
        (40, "50/50 rungs, in 0:01:00, 0 running"),
        (11, "50/50 rungs"),
        (8, "50/50 r…"),
    ],
)
def test_a_narrow_terminal_shows_what_matters_most(monkeypatch: pytest.MonkeyPatch, width: int, line: str) -> None:
    printed = watch(monkeypatch, Told(BEFORE, LATER), terminal(width))
    assert last_line(printed) == line
    assert printed.count("\n") == 1


def test_elsewhere_there_are_plain_lines_where_something_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    away = sqlalchemy.exc.OperationalError("SELECT", (), Exception("database is locked"))
    told = Told(BEFORE, BEFORE, BEFORE, away, LATER)
    printed = watch(monkeypatch, told, Console(file=io.StringIO(), width=20))
    # 10 trials a minute: the other 38 take 228 seconds.
    assert printed.splitlines() == [
        "2/50 rungs, 1 running, 0 failed, 3 configurations, front 1, 0:09:00 left",
        "12/50 rungs, 2 running, 1 failed, 8 configurations, front 5, hypervolume 0.873, 0:03:48 left",
        "50/50 rungs, 0 running, 1 failed, 20 configurations, front 7, hypervolume 0.900, in 0:01:00",
    ]


def test_plain_lines_are_rare() -> None:
    assert live._PlainLines.seconds == 10
    assert live._LivingLine.seconds == 1


@pytest.mark.parametrize("console", [terminal(100), Console(file=io.StringIO())])
def test_quiet_shows_nothing(monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    assert watch(monkeypatch, Told(BEFORE, LATER), console, "quiet") == ""


def test_an_error_ends_the_line_and_is_told_as_it_is() -> None:
    console = Console(file=io.StringIO())
    study: Any = Told(BEFORE)
    with pytest.raises(KeyboardInterrupt), watched(study, 50, None, "normal", console):
        raise KeyboardInterrupt
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""


@pytest.mark.parametrize(
    ("verbosity", "lines"),
    [
        ("quiet", []),
        ("normal", ["killed"]),
        ("verbose", ["killed", "Trial 3 is new", "Trial 4 failed: [red]"]),
    ],
)
def test_the_log_is_printed_as_far_as_it_is_wanted(verbosity: Verbosity, lines: list[str]) -> None:
    console = Console(file=io.StringIO())
    study: Any = Told(END)
    ours, theirs = logging.getLogger("pbp_search.search.workers"), logging.getLogger("pbp_search.search.study")
    before = (logging.getLogger("pbp_search").handlers, theirs.level, theirs.propagate)
    with watched(study, 50, None, verbosity, console):
        ours.warning("%s", "killed")
        theirs.info("Trial %d is new", 3)
        theirs.warning("Trial 4 failed: [red]")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines()[: len(lines)] == lines
    assert ("Trial" in console.file.getvalue()) == (verbosity == "verbose")
    assert before == (logging.getLogger("pbp_search").handlers, theirs.level, theirs.propagate)


@pytest.mark.parametrize(
    ("timeout", "finished", "left"),
    [
        (None, 2, None),
        (None, 12, 228),
        (600.0, 2, 540),
        (600.0, 12, 228),
        (100.0, 12, 40),
        (30.0, 12, 0),
        (None, 50, 0),
        (600.0, 51, 0),
    ],
)
def test_time_left_is_the_smaller_of_both(timeout: float | None, finished: int, left: float | None) -> None:
    assert TimeLeft(2, 50, timeout).after(finished) == left
