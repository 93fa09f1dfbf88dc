import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from pbp_search.dendrites import Projection, correlation, standardise
from tests.dendrites.grown_networks import assert_same_bits


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scores_by_loops(outputs: np.ndarray, errors: np.ndarray) -> list[float]:
    """|mean (V - mean V)(E - mean E)| / (std V * std E), number by number."""
    scores = []
    for v, e in zip(outputs.T.tolist(), errors.T.tolist(), strict=True):
        count = len(v)
        mean_v, mean_e = math.fsum(v) / count, math.fsum(e) / count
        covariance = math.fsum((a - mean_v) * (b - mean_e) for a, b in zip(v, e, strict=True)) / count
        std_v = math.sqrt(math.fsum((a - mean_v) ** 2 for a in v) / count)
        std_e = math.sqrt(math.fsum((b - mean_e) ** 2 for b in e) / count)
        scores.append(abs(covariance) / (std_v * std_e))
    return scores


def score_and_gradient(outputs: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    outputs = outputs.clone().requires_grad_(True)
    scores = correlation(outputs, errors)
    (gradient,) = torch.autograd.grad(scores.sum(), outputs)
    return scores.detach(), gradient


@pytest.mark.parametrize("records", [2, 3, 50, 1000])
def test_the_score_is_the_absolute_correlation(records: int) -> None:
    outputs, errors = random(records, 4) * 3 + 1, random(records, 4, seed=1) - 2
    expected = scores_by_loops(outputs.numpy(), errors.numpy())
    np.testing.assert_allclose(correlation(outputs, errors).numpy(), expected, rtol=0, atol=1e-12)
    textbook = [abs(np.corrcoef(outputs[:, i], errors[:, i])[0, 1]) for i in range(4)]
    np.testing.assert_allclose(expected, textbook, rtol=0, atol=1e-12)


def test_the_gradient_is_that_of_the_score_through_the_deviation_of_v() -> None:
    outputs, errors = random(9, 3) + 0.5, random(9, 3, seed=1)
    _, gradient = score_and_gradient(outputs, errors)
    step = 1e-6
    for n, i in np.ndindex(9, 3):
        shift = torch.zeros_like(outputs)
        shift[n, i] = step
        above = scores_by_loops((outputs + shift).numpy(), errors.numpy())
        below = scores_by_loops((outputs - shift).numpy(), errors.numpy())
        assert gradient[n, i].item() == pytest.approx((sum(above) - sum(below)) / (2 * step), abs=1e-8)
    assert torch.autograd.gradcheck(lambda v: correlation(v, errors), outputs.requires_grad_(True))


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e-5, 1e5, 1e12, 1e25])
def test_the_score_does_not_depend_on_the_scale_of_v_and_e(scale: float) -> None:
    outputs, errors = random(64, 3, dtype=torch.float32), random(64, 3, seed=1, dtype=torch.float32)
    scores, gradient = score_and_gradient(outputs, errors)
    assert scores.min() > 0.01
    for v, e in ((scale, 1.0), (1.0, scale), (scale, scale), (scale, 1 / scale)):
        scaled, scaled_gradient = score_and_gradient(outputs * v, errors * e)
        torch.testing.assert_close(scaled, scores, rtol=1e-5, atol=0)
        torch.testing.assert_close(scaled_gradient * v, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("copies", [2, 7])
def test_the_score_does_not_depend_on_the_number_of_records(copies: int) -> None:
    outputs, errors = random(40, 3), random(40, 3, seed=1)
    scores, gradient = score_and_gradient(outputs, errors)
    repeated, repeated_gradient = score_and_gradient(outputs.repeat(copies, 1), errors.repeat(copies, 1))
    torch.testing.assert_close(repeated, scores, rtol=0, atol=1e-14)
    torch.testing.assert_close(repeated_gradient.reshape(copies, 40, 3).sum(0), gradient, rtol=0, atol=1e-14)


def test_the_correlation_of_a_weak_signal_on_a_tiny_error_is_not_lost() -> None:
    # An absolute epsilon of 1e-5 under the root would turn this into almost nothing.
    errors = random(500, 1, dtype=torch.float32)
    outputs = errors + random(500, 1, seed=1, dtype=torch.float32)
    assert correlation(outputs * 1e-8, errors * 1e-8).item() == pytest.approx(0.71, abs=0.05)


def rounding_noise(value: float, dtype: torch.dtype) -> Tensor:
    """A constant whose records differ by one unit of the last place."""
    noise = torch.randint(-1, 2, (60, 1), generator=torch.Generator().manual_seed(3)).to(dtype)
    return value * (1 + torch.finfo(dtype).eps * noise)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1e-30, 1e30])
