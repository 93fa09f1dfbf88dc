"""Do dendrites pay? The arms of a comparison, its raw results, and what they show."""

from pbp_search.compare.arms import picks_of, plans_of
from pbp_search.compare.comparing import findings
from pbp_search.compare.results import Results, Row, complete_replicates, results_of
from pbp_search.compare.verdict import AtSize, Findings, Gap, to_dict

__all__ = [
    "AtSize",
    "Findings",
    "Gap",
    "Results",
    "Row",
    "complete_replicates",
    "findings",
    "picks_of",
    "plans_of",
    "results_of",
    "to_dict",
]
