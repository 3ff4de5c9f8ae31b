"""Typed metrics: each knows how it adds up, over micro-steps and over processes alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sum:
    """A count, or a share of a total: added."""

    value: float

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.value + other.value)


@dataclass(frozen=True)
class Mean:
    """`total` over `weight`, both added: a part without weight changes nothing."""

    total: float
    weight: float

    @property
    def value(self) -> float:
        """Return the mean; nan where nothing was counted."""
        return self.total / self.weight if self.weight else math.nan

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)


@dataclass(frozen=True)
class Max:
    """The largest, such as the seconds of the slowest process."""

    value: float

    def __add__(self, other: Max) -> Max:
        return Max(max(self.value, other.value))


Metric = Sum | Mean | Max
Metrics = dict[str, Metric]


def merged(parts: Iterable[Mapping[str, Metric]]) -> Metrics:
    """Add up metrics of one name. Raises TypeError where one name has two kinds."""
    found: Metrics = {}
    for part in parts:
        for name, metric in part.items():
            before = found.get(name)
            if before is not None and type(before) is not type(metric):
                raise TypeError(f"metric {name} is a {type(before).__name__} and {metric}")
            found[name] = metric if before is None else before + metric  # type: ignore[operator]
    return found


def values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Return the numbers to log, without the means of nothing."""
    return {name: m.value for name, m in metrics.items() if not math.isnan(m.value)}


def of_direction(direction: str, metrics: Mapping[str, Metric]) -> Metrics:
    """Name them `t2i/...` or `i2t/...`."""
    return {f"{direction}/{name}": metric for name, metric in metrics.items()}
