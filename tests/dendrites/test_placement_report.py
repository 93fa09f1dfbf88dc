import torch
from torch import nn

from pbp_search.dendrites import DendriteSpec, attach


class Mixed(nn.Module):
    """What a network may hold besides layers with neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.norm = nn.LayerNorm(4)
        self.own = Own()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.drop = nn.Dropout()
        self.head = nn.Linear(4, 2)


class Own(nn.Module):
    """A layer of the user's own, with a known one inside."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))
        self.inner = nn.Linear(4, 4)


def test_the_report_has_everything_with_parameters() -> None:
    assert str(attach(Mixed(), DendriteSpec(placement=("block", "head")))).splitlines() == [
        "words  Embedding  no: embeddings are left alone unless they are named",
        "norm  LayerNorm  no: a normalisation is never wrapped alone: name a block that holds it",
        "own  Own  no: it is not known where its neurons are: give it an adapter",
        "own.inner  Linear  no: the placement ('block', 'head') leaves it out",
        "block  Sequential  dendrites on 4 neurons, behind its own ReLU",
        "head  Linear  dendrites on 2 neurons",
    ]
