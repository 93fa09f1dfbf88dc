"""The search: what is drawn, what is promoted, who trains it, and the study it belongs to."""

from pbp_search.search.rungs import Outcome, Rung
from pbp_search.search.space import SearchSpace
from pbp_search.search.study import Definition, Study, list_studies

__all__ = ["Definition", "Outcome", "Rung", "SearchSpace", "Study", "list_studies"]
