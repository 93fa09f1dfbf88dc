"""A comparison as files: raw results, figures, and a page in Markdown."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pbp_search.compare.figures import (
    COLUMNS,
    WHAT,
    comparison_rows,
    draw_comparison,
    draw_comparison_png,
    sentences,
    size_of,
)
from pbp_search.compare.results import Results, Row
from pbp_search.compare.verdict import Findings, to_dict
from pbp_search.search import Study
from pbp_search.training.milestone import UNITS


def publish_comparison(
    study: Study, results: Results, found: Sequence[Findings], tracking_uri: str | None = None
) -> Path:
    """Write a comparison's files into the study's folder and store them on the study's MLflow run.

    Returns:
        The folder of the files.
    """
    from pbp_search.tracking import Tracker

    folder = study.folder.path / "comparison"
    write_comparison(results, found, folder)
    Tracker(study.folder, study.name, tracking_uri).log_files(folder)
    return folder


def write_comparison(results: Results, found: Sequence[Findings], folder: Path) -> None:
    """Write the raw results, ``verdict.json``, ``verdict.md``, and a figure for each kind of size, as HTML and PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    results.save(folder)
    (folder / "verdict.json").write_text(json.dumps([to_dict(one) for one in found], indent=1) + "\n")
    page = page_of(results, found, [f"{one.kind}.png" for one in found])
    (folder / "verdict.md").write_text(page, encoding="utf-8")
    for one in found:
        html = folder / f"{one.kind}.html"
        draw_comparison(results, one).write_html(html, include_plotlyjs=True, default_height="95vh")
        draw_comparison_png(results, one, folder / f"{one.kind}.png")


def page_of(results: Results, found: Sequence[Findings], pictures: Sequence[str], beside: str = "") -> str:
    """The page: verdicts, charts, gaps, time, cost, and what was searched.

    Args:
        results: The raw results.
        found: The findings for each kind of size.
        pictures: Of each kind, the address of its chart.
        beside: Markdown that stands beside, such as published figures.
    """
    train, validation, test = ("?" if count is None else f"{count:,}" for count in results.samples)
    parts = [
        f"# {results.study}",
        f"Test {results.metric}; {train} training, {validation} validation and {test} test samples.",
    ]
    for one, picture in zip(found, pictures, strict=True):
        parts += [
            f"## By {UNITS[one.kind]}",
            "\n".join(f"* {line}" for line in sentences(one, results.metric)),
            f"![Test {results.metric} against {UNITS[one.kind]}]({picture})",
            markdown_table(COLUMNS, comparison_rows(one)),
        ]
    parts += ["## Time, and against the widest", *_time(results, found[0])]
    if beside:
        parts += ["## Published beside it", beside.strip()]
    parts += ["## What it took", *_cost(results, found[0]), "## What was searched", *_searched(results)]
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _time(results: Results, found: Findings) -> list[str]:
    widest = _widest(results)
    size = float(np.mean([row.size(found.kind) for row in widest]))
    rows = []
    for one in found.at:
        others = {gap.arm: f"{gap.score:.4f} in {gap.seconds:,.1f} s" for gap in one.gaps}
        rows.append(
            (
                size_of(one),
                str(one.width),
                str(one.dendrites),
                f"{one.score:.4f} in {one.seconds:,.1f} s",
                others.get("plain", ""),
                others.get("pruned", ""),
                f"{size / one.size:,.1f}",
            )
        )
    header = (UNITS[found.kind], "width", "dendrites", "with them", WHAT["plain"], WHAT["pruned"], "times smaller")
    return [
        markdown_table(header, rows),
        f"Test {results.metric} and mean training time of a seed: of a network with dendrites with all its steps, of a "
        "wider one with all its starts, of a pruned one from the wide one on. *Times smaller* than the widest network "
        f"that was trained: width {widest[0].width:,}, {size:,.0f} {UNITS[found.kind]}, "
        f"{np.mean([row.test for row in widest]):.4f}.",
    ]


def _widest(results: Results) -> list[Row]:
    """One row a replicate."""
    plain = [row for row in results.rows if row.arm in ("plain", "pruned") and not row.pruned and not row.start]
    largest = max(plain, key=lambda row: row.parameters)
    return [row for row in plain if (row.arm, row.group) == (largest.arm, largest.group)]


def _cost(results: Results, found: Findings) -> list[str]:
    rows = [
        (WHAT[arm], f"{cost.trainings:,.0f}", f"{cost.epochs:,.0f}", f"{cost.seconds:,.0f}")
        for arm, cost in found.costs.items()
    ]
    return [
        f"The search: {results.searched} trials, {results.search_epochs:,} epochs, {results.search_seconds:,.0f} s of "
        f"training. The comparison, a seed:",
        markdown_table(("networks", "trainings", "epochs", "seconds"), rows),
        f"{results.machine}.",
    ]


def _up_to(name: str, results: Results) -> str:
    return f"up to {results.space[{'pruned': 'prunings'}.get(name, name)]}"


def _searched(results: Results) -> list[str]:
    searched = {name: text for name, text in results.space.items() if text.startswith(("{", "["))}
    shares = {name: results.importances.get(name, 0.0) for name in {**searched, **results.importances}}
    told = {*shares, "prunings"}
    fixed = [f"`{name} = {text}`" for name, text in results.space.items() if name not in told]
    parts = [
        markdown_table(
            ("parameter", "values", "importance"),
            (
                (f"`{name}`", searched.get(name) or _up_to(name, results), f"{share:.2f}")
                for name, share in sorted(shares.items(), key=lambda item: -item[1])
            ),
        ),
        "*Importance*: how much a parameter tells the search's networks near its front from others (PED-ANOVA).",
        f"Fixed: {', '.join(fixed)}.",
    ]
    chosen = [
        (f"`{name}`", value, str(count), f"{gap:.4f}")
        for name, values in results.choices.items()
        for value, (count, gap) in values.items()
    ]
    if chosen:
        parts += [
            markdown_table(("parameter", "value", "networks with dendrites", f"lack of {results.metric}"), chosen),
            f"*Lack*: the median of what validation {results.metric} lacks to that of the best network that is no "
            "larger. Values were chosen by the sampler, not at random: a hint, no experiment.",
        ]
    return parts
