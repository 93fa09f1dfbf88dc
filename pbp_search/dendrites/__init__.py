"""Dendrites: what they are, how they are attached, recorded, grown and folded away."""

from pbp_search.dendrites.adapters import Adapter, LastState
from pbp_search.dendrites.attach import Adapters, Placement, attach, dendritic_modules
from pbp_search.dendrites.fold import Fused, fold
from pbp_search.dendrites.growth import Growth, draw, grow
from pbp_search.dendrites.module import Dendrite, Dendritic
from pbp_search.dendrites.objective import Projection, correlation, standardise
from pbp_search.dendrites.optimiser import Adam
from pbp_search.dendrites.record import Record, record
from pbp_search.dendrites.sizes import multiply_accumulates, parameter_count, weight_bytes
from pbp_search.dendrites.spec import DendriteSpec

__all__ = [
    "Adam",
    "Adapter",
    "Adapters",
    "Dendrite",
    "DendriteSpec",
    "Dendritic",
    "Fused",
    "Growth",
    "LastState",
    "Placement",
    "Projection",
    "Record",
    "attach",
    "correlation",
    "dendritic_modules",
    "draw",
    "fold",
    "grow",
    "multiply_accumulates",
    "parameter_count",
    "record",
    "standardise",
    "weight_bytes",
]
