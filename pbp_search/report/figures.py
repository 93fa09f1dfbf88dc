"""The front as figures: score against size, every network a point, the front a line.

Colours are from the palette of M. Okabe and K. Ito, told apart by the colour-blind; the number of dendrites is also
told by the marker, which is open where the network has been pruned.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pbp_search.front import Front
from pbp_search.search import Rung, Study
from pbp_search.training.milestone import UNITS

_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7")
_PLOTLY_MARKERS = ("circle", "square", "diamond", "triangle-up", "star")
_MATPLOTLIB_MARKERS = ("o", "s", "D", "^", "*")
_LINE = "#0072B2"


def _title(study: Study) -> str:
    return f"{study.name}: how small at which {study.definition.metric}?"


def _name(dendrites: int, pruned: bool) -> str:
    name = {0: "no dendrites", 1: "1 dendrite a neuron"}.get(dendrites, f"{dendrites} dendrites a neuron")
    return f"{name}, pruned" if pruned else name


def _groups(rungs: Sequence[Rung]) -> dict[tuple[int, bool], list[Rung]]:
    """The rungs by their dendrites, and by whether they have been pruned."""
    groups: dict[tuple[int, bool], list[Rung]] = {}
    for rung in rungs:
        groups.setdefault((rung.milestone.dendrites, rung.milestone.pruned > 0), []).append(rung)
    return dict(sorted(groups.items()))


def _line(front: Front[Rung]) -> tuple[list[float], list[float]]:
    return [point.size for point in front], [point.score for point in front]


def _sizes(study: Study, rungs: Sequence[Rung]) -> list[int]:
    return [rung.milestone.size(study.definition.size) for rung in rungs]


def ticks_around(sizes: Sequence[float]) -> list[int]:
    """Round sizes, 1, 2 and 5 of each power of ten, around some."""
    powers = range(int(math.log10(min(sizes))), int(math.log10(max(sizes))) + 2)
    ticks = [digit * 10**power for power in powers for digit in (1, 2, 5)]
    return [tick for tick in ticks if min(sizes) / 2 <= tick <= max(sizes) * 2]


def draw_plotly(study: Study) -> go.Figure:
    """An interactive figure; hovering tells a network's trial, width and scores."""
    figure = go.Figure()
    unit = UNITS[study.definition.size]
    sizes, scores = _line(study.front())
    step = {"color": _LINE, "shape": "hv", "width": 2}
    figure.add_scatter(x=sizes, y=scores, mode="lines", name="front", line=step, hoverinfo="skip")
    for (dendrites, pruned), rungs in _groups(study.rungs()).items():
        index = min(dendrites, len(_COLOURS) - 1)
        figure.add_scatter(
            x=_sizes(study, rungs),
            y=[rung.milestone.score for rung in rungs],
            mode="markers",
            name=_name(dendrites, pruned),
            marker={"color": _COLOURS[index], "symbol": _PLOTLY_MARKERS[index] + pruned * "-open", "size": 9},
            customdata=[[rung.trial, rung.milestone.config.width, rung.milestone.train_score] for rung in rungs],
            hovertemplate=(
                f"trial %{{customdata[0]}}, width %{{customdata[1]}}<br>%{{x:,}} {unit}<br>"
                "validation %{y:.4f}<br>training %{customdata[2]:.4f}<extra></extra>"
            ),
        )
    figure.update_layout(title=_title(study), template="plotly_white", hovermode="closest")
    ticks = ticks_around(_sizes(study, study.rungs()) or [1])
    figure.update_xaxes(title=unit, type="log", tickvals=ticks, ticktext=[f"{tick:,}" for tick in ticks])
    figure.update_yaxes(title=f"validation {study.definition.metric}")
    return figure


def draw_png(study: Study, path: Path) -> None:
    """The same figure as a picture."""
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    sizes, scores = _line(study.front())
    axes.plot(sizes, scores, drawstyle="steps-post", color=_LINE, label="front")
    for (dendrites, pruned), rungs in _groups(study.rungs()).items():
        index = min(dendrites, len(_COLOURS) - 1)
        axes.scatter(
            _sizes(study, rungs),
            [rung.milestone.score for rung in rungs],
            edgecolors=_COLOURS[index],
            facecolors="none" if pruned else _COLOURS[index],
            marker=_MATPLOTLIB_MARKERS[index],
            s=24,
            label=_name(dendrites, pruned),
            zorder=3,
        )
    axes.set_xscale("log")
    ticks = ticks_around(_sizes(study, study.rungs()) or [1])
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(UNITS[study.definition.size])
    axes.set_ylabel(f"validation {study.definition.metric}", parse_math=False)
    axes.set_title(_title(study), parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
