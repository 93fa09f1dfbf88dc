"""The base of all settings: immutable, validated when built, and the same after a trip through JSON."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pbp_search.errors import SettingsError


def sentences(error: ValidationError, owner: str) -> str:
    """Say every problem of a validation error as ``field is value: what is allowed``."""
    problems = []
    places = [problem["loc"] for problem in error.errors()]
    for problem in error.errors():
        place = problem["loc"]
        if any(len(other) > len(place) and other[: len(place)] == place for other in places):
            continue  # follows from a problem further inside
        field = ".".join(str(part) for part in problem["loc"]) or owner
        message = problem["msg"].removeprefix("Value error, ")
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, SettingsError):  # of settings inside these: said already
            problems.append(f"{field}: {cause}")
        elif problem["type"] == "missing":
            problems.append(f"{owner}: {field} is missing")
        elif problem["type"] == "extra_forbidden":
            problems.append(f"{owner}: there is no setting {field!r}")
        else:
            problems.append(f"{owner}: {field} is {problem['input']!r}: {message[:1].lower()}{message[1:]}")
    return "; ".join(problems)


class Settings(BaseModel):
    """Immutable settings. Building one with a bad value raises :class:`SettingsError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(sentences(error, type(self).__name__)) from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from what :meth:`to_dict` returned. Raises :class:`SettingsError`."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON types."""
        return self.model_dump(mode="json")
