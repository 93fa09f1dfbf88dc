"""The verdict of a comparison: at each size, do dendrites help, hurt, or is no difference shown?

Everything is computed from the raw results. Of the starts of a network the one of the best validation score counts, and
of the wide networks that are pruned, at each size, the one of the best mean validation score; test scores select
nothing. Two families are corrected, each as a whole: what a user could do instead (``plain``, ``deep``, ``pruned``,
``linear``; and hypervolumes), and what tells why (``sham``, ``gradient``, ``random``).
"""

from dataclasses import dataclass
from typing import Any, Literal

from pbp_search.compare.statistics import Comparison, Sizes
from pbp_search.training import Size

ALTERNATIVES = ("plain", "deep", "pruned", "linear")
CONTROLS = ("sham", "gradient", "random")

FEWEST_SEEDS = 10
"""For a claim."""

Verdict = Literal["help", "hurt", "no difference shown"]
_VERDICTS: dict[str, Verdict] = {"better": "help", "worse": "hurt"}


@dataclass(frozen=True)
class Gap:
    """Dendrites against another arm at one size.

    Attributes:
        arm: The other one.
        score: Its mean test score at the size.
        comparison: Of the paired differences, above zero where dendrites are better, whatever the direction.
        one_start: The mean difference from its first start alone: the rest of its score is what starting anew is worth.
        seconds: What training takes, with all starts; between the sizes that were trained as between scores.
        sizes: At which sizes the other arm scores the same; None where the arm is a single network.
        size: The other network's size, where the arm is a single one.
    """

    arm: str
    score: float
    comparison: Comparison
    one_start: float
    seconds: float
    sizes: Sizes | None
    size: int | None

    @property
    def verdict(self) -> Verdict:
        """Whether dendrites help."""
        return _VERDICTS.get(self.comparison.verdict, "no difference shown")


@dataclass(frozen=True)
class AtSize:
    """What was found at the size of one network with dendrites.

    Attributes:
        group: The network.
        size: Of the kind that is compared, with all its generations, if they stayed in any replicate.
        width: Its base width.
        dendrites: The generations that were grown.
        kept: In how many replicates they all stayed. Where one was thrown away the network is smaller, and compared
            with others of the size that it has.
        pruned: Its pruning steps.
        score: Its mean test score.
        seconds: What training it takes.
        gaps: Against each other arm that has networks around this size.
        missing: The arms that have none, each with the sizes of its smallest and largest network.
    """

    group: int
    size: int
    width: int
    dendrites: int
    kept: int
    pruned: int
    score: float
    seconds: float
    gaps: tuple[Gap, ...]
    missing: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Cost:
    """What an arm took, a replicate: all of its networks together.

    Attributes:
        trainings: Neuron phases.
        epochs: Of both phases.
        seconds: Wall-clock.
    """

    trainings: float
    epochs: float
    seconds: float


@dataclass(frozen=True)
class Volumes:
    """Hypervolumes with and without dendrites, over the sizes from the smallest to the largest dendritic network.

    Attributes:
        with_dendrites: The mean over replicates, as a share of the box of the best and the worst score.
        without: The same, of plain networks and those pruned.
        comparison: Of their differences, in the family of the alternatives.
        epochs_with: What the networks with dendrites took, a replicate.
        epochs_without: What the others took: as many of them as do not take more.
    """

    with_dendrites: float
    without: float
    comparison: Comparison
    epochs_with: float
    epochs_without: float


@dataclass(frozen=True)
class Findings:
    """The verdict for one kind of size.

    Attributes:
        kind: What sizes count.
        seeds: The replicates.
        wanted: How many replicates the comparison is to have.
        lost: Chains that could not be trained.
        at: What was found at each size, smallest first.
        volumes: Hypervolumes.
        costs: Of each arm.
    """

    kind: Size
    seeds: int
    wanted: int
    lost: int
    at: tuple[AtSize, ...]
    volumes: Volumes
    costs: dict[str, Cost]

    @property
    def claims(self) -> bool:
        """Whether verdicts are claims: there are enough seeds, and all that were wanted."""
        return self.seeds >= max(FEWEST_SEEDS, self.wanted)


def to_dict(found: Findings) -> dict[str, Any]:
    """The findings as JSON types."""
    return {
        "kind": found.kind,
        "seeds": found.seeds,
        "seeds_wanted": found.wanted,
        "claims": found.claims,
        "lost": found.lost,
        "at": [
            {
                "network": one.group,
                "size": one.size,
                "width": one.width,
                "dendrites": one.dendrites,
                "kept": one.kept,
                "pruned": one.pruned,
                "score": one.score,
                "seconds": one.seconds,
                "against": {gap.arm: _gap(gap) for gap in one.gaps},
                "not_compared": one.missing,
            }
            for one in found.at
        ],
        "hypervolume": {
            "with": found.volumes.with_dendrites,
            "without": found.volumes.without,
            "epochs_with": found.volumes.epochs_with,
            "epochs_without": found.volumes.epochs_without,
            **vars(found.volumes.comparison),
        },
        "cost": {arm: vars(cost) for arm, cost in found.costs.items()},
    }


def _gap(gap: Gap) -> dict[str, Any]:
    shown = {name: value for name, value in vars(gap.comparison).items() if value == value}  # JSON has no NaN
    return {
        "dendrites": gap.verdict,
        "score": gap.score,
        **shown,
        "one_start": gap.one_start,
        "seconds": gap.seconds,
        "size": gap.size,
        "size_at_equal_score": None if gap.sizes is None else vars(gap.sizes),
    }
