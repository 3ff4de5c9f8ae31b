"""Exponents of growth: the slope of a line through logarithms, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Student's t at 97.5 %, by degrees of freedom.
T95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}


@dataclass(frozen=True)
class Exponent:
    """y grows as x to this power."""

    slope: float
    low: float
    high: float
    """The 95 % interval of the slope over all points; nan, nan of two points."""
    last: float
    """The slope between the two largest x, where fixed costs hide least."""

    @property
    def steep(self) -> bool:
        """Whether it is more than linear: over all points for sure, or by a tenth at the end."""
        return self.low > 1 or self.last > 1.1

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.slope:.2f}"
        return f"{self.slope:.2f} [{self.low:.2f}, {self.high:.2f}], last {self.last:.2f}"


def exponent(xs: Sequence[float], ys: Sequence[float]) -> Exponent:
    """Fit log y = slope log x + c by least squares, from two points or more.

    Raises ValueError where a number is not above 0, or fewer than two x differ.
    """
    if len(set(xs)) < 2 or min(*xs, *ys) <= 0:
        raise ValueError(f"a slope of logarithms needs two x above 0, and y above 0: {xs}, {ys}")
    order = np.argsort(xs)
    x, y = np.log(np.asarray(xs, float)[order]), np.log(np.asarray(ys, float)[order])
    spread = ((x - x.mean()) ** 2).sum()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread)
    last = float((y[-1] - y[-2]) / (x[-1] - x[-2]))
    free = len(x) - 2
    if not free:
        return Exponent(slope, math.nan, math.nan, last)
    rest = y - y.mean() - slope * (x - x.mean())
    wide = T95[free] * math.sqrt(float((rest**2).sum()) / free / spread)
    return Exponent(slope, slope - wide, slope + wide, last)
