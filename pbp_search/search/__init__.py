"""The search: what is drawn, what is promoted, who trains it, and the study it belongs to."""

from pbp_search.search.rungs import Rung
from pbp_search.search.space import SearchSpace
from pbp_search.search.study import Definition, Study, list_studies
from pbp_search.search.worker import Outcome

__all__ = ["Definition", "Outcome", "Rung", "SearchSpace", "Study", "list_studies"]
