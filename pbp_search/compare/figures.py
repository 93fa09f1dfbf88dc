"""A comparison as sentences, a table, and a figure."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich import box
from rich.table import Table
from scipy import stats

from pbp_search.compare.results import Results, Row
from pbp_search.compare.verdict import ALTERNATIVES, FEWEST_SEEDS, AtSize, Findings, Gap
from pbp_search.report.figures import ticks_around
from pbp_search.training.milestone import UNITS

WHAT = {
    "dendritic": "with dendrites",
    "plain": "plain, wider",
    "deep": "plain, deeper",
    "pruned": "plain, pruned",
    "linear": "linear",
    "sham": "same cycles, no dendrites",
    "gradient": "dendrites by gradient only",
    "random": "random dendrites",
}
"""The arms in words."""

_COLOURS = {"dendritic": "#D55E00", "plain": "#000000", "deep": "#009E73", "pruned": "#0072B2", "linear": "#CC79A7"}
_SYMBOLS = {"dendritic": "square", "plain": "circle", "deep": "triangle-up", "pruned": "circle-open", "linear": "x"}
_MARKERS = {"dendritic": "s", "plain": "o", "deep": "^", "pruned": "o", "linear": "x"}


def sentences(found: Findings, metric: str) -> list[str]:
    """The verdict in words, a sentence for each alternative."""
    lines = []
    for arm in ALTERNATIVES:
        gaps = [(one, gap) for one in found.at for gap in one.gaps if gap.arm == arm]
        missing = [(one, one.missing[arm]) for one in found.at if arm in one.missing]
        parts = [*_parts(gaps, UNITS[found.kind], metric), *_missing(missing, UNITS[found.kind])]
        if parts:
            lines.append(f"Against {WHAT[arm]}: {'; '.join(parts)}.")
    volumes = found.volumes
    change = volumes.comparison
    lines.append(
        f"Hypervolume from {found.at[0].size:,} to {found.at[-1].size:,} {UNITS[found.kind]}: "
        f"{volumes.with_dendrites:.3f} with dendrites ({volumes.epochs_with:,.0f} epochs a seed), "
        f"{volumes.without:.3f} without ({volumes.epochs_without:,.0f} epochs): {change.mean:+.3f}, "
        f"{change.low:+.3f} to {change.high:+.3f}."
    )
    costs = (
        f"{WHAT[arm]} {cost.seconds:,.0f} s ({cost.trainings:,.0f} trainings)" for arm, cost in found.costs.items()
    )
    lines.append(f"Training took, a seed: {', '.join(costs)}.")
    if found.lost:
        lines.append(f"{found.lost} networks could not be trained.")
    if not found.claims:
        least = max(found.wanted, FEWEST_SEEDS)
        lines.append(f"With {found.seeds} seeds these figures are no ground for a claim: {least} are.")
    return lines


def _parts(gaps: Sequence[tuple[AtSize, Gap]], unit: str, metric: str) -> Iterator[str]:
    for verdict, said in (("help", "dendrites help at"), ("hurt", "dendrites hurt at")):
        some = [f"{size_of(one)} ({gap.comparison.mean:+.4f})" for one, gap in gaps if gap.verdict == verdict]
        if some:
            yield f"{said} {', '.join(some)} {unit}"
    rest = [(one, gap) for one, gap in gaps if gap.verdict == "no difference shown"]
    if rest:
        seen = [gap.comparison.detectable for _, gap in rest if math.isfinite(gap.comparison.detectable)]
        power = f" (80% of the time, a gap of {max(seen):.4f} in {metric} would have been seen)" if seen else ""
        yield f"no difference shown at {', '.join(size_of(one) for one, _ in rest)} {unit}{power}"


def _missing(missing: Sequence[tuple[AtSize, tuple[int, int]]], unit: str) -> Iterator[str]:
    if missing:
        smallest, largest = missing[0][1]
        reach = f"it has {smallest:,}" if smallest == largest else f"they have {smallest:,} to {largest:,}"
        yield f"not compared at {', '.join(size_of(one) for one, _ in missing)} {unit}, as {reach}"


def size_of(one: AtSize) -> str:
    """A network's size, and whether it was pruned."""
    return f"{one.size:,}{' pruned' if one.pruned else ''}"


def size_at_equal_score(gap: Gap) -> str:
    """The size at which another arm scores as the network with dendrites, and its bounds."""
    if gap.sizes is None:
        return "" if gap.size is None else f"it has {gap.size:,}"
    sizes = gap.sizes
    low, middle, high = (("more" if size is None else f"{size:,.0f}") for size in (sizes.low, sizes.middle, sizes.high))
    below = " or less" if sizes.middle == sizes.smallest else ""
    return f"{middle}{below} ({low} to {high})"


COLUMNS = (
    "size",
    "kept",
    "score",
    "against",
    "its score",
    "gap",
    "interval",
    "dendrites",
    "would see",
    "its size at that score",
)
"""What is told of each gap: ``kept`` counts the seeds in which all dendrites stayed, ``would see`` is the gap that is
shown with a probability of 80%."""

_LEFT = ("against", "interval", "dendrites", "its size at that score")


