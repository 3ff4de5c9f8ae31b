"""Rewards to advantages, or to preference pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: A group whose rewards span less than this share of their size is rounding, and teaches nothing.
DEGENERATE_RANGE = 1e-6


def degenerate(rewards: Tensor) -> Tensor:
    """[P, G] -> [P] bool: groups whose rewards are all alike."""
    high, low = rewards.amax(-1), rewards.amin(-1)
    size = torch.maximum(high.abs(), low.abs()).clamp_min(1.0)
    return high - low <= DEGENERATE_RANGE * size


def centred(rewards: Tensor) -> Tensor:
    """[P, G] -> [P, G]: rewards less the mean of their group; 0 in degenerate groups."""
    alike = degenerate(rewards).unsqueeze(-1)
    return (rewards - rewards.mean(-1, keepdim=True)).masked_fill(alike, 0.0)


def likelihoods(rewards: Tensor, power: float, best: float) -> Tensor:
    """exp(power (reward - best)), in (0, 1] where `best` is the highest reward there is.

    Rewards are log-likelihoods, nats per token. In them, a picture that shows half of its prompt
    stands far above one that shows nothing, and is learned while there is no right one beside it;
    its likelihood is next to nothing. So is that of a whole group 14 / power nats below the best,
    which then counts as degenerate.
    """
    return ((rewards - best) * power).exp()


def group_advantages(rewards: Tensor, spread: float | None = None) -> Tensor:
    """[P, G] -> [P, G]: rewards less their group's mean, over a spread.

    `spread` None is the group's own standard deviation (GRPO). One number for the whole step keeps
    a group whose members hardly differ from shouting as loud as one that has right and wrong ones.
    """
    if spread is not None:
        return centred(rewards) / (spread or 1.0)
    std = rewards.std(-1, correction=0, keepdim=True)
    return centred(rewards) / std.masked_fill(degenerate(rewards).unsqueeze(-1), 1.0)


def widest(gaps: Tensor, every: Sequence[float], share: float) -> Tensor:
    """[P] bool: gaps among the widest `share` of `every` group's (best less worst reward)."""
    if share >= 1:
        return torch.ones_like(gaps, dtype=torch.bool)
    ranked = sorted(every, reverse=True)
    return gaps >= ranked[math.ceil(share * len(ranked)) - 1]


@dataclass(frozen=True)
class Pairs:
    """Best and worst of the groups that are worth comparing."""

    chosen: Tensor
    """[K] int64, rows of the flattened [P * G] rollout."""
    rejected: Tensor
    """[K] int64."""
    gaps: Tensor
    """[P] reward of the best minus reward of the worst, every group."""

    def rows(self) -> Tensor:
        """[2K]: chosen and rejected in turn."""
        return torch.stack([self.chosen, self.rejected], dim=1).flatten()


def best_and_worst(rewards: Tensor, min_gap: float = 0.0, among: Tensor | None = None) -> Pairs:
    """One pair a group, where best and worst differ by more than `min_gap` (and at all).

    rewards [P, G]; `among` [P] bool, the groups to choose from.
    """
    best, worst = rewards.argmax(-1), rewards.argmin(-1)
    gaps = rewards.amax(-1) - rewards.amin(-1)
    offsets = torch.arange(rewards.shape[0], device=rewards.device) * rewards.shape[1]
    kept = (gaps > min_gap) & ~degenerate(rewards)
    if among is not None:
        kept &= among
    return Pairs((offsets + best)[kept], (offsets + worst)[kept], gaps)
