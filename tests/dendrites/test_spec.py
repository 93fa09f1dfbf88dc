import pytest
import torch

from pbp_search.dendrites import DendriteSpec
from pbp_search.dendrites.spec import FUNCTIONS
from pbp_search.errors import SettingsError
from tests.dendrites.grown_networks import NONLINEARITIES


def test_the_nonlinearity_is_one_of_four() -> None:
    with pytest.raises(SettingsError, match="nonlinearity is 'step': input should be 'tanh', 'sigmoid', 'relu' or"):
        DendriteSpec(nonlinearity="step")
    assert tuple(FUNCTIONS) == NONLINEARITIES


@pytest.mark.parametrize(("nonlinearity", "expected"), [("tanh", 0.0), ("sigmoid", 0.5), ("relu", 0.0), ("gelu", 0.0)])
def test_every_nonlinearity_has_its_function(nonlinearity: str, expected: float) -> None:
    spec = DendriteSpec.from_dict({"nonlinearity": nonlinearity})
    assert FUNCTIONS[spec.nonlinearity](torch.zeros(())).item() == expected
    assert spec.to_dict()["nonlinearity"] == nonlinearity
    assert DendriteSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize("nonlinearity", ["relu", "gelu"])
def test_covariance_is_refused_where_it_has_no_maximum(nonlinearity: str) -> None:
    with pytest.raises(SettingsError, match=f"covariance has no maximum with the unbounded {nonlinearity}: use one of"):
        DendriteSpec(objective="covariance", nonlinearity=nonlinearity)
    DendriteSpec(objective="covariance", nonlinearity="sigmoid")


def test_dendrites_are_chosen_from_a_pool_that_is_large_enough() -> None:
    with pytest.raises(SettingsError, match="per_neuron is 3, but the pool has 2 candidates"):
        DendriteSpec(per_neuron=3, pool=2)
    DendriteSpec(per_neuron=3, pool=3)
    DendriteSpec(per_neuron=3, variant="random")
