"""``python -m pbp_search`` is ``pbp-search``."""

from pbp_search.cli import main

main()
