"""Options that several commands share."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType[float]):
    """A time span in seconds, or with a unit: 90, 90s, 10m, 2h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value).strip())
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a time span: write it as 90s, 10m or 2h.", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


home = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("mlruns"),
    show_default=True,
    help="The folder that holds the studies' state.",
)
space = click.option(
    "--space",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A TOML file with what is to be searched otherwise than by default.",
)
storage = click.option(
    "--storage", metavar="URL", help="Optuna's storage as a database URL.  [default: an SQLite file in the home]"
)
tracking_uri = click.option(
    "--tracking-uri", metavar="URI", help="MLflow's tracking store.  [default: an SQLite file in the home]"
)
artifacts = click.option(
    "--artifacts",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where checkpoints lie: a folder that all machines of a study share.  [default: artifacts in the home]",
)


def verbosity(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--quiet`` and ``--verbose``: the last one given counts."""
    for flag, help_ in (
        ("verbose", "Tell what came of each trial too, as log lines."),
        ("quiet", "Print nothing but errors: no progress, no front."),
    ):
        command = click.option(f"--{flag}", "verbosity", flag_value=flag, help=help_)(command)
    return command
