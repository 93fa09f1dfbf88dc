"""Time and peak memory of the stages of a piece of work, in a process of its own and read from outside of it."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

Work = Callable[..., Iterator[tuple[str, Any]]]
"""Yields the name of each stage when that is over, with a result that can be pickled."""


@dataclass(frozen=True)
class Stage:
    """A stage that is over.

    Attributes:
        result: What the work yielded with its name.
        seconds: How long it took.
        peak: The most bytes that the process had in memory meanwhile: what earlier stages left behind, included.
    """

    result: Any
    seconds: float
    peak: int


def stages(work: Work, *arguments: object) -> dict[str, Stage]:
    """Run some work, a function of a module, on one thread of a new process. Needs Linux.

    Raises:
        RuntimeError: The work failed: its traceback is on the process's own error stream.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(there, work, arguments))
    process.start()
    there.close()
    found: dict[str, Stage] = {}
    try:
        while (message := here.recv()) is not None:
            name, result, seconds = message
            found[name] = Stage(result, seconds, _peak(process.pid))
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak is that of now again
            here.send(None)
    except EOFError:
        raise RuntimeError(f"{work.__name__}{arguments} failed after the stages {list(found)}.") from None
    finally:
        process.join()
    return found


def _peak(pid: int | None) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def _run(connection: Connection, work: Work, arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.perf_counter()
    for name, result in work(*arguments):
        connection.send((name, result, time.perf_counter() - start))
        connection.recv()
        start = time.perf_counter()
    connection.send(None)