@pytest.mark.parametrize("noisy", [False, True])
def test_constant_outputs_and_constant_errors_score_nothing(value: float, noisy: bool, dtype: torch.dtype) -> None:
    constant = rounding_noise(value, dtype) if noisy else torch.full((60, 1), value, dtype=dtype)
    varying = random(60, 1, seed=2, dtype=dtype)
    for outputs, errors in ((constant, varying), (varying, constant), (constant, constant)):
        score, gradient = score_and_gradient(outputs, errors)
        assert score.item() == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_constant_channel_does_not_disturb_the_others() -> None:
    outputs, errors = random(60, 3), random(60, 3, seed=1)
    alone, alone_gradient = score_and_gradient(outputs[:, [0]], errors[:, [0]])
    outputs[:, 1], errors[:, 2] = 0.3, -1.0
    scores, gradient = score_and_gradient(outputs, errors)
    assert scores[1:].tolist() == [0, 0]
    torch.testing.assert_close(scores[:1], alone, rtol=0, atol=1e-15)
    torch.testing.assert_close(gradient[:, :1], alone_gradient, rtol=0, atol=1e-15)


def test_saturated_dendrites_score_nothing() -> None:
    z = (random(60, 1, dtype=torch.float32).abs() + 30).requires_grad_(True)
    score = correlation(torch.tanh(z), random(60, 1, seed=1, dtype=torch.float32))
    score.sum().backward()
    assert score.item() == 0
    assert z.grad is not None
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_rounding_does_not_lift_a_score_above_1() -> None:
    values = torch.cat([random(9, 1, seed=seed, dtype=torch.float32) for seed in range(200)], 1)
    raw = (standardise(values) * standardise(values)).mean(0)
    assert raw.max() > 1
    assert correlation(values, values).max() == 1


ANY_COLUMNS = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.just(2)),
    elements=st.floats(-(2.0**50), 2.0**50, width=32) | st.sampled_from([0.0, 1.0, 1e-30, -1e-38]),
)


@settings(deadline=None)
@given(ANY_COLUMNS, st.integers(0, 2**16))
def test_scores_lie_between_0_and_1_and_gradients_are_finite(columns: np.ndarray, seed: int) -> None:
    outputs = torch.from_numpy(columns)
    errors = outputs[torch.randperm(len(outputs), generator=torch.Generator().manual_seed(seed))].flip(1)
    scores, gradient = score_and_gradient(outputs, errors)
    assert bool(((scores >= 0) & (scores <= 1)).all())
    assert not gradient.isnan().any()


@settings(deadline=None)
@given(ANY_COLUMNS, st.sampled_from([-1.0, 1.0]), st.integers(-60, 60))
def test_a_multiple_of_the_error_scores_one_or_is_constant(columns: np.ndarray, sign: float, power: int) -> None:
    errors = torch.from_numpy(columns)
    standard = standardise(errors.double())
    for i, score in enumerate(correlation(errors.double() * sign * 2.0**power, errors.double()).tolist()):
        assert score == (pytest.approx(1.0, abs=1e-6) if standard[:, i].any() else 0.0)


@settings(deadline=None)
@given(ANY_COLUMNS)
def test_standardised_columns_have_mean_0_and_deviation_1_or_are_0(columns: np.ndarray) -> None:
    for column in standardise(torch.from_numpy(columns).double()).T:
        if column.any():
            assert column.mean().item() == pytest.approx(0, abs=1e-6)
            assert column.square().mean().sqrt().item() == pytest.approx(1, abs=1e-6)


def design(inputs: Tensor, activations: Sequence[Tensor], channel: int) -> np.ndarray:
    """[1, x, a_0 of the channel, a_1 of the channel, ...] in float64."""
    columns = [torch.ones(len(inputs), 1), inputs, *(activation[:, [channel]] for activation in activations)]
    return torch.cat([column.double() for column in columns], 1).numpy()


def least_squares_residual(inputs: Tensor, activations: Sequence[Tensor], errors: Tensor) -> np.ndarray:
    """Channel by channel."""
    left = np.empty(errors.shape)
    for i in range(left.shape[1]):
        known, column = design(inputs, activations, i), errors[:, i].double().numpy()
        left[:, i] = column - known @ np.linalg.lstsq(known, column, rcond=1e-9)[0]
    return left


