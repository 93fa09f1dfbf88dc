import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pbp_search.compare.statistics import LEVEL, POWER, Curves, compare

differences = st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=12)
families = st.dictionaries(st.integers(0, 9), differences, min_size=1, max_size=6)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_one_comparison_is_a_paired_t_test() -> None:
    sample = 0.3 + noise(1, 10)
    (found,) = compare({"": sample.tolist()}).values()
    test = stats.ttest_1samp(sample, 0.0)
    assert found.p == pytest.approx(test.pvalue)
    interval = test.confidence_interval(1 - LEVEL)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(sample.mean())
    assert (found.seeds, found.level) == (10, LEVEL)


def test_holms_correction_by_hand() -> None:
    # Alone, the p-values are about 0.0001, 0.02, 0.03 and 0.6: the second one is above 0.05 / 3.
    samples = {p: _sample_of(p) for p in (0.03, 1e-4, 0.6, 0.02)}
    found = compare(samples)
    assert {p: comparison.p for p, comparison in found.items()} == pytest.approx(
        {1e-4: 4e-4, 0.02: 0.06, 0.03: 0.06, 0.6: 0.6}
    )
    assert {p: comparison.verdict for p, comparison in found.items()} == {
        1e-4: "better",
        0.02: "no difference shown",
        0.03: "no difference shown",
        0.6: "no difference shown",
    }
    assert {p: comparison.level for p, comparison in found.items()} == pytest.approx(
        {1e-4: LEVEL / 4, 0.02: LEVEL / 3, 0.03: LEVEL / 3, 0.6: LEVEL / 3}
    )
    assert compare({p: [-value for value in sample] for p, sample in samples.items()})[1e-4].verdict == "worse"


def _sample_of(p: float, seeds: int = 10) -> list[float]:
    """A sample with a mean above zero whose t test alone has a p-value."""
    values = np.linspace(-1, 1, seeds)
    values = (values - values.mean()) / values.std(ddof=1)
    return list(values + stats.t.isf(p / 2, seeds - 1) / math.sqrt(seeds))


@given(families)
def test_zero_is_outside_of_the_interval_exactly_if_a_difference_is_shown(family: dict[int, list[float]]) -> None:
    for comparison in compare(family).values():
        assert comparison.low <= comparison.mean <= comparison.high
        if abs(comparison.p - LEVEL) > 1e-9:
            assert (comparison.p < LEVEL) == (comparison.verdict != "no difference shown")


@given(families)
def test_the_correction_only_ever_takes_away(family: dict[int, list[float]]) -> None:
    alone = {key: compare({key: sample})[key] for key, sample in family.items()}
    for key, comparison in compare(family).items():
        assert comparison.p >= alone[key].p
        assert comparison.low <= alone[key].low + 1e-12
        assert not comparison.detectable < alone[key].detectable - 1e-9  # NaN where there is no spread


def test_arms_in_which_nothing_depends_on_the_seed() -> None:
    found = compare({"same": [0.0] * 10, "less": [-0.1] * 10, "rounding": [1e-17, 2e-17] * 5})
    assert [one.verdict for one in found.values()] == ["no difference shown", "worse", "no difference shown"]
    assert found["less"].p == pytest.approx(3 * 2 / 2**10)  # as ten coins that fall alike
    few = compare({"": [-0.1, -0.1]})[""]
    assert few.verdict == "no difference shown"
    assert few.low < 0 <= few.high
    assert compare({}) == {}


@pytest.mark.parametrize("sample", [[], [0.5], [0.1, math.nan], [0.1, math.inf]])
def test_what_cannot_be_compared(sample: list[float]) -> None:
    with pytest.raises(ValueError, match="The differences at 7 are"):
        compare({7: sample})


def scores(seed: int, sizes: int, gap: float = 0.0, seeds: int = 10) -> dict[int, list[float]]:
    """Differences of two arms: as accuracies on 600 records, with starts that matter and now and then a bad one."""
    random = np.random.default_rng(seed)
    level = random.uniform(0.6, 0.97, size=(1, sizes, 1))
    split = random.normal(0, 0.01, size=(seeds, 1, 1))  # the seed's data: the same for both
    start = random.normal(0, 0.01, size=(seeds, sizes, 2)) - 0.1 * (random.random((seeds, sizes, 2)) < 0.03)
    truth = np.clip(level + split + start + np.array([gap, 0.0]), 0, 1)
    arms = random.binomial(600, truth) / 600
    return {size: list(arms[:, size, 0] - arms[:, size, 1]) for size in range(sizes)}


