import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pbp_search.dendrites import DendriteSpec
from pbp_search.errors import InputError, SettingsError
from pbp_search.settings import Settings
from pbp_search.training import CycleSchedule, Fixed, Plateau, TrialConfig

COUNTS = st.integers(1, 10**6)
SHARES = st.floats(0, 1e300)
RATES = st.floats(1e-300, 1e300)
RULES = st.builds(Fixed, epochs=COUNTS) | st.builds(
    Plateau,
    patience=COUNTS,
    relative=st.lists(SHARES, min_size=1, max_size=4).map(tuple),
    absolute=SHARES,
    max_epochs=COUNTS,
)
CONFIGS = st.builds(
    TrialConfig,
    width=COUNTS,
    dendrites=st.builds(DendriteSpec, nonlinearity=st.sampled_from(["tanh", "sigmoid", "relu"])),
    schedule=st.builds(CycleSchedule, neuron=RULES, dendrite=RULES, acceptance=SHARES, tries=COUNTS),
    learning_rate=RATES,
    dendrite_learning_rate=RATES,
    batch_size=COUNTS,
    seed=st.integers(0, 2**62),
)


@settings(deadline=None)
@given(CONFIGS)
def test_a_config_is_the_same_after_a_trip_through_json(config: TrialConfig) -> None:
    again = TrialConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.to_dict() == config.to_dict()
    assert type(again.schedule.neuron) is type(config.schedule.neuron)


def test_defaults_survive_the_trip_and_are_json_types_throughout() -> None:
    config = TrialConfig(width=4)
    assert TrialConfig.from_dict({"width": 4}) == config
    assert config.to_dict()["schedule"]["neuron"]["kind"] == "plateau"
    assert json.loads(json.dumps(config.to_dict(), allow_nan=False)) == config.to_dict()


NAN, INFINITE = float("nan"), float("inf")

BAD: list[tuple[type[Settings], dict[str, Any], str]] = [
    (TrialConfig, {"width": 0}, r"width is 0: .*greater than or equal to 1"),
    (TrialConfig, {"width": 2.5}, r"width is 2\.5: .*integer"),
    (TrialConfig, {"width": "wide"}, r"width is 'wide': .*integer"),
    (TrialConfig, {"width": None}, r"width is None: .*integer"),
    (TrialConfig, {}, r"TrialConfig: width is missing"),
    (TrialConfig, {"width": 2, "learning_rate": 0}, r"learning_rate is 0: .*greater than 0"),
    (TrialConfig, {"width": 2, "learning_rate": NAN}, r"learning_rate is nan: .*finite"),
    (TrialConfig, {"width": 2, "learning_rate": INFINITE}, r"learning_rate is inf: .*finite"),
    (TrialConfig, {"width": 2, "dendrite_learning_rate": -1}, r"dendrite_learning_rate is -1: .*greater than 0"),
    (TrialConfig, {"width": 2, "batch_size": 0}, r"batch_size is 0: .*greater than or equal to 1"),
    (TrialConfig, {"width": 2, "seed": -1}, r"seed is -1: .*greater than or equal to 0"),
    (TrialConfig, {"width": 2, "layers": 3}, r"TrialConfig: there is no setting 'layers'"),
    (TrialConfig, {"width": 2, "schedule": {"tries": 0}}, r"tries is 0: .*greater than or equal to 1"),
    (
        TrialConfig,
        {"width": 2, "schedule": {"neuron": {"kind": "plateau", "patience": 0}}},
        r"neuron.*patience is 0: .*greater than or equal to 1",
    ),
    (TrialConfig, {"width": 2, "schedule": {"neuron": {"kind": "cosine"}}}, r"neuron.*'cosine'.*'plateau', 'fixed'"),
    (TrialConfig, {"width": 2, "schedule": {"neuron": {"epochs": 3}}}, r"neuron.*kind"),
    (TrialConfig, {"width": 2, "dendrites": {"fan": 3}}, r"there is no setting 'fan'"),
    (
        TrialConfig,
        {"width": 2, "dendrites": {"nonlinearity": "step"}},
        r"nonlinearity is 'step': .*'tanh', 'sigmoid', 'relu' or 'gelu'",
    ),
    (CycleSchedule, {"acceptance": -0.1}, r"acceptance is -0\.1: .*greater than or equal to 0"),
    (CycleSchedule, {"acceptance": NAN}, r"acceptance is nan: .*finite"),
    (Plateau, {"relative": ()}, r"relative is \(\): .*at least 1"),
    (Plateau, {"relative": (0.1, -0.1)}, r"relative\.1 is -0\.1: .*greater than or equal to 0"),
    (Plateau, {"relative": (NAN,)}, r"relative\.0 is nan"),
    (Plateau, {"absolute": -1}, r"absolute is -1: .*greater than or equal to 0"),
    (Plateau, {"max_epochs": 0}, r"max_epochs is 0: .*greater than or equal to 1"),
    (Plateau, {"epochs": 3}, r"Plateau: there is no setting 'epochs'"),
    (Fixed, {"epochs": 0}, r"epochs is 0: .*greater than or equal to 1"),
]


@pytest.mark.parametrize(("settings_class", "values", "sentence"), BAD)
def test_a_bad_value_is_refused_by_field_value_and_what_is_allowed(
    settings_class: type[Settings], values: dict[str, Any], sentence: str
) -> None:
    builds: tuple[Callable[[], Settings], ...]
    builds = (lambda: settings_class(**values), lambda: settings_class.from_dict(values))
    for build in builds:
        with pytest.raises(SettingsError, match=sentence) as caught:
            build()
        assert isinstance(caught.value, InputError | ValueError)
        assert "\n" not in str(caught.value)
        assert "pydantic" not in str(caught.value)


def test_every_bad_value_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        TrialConfig(width=0, batch_size=0, layers=1)  # type: ignore[call-arg]
    for part in ("width is 0", "batch_size is 0", "no setting 'layers'"):
        assert part in str(caught.value)


def test_settings_cannot_be_changed() -> None:
    config = TrialConfig(width=4)
    with pytest.raises(ValidationError, match="frozen"):
        config.width = 5  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.schedule.tries = 5  # type: ignore[misc]
    assert config == TrialConfig(width=4)
    assert len({config, TrialConfig(width=4), TrialConfig(width=5)}) == 2
