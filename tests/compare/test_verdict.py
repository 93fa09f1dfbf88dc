"""The verdict from raw results that nobody trained: planted gaps are found, and nothing else is."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pbp_search.compare import Results, Row, findings, to_dict
from pbp_search.compare.figures import comparison_table, draw_comparison, sentences
from pbp_search.compare.page import page_of
from pbp_search.compare.planted import planted
from pbp_search.compare.verdict import ALTERNATIVES, CONTROLS
from pbp_search.training import Direction

WIDTHS = {10: 100, 20: 200, 40: 400, 80: 800}


def results(gap: float, seed: int = 0, replicates: int = 10, direction: Direction = "maximize") -> Results:
    """Plain networks that gain with their size, dendritic ones of 200 and 400 parameters that are better by a gap."""
    random = np.random.default_rng(seed)
    sign = 1 if direction == "maximize" else -1
    rows: list[Row] = []

    def add(arm: str, group: int, replicate: int, size: int, score: float, start: int = 0, **given: int) -> None:
        values = {"width": 1, "dendrites": 0, "requested": 0, "pruned": 0, "epochs": 10, **given}
        test = sign * (score + random.normal(0, 0.005))
        rows.append(
            Row(
                trial=len(rows),
                arm=arm,
                group=group,
                replicate=replicate,
                start=start,
                depth=None,
                parameters=size,
                weight_bytes=4 * size,
                macs=size,
                validation=sign * (score + random.normal(0, 0.005)),
                test=test,
                seconds=1.0,
                **values,
            )
        )

    def plain(size: int) -> float:
        return 0.2 * float(np.log10(size))

    for replicate in range(replicates):
        for number, size in enumerate((200, 400)):
            for arm in ("dendritic", "sham", "gradient", "random"):
                extra = gap if arm == "dendritic" else 0.0
                add(arm, number, replicate, size // 2, plain(size // 2))
                add(arm, number, replicate, size, plain(size) + extra, dendrites=1, requested=1, epochs=20)
        for width, size in WIDTHS.items():
            for start in range(3):
                worse = 0.3 * (start > 0)
                add("plain", width, replicate, size, plain(size) - worse, start, width=width)
        for step in range(4):
            add("pruned", 80, replicate, 800 // 2**step, plain(800), pruned=step)
    return Results(
        study="s",
        task="t",
        metric="accuracy",
        direction=direction,
        size="parameters",
        samples=(1, 1, 1),
        searched=9,
        search_epochs=90,
        search_seconds=9.0,
        machine="",
        space={"width": "1 to 9"},
        importances={"width": 1.0},
        choices={"variant": {"joint": (4, 0.1)}},
        replicates=replicates,
        lost=0,
        rows=tuple(rows),
    )


def verdicts(found: Results) -> dict[tuple[int, str], str]:
    return {(one.size, gap.arm): gap.verdict for one in findings(found, "parameters").at for gap in one.gaps}


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_planted_gain_is_found_and_the_size_it_is_worth(direction: Direction) -> None:
    planted = results(0.03, direction=direction)
    found = findings(planted, "parameters")
    told = verdicts(planted)
    assert {told[size, arm] for size in (200, 400) for arm in ("plain", "sham", "gradient", "random")} == {"help"}
    assert told[200, "pruned"] == "hurt"
    (plain,) = (gap for gap in found.at[0].gaps if gap.arm == "plain")
    assert plain.comparison.mean == pytest.approx(0.03, abs=0.01)
    assert plain.sizes is not None
    assert plain.sizes.middle == pytest.approx(200 * 10**0.15, rel=0.15)
    assert found.volumes.comparison.seeds == 10
    assert found.costs["dendritic"].epochs == 40
    assert any("dendrites help" in line for line in sentences(found, "accuracy"))


def test_a_planted_loss_is_found() -> None:
    told = verdicts(results(-0.03))
    assert {told[size, arm] for size in (200, 400) for arm in ("plain", "sham", "pruned")} == {"hurt"}


@pytest.mark.parametrize("arms", [ALTERNATIVES, CONTROLS])
def test_false_claims_are_rare(arms: tuple[str, ...]) -> None:
    """In any of a family's comparisons; 2,000 sets of real networks are counted by benchmarks/claims.py."""
    sets = 300
    claims = sum(
        any(verdict != "no difference shown" for (_, arm), verdict in told.items() if arm in arms)
        for told in (verdicts(planted(results(0.0), np.random.default_rng(seed))) for seed in range(sets))
    )
    assert claims <= stats.binom.isf(0.001, sets, 0.05)


