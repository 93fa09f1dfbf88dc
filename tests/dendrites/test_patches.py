from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites import DendriteSpec
from pbp_search.dendrites.forms import SparsePatches
from pbp_search.dendrites.patches import Patches
from pbp_search.errors import UnsupportedModuleError
from tests.dendrites.grown_networks import assert_same_bits

Case = tuple[Callable[..., nn.Module], dict[str, Any], tuple[int, ...]]
"""A layer's type, its options, and the shape of its inputs."""

CASES: dict[str, Case] = {
    "linear": (nn.Linear, {"in_features": 3, "out_features": 5}, (4, 3)),
    "linear without bias": (nn.Linear, {"in_features": 3, "out_features": 5, "bias": False}, (4, 3)),
    "linear on sequences": (nn.Linear, {"in_features": 3, "out_features": 5}, (4, 6, 3)),
    "linear on maps": (nn.Linear, {"in_features": 3, "out_features": 5}, (4, 2, 3, 3)),
}

# Sides differ, and so do the axes' options, so that no two axes can be mixed up. Padding stays smaller than the inputs.
SPACES = {1: (9,), 2: (9, 7), 3: (5, 6, 7)}
CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "one by one": {"kernel_size": (1, 1, 1)},
    "strided": {"stride": (2, 3, 2)},
    "padded": {"padding": (1, 2, 0)},
    "strided and padded": {"stride": (2, 3, 2), "padding": (2, 1, 1)},
    "valid": {"padding": "valid", "stride": (2, 1, 3)},
    "same": {"padding": "same"},
    # An even kernel has one more place after than before.
    "same, even": {"padding": "same", "kernel_size": (2, 4, 2), "dilation": (3, 1, 1)},
    "dilated": {"dilation": (2, 3, 2)},
    "dilated, strided and padded": {"dilation": (3, 2, 2), "stride": (2, 2, 3), "padding": (2, 2, 1)},
    "grouped": {"groups": 2, "padding": (1, 0, 1)},
    "depthwise": {"groups": 4, "out_channels": 4, "padding": (1, 0, 1)},
    "depthwise, multiplied": {"groups": 4, "out_channels": 8, "stride": (2, 1, 1)},
    **{mode: {"padding": (2, 1, 1), "padding_mode": mode, "stride": (1, 2, 2)} for mode in ("reflect", "replicate")},
    "circular": {"padding": (2, 1, 1), "padding_mode": "circular"},
    "circular, same": {"padding": "same", "kernel_size": (4, 3, 2), "padding_mode": "circular"},
}
TRANSPOSED_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "strided": {"stride": (2, 3, 2)},
    "padded": {"padding": (1, 2, 0)},
    # Wider than the kernel: places are cut off.
    "padded beyond the kernel": {"padding": (2, 2, 3), "kernel_size": (2, 2, 2), "stride": (2, 3, 2)},
    "with a rest": {"stride": (2, 3, 2), "padding": (1, 1, 0), "output_padding": (1, 2, 1)},
    "dilated": {"dilation": (2, 3, 2), "stride": (2, 1, 1), "padding": (1, 0, 2)},
    "grouped": {"groups": 2, "stride": (2, 1, 2)},
    "depthwise": {"groups": 4, "out_channels": 4, "padding": (1, 0, 1)},
    "depthwise, multiplied": {"groups": 4, "out_channels": 8, "stride": (2, 2, 1)},
    "everything": {
        "groups": 2,
        "kernel_size": (4, 3, 2),
        "stride": (3, 2, 2),
        "dilation": (1, 2, 3),
        "padding": (2, 1, 1),
        "output_padding": (2, 1, 1),
    },
}


def sized(options: dict[str, Any], dimensions: int) -> dict[str, Any]:
    """Options of three axes for a layer of fewer."""
    whole = {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2, 3), **options}
    return {name: value[:dimensions] if isinstance(value, tuple) else value for name, value in whole.items()}


for dimensions, (name, options) in product(CONVOLUTIONS, OPTIONS.items()):
    CASES[f"{dimensions}d {name}"] = (
        CONVOLUTIONS[dimensions],
        sized(options, dimensions),
        (2, 4, *SPACES[dimensions]),
    )