def comparison_rows(found: Findings) -> Iterator[tuple[str, ...]]:
    """A row for each gap, of :data:`COLUMNS`; what is said of the network with dendrites is said once."""
    for one in found.at:
        for number, gap in enumerate(one.gaps):
            shown = gap.comparison
            first = (size_of(one), f"{one.kept}/{found.seeds}", f"{one.score:.4f}") if number == 0 else ("", "", "")
            yield (
                *first,
                WHAT[gap.arm],
                f"{gap.score:.4f}",
                f"{shown.mean:+.4f}",
                f"{shown.low:+.4f} to {shown.high:+.4f}",
                gap.verdict,
                f"{shown.detectable:.4f}" if math.isfinite(shown.detectable) else "",
                size_at_equal_score(gap),
            )


def comparison_table(found: Findings, metric: str) -> Table:
    """The gaps at each size, against every other arm."""
    title = f"Test {metric} with dendrites, minus that of other networks ({found.seeds} seeds)"
    caption = "Intervals at each test's level in Holm's procedure: zero is outside where a difference is shown."
    table = Table(title=title, caption=caption, box=box.SIMPLE, title_justify="left", padding=(0, 1))
    names = {"size": UNITS[found.kind], "dendrites": "dendrites" if found.claims else "dendrites (weak)"}
    for column in COLUMNS:
        table.add_column(names.get(column, column), justify="left" if column in _LEFT else "right", no_wrap=True)
    for row in comparison_rows(found):
        table.add_row(*row)
    return table


def networks_of(results: Results, arm: str) -> list[list[Row]]:
    """The networks of an arm that a figure shows, each with a row for each replicate, smallest first.

    Those of chains that grow are their last ones, as the verdict has them; of chains that are only pruned, and of plain
    networks' starts, all steps and the best starts.
    """
    sign = 1 if results.direction == "maximize" else -1
    best: dict[tuple[int, int], dict[int, Row]] = {}
    for row in results.rows:
        if row.arm != arm:
            continue
        known = best.setdefault((row.group, row.pruned if arm == "pruned" else 0), {})
        before = known.get(row.replicate)

        def worth(row: Row) -> tuple[int, float]:
            return row.requested + row.pruned, sign * row.validation

        if before is None or worth(row) > worth(before):
            known[row.replicate] = row
    count = len({row.replicate for row in results.rows})
    whole = [list(rows.values()) for rows in best.values() if len(rows) == count]
    return sorted(whole, key=lambda rows: np.mean([row.parameters for row in rows]))


def _points(results: Results, found: Findings, arm: str) -> tuple[list[float], list[float], list[float]]:
    """Mean sizes, mean test scores, and the half-widths of their 95% intervals, alone."""
    sizes, scores, reaches = [], [], []
    for rows in networks_of(results, arm):
        tests = np.array([row.test for row in rows])
        sizes.append(float(np.exp(np.mean([np.log(row.size(found.kind)) for row in rows]))))
        scores.append(float(tests.mean()))
        reaches.append(float(stats.t.isf(0.025, len(tests) - 1) * stats.sem(tests)))
    return sizes, scores, reaches


def _title(results: Results, found: Findings) -> str:
    return f"{results.study}: test {results.metric}, mean of {found.seeds} seeds with 95% intervals"


def _shown(results: Results) -> Sequence[str]:
    there = {row.arm for row in results.rows}
    return [arm for arm in _COLOURS if arm in there]


def draw_comparison(results: Results, found: Findings) -> go.Figure:
    """The arms' test scores over their sizes, interactive."""
    figure = go.Figure()
    everything: list[float] = []
    for arm in _shown(results):
        sizes, scores, reaches = _points(results, found, arm)
        everything += sizes
        figure.add_scatter(
            x=sizes,
            y=scores,
            error_y={"array": reaches},
            mode="markers" if arm in ("dendritic", "linear", "pruned") else "lines+markers",
            name=WHAT[arm],
            marker={"color": _COLOURS[arm], "symbol": _SYMBOLS[arm], "size": 9},
            hovertemplate=f"%{{x:,.0f}} {UNITS[found.kind]}<br>%{{y:.4f}}<extra>{WHAT[arm]}</extra>",
        )
    figure.update_layout(title=_title(results, found), template="plotly_white", hovermode="closest")
    ticks = ticks_around(everything)
    figure.update_xaxes(title=UNITS[found.kind], type="log", tickvals=ticks, ticktext=[f"{tick:,}" for tick in ticks])
    figure.update_yaxes(title=f"test {results.metric}")
    return figure


def draw_comparison_png(results: Results, found: Findings, path: Path) -> None:
    """The same figure as a picture."""
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    everything: list[float] = []
    for arm in _shown(results):
        sizes, scores, reaches = _points(results, found, arm)
        everything += sizes
        axes.errorbar(
            sizes,
            scores,
            yerr=reaches,
            color=_COLOURS[arm],
            marker=_MARKERS[arm],
            markerfacecolor="none" if arm == "pruned" else None,
            linestyle="none" if arm in ("dendritic", "linear", "pruned") else "-",
            linewidth=1,
            markersize=5,
            capsize=2,
            label=WHAT[arm],
        )
    axes.set_xscale("log")
    ticks = ticks_around(everything)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(UNITS[found.kind])
    axes.set_ylabel(f"test {results.metric}", parse_math=False)
    axes.set_title(_title(results, found), parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
