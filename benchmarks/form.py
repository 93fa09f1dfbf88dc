"""What all benchmarks share: ratios of things run side by side, a table, and JSON with the machine beside it."""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: What was measured.
        value: The median of all runs.
        unit: Its unit; ``ratio`` for two things run side by side.
        target: The largest value that is wanted, if any.
        runs: How many runs there were.
        spread: Half the range between the quartiles of the runs.
        least: The target is the smallest value that is wanted, not the largest.
    """

    name: str
    value: float
    unit: str
    target: float | None
    runs: int
    spread: float
    least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met."""
        if self.target is None:
            return None
        return self.value >= self.target if self.least else self.value <= self.target


def figure(
    name: str, values: Sequence[float], unit: str = "ratio", target: float | None = None, least: bool = False
) -> Figure:
    """The median of some runs, with their spread."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    spread = (quartiles[2] - quartiles[0]) / 2
    return Figure(name, statistics.median(values), unit, target, len(values), spread, least)


def interleaved(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each call, one after the other in turn, so that a noisy machine disturbs all alike."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], name: str, over: str) -> list[float]:
    """The ratio of two calls in each run."""
    return [one / other for one, other in zip(seconds[name], seconds[over], strict=True)]


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "load": [round(load, 2) for load in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.machine(),
    }


def show(figures: Sequence[Figure], json_file: Path | None) -> None:
    """Print the figures as a table, and write them as JSON if a file is named."""
    table = Table(box=box.SIMPLE)
    for column in ("figure", "value", "unit", "target", "met", "runs", "spread"):
        table.add_column(column, justify="left" if column in ("figure", "unit") else "right", no_wrap=True)
    for one in figures:
        met = {None: "", True: "yes", False: "no"}[one.met]
        target = "" if one.target is None else f"{'>= ' if one.least else ''}{one.target:g}"
        table.add_row(one.name, f"{one.value:.3f}", one.unit, target, met, str(one.runs), f"{one.spread:.3f}")
    console = Console(width=140)
    console.print(table)
    if json_file is not None:
        rows = [{**_finite(asdict(one)), "met": one.met, "machine": machine()} for one in figures]
        json_file.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")


def _finite(fields: dict[str, object]) -> dict[str, object]:
    """JSON has no infinity: what is never reached is null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }
