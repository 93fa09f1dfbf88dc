import json
import math

import pytest
from pydantic import Field, ValidationError

from pbp_search.errors import InputError, SettingsError
from pbp_search.settings import Settings


class Inner(Settings):
    share: float = Field(0.5, ge=0, le=1)


class Outer(Settings):
    name: str
    count: int = Field(3, ge=1)
    bounds: tuple[float, float] = (0.0, 1.0)
    inner: Inner = Inner()


def test_settings_survive_json() -> None:
    settings = Outer(name="a", count=7, bounds=(-1e-300, 0.1), inner=Inner(share=1 / 3))
    assert Outer.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert settings.to_dict() == {"name": "a", "count": 7, "bounds": [-1e-300, 0.1], "inner": {"share": 1 / 3}}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": "a", "count": 0}, "Outer: count is 0: input should be greater than or equal to 1"),
        ({}, "Outer: name is missing"),
        ({"name": "a", "colour": 1}, "Outer: there is no setting 'colour'"),
        ({"name": "a", "bounds": (0.0, math.nan)}, "Outer: bounds.1 is nan: input should be a finite number"),
        ({"name": "a", "bounds": (math.inf, 0.0)}, "Outer: bounds.0 is inf: input should be a finite number"),
        (
            {"count": 0, "name": 5},
            "Outer: name is 5: input should be a valid string; "
            "Outer: count is 0: input should be greater than or equal to 1",
        ),
    ],
)
def test_bad_values_are_sentences(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Outer(**values)
    assert str(caught.value) == sentence
    with pytest.raises(SettingsError) as caught:
        Outer.from_dict(values)
    assert str(caught.value) == sentence


def test_problems_of_inner_settings_are_said_once() -> None:
    with pytest.raises(SettingsError, match=r"\bshare is 2: input should be less than or equal to 1$") as caught:
        Outer(name="a", inner={"share": 2})
    assert "{" not in str(caught.value)
    with pytest.raises(SettingsError, match=r"\bthere is no setting 'shape'$") as caught:
        Outer(name="a", inner={"shape": 2})
    assert "{" not in str(caught.value)


def test_the_error_is_bad_input_and_a_value_error() -> None:
    with pytest.raises(InputError):
        Inner(share=-1)
    with pytest.raises(ValueError, match="share is -1"):
        Inner(share=-1)


def test_settings_do_not_change() -> None:
    settings = Inner()
    with pytest.raises(ValidationError, match="frozen"):
        settings.share = 0.1  # type: ignore[misc]
    assert settings.share == 0.5
    assert len({Inner(), Inner(share=0.5), Inner(share=0.25)}) == 2
