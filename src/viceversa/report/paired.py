"""Changes of accuracy on the same inputs, with intervals over inputs and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 2000


@dataclass(frozen=True)
class Change:
    """An accuracy after, less the one before, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


Kinds = Mapping[str, Mapping[str, Any]]


def paired_change(before: Kinds | Sequence[Kinds], after: Sequence[Kinds]) -> Change | None:
    """Return the change of the mean over kinds; None where no single outcomes were kept.

    `before` is a figure's `kinds` as in eval.json, or one a seed; `after` holds those of runs that
    differ in their seed alone, on the same inputs. The interval is a bootstrap over inputs, within
    each kind and whole inputs at a time (outputs of one input are not independent), with a draw of
    the mean over seeds from Student's t: three seeds are two degrees of freedom. One seed: over
    inputs alone.
    """
    rng = np.random.default_rng(0)
    befores = [before] * len(after) if isinstance(before, Mapping) else before
    names = list(befores[0])
    drawn, by_seed = np.zeros(DRAWS), np.zeros(len(after))
    for kind in names:
        figures = [run.get(kind, {}) for run in (*befores, *after)]
        if not all(f.get("outcomes") for f in figures):
            return None
        counts = [len(f["outcomes"]) for f in figures]
        if len(set(counts)) > 1:
            raise ValueError(f"{kind}: {counts[0]} inputs before and {counts[-1]} after")
        old, new = np.split(np.array([[float(c) for c in f["outcomes"]] for f in figures]), 2)
        change = new - old
        by_seed += change.mean(1) / len(names)
        _, which = np.unique(str(figures[0]["inputs"]).split(), return_inverse=True)
        sums = np.bincount(which, change.mean(0))
        drawn += resampled(sums, np.bincount(which), rng) / len(names)
    value, seeds = float(by_seed.mean()), len(after)
    if seeds > 1:
        error = by_seed.std(ddof=1) / math.sqrt(seeds)
        drawn = drawn + error * rng.standard_t(seeds - 1, DRAWS)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Change(value, float(low), float(high))


def change_of(before: Mapping[str, Any], after: Sequence[Mapping[str, Any]]) -> Change | None:
    """Compare figures of eval.json: those of one kind, or of a task with its `kinds`."""
    old, *new = (figure.get("kinds") or {"": figure} for figure in (before, *after))
    return paired_change(old, new)


def change_of_means(before: Sequence[float], after: Sequence[float]) -> Change:
    """Compare one number an input before and after: the mean change, bootstrapped over inputs."""
    change = np.asarray(after) - np.asarray(before)
    rows = np.random.default_rng(0).integers(len(change), size=(DRAWS, len(change)))
    low, high = np.quantile(change[rows].mean(1), [0.025, 0.975])
    return Change(float(change.mean()), float(low), float(high))


def resampled(sums: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return DRAWS values of sum(sums) / sum(weights), inputs drawn with replacement; [P] each."""
    picked = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), DRAWS)
    return (picked @ sums) / (picked @ weights)