def test_a_gap_that_is_planted_is_the_mean_gap_that_is_found() -> None:
    gaps = [
        gap.comparison.mean
        for seed in range(20)
        for one in findings(planted(results(0.0), np.random.default_rng(seed), 0.05), "parameters").at
        for gap in one.gaps
        if gap.arm == "plain"
    ]
    assert np.mean(gaps) == pytest.approx(0.05, abs=0.004)


def test_a_network_whose_dendrites_were_thrown_away_is_compared_at_the_size_that_it_has() -> None:
    kept = results(0.0)
    rows = []
    for row in kept.rows:
        if row.arm == "dendritic" and row.requested and row.replicate < 4:
            base = next(
                each
                for each in kept.rows
                if (each.arm, each.group, each.replicate, each.requested) == (row.arm, row.group, row.replicate, 0)
            )
            row = base.model_copy(update={"requested": 1})  # the network before, at its size, with its score
        rows.append(row)
    found = findings(kept.model_copy(update={"rows": tuple(rows)}), "parameters")
    assert [(one.size, one.kept) for one in found.at] == [(200, 6), (400, 6)]
    (plain,) = (gap for gap in found.at[1].gaps if gap.arm == "plain")
    assert plain.comparison.mean == pytest.approx(0, abs=0.01), "0.06 where it is compared at the larger size"


def test_what_pruning_is_worth_is_not_said_of_dendrites() -> None:
    grown = results(0.0)
    rows = tuple(
        row.model_copy(update={"pruned": int(row.requested > 0)}) if row.group == 0 else row for row in grown.rows
    )
    told = verdicts(grown.model_copy(update={"rows": rows}))
    assert {arm for size, arm in told if size == 200} == {"pruned", "sham", "gradient", "random"}
    assert (400, "plain") in told


def test_volumes_are_compared_at_no_more_training() -> None:
    found = findings(results(0.0), "parameters").volumes
    assert 0 < found.epochs_without <= found.epochs_with


def test_time_is_that_of_all_starts() -> None:
    (one, _) = findings(results(0.0), "parameters").at
    seconds = {gap.arm: gap.seconds for gap in one.gaps}
    assert seconds["plain"] == pytest.approx(2.0)  # as many as the dendritic network has trainings
    assert seconds["sham"] == one.seconds == pytest.approx(1.0)


def test_a_dendritic_network_of_one_generation_is_up_against_two_starts() -> None:
    best_late = results(0.0)
    rows = [
        row.model_copy(update={"test": 0.99, "validation": 0.99}) if row.arm == "plain" and row.start == 2 else row
        for row in best_late.rows
    ]
    changed = best_late.model_copy(update={"rows": tuple(rows)})
    assert verdicts(changed) == verdicts(best_late)


def test_sizes_beyond_an_arms_networks_are_not_compared() -> None:
    few = results(0.0)
    rows = tuple(row for row in few.rows if not (row.arm == "plain" and row.width > 20))
    told = verdicts(few.model_copy(update={"rows": rows}))
    assert (200, "plain") in told
    assert (400, "plain") not in told


def test_fewer_than_two_replicates_say_nothing_and_few_say_so() -> None:
    with pytest.raises(ValueError, match="needs two replicates at least, not 1"):
        findings(results(0.0, replicates=1), "parameters")
    weak = findings(results(0.0, replicates=3), "parameters")
    assert not weak.claims
    assert "no ground for a claim: 10 are" in sentences(weak, "accuracy")[-1]


def test_the_verdict_is_computed_from_the_files_again(tmp_path: Path) -> None:
    raw = results(0.02)
    raw.save(tmp_path)
    again = Results.load(tmp_path)
    assert again == raw
    for kind in ("parameters", "weight_bytes"):
        assert to_dict(findings(again, kind)) == to_dict(findings(raw, kind))
    found = findings(raw, "parameters")
    page = page_of(raw, [found], ["chart.png"], "Published elsewhere.")
    assert all(line in page for line in sentences(found, "accuracy"))
    assert "](chart.png)" in page
    assert "Published elsewhere." in page
    assert "| `variant` | joint | 4 | 0.1000 |" in page
    assert comparison_table(found, "accuracy").row_count == sum(len(one.gaps) for one in found.at)
    assert {trace.name for trace in draw_comparison(raw, found).data} == {
        "with dendrites",
        "plain, wider",
        "plain, pruned",
    }
