"""The front as a table, as CSV and JSON, and as files in the study's folder and on its MLflow run."""

import csv
import io
import json
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from pbp_search.front import Front
from pbp_search.search import Rung, Study

_COLUMNS = (
    "trial",
    "width",
    "dendrites",
    "pruned",
    "parameters",
    "weight_bytes",
    "macs",
    "score",
    "train_score",
    "epochs",
    "seconds",
)


def front_json(front: Front[Rung]) -> str:
    """The front's rows as a JSON list, smallest network first."""
    return json.dumps([point.payload.row() for point in front], indent=2)


def front_csv(front: Front[Rung]) -> str:
    """The front's rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(point.payload.row() for point in front)
    return text.getvalue()


def front_table(study: Study) -> Table:
    """The front as a table for people."""
    metric = study.definition.metric
    front = study.front()
    title = f"Front of {study.name}: {len(front)} of {len(study.rungs())} networks (validation {metric})"
    table = Table(title=escape(title), box=box.SIMPLE, title_justify="left", padding=0)
    short = {"weight_bytes": "bytes", "train_score": "train"}
    some_pruned = any(point.payload.milestone.pruned for point in front)
    columns = [column for column in _COLUMNS if column != "pruned" or some_pruned]  # or 80 characters are too few
    for column in columns:
        table.add_column(short.get(column, column), justify="right", no_wrap=True)
    for point in front:
        row = point.payload.row()
        shown = {"score": f"{row['score']:.4f}", "train_score": f"{row['train_score']:.4f}"}
        shown["seconds"] = f"{row['seconds']:.1f}"
        table.add_row(*(shown.get(column, f"{row[column]:,}") for column in columns))
    return table


def write_front(study: Study, folder: Path) -> None:
    """Write ``front.csv``, ``front.json``, ``front.html`` (interactive, needs no network) and ``front.png``."""
    from pbp_search.report.figures import draw_plotly, draw_png  # plotting libraries: not needed for a table

    folder.mkdir(parents=True, exist_ok=True)
    front = study.front()
    (folder / "front.csv").write_text(front_csv(front))
    (folder / "front.json").write_text(front_json(front) + "\n")
    draw_plotly(study).write_html(folder / "front.html", include_plotlyjs=True, default_height="95vh")
    draw_png(study, folder / "front.png")


def publish_front(study: Study, tracking_uri: str | None = None) -> Path:
    """Write the front's files into the study's folder and store them on the study's MLflow run.

    Returns:
        The folder of the files.
    """
    from pbp_search.tracking import Tracker  # MLflow: not needed for a table

    folder = study.folder.path / "front"
    write_front(study, folder)
    Tracker(study.folder, study.name, tracking_uri).log_files(folder)
    return folder
