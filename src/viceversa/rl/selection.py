"""From rewards to advantages, and which groups and rows to learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from viceversa.config import RewardTerm
from viceversa.types import ALONE, Ranks

#: A group whose rewards span less than this share of their size is rounding, and teaches nothing.
DEGENERATE_RANGE = 1e-6


def degenerate(rewards: Tensor) -> Tensor:
    """Find the groups whose rewards are all alike, [P, G] -> [P] bool."""
    high, low = rewards.amax(-1), rewards.amin(-1)
    size = torch.maximum(high.abs(), low.abs()).clamp_min(1.0)
    return high - low <= DEGENERATE_RANGE * size


def centred(rewards: Tensor) -> Tensor:
    """Take the mean of its group from each reward, [P, G] -> [P, G]; 0 in degenerate groups."""
    alike = degenerate(rewards).unsqueeze(-1)
    return (rewards - rewards.mean(-1, keepdim=True)).masked_fill(alike, 0.0)


def likelihoods(rewards: Tensor, power: float, best: float) -> Tensor:
    """Compute exp(power (reward - best)), in (0, 1] where `best` is the highest reward.

    Rewards are log-likelihoods, nats per token. In them, a picture that shows half of its prompt
    stands far above one that shows nothing, and is learned while there is no right one beside it;
    its likelihood is next to nothing. So is that of a whole group 14 / power nats below the best,
    which then counts as degenerate.
    """
    return ((rewards - best) * power).exp()


def group_advantages(rewards: Tensor, spread: float | None = None) -> Tensor:
    """Divide rewards less their group's mean by a spread, [P, G] -> [P, G].

    `spread` None is the group's own standard deviation (GRPO). With one number for the whole step
    a group whose members hardly differ counts for less than one that has right and wrong ones.
    """
    if spread is not None:
        return centred(rewards) / (spread or 1.0)
    std = rewards.std(-1, correction=0, keepdim=True)
    return centred(rewards) / std.masked_fill(degenerate(rewards).unsqueeze(-1), 1.0)


def widest(gaps: Tensor, every: Sequence[float], share: float) -> Tensor:
    """Find gaps (best less worst reward) among the widest `share` of `every` group's, [P] bool."""
    if share >= 1:
        return torch.ones_like(gaps, dtype=torch.bool)
    ranked = sorted(every, reverse=True)
    return gaps >= ranked[math.ceil(share * len(ranked)) - 1]


@dataclass(frozen=True)
class Judged:
    """Comparison of the outputs of P groups."""

    rewards: Tensor
    """[P, G] float32: the weighted sum of the rewards, each in its own unit."""
    advantages: Tensor
    """[P, G]: the weighted sum of what each reward is turned into (`group_advantages`)."""
    spans: Tensor
    """[P]: best less worst, in units of the step's spread."""
    idle: Tensor
    """[P] bool: groups whose outputs are all alike, and teach nothing."""


def judge(rewards: Sequence[Tensor], terms: Sequence[RewardTerm], ranks: Ranks = ALONE) -> Judged:
    """Combine rewards [P, G], one for each term, as the terms say.

    Likelihoods and spreads are relative to the groups of all processes.
    """
    total, advantages, shares, idle = [], [], [], []
    for reward, term in zip(rewards, terms, strict=True):
        worth = reward
        if term.likelihood_power:
            best = max(ranks.gather([float(reward.max())]))
            worth = likelihoods(reward, term.likelihood_power, best)
        whole = step_spread(worth, ranks)
        spread = {"batch": whole, "none": 1.0}.get(term.scale)
        total.append(term.weight * reward)
        advantages.append(term.weight * group_advantages(worth, spread))
        shares.append(term.weight * worth / (whole or 1.0))
        idle.append(degenerate(worth))
    share = torch.stack(shares).sum(0)
    return Judged(
        torch.stack(total).sum(0),
        torch.stack(advantages).sum(0),
        share.amax(-1) - share.amin(-1),
        torch.stack(idle).all(0),
    )


def step_spread(worth: Tensor, ranks: Ranks = ALONE) -> float:
    """Return the standard deviation about the groups' means, over all processes' groups."""
    off = centred(worth)
    squares, count = ranks.sum([float(off.square().sum()), float(off.numel())])
    return math.sqrt(squares / count)


def best_and_worst(judged: Judged, kept: Tensor | None = None) -> Tensor:
    """Return the best and the worst row of each group worth comparing, [K, 2] of the P * G.

    `kept` [P] bool, the groups to choose from (None: all).
    """
    best, worst = judged.advantages.argmax(-1), judged.advantages.argmin(-1)
    both = torch.stack([best, worst], dim=1)
    kept = ~judged.idle if kept is None else kept & ~judged.idle
    first = torch.arange(len(both), device=both.device).unsqueeze(1) * judged.rewards.shape[1]
    return (first + both)[kept]


def wins_by_input(rewards: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Count how often a right output has a higher reward than a wrong one of the same input.

    rewards [P, G], right [P, G] bool. Returns wins (ties count half) and pairs, [P] each.
    """
    pairs = right.unsqueeze(2) & ~right.unsqueeze(1)
    gap = rewards.unsqueeze(2) - rewards.unsqueeze(1)
    wins = ((gap > 0).float() + 0.5 * (gap == 0).float()) * pairs
    return wins.sum((1, 2)), pairs.sum((1, 2))
