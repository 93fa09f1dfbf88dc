"""The values of a search space: fixed, a list of choices, or a range."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, get_args, get_origin

from optuna.trial import BaseTrial
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from pbp_search.settings import Settings


class Choices(tuple[bool | int | float | str, ...]):
    """Values of which one is drawn. Not any tuple: one of two numbers is a range, on the field's usual scale."""


@dataclass(frozen=True)
class Range:
    """Numbers between two, both included.

    Attributes:
        low: The lowest.
        high: The highest.
        log: Whether every order of magnitude is as likely as any other, or every number.
    """

    low: int | float
    high: int | float
    log: bool


Value = bool | int | float | str | Choices | Range


def type_of(owner: type[Settings], name: str) -> Any:
    """The type of a setting of the core with its limits, without None."""
    field = owner.model_fields[name]
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    optional = type(None) in get_args(field.annotation)
    return Annotated[kinds[0] if optional else field.annotation, Field(), *field.metadata]


@dataclass(frozen=True)
class Setting:
    """What a field of a space may hold; stands in the field's annotation.

    Args:
        kind: The type of one value.
        log: Whether its usual scale is logarithmic.
        none: The word that stands for None, which TOML does not have.
        parse: Turns a text into what the core takes; raises ValueError.
    """

    kind: Any
    log: bool = False
    none: str | None = None
    parse: Callable[[str], Any] | None = None

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        """Values are read by :meth:`read`; pydantic writes what that returns by itself."""
        return core_schema.no_info_plain_validator_function(self.read)

    def read(self, given: Any) -> Value:
        """A fixed value; choices, from a list; or a range, from a mapping or a tuple (lowest, highest).

        Raises:
            ValueError: It is none of them, or has a value that is not allowed.
        """
        if isinstance(given, Choices | list):
            choices = Choices(self._inside(value) for value in given)
            if not choices:
                raise ValueError("it must name at least one choice")
            if len(set(choices)) < len(choices):
                raise ValueError("it names a choice twice")
            return choices
        if isinstance(given, Range | Mapping | tuple):
            return self._range(given)
        try:
            fixed: Value = self._one(given)
        except _NotAllowed as error:
            raise ValueError(f"input {error}") from None
        return fixed

    def suggest(self, trial: BaseTrial, name: str, value: Value) -> Any:
        """Draw from a value that is searched, as a parameter of that name, and return what the core takes."""
        drawn: Any = value
        if isinstance(value, Choices):
            drawn = trial.suggest_categorical(name, value)
        elif isinstance(value, Range):
            suggest = trial.suggest_int if isinstance(value.low, int) else trial.suggest_float
            drawn = suggest(name, value.low, value.high, log=value.log)  # type: ignore[arg-type]
        if drawn == self.none:
            return None
        return drawn if self.parse is None else self.parse(drawn)

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.kind, config=ConfigDict(strict=True, allow_inf_nan=False))

    def _one(self, given: Any) -> Any:
        if self.none is not None and given == self.none:
            return given
        try:
            value = self._adapter.validate_python(given)
            if self.parse is not None:
                self.parse(value)
        except ValidationError as error:
            allowed = error.errors()[0]["msg"].partition(" ")[2]  # without "Input" or "String"
            raise _NotAllowed(allowed if self.none is None else f"{allowed}, or {self.none!r}") from None
        return value

    def _inside(self, given: Any) -> Any:
        try:
            return self._one(given)
        except _NotAllowed as error:
            raise ValueError(f"{given!r} {error}") from None

    def _range(self, given: Range | Mapping[str, Any] | tuple[Any, ...]) -> Range:
        base = get_args(self.kind)[0] if get_origin(self.kind) is Annotated else self.kind
        low: Any
        high: Any
        if base not in (int, float):
            raise ValueError("only numbers have a range: write choices as a list")
        if isinstance(given, Range):
            low, high, log = given.low, given.high, given.log
        elif isinstance(given, tuple):
            if len(given) != 2:
                raise ValueError("a range must be (lowest, highest), choices must be a list")
            low, high, log = *given, self.log
        else:
            if not {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
                raise ValueError("a range must have low and high, and may have log")
            low, high, log = given["low"], given["high"], given.get("log", self.log)
        for bound in (low, high):
            if bound == self.none:
                raise ValueError(f"a range must be of numbers: {bound!r} can only be a choice")
        low, high = self._inside(low), self._inside(high)
        if not isinstance(log, bool):
            raise ValueError(f"log must be true or false, not {log!r}")
        if low > high:
            raise ValueError("it must be (lowest, highest)")
        if log and low <= 0:
            raise ValueError("a logarithmic range must begin above 0: begin higher, or set log to false")
        return Range(low, high, log)


class _NotAllowed(Exception):  # noqa: N818 - never leaves this file
    """Says what is allowed instead, without its subject."""


def corners(value: Value) -> tuple[Any, ...]:
    """A fixed value, all choices, or the lowest and the highest of a range."""
    if isinstance(value, Range):
        return value.low, value.high
    return tuple(value) if isinstance(value, Choices) else (value,)


def toml_of(value: Value) -> str:
    """A value as TOML writes it."""
    if isinstance(value, Range):
        return f"{{ low = {value.low!r}, high = {value.high!r}, log = {toml_of(value.log)} }}"
    if isinstance(value, Choices):
        return f"[{', '.join(map(toml_of, value))}]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but that TOML does not take a bare DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
