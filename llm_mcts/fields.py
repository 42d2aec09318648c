"""Settings that check themselves: each field's type and range stand in its annotation, once for errors and help.

@dataclass(frozen=True)
class BeamConfig(Settings, section="beam"):
    beam_width: Annotated[int, AtLeast(1)] = 4
    temperature: Annotated[float, Above(0)] = 1.0
    kind: Literal["beam", "dvts"] = "beam"
"""

import dataclasses
from dataclasses import dataclass
from functools import cache
from math import inf, isfinite
from numbers import Real
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from llm_mcts.errors import ConfigError, suggest


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers; an open end is not part of it."""

    low: float = -inf
    high: float = inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return isfinite(value) and above and below

    def __repr__(self) -> str:
        """As errors and help say it: ">= 1", "> 0" or "in [0, 1)"."""
        if self.high == inf:
            return f"{'>' if self.open_low else '>='} {self.low:g}"
        return f"in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"


def AtLeast(low: float) -> Range:
    """Numbers from `low` on."""
    return Range(low)


def Above(low: float) -> Range:
    """Numbers greater than `low`."""
    return Range(low, open_low=True)


def Within(low: float, high: float, open_low: bool = False, open_high: bool = False) -> Range:
    """Numbers from `low` to `high`."""
    return Range(low, high, open_low, open_high)


class Settings:
    """Base of configuration dataclasses: every field is checked against its annotation when one is made.

    A subclass that compares fields with each other does so in `__post_init__`, after `super().__post_init__()`.
    """

    section: ClassVar[str] = ""
    """What error messages put in front of a field's name."""

    def __init_subclass__(cls, section: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if section is not None:
            cls.section = section

    def __post_init__(self) -> None:
        """Check each field by itself.

        Raises:
            ConfigError: a value is not of its field's type, or out of its range.
        """
        cls: Any = type(self)
        for name, hint in _hints(cls).items():
            value = getattr(self, name)
            if not _fits(value, hint):
                choices = _choices(hint)
                expected = suggest(value, choices) if choices and isinstance(value, str) else f"; expected {describe(hint)}"
                raise ConfigError(f"{self.section}{'.' if self.section else ''}{name} is {value!r}{expected}")


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is Annotated:
        ranges = [extra for extra in arguments[1:] if isinstance(extra, Range)]
        return _fits(value, arguments[0]) and (value is None or all(value in allowed for allowed in ranges))
    if origin is Literal:
        return value in arguments
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    if hint in (bool, str, NoneType):
        return isinstance(value, hint)
    if origin in (tuple, list):
        items = arguments[:1] if arguments[-1] in (..., arguments[0]) else ()
        return isinstance(value, origin) and all(_fits(item, items[0]) for item in value if items)
    return True  # nested settings check themselves


def _choices(hint: Any) -> tuple[str, ...]:
    return tuple(choice for choice in get_args(hint) if isinstance(choice, str)) if get_origin(hint) is Literal else ()


def describe(hint: Any) -> str:
    """A field's type and range in words: "a whole number >= 1"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin is Annotated:
        return " ".join([describe(arguments[0]), *(repr(extra) for extra in arguments[1:] if isinstance(extra, Range))])
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (tuple, list):
        return f"a list of {describe(arguments[0])}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "none"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
