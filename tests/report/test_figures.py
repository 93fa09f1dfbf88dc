import html.parser
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pbp_search.home import Home
from pbp_search.report import write_front
from pbp_search.report.figures import draw_plotly, draw_png
from pbp_search.search import Study
from pbp_search.training import Milestone, Size, Task
from tests.quick_studies import Dots, fill, milestone
from tests.training.tiny_tasks import Bowl

PLAIN = [milestone(0.5, 12), milestone(0.6, 120), milestone(0.4, 500)]
GROWN = [*PLAIN, milestone(0.7, 40, dendrites=1, requested=1), milestone(0.9, 4000, dendrites=6, requested=6)]
PRUNED = [*GROWN, milestone(0.7, 20, pruned=1), milestone(0.6, 10, pruned=2)]
STUDIES: dict[str, tuple[Task, list[Milestone]]] = {
    "no dendrites": (Dots(), PLAIN),
    "dendrites": (Dots(), GROWN),
    "minimised": (Bowl(), GROWN),
    "pruned": (Dots(), PRUNED),
}


@pytest.fixture(params=STUDIES)
def study(request: pytest.FixtureRequest, home: Home) -> Study:
    task, milestones = STUDIES[request.param]
    return fill(Study.create(task, home=home), milestones)


def test_every_network_is_a_point_and_the_front_a_line(study: Study) -> None:
    line, *groups = draw_plotly(study).data
    front = study.front()
    assert list(zip(line.x, line.y, strict=True)) == [(point.size, point.score) for point in front]
    assert (line.mode, line.line.shape) == ("lines", "hv")
    drawn = {row[0]: (x, y) for group in groups for x, y, row in zip(group.x, group.y, group.customdata, strict=True)}
    assert drawn == {rung.trial: (rung.milestone.parameters, rung.milestone.score) for rung in study.rungs()}


def test_groups_are_told_apart_by_name_colour_and_marker(home: Home) -> None:
    study = fill(Study.create(Dots(), home=home), PRUNED)
    _, *groups = draw_plotly(study).data
    names = ["no dendrites", "no dendrites, pruned", "1 dendrite a neuron", "6 dendrites a neuron"]
    assert [group.name for group in groups] == names
    assert [len(group.x) for group in groups] == [3, 2, 1, 1]
    assert len({group.marker.color for group in groups}) == 3
    assert len({group.marker.symbol for group in groups}) == 4


def test_axes_and_title_name_what_is_shown(study: Study) -> None:
    layout = draw_plotly(study).layout
    metric = study.definition.metric
    assert layout.title.text == f"{study.name}: how small at which {metric}?"
    assert (layout.xaxis.title.text, layout.xaxis.type) == ("parameters", "log")
    assert layout.yaxis.title.text == f"validation {metric}"


def test_the_size_is_the_studys(home: Home, tmp_path: Path) -> None:
    units: dict[Size, str] = {"weight_bytes": "bytes of weights", "macs": "multiply-accumulates"}
    for size, unit in units.items():
        study = fill(Study.create(Dots(), size, home, size=size), GROWN)
        figure = draw_plotly(study)
        line, *groups = figure.data
        assert list(line.x) == [point.payload.milestone.size(size) for point in study.front()]
        drawn = {row[0]: x for group in groups for x, row in zip(group.x, group.customdata, strict=True)}
        assert drawn == {rung.trial: rung.milestone.size(size) for rung in study.rungs()}
        assert figure.layout.xaxis.title.text == unit
        assert all(f"%{{x:,}} {unit}<br>" in group.hovertemplate for group in groups)
        draw_png(study, tmp_path / f"{size}.png")
        assert (tmp_path / f"{size}.png").stat().st_size > 1000


def test_a_study_without_rungs_has_an_empty_figure(home: Home, tmp_path: Path) -> None:
    study = Study.create(Dots(), home=home)
    figure = draw_plotly(study)
    assert [len(trace.x) for trace in figure.data] == [0]
    draw_png(study, tmp_path / "front.png")
    with Image.open(tmp_path / "front.png") as picture:
        assert picture.size == (1200, 750)


class Scripts(html.parser.HTMLParser):
    """The sources and texts of a page's scripts, and whatever else it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._script = tag == "script"
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        if self._script:
            self.inline.append(data)


def test_the_page_needs_no_network(study: Study, tmp_path: Path) -> None:
    write_front(study, tmp_path)
    page = Scripts((tmp_path / "front.html").read_text())
    assert page.loaded == []
    assert any("plotly.js v" in text and len(text) > 1_000_000 for text in page.inline)
    assert any("Plotly.newPlot" in text and "validation " in text for text in page.inline)


def test_the_picture_shows_something(study: Study, tmp_path: Path) -> None:
    draw_png(study, tmp_path / "front.png")
    with Image.open(tmp_path / "front.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (1200, 750)
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    blue = np.abs(pixels - np.array([0x00, 0x72, 0xB2])).sum(axis=1) < 10
    black = pixels.sum(axis=1) == 0
    assert blue.sum() > 200, "the line of the front"
    assert black.sum() > 200, "letters and points"


def test_scores_of_any_kind_can_be_drawn(home: Home, tmp_path: Path) -> None:
    milestones = [milestone(-1e9, 1), milestone(0.0, 10**8), milestone(math.pi, 10**9)]
    study = fill(Study.create(Dots(), home=home), milestones)
    write_front(study, tmp_path)
    assert (tmp_path / "front.png").stat().st_size > 1000
    assert len(draw_plotly(study).data[0].x) == 3
