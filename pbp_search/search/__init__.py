"""The search: what is drawn, what is promoted, who trains it, and the study it belongs to."""

from pbp_search.search.definition import Definition
from pbp_search.search.rungs import Outcome, Rung
from pbp_search.search.space import SearchSpace
from pbp_search.search.study import Study, list_studies
from pbp_search.search.values import Choices, Range

__all__ = ["Choices", "Definition", "Outcome", "Range", "Rung", "SearchSpace", "Study", "list_studies"]
