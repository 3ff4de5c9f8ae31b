"""Measures of a reward within groups, each with its 95 % interval over inputs.

Axes: P inputs, G outputs of each. Outputs of one input are not independent, so whole inputs are
drawn again, and inputs that share a name (the same prompt twice) are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from viceversa.report.paired import resampled
from viceversa.rl.selection import wins_by_input
from viceversa.scenes.evaluate import wilson
from viceversa.types import Direction

#: Figures by name, as tables print them. A figure of one skill, or of one kind of corruption, is
#: named `figure/skill`.
RANKING = "ranks right above wrong"
MIXED = "groups with right and wrong"
GAIN = "gain of best-of-N"
ACCURACY = "accuracy"
MORE = "judge knows more"
SPREAD = "spread over phrasing"
LENGTH = "rank correlation with length"


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float
    inputs: int
    """Different inputs that it stands on."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


#: A name for each input; inputs of one name are one.
Names = Sequence[str] | np.ndarray
#: What one source tells of one direction; a figure that it cannot tell is left out.
Figures = dict[str, Estimate]
#: Figures of each source: `scenes`, `pairs` or `unpaired`.
Sources = Mapping[str, Mapping[Direction, Figures]]


def told(figures: Mapping[str, Estimate | None]) -> Figures:
    """Leave out figures that there was nothing to measure on."""
    return {name: e for name, e in figures.items() if e is not None}


def ratio(
    sums: np.ndarray, weights: np.ndarray, names: Names | None = None, share: bool = False
) -> Estimate | None:
    """Estimate sum(sums) / sum(weights) over inputs; None where nothing has a weight.

    sums [P], weights [P] >= 0. A bootstrap over inputs. A `share` of 0 or 1 takes Wilson's interval
    over inputs instead: draws of a few inputs that are all right would say it is certain.
    """
    sums, weights = np.asarray(sums, float), np.asarray(weights, float)
    if names is not None:
        _, which = np.unique(list(names), return_inverse=True)
        sums, weights = np.bincount(which, sums), np.bincount(which, weights)
    kept = weights > 0
    sums, weights, n = sums[kept], weights[kept], int(kept.sum())
    if not n:
        return None
    value = float(sums.sum() / weights.sum())
    if share and value in (0.0, 1.0):
        return Estimate(value, *wilson(value, n), n)
    drawn = resampled(sums, weights, np.random.default_rng(0))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), n)


def mean(values: np.ndarray, names: Names | None = None, share: bool = False) -> Estimate | None:
    """Estimate the mean over inputs of values [P]; those that are not a number are left out."""
    known = ~np.isnan(np.asarray(values, float))
    return ratio(np.where(known, values, 0.0), known.astype(float), names, share)


def ranking(rewards: np.ndarray, right: np.ndarray, names: Names | None = None) -> Estimate | None:
    """Estimate how often a right output has a larger reward than a wrong one of its input."""
    won, pairs = wins_by_input(torch.tensor(rewards), torch.tensor(right))
    return ratio(won.numpy(), pairs.numpy(), names, share=True)


def mixed(right: np.ndarray, names: Names | None = None) -> Estimate | None:
    """Estimate the share of groups with both right and wrong outputs: the others teach nothing."""
    return mean(np.logical_and(right.any(axis=1), ~right.all(axis=1)), names, share=True)


def best_of(rewards: np.ndarray, right: np.ndarray, n: int) -> np.ndarray:
    """Compute how often the best of `n` outputs by the reward is right, [P].

    The mean over all subsets of n of the G outputs, exactly: the output of rank i (0 is best) is
    the best of C(G - 1 - i, n - 1) of the C(G, n) subsets. Equal rewards share their chances.
    """
    group = rewards.shape[1]
    chance = np.array([math.comb(group - 1 - i, n - 1) for i in range(group)]) / math.comb(group, n)
    equal = rewards[:, :, None] == rewards[:, None, :]
    shared = (equal * right[:, None, :]).sum(2) / equal.sum(2)
    best_first = np.argsort(-rewards, axis=1, kind="stable")
    return np.take_along_axis(shared, best_first, axis=1) @ chance


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Rank values [N] from 0; equal ones get the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts + 1) / 2)[which]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the rank correlation of a [N] and b [N]; nan where one of them does not vary."""
    x, y = (r - r.mean() for r in (average_ranks(np.asarray(v)) for v in (a, b)))
    size = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / size if size else math.nan


def length_within(
    rewards: Iterable[np.ndarray], lengths: Iterable[np.ndarray], names: Names | None = None
) -> Estimate | None:
    """Estimate the rank correlation of reward with length within groups, averaged over groups."""
    found = [spearman(r, n) for r, n in zip(rewards, lengths, strict=True)]
    return mean(np.array(found), names)


def spread_over_noise(
    rewards: np.ndarray, noise: np.ndarray, names: Names | None = None
) -> Estimate | None:
    """Estimate the reward's standard deviation within groups over that of noise [P, N].

    None where there is no noise at all.
    """
    found = ratio(rewards.var(1), noise.var(1), names)
    if found is None:
        return None
    value, low, high = (math.sqrt(v) for v in (found.value, found.low, found.high))
    return Estimate(value, low, high, found.inputs)
