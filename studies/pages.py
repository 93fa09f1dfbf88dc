"""The pages of docs/results, from the raw results beside them.

    python studies/pages.py
    python studies/pages.py --home mlruns
    python studies/pages.py --searches mlruns

The second form first takes over the results of the comparisons in a home, the third what its searches found of the
parameters with choices.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import click

from pbp_search import Home
from pbp_search.cli import main
from pbp_search.cli.session import quiet_libraries
from pbp_search.compare import AtSize, Findings, Results, findings
from pbp_search.compare.figures import draw_comparison_png, size_of
from pbp_search.compare.page import markdown_table, page_of
from pbp_search.compare.searched import choices
from pbp_search.compare.verdict import ALTERNATIVES
from pbp_search.search import list_studies
from pbp_search.training import Size

FOLDER = Path(__file__).parents[1] / "docs" / "results"
SEARCHES = FOLDER / "searches.json"

PUBLISHED = {
    "mnist_mlp": (
        "* 784-300-100-10, 267,000 parameters: 1.64% errors; pruned to 22,000: 1.58% (Han et al. 2015, 2016).\n"
        "* One hidden layer, 10 epochs of scikit-learn, one seed: 3,190 parameters 87.2%, 6,370 92.5%, 12,730 95.0%, "
        "25,450 96.5%."
    ),
    "fashion_mlp": (
        "* A perceptron of 248,000 parameters: 88.3%; convolutions with under 100,000: 92.5% (its authors).\n"
        "* One hidden layer with early stopping, one seed: 6,370 parameters 83.0%, 12,730 85.1%, 25,450 87.1%."
    ),
    "mnist1d_cnn": (
        "Of the data set's authors: linear, 410 parameters, 31.5%; perceptron, 15,210, 65 to 68%; convolutions, 5,210, "
        "92.3%; GRU, 5,134, 89.1%."
    ),
    "credit_mlp": (
        "* One seed each, in the examples of an open implementation of dendrites: without them 2,369 parameters .765, "
        "7,809 .779, 27,905 .780; with them 18,801 .782, 89,521 .783.\n"
        "* With early stopping, one seed: 305 parameters .768, 2,369 .772: a part of the published gain is a weak "
        "baseline."
    ),
    "spoken_digits": (
        "One hidden layer, measured with one seed: 1,974 parameters 79.0%, 3,938 93.7%, 15,722 98.0%. Of networks as "
        "small no published figures are known to us."
    ),
}
"""By the beginning of a study's name."""


@click.command()
@click.option(
    "--home",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="First take over the results of the comparisons in this home.",
)
@click.option(
    "--searches",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="First take over what the searches in this home found of parameters with choices.",
)
def pages(home: Path | None, searches: Path | None) -> int:
    """Write the pages of docs/results."""
    quiet_libraries()
    if home is not None:
        _take_over(Home.at(home))
    if searches is not None:
        chosen = {study.name: choices(study) for study in list_studies(Home.at(searches))}
        SEARCHES.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
    summary = []
    for folder in sorted(path.parent for path in FOLDER.glob("*/results.json")):
        results = Results.load(folder)
        kinds: list[Size] = ["parameters", "weight_bytes"]
        found = [findings(results, kind) for kind in kinds]
        for one in found:
            draw_comparison_png(results, one, folder / f"{one.kind}.png")
        pictures = [f"{folder.name}/{one.kind}.png" for one in found]
        beside = next((text for name, text in PUBLISHED.items() if folder.name.startswith(name)), "")
        page = page_of(results, found, pictures, beside)
        (FOLDER / f"{folder.name}.md").write_text(page, encoding="utf-8")
        summary += list(_summary(folder.name, found[0]))
        click.echo(FOLDER / f"{folder.name}.md")
    _write_between("comparisons", markdown_table(_HEADER, summary))
    _write_between("searches", _searches(json.loads(SEARCHES.read_text(encoding="utf-8"))))
    return 0


def _take_over(home: Home) -> None:
    for study in list_studies(home):
        comparison = study.folder.path / "comparison"
        if (comparison / "results.json").exists() and (comparison / "networks.csv").exists():
            folder = FOLDER / study.name
            folder.mkdir(parents=True, exist_ok=True)
            Results.load(comparison).save(folder)


_HEADER = ("study", "parameters", "kept", "score", *(f"against {arm}" for arm in ALTERNATIVES))


def _summary(name: str, found: Findings) -> Iterator[tuple[str, ...]]:
    for number, one in enumerate(found.at):
        yield (
            f"[{name}]({name}.md)" if number == 0 else "",
            size_of(one),
            f"{one.kept}/{found.seeds}",
            f"{one.score:.4f}",
            *(_cell(one, arm) for arm in ALTERNATIVES),
        )


def _cell(one: AtSize, arm: str) -> str:
    """The gap, in bold where a difference is shown."""
    for gap in one.gaps:
        if gap.arm == arm:
            text = f"{gap.comparison.mean:+.4f}"
            return text if gap.verdict == "no difference shown" else f"**{text}**"
    return ""


def _searches(found: dict[str, dict[str, dict[str, tuple[int, float]]]]) -> str:
    """A row for each value of each parameter, a column for each study."""
    values = {(name, value): None for own in found.values() for name in own for value in own[name]}
    rows = []
    for name, value in sorted(values):
        cells = [own.get(name, {}).get(value) for own in found.values()]
        rows.append((f"`{name}`", value, *("" if cell is None else f"{cell[1]:.4f} ({cell[0]})" for cell in cells)))
    return markdown_table(("parameter", "value", *found), rows)


def _write_between(name: str, text: str) -> None:
    """Into the README, at the mark of that name."""
    file = FOLDER / "README.md"
    begin, end = f"<!-- {name}: python studies/pages.py -->", f"<!-- {name} end -->"
    before, rest = file.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    file.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(pages)
