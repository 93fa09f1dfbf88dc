"""What would promotion have missed? Its decisions replayed on chains that were all trained to the end.

    python benchmarks/replay.py --json benchmarks/results/replay.json

The recorded configurations (see chains.py) arrive one after the other, in their own order and in random ones, at one
worker that asks the rule after each rung. At the end it is counted how much of the training was saved, and how many
members of the front of all chains were not reached; and the same where no network may be larger than their median.
"""

import csv
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from form import Figure, figure, show

from pbp_search.search import promotion
from pbp_search.search.promotion import next_promotion
from pbp_search.search.rungs import Rung, front_of
from pbp_search.training import Milestone, TrialConfig

RECORDED = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Step:
    """A recorded rung, and what it cost."""

    rung: Rung
    seconds: float


Chains = Sequence[Sequence[Step]]


def recorded_chains(file: Path) -> Chains:
    """The chains of a file; their trials are numbered through."""
    chains: dict[int, list[Step]] = {}
    with file.open() as stream:
        for number, row in enumerate(csv.DictReader(stream)):
            configuration, requested = int(row["configuration"]), int(row["dendrites"])
            chain = chains.setdefault(configuration, [])
            milestone = Milestone(
                config=TrialConfig(width=json.loads(row["params"])["width"]),
                requested=requested,
                dendrites=requested if int(row["accepted"]) else requested - 1,
                parameters=int(row["parameters"]),
                weight_bytes=4 * int(row["parameters"]),
                macs=0,  # not recorded
                score=float(row["score"]),
                train_score=float(row["score"]),  # not recorded
                epochs=int(row["epochs"]),
                seconds=float(row["seconds"]),
            )
            before = sum(step.seconds for step in chain)
            parent = chain[-1].rung.trial if chain else None
            rung = Rung(number, configuration, parent, {}, milestone, "")
            chain.append(Step(rung, float(row["seconds"]) - before))
    # The last one may still be in training.
    return [chain for chain in chains.values() if _has_ended(chain[-1].rung.milestone, chains)]


def _has_ended(last: Milestone, chains: dict[int, list[Step]]) -> bool:
    most = max(step.rung.milestone.requested for chain in chains.values() for step in chain)
    return not last.accepted or last.requested == most


def next_sizes(chains: Chains) -> dict[int, int | None]:
    """The size of every rung's network with one dendrite more. Where a chain ended, another of its width tells."""
    sizes = {
        (step.rung.milestone.config.width, step.rung.milestone.dendrites): step.rung.milestone.parameters
        for chain in chains
        for step in chain
    }
    most = max(step.rung.milestone.requested for chain in chains for step in chain)

    def following(rung: Rung) -> int | None:
        width, dendrites = rung.milestone.config.width, rung.milestone.dendrites + 1
        if dendrites > most:
            return None
        if (width, dendrites) in sizes:
            return sizes[width, dendrites]
        last = sizes[width, dendrites - 1]
        return last + (last - sizes[width, dendrites - 2] if dendrites > 1 else last)

    return {step.rung.trial: following(step.rung) for chain in chains for step in chain}


def below(chains: Chains, limit: float) -> Chains:
    """What is left of chains of which no network may have more parameters."""
    kept = [[step for step in chain if step.rung.milestone.parameters <= limit] for chain in chains]
    return [chain for chain in kept if chain]


def replayed(chains: Chains, order: Sequence[int], following: Mapping[int, int | None]) -> tuple[float, set[int]]:
    """The seconds that the rule would have spent, and the trials that it would have reached."""
    steps = {step.rung.trial: step for chain in chains for step in chain}
    after = {step.rung.parent: step for chain in chains for step in chain if step.rung.parent is not None}
    waiting = list(reversed(order))
    done: list[Rung] = []
    continued: set[int] = set()
    seconds = 0.0
    while True:
        rung = next_promotion(done, continued, "maximize", "parameters", lambda one: following[one.trial])
        if rung is not None:
            continued.add(rung.trial)
            step = after[rung.trial]
        elif waiting:
            step = chains[waiting.pop()][0]
        else:
            return seconds, {one.trial for one in done}
        assert steps[step.rung.trial] is step
        seconds += step.seconds
        done.append(step.rung)


def judged(name: str, whole: Chains, orders: int, limit: float = math.inf) -> list[Figure]:
    """What is saved and what is missed, over orders of arrival, where no network may be larger than a limit."""
    chains = below(whole, limit)
    sizes = {trial: size for trial, size in next_sizes(whole).items() if size is not None and size <= limit}
    following = {step.rung.trial: sizes.get(step.rung.trial) for chain in chains for step in chain}
    front = front_of([step.rung for chain in chains for step in chain], "maximize")
    total = sum(step.seconds for chain in chains for step in chain)
    saved, missed = [], []
    for seed in range(orders):
        order = list(range(len(chains)))
        if seed > 0:
            random.Random(seed).shuffle(order)
        seconds, reached = replayed(chains, order, following)
        saved.append(seconds / total)
        missed.append(float(sum(point.payload.trial not in reached for point in front)))
    most = "" if limit == math.inf else f" to {limit:,.0f} parameters"
    where = f"{name}, {len(chains)} chains{most}, 1 in {promotion.REDUCTION}"
    return [
        figure(f"share of the training, {where}", saved, "share", target=0.6),
        figure(f"of {len(front)} on the front not reached (most), {where}", [max(missed)], "members", target=0),
    ]


@click.command()
@click.option("--quick", is_flag=True, help="Few orders of arrival: finishes within a minute.")
@click.option("--reduction", type=int, help="Promote one in so many, instead of the default.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
def main(quick: bool, reduction: int | None, json_file: Path | None) -> None:
    """Replay and print."""
    promotion.REDUCTION = reduction or promotion.REDUCTION
    figures = []
    for file in sorted(RECORDED.glob("chains_*.csv")):
        name, chains, orders = file.stem.removeprefix("chains_"), recorded_chains(file), 3 if quick else 20
        median = statistics.median(step.rung.milestone.parameters for chain in chains for step in chain)
        figures += judged(name, chains, orders) + judged(name, chains, orders, median)
    show(figures, json_file)


if __name__ == "__main__":
    main()