for dimensions, (name, options) in product(TRANSPOSED, TRANSPOSED_OPTIONS.items()):
    CASES[f"transposed {dimensions}d {name}"] = (
        TRANSPOSED[dimensions],
        sized(options, dimensions),
        (2, 4, *(side // 2 + 1 for side in SPACES[dimensions])),
    )


def built(case: str) -> tuple[nn.Module, Patches, Tensor]:
    kind, options, shape = CASES[case]
    torch.manual_seed(1)
    layer = kind(**options).double().requires_grad_(False)
    return layer, Patches.of(layer), torch.randn(shape, dtype=torch.float64)


def bias_of(layer: nn.Module, channels: int) -> Tensor:
    bias = layer.bias
    return bias if isinstance(bias, Tensor) else torch.zeros(channels, dtype=torch.float64)


def rows_of(view: Patches, outputs: Tensor) -> Tensor:
    """A layer's outputs as (samples, positions, C)."""
    if view.dimensions:
        return outputs.flatten(2).transpose(1, 2)
    return outputs.reshape(len(outputs), -1, view.channels)


def product_of(view: Patches, patches: Tensor, matrix: Tensor) -> Tensor:
    """Patches (N, positions, G, F) by the weights of the channels of their groups: (N, positions, C)."""
    return torch.einsum("npgf,gcf->npgc", patches, matrix.unflatten(0, (view.groups, -1))).flatten(2)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_an_output_is_the_product_of_a_weight_and_a_patch(case: str) -> None:
    layer, view, x = built(case)
    outputs = rows_of(view, layer(x))
    weight = layer.get_parameter("weight")
    matrix = view.matrix(weight)
    assert matrix.shape == (view.channels, view.length)
    patches = view.gather(x)
    assert patches.shape == (len(x), outputs.shape[1], view.groups, view.length)
    found = product_of(view, patches, matrix) + bias_of(layer, view.channels)
    torch.testing.assert_close(found, outputs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_patches_at_drawn_positions_are_those_of_all(case: str) -> None:
    _, view, x = built(case)
    every = view.gather(x)
    # In any order, one of them twice, others for each sample.
    positions = torch.rand(every.shape[:2]).argsort(1)[:, : every.shape[1] // 2 + 1]
    positions = torch.cat([positions, positions[:, :1]], 1)
    expected = torch.stack([sample[some] for sample, some in zip(every, positions, strict=True)])
    assert_same_bits(view.gather(x, positions), expected)


@pytest.mark.parametrize("case", CASES)
def test_a_weight_comes_back_from_its_matrix(case: str) -> None:
    layer, view, _ = built(case)
    weight = layer.get_parameter("weight")
    assert_same_bits(view.weight(view.matrix(weight)), weight)
    matrix = torch.randn(view.channels, view.length)
    assert_same_bits(view.matrix(view.weight(matrix)), matrix)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_a_sparse_layer_is_the_layer_with_zeros_elsewhere(case: str) -> None:
    layer, view, x = built(case)
    size = min(3, view.length)
    index = torch.rand(view.channels, view.length).argsort(1)[:, :size]
    few = torch.randn(view.channels, size, dtype=torch.float64)
    layer.get_parameter("weight").copy_(view.weight(few.new_zeros(view.channels, view.length).scatter(1, index, few)))
    if isinstance(layer.bias, Tensor):
        layer.bias.zero_()
    torch.testing.assert_close(view.sparse(x, index, few), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["1d plain", "2d strided and padded", "transposed 2d everything", "linear"])
def test_a_sparse_layer_takes_one_sample_without_an_axis_of_samples(case: str) -> None:
    layer, _, x = built(case)
    sparse = SparsePatches(layer, DendriteSpec(fan_in=2))
    torch.testing.assert_close(sparse(x[0]), sparse(x)[0])
    torch.testing.assert_close(sparse(input=x), sparse(x))


@pytest.mark.parametrize("case", CASES)
def test_a_sparse_layer_stores_the_numbers_that_it_sees_and_which_they_are(case: str) -> None:
    layer, view, _ = built(case)
    for pattern in ("random", "window"):
        sparse = SparsePatches(layer, DendriteSpec(fan_in=2, pattern=pattern))
        size = min(2, view.length)
        assert {name: value.shape for name, value in sparse.named_parameters()} == {
            "weight": (view.channels, size),
            "bias": (view.channels,),
        }
        assert sparse.weight.dtype == torch.float64
        assert sparse.index.shape == (view.channels, size)
        assert bool((sparse.index.diff(dim=1) > 0).all()), "each input once, in rising order"
        assert int(sparse.index.min()) >= 0
        assert int(sparse.index.max()) < view.length


def test_a_window_is_a_square_of_neighbours_of_the_grid() -> None:
    torch.manual_seed(0)
    sparse = SparsePatches(nn.Linear(42, 200), DendriteSpec(fan_in=9, pattern="window", grid=(6, 7)))
    rows, columns = sparse.index // 7, sparse.index % 7
    for one in (rows, columns):
        # Nine points around a centre: three rows and columns, unless the grid's border cuts them off.
        assert int((one.amax(1) - one.amin(1)).max()) <= 4
    inside = (rows.amax(1) - rows.amin(1) == 2) & (columns.amax(1) - columns.amin(1) == 2)
    assert int(inside.sum()) > 60
    assert len({tuple(row) for row in sparse.index.tolist()}) > 20, "windows are drawn"


def test_a_window_of_a_line_is_a_run_of_neighbours() -> None:
    sparse = SparsePatches(nn.Linear(20, 30), DendriteSpec(fan_in=5, pattern="window"))
    assert bool((sparse.index.diff(dim=1) == 1).all())
    # A grid that is another layer's does not fit: this layer's inputs are a line.
    sparse = SparsePatches(nn.Linear(20, 30), DendriteSpec(fan_in=5, pattern="window", grid=(28, 28)))
    assert bool((sparse.index.diff(dim=1) == 1).all())


class OwnLinear(nn.Linear):
    """May compute anything."""


@pytest.mark.parametrize("module", [nn.LSTM(2, 2), nn.LayerNorm(2), OwnLinear(2, 2), nn.Bilinear(2, 2, 2)])
def test_other_modules_have_no_patches(module: nn.Module) -> None:
    assert not Patches.fit(module)
    with pytest.raises(UnsupportedModuleError, match=f"A {type(module).__name__} takes no dendrites with a fan_in"):
        SparsePatches(module, DendriteSpec(fan_in=2))


@pytest.mark.parametrize("case", CASES)
def test_layers_have_patches(case: str) -> None:
    assert Patches.fit(built(case)[0])
