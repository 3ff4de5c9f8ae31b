"""Turns nested options into a Config, or into one line that says what is wrong with them."""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from viceversa.config.options import Config

INF = math.inf

#: pydantic's kind of error -> what the option takes
_TAKES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "fields",
    "dataclass_type": "fields",
}
#: pydantic's kind of error -> what the option must be, with the bound in its place
_MUST_BE = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
}
_UNKNOWN = ("unexpected_keyword_argument", "invalid_key")


class ConfigError(ValueError):
    """An option that cannot be: the message names the field, the value and the fix."""


def build(tree: dict[str, Any]) -> Config:
    """Make a Config of options by section.

    Raises ConfigError for an unknown field (with the nearest name), a value of the wrong type,
    outside its bounds or none of its choices. What cannot work together is `check`'s.
    """
    try:
        return TypeAdapter(Config).validate_python(tree)
    except ValidationError as error:
        raise ConfigError(_explained(error)) from error


def _explained(error: ValidationError) -> str:
    """Say what is wrong first: an unknown name, else the first bad value."""
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] in _UNKNOWN), errors[0])
    kind, place, context = first["type"], first["loc"], first.get("ctx", {})
    if kind in _UNKNOWN:
        *above, given = place
        near = difflib.get_close_matches(str(given), _fields(above), n=1, cutoff=0.0)
        spelled, meant = _joined([*above, str(given)]), _joined([*above, near[0]])
        return f"unknown option {spelled}; did you mean {meant}?"
    name, value = _joined(place) or "an option", first["input"]
    if kind in _TAKES:
        return f"{name} is {value!r}; it takes {_TAKES[kind]}"
    if kind in _MUST_BE:
        return f"{name} is {value!r}; it must be {_MUST_BE[kind].format(**context)}"
    return f"{name} is {value!r}: {first['msg']}"


def _joined(place: Sequence[int | str]) -> str:
    """Spell a place as `section.field` or `section.field[0]`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).removeprefix(".")


def _fields(place: Sequence[int | str]) -> list[str]:
    """Return the names of the options at a place in a Config."""
    kind: Any = Config
    for part in place:
        inner = typing.get_args(kind)[0] if isinstance(part, int) else None
        kind = inner or kind.__pydantic_fields__[part].annotation
    return list(kind.__pydantic_fields__)


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError for a value outside its bounds, for NaN and for infinities."""
    if low <= value <= high and abs(value) < INF:
        return
    span = f"from {low} to {high}" if high < INF else f"at least {low}" if low > -INF else ""
    raise ConfigError(f"{name} is {value}; it must be {span or 'a finite number'}")


def check(config: Config) -> None:
    """Raise ConfigError for values that cannot work together."""
    if config.sampling.temperature == 0:
        raise ConfigError("sampling.temperature is 0; every output of a group would be the same")
    if config.sampling.group_size < 2:
        raise ConfigError("sampling.group_size is 1; a group compares at least 2 outputs")
    if config.steps % config.loss.updates_per_rollout:
        raise ConfigError(
            f"steps is {config.steps}; it must be a multiple of loss.updates_per_rollout "
            f"({config.loss.updates_per_rollout})"
        )
    for term in config.reward.terms():
        if term.likelihood_power and term.scale == "group":
            raise ConfigError(
                f"reward.scale is group for {term.name}; with likelihood_power it must be batch or "
                "none"
            )
    if config.train.get("fsdp"):
        _check_sharded(config)


def _check_sharded(config: Config) -> None:
    """Raise ConfigError for ways of FSDP that cannot work here."""
    options = config.train.get("fsdp_config") or {}
    works = {
        "version": ("2",),
        "state_dict_type": ("FULL_STATE_DICT",),  # others save no weights in Hugging Face layout
        "cpu_ram_efficient_loading": ("False",),  # the image tokenizer stays whole, and loaded
    }
    for name, values in works.items():
        if name in options and str(options[name]) not in values:
            raise ConfigError(
                f"train.fsdp_config.{name} is {options[name]}; it must be {values[0]}, or left out"
            )
