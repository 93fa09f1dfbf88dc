"""The command line ``pbp-search``. Exit codes: 0 done, 1 failed while running, 2 bad input."""

from pbp_search.cli.main import main

__all__ = ["main"]