def parts(
    records: int, inputs: int, generations: int, channels: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Inputs, activations that partly follow from the inputs, and errors that partly follow from both."""
    x = random(records, inputs, seed=seed, dtype=dtype) + 0.5
    mixing = random(generations + 1, inputs, channels, seed=99, dtype=dtype)
    activations = [
        torch.tanh(x @ mixing[d] + 0.3 * random(records, channels, seed=seed + d + 1, dtype=dtype))
        for d in range(generations)
    ]
    errors = x @ mixing[generations] + random(records, channels, seed=seed + 50, dtype=dtype) + 2
    for d, activation in enumerate(activations):
        errors = errors + (d - 1.5) * activation
    return x, activations, errors


@pytest.mark.parametrize("generations", range(4))
@pytest.mark.parametrize("inputs", [1, 5, 20])
def test_the_residual_is_that_of_least_squares(inputs: int, generations: int) -> None:
    for part in (parts(80, inputs, generations), parts(60, inputs, generations, seed=7)):
        left = Projection(*part).left.numpy()
        np.testing.assert_allclose(left, least_squares_residual(*part), rtol=0, atol=1e-10)
        for i in range(3):  # nothing that the neuron can use is left
            np.testing.assert_allclose(design(part[0], part[1], i).T @ left[:, i], 0, atol=1e-9)


def test_single_precision_errors_are_projected_in_double_precision() -> None:
    train = parts(80, 5, 2, dtype=torch.float32)
    left = Projection(*train).left
    assert left.dtype == torch.float32
    np.testing.assert_allclose(left.numpy(), least_squares_residual(*train), rtol=0, atol=1e-6)


def constant_column(x: Tensor) -> Tensor:
    return torch.cat([x, torch.full((len(x), 1), 0.7, dtype=x.dtype), torch.zeros(len(x), 1, dtype=x.dtype)], 1)


def duplicated_columns(x: Tensor) -> Tensor:
    return torch.cat([x, x[:, :2], 3 * x[:, [0]] - x[:, [1]]], 1)


@pytest.mark.parametrize("deficient", [constant_column, duplicated_columns])
@pytest.mark.parametrize("generations", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_that_say_nothing_new_change_nothing(
    deficient: Callable[[Tensor], Tensor], generations: int, dtype: torch.dtype
) -> None:
    train, held_out = parts(80, 4, generations, dtype=dtype), parts(30, 4, generations, seed=7, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-8
    for part in (train, held_out):
        left = Projection(deficient(part[0]), *part[1:]).left
        torch.testing.assert_close(left, Projection(*part).left, rtol=0, atol=tolerance)


def test_a_generation_that_says_the_same_as_another_changes_nothing() -> None:
    for x, (first,), errors in (parts(80, 4, 1), parts(30, 4, 1, seed=7)):
        plain, doubled = Projection(x, [first], errors), Projection(x, [first, -2 * first], errors)
        torch.testing.assert_close(doubled.left, plain.left, rtol=0, atol=1e-8)


def test_of_a_dendrite_that_is_linear_on_the_records_the_rounding_is_not_blown_up() -> None:
    x = random(300, 3, dtype=torch.float32)

    def dendrite(inputs: Tensor) -> Tensor:
        return torch.relu(inputs @ torch.tensor([[0.5], [0.2], [0.1]]) + 3)

    assert dendrite(x).min() > 0
    errors = torch.sin(3 * x[:, :1])
    left, without = Projection(x, [dendrite(x)], errors).left, Projection(x, [], errors).left
    torch.testing.assert_close(left, without, rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_residual_does_not_depend_on_the_scale_of_the_inputs(scale: float) -> None:
    x, activations, errors = parts(80, 4, 2)
    scales = torch.tensor([1.0, scale, 1.0, scale], dtype=torch.float64)
    left = Projection(x * scales, activations, errors).left
    expected = Projection(x, activations, errors).left
    torch.testing.assert_close(left, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("generations", [0, 2])
def test_errors_that_the_neuron_explains_already_leave_exactly_nothing(
    generations: int, scale: float, dtype: torch.dtype
) -> None:
    def explained(seed: int) -> tuple[Tensor, list[Tensor], Tensor]:
        x, activations, _ = parts(90, 5, generations, seed=seed, dtype=dtype)
        errors = x @ random(5, 3, seed=42, dtype=dtype) - 1
        for d, activation in enumerate(activations):
            errors = errors + (d + 0.5) * activation
        return x, activations, errors * scale

    for part in (explained(0), explained(7)):
        left = Projection(*part).left
        assert torch.equal(left, torch.zeros_like(left))
        score, gradient = score_and_gradient(random(90, 3, seed=3, dtype=dtype), left)
        assert score.tolist() == [0, 0, 0]
        assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_inputs_leave_the_error_without_its_mean(dtype: torch.dtype) -> None:
    for records in (4, 40):
        x, errors = torch.full((records, 6), 0.3, dtype=dtype), random(records, 2, dtype=dtype)
        left = Projection(x, [], errors).left
        torch.testing.assert_close(left, errors - errors.mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("records", "inputs"), [(10, 10), (10, 11), (12, 40), (30, 20)])
@pytest.mark.parametrize("seed", [0, 7])
def test_with_few_records_the_ridge_is_that_of_the_least_cross_validation_error(
    records: int, inputs: int, seed: int
) -> None:
    x, _, errors = parts(records, inputs, 0, seed=seed)
    # In its primal form, one strength after the other, with the hat matrix's own trace.
    mean, deviation = x.numpy().mean(0), x.numpy().std(0)
    scaled, centred = (x.numpy() - mean) / deviation, errors.numpy() - errors.numpy().mean(0)
    mean_variance = np.mean(np.linalg.svd(scaled, compute_uv=False) ** 2)
    best: list[tuple[float, np.ndarray]] = [(np.inf, np.zeros(inputs))] * errors.shape[1]
    for power in range(-8, 3):
        inverse = np.linalg.inv(scaled.T @ scaled + 10.0**power * mean_variance * np.eye(inputs))
        freedom = records - 1 - np.trace(scaled @ inverse @ scaled.T)
        for channel, column in enumerate(centred.T):
            coefficients = inverse @ scaled.T @ column
            rss = np.sum((column - scaled @ coefficients) ** 2)
            if freedom > 0.01 * records and rss / freedom**2 < best[channel][0]:
                best[channel] = rss / freedom**2, coefficients
    chosen = np.stack([coefficients for _, coefficients in best], 1)
    np.testing.assert_allclose(Projection(x, [], errors).left.numpy(), centred - scaled @ chosen, rtol=0, atol=1e-6)


@pytest.mark.parametrize("records", [75, 105, 129, 132, 300])
def test_errors_that_are_linear_in_the_inputs_leave_little_with_a_ridge_too(records: int) -> None:
    x, weight = random(records, 64), random(64, 8, seed=3)
    assert Projection(x, [], x @ weight).left.var() < 1e-6 * (x @ weight).var()


def test_a_column_that_is_constant_but_for_rounding_counts_as_constant() -> None:
    x, errors = random(800, 3), random(800, 2, seed=2)
    x[:, 1] = 0.1  # its mean over 800 records rounds
    torch.testing.assert_close(Projection(x, [], errors).left, Projection(x[:, [0, 2]], [], errors).left)


def test_what_two_nearly_equal_inputs_differ_in_is_linear_too() -> None:
    x = random(200, 2)
    difference = x[:, 1:].clone()
    x[:, 1] = x[:, 0] + 1e-5 * x[:, 1]
    assert Projection(x, [], difference).left.var() < 1e-3


@pytest.mark.parametrize("generations", [0, 1, 3])
@pytest.mark.parametrize("inputs", [3, 8, 30])
def test_some_of_the_error_is_left_for_any_number_of_records(inputs: int, generations: int) -> None:
    for records in range(max(3, inputs - 1), inputs + generations + 6):
        train = parts(records, inputs, generations)
        left = Projection(*train).left
        assert torch.isfinite(left).all()
        assert left.abs().amax(0).min() > 1e-4, f"{records} records"


def test_the_fit_of_other_errors_is_not_changed_by_them_and_gives_the_same_bits() -> None:
    x, activations, errors = parts(80, 4, 2)
    first = Projection(x, activations, errors)
    kept, others = errors.clone(), errors.flip(0)
    other = Projection(x, activations, others, first.fit)
    assert_same_bits(other.left, Projection(x, activations, others).left)
    assert_same_bits(Projection(x, activations, errors, first.fit).left, first.left)
    assert_same_bits(errors, kept)


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_weak_directions_of_large_inputs_are_taken_out_too(offset: float) -> None:
    x = random(6000, 800, dtype=torch.float32)  # beyond what is computed in double precision
    weak = x[:, 1:2].clone()
    x[:, 1:2] = x[:, :1] + 3e-3 * weak
    x += offset
    assert Projection(x, [], weak).left.var() < 1e-3
