import pytest
import torch

from pbp_search.dendrites import DendriteSpec
from pbp_search.dendrites.spec import FUNCTIONS
from pbp_search.errors import SettingsError
from tests.dendrites.grown_networks import NONLINEARITIES


def test_the_nonlinearity_is_one_of_three() -> None:
    with pytest.raises(SettingsError, match="nonlinearity is 'gelu': input should be 'tanh', 'sigmoid' or 'relu'"):
        DendriteSpec(nonlinearity="gelu")
    assert tuple(FUNCTIONS) == NONLINEARITIES


@pytest.mark.parametrize(("nonlinearity", "expected"), [("tanh", 0.0), ("sigmoid", 0.5), ("relu", 0.0)])
def test_every_nonlinearity_has_its_function(nonlinearity: str, expected: float) -> None:
    spec = DendriteSpec.from_dict({"nonlinearity": nonlinearity})
    assert FUNCTIONS[spec.nonlinearity](torch.zeros(())).item() == expected
    assert spec.to_dict() == {"nonlinearity": nonlinearity}
