import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbp_search.errors import InputError, SettingsError
from pbp_search.search import Choices, Range, SearchSpace

whole = st.integers(1, 500)
real = st.floats(1e-12, 10)
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def values(one: Any) -> Any:
    """Fixed, choices, or a range."""
    pair = st.tuples(one, one).map(sorted)
    ranges = pair.map(tuple) | st.builds(lambda pair, log: Range(pair[0], pair[1], log), pair, st.booleans())
    return one | st.lists(one, min_size=1, unique=True) | ranges


spaces = st.fixed_dictionaries(
    {},
    optional={
        "width": values(whole),
        "neuron_epochs": values(whole),
        "learning_rate": values(real),
        "acceptance": values(real),
        "fan_in": values(whole) | st.just(["all", 3]),
        "dendrites": st.integers(0, 9),
        "mixed_precision": st.booleans() | st.just([True, False]),
        "sees": text | st.lists(text, min_size=1, unique=True),
        "placement": st.sampled_from(["first", "encoder.*, !encoder.2", ["all", 'a"b', "é"]]),
    },
).map(lambda values: SearchSpace(**values))


@given(spaces)
def test_spaces_survive_json(space: SearchSpace) -> None:
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


@given(spaces)
def test_spaces_survive_toml(tmp_path_factory: pytest.TempPathFactory, space: SearchSpace) -> None:
    file = tmp_path_factory.getbasetemp() / "space.toml"
    file.write_text(space.to_toml(), encoding="utf-8")
    assert SearchSpace.from_toml(file, SearchSpace(width=7, pool=4, sees="input")) == space


def test_a_field_is_fixed_a_list_of_choices_or_a_range() -> None:
    space = SearchSpace(width=[8, 16], batch_size=32, learning_rate={"low": 1, "high": 2, "log": False})
    assert space.width == Choices((8, 16))
    assert space.batch_size == 32
    assert space.learning_rate == Range(1.0, 2.0, log=False)
    assert SearchSpace(**{name: getattr(space, name) for name in SearchSpace.model_fields}) == space