@pytest.mark.parametrize("sizes", [1, 5])
def test_false_claims_are_rare_over_a_whole_family(sizes: int) -> None:
    sets = 2000
    false = sum(
        any(found.verdict != "no difference shown" for found in compare(scores(seed, sizes)).values())
        for seed in range(sets)
    )
    # At most 5%: were it more than that, so few would be seen once in 1,000 times.
    assert false <= stats.binom.ppf(0.999, sets, LEVEL)


def test_a_difference_that_it_says_it_can_see_is_seen() -> None:
    seeds, spread, family = 10, 0.02, 4
    others = {key: [0.0, 1e-9] * 5 for key in range(family - 1)}  # no difference: the first step decides
    (planned,) = {
        round(comparison.detectable, 9) for comparison in [compare({**others, "": _standardised(spread, seeds)})[""]]
    }
    shown = [
        compare({**others, "": list(planned + spread * noise(seed, seeds))})[""].verdict == "better"
        for seed in range(1000)
    ]
    assert np.mean(shown) == pytest.approx(POWER, abs=0.04)


def _standardised(spread: float, seeds: int) -> list[float]:
    values = np.linspace(-1, 1, seeds)
    return list(values / values.std(ddof=1) * spread)


def test_curves_are_straight_over_the_logarithm_of_the_size() -> None:
    curves = Curves([1000, 10, 100], [[0.9, 0.5, 0.7], [0.8, 0.2, 0.6]])
    middle = 10**1.5
    assert curves.at([middle, middle]) == pytest.approx([0.6, 0.4])
    assert curves.at([100, 1000]) == pytest.approx([0.7, 0.8])
    assert np.isnan(curves.at([9.9, 1001])).all()
    assert [curves.covers(size) for size in (9.9, 10, 500, 1000, 1001)] == [False, True, True, True, False]


def curves_of(seed: int, seeds: int = 10) -> Curves:
    sizes = np.geomspace(100, 10_000, 9)
    return Curves(sizes.tolist(), (0.2 * np.log10(sizes) + 0.01 * noise(seed, seeds, 9)).tolist())


def test_the_size_at_equal_score() -> None:
    other = 0.2 * math.log10(1000) + 0.01 * noise(3, 10)
    found = curves_of(1).sizes_of(other.tolist(), LEVEL)
    assert found.low is not None
    assert found.middle is not None
    assert found.high is not None
    assert 700 < found.low < found.middle < found.high < 1400
    assert found.middle == pytest.approx(1000, rel=0.1)


def test_a_score_that_no_size_has() -> None:
    above, below = [2.0] * 10, [0.0] * 10
    found = curves_of(1).sizes_of(above, LEVEL)
    assert (found.low, found.middle, found.high) == (None, None, None)
    found = curves_of(1).sizes_of(below, LEVEL)
    assert (found.low, found.middle, found.high) == pytest.approx((100, 100, 100))


def test_a_curve_that_falls_again_still_has_the_size_of_its_best_network() -> None:
    curves = Curves([100, 1000, 10_000], [[0.7, 0.9 + 0.001 * seed, 0.6] for seed in range(5)])
    found = curves.sizes_of([0.8] * 5, LEVEL)
    assert found.middle == pytest.approx(10**2.5, rel=0.02)
    assert found.middle is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.middle <= found.high <= 1000
    assert found.smallest == 100


@pytest.mark.parametrize(
    ("sizes", "scores"), [([1, 2], [[0.5, math.nan]]), ([1, 1], [[0.5, 0.6]]), ([0, 1], [[0.5, 0.6]])]
)
def test_what_is_no_curve(sizes: list[float], scores: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="A curve needs finite scores"):
        Curves(sizes, scores)


def test_the_ends_of_a_curve_are_on_it() -> None:
    for size in range(1, 400):
        curves = Curves([size, 1000], [[0.5, 0.6]])
        assert curves.covers(size)
        assert curves.at([size]) == pytest.approx(0.5)


@given(st.integers(0, 10**6), st.floats(-0.1, 0.5))
def test_the_size_and_the_score_are_tested_alike(seed: int, score: float) -> None:
    curves, other = curves_of(seed), score + 0.4 + 0.01 * noise(seed + 1, 10)
    found = curves.sizes_of(other.tolist(), LEVEL)

    def verdict(size: float) -> str:
        return compare({"": (other - curves.at([size] * 10)).tolist()})[""].verdict

    if found.low is None:
        assert verdict(9999) == "better"
    else:
        assert verdict(found.low) != "better"
        assert found.low < 102 or verdict(found.low / 1.02) == "better"
    if found.high is None:
        assert verdict(9999) != "worse"
    else:
        assert verdict(found.high) == "worse"
