"""The search: what is drawn, what is promoted, who trains it, and the study it belongs to."""

from pbp_search.search.definition import Definition
from pbp_search.search.listing import list_studies
from pbp_search.search.progress import Progress
from pbp_search.search.rungs import Outcome, Rung
from pbp_search.search.space import SearchSpace
from pbp_search.search.study import Study
from pbp_search.search.values import Choices, Range

__all__ = ["Choices", "Definition", "Outcome", "Progress", "Range", "Rung", "SearchSpace", "Study", "list_studies"]