def test_a_range_is_on_the_fields_usual_scale_unless_it_says_otherwise() -> None:
    space = SearchSpace(width=(8, 16), neuron_patience={"low": 2, "high": 3}, dendrite_patience=(2, 4))
    assert space.width == Range(8, 16, log=True)
    assert space.neuron_patience == Range(2, 3, log=False)
    assert space.dendrite_patience == Range(2, 4, log=False)
    assert SearchSpace(width=Range(8, 16, log=False)).width == Range(8, 16, log=False)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"width": (4, 2)}, "width is (4, 2): it must be (lowest, highest)"),
        ({"learning_rate": (0.1, 0.01)}, "learning_rate is (0.1, 0.01): it must be (lowest, highest)"),
        ({"width": (0, 4)}, "width is (0, 4): 0 should be greater than or equal to 1"),
        ({"width": (1.5, 4)}, "width is (1.5, 4): 1.5 should be a valid integer"),
        ({"width": 0}, "width is 0: input should be greater than or equal to 1"),
        ({"width": "4"}, "width is '4': input should be a valid integer"),
        ({"width": True}, "width is True: input should be a valid integer"),
        ({"width": (1, 2, 3)}, "width is (1, 2, 3): a range must be (lowest, highest), choices must be a list"),
        ({"width": {"low": 1}}, "width is {'low': 1}: a range must have low and high, and may have log"),
        ({"width": {"low": 1, "high": 2, "log": 1}}, "log must be true or false, not 1"),
        ({"width": {"low": 1, "high": 2, "step": 1}}, "a range must have low and high, and may have log"),
        (
            {"acceptance": (0.0, 0.1)},
            "acceptance is (0.0, 0.1): a logarithmic range must begin above 0: begin higher, or set log to false",
        ),
        ({"acceptance": (0.1, math.inf)}, "acceptance is (0.1, inf): inf should be a finite number"),
        ({"acceptance": -1.0}, "acceptance is -1.0: input should be greater than or equal to 0"),
        ({"neuron_threshold": (math.nan, 1.0)}, "neuron_threshold is (nan, 1.0): nan should be a finite number"),
        ({"learning_rate": [0.1, "high"]}, "learning_rate is [0.1, 'high']: 'high' should be a valid number"),
        ({"dendrites": -1}, "dendrites is -1: input should be greater than or equal to 0"),
        ({"dendrites": [1, 2]}, "dendrites is [1, 2]: input should be a valid integer"),
        ({"schedule": []}, "schedule is []: it must name at least one choice"),
        ({"schedule": ["fixed", "fixed"]}, "schedule is ['fixed', 'fixed']: it names a choice twice"),
        ({"schedule": ["cosine"]}, "schedule is ['cosine']: 'cosine' should be 'plateau' or 'fixed'"),
        ({"schedule": "cosine"}, "schedule is 'cosine': input should be 'plateau' or 'fixed'"),
        ({"schedule": ("fixed",)}, "schedule is ('fixed',): only numbers have a range: write choices as a list"),
        ({"mixed_precision": 1}, "mixed_precision is 1: input should be a valid boolean"),
        ({"fan_in": "few"}, "fan_in is 'few': input should be a valid integer, or 'all'"),
        ({"fan_in": ("all", 3)}, "a range must be of numbers: 'all' can only be a choice"),
        ({"sees": ""}, "sees is '': input should have at least 1 character, or 'own inputs'"),
        ({"grid": "8x"}, "grid is '8x': a grid must be 'line', or sizes such as '28x28'"),
        ({"placement": " ,"}, "placement is ' ,': a placement must name modules"),
        ({"placement": [["a", "b"], "c"]}, "['a', 'b'] should be a valid string"),
        ({"depth": (1, 2)}, "there is no setting 'depth'"),
        (
            {"objective": "covariance", "nonlinearity": ["tanh", "relu"]},
            "SearchSpace: the objective can only be covariance, which has no maximum with the unbounded relu: "
            "leave the nonlinearity at tanh, sigmoid, or add the objective correlation",
        ),
        (
            {"per_neuron": (1, 3), "pool": [4, 2]},
            "SearchSpace: per_neuron can be 3 where the pool has 2 candidates: pool must always be at least per_neuron",
        ),
    ],
)
def test_bad_values_are_sentences(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        SearchSpace(**values)
    assert str(caught.value).startswith("SearchSpace: ")
    assert str(caught.value).endswith(sentence)


def test_controls_may_have_more_dendrites_than_candidates() -> None:
    assert SearchSpace(per_neuron=3, variant=["gradient", "random"]).per_neuron == 3


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text('nonlinearity = ["tanh", "relu"]\n[learning_rate]\nlow = 1\nhigh = 2\n')
    base = SearchSpace(width=(3, 5), learning_rate=0.1)
    expected = SearchSpace(width=(3, 5), learning_rate=(1.0, 2.0), nonlinearity=["tanh", "relu"])
    assert SearchSpace.from_toml(file, base) == expected
    file.write_text("")
    assert SearchSpace.from_toml(file, base) == base


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"width = ", "The space file {file} is not TOML: Invalid value (at end of document)."),
        (b"width = 1\nwidth = 2", "The space file {file} is not TOML: Cannot overwrite a value"),
        (b"\xff", "The space file {file} is not TOML: 'utf-8' codec can't decode byte 0xff"),
        (b"widht = 3", "{used}: SearchSpace: there is no setting 'widht': did you mean 'width'?"),
        (b"[zz]\nwidth = 3", "{used}: SearchSpace: there is no setting 'zz': there are width, learning_rate, "),
        (b"width = 1979-05-27", "{used}: SearchSpace: width is datetime.date(1979, 5, 27): input should be a valid"),
        (b"learning_rate = [nan]", "{used}: SearchSpace: learning_rate is [nan]: nan should be a finite number"),
        (b"per_neuron = 2", "{used}: SearchSpace: per_neuron can be 2 where the pool has 1 candidates"),
        (None, "The space file {file} cannot be read: No such file or directory."),
    ],
)
def test_bad_files_are_sentences(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    file = tmp_path / "space.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        SearchSpace.from_toml(file, SearchSpace())
    used = f"The space file {file} cannot be used"
    assert str(caught.value).startswith(sentence.format(file=file, used=used))


def test_the_file_explains_every_field() -> None:
    lines = SearchSpace().to_toml().splitlines()
    for name, field in SearchSpace.model_fields.items():
        (place,) = [number for number, line in enumerate(lines) if line.startswith(f"{name} = ")]
        assert field.description
        assert lines[place - 1].startswith("# ")
    assert max(map(len, lines)) <= 120
