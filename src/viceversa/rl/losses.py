"""Losses: pure functions of log-probs. Each is a sum, divided by a count of the whole step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LossAndSums = tuple[Tensor, dict[str, Tensor]]
"""A loss to differentiate, and named metrics; both are sums."""


def simpo(mean_logprobs: Tensor, beta: float, gamma: float) -> LossAndSums:
    """SimPO (arXiv:2405.14734): -log sigmoid(beta (chosen - rejected) - gamma), summed over pairs.

    mean_logprobs [2K], nats per token, chosen and rejected in turn. `gamma` is in reward units,
    that is after beta. Metrics are sums over pairs.
    """
    chosen, rejected = mean_logprobs[0::2], mean_logprobs[1::2]
    margin = chosen - rejected
    loss = -F.logsigmoid(beta * margin - gamma).sum()
    return loss, {
        "margin": margin.detach().sum(),
        "preferred": (margin > 0).float().sum(),
        "chosen_logprob": chosen.detach().sum(),
    }


def dpo(sum_logprobs: Tensor, ref_sum_logprobs: Tensor, beta: float) -> LossAndSums:
    """DPO (arXiv:2305.18290) on summed log-probs, summed over pairs; both [2K] nats, in turn."""
    ratio = sum_logprobs - ref_sum_logprobs
    margin = ratio[0::2] - ratio[1::2]
    loss = -F.logsigmoid(beta * margin).sum()
    return loss, {"margin": margin.detach().sum(), "preferred": (margin > 0).float().sum()}


def raft(mean_logprobs: Tensor) -> LossAndSums:
    """RAFT (arXiv:2304.06767): likelihood of the best of each group, summed over rows; [K] nats."""
    return -mean_logprobs.sum(), {"chosen_logprob": mean_logprobs.detach().sum()}


def grpo(
    token_logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
) -> LossAndSums:
    """GRPO (arXiv:2402.03300), summed over tokens.

    All [R, T] in nats, `advantages` [R]. The ratio is taken per token and clipped to
    [1 - clip_low, 1 + clip_high]; on the first update it is 1 and the gradient is the policy
    gradient. Metrics are sums over tokens.
    """
    ratio = (token_logprobs - sampling_logprobs).exp()
    gain = torch.minimum(
        ratio * advantages.unsqueeze(1),
        ratio.clamp(1 - clip_low, 1 + clip_high) * advantages.unsqueeze(1),
    )
    outside = (ratio < 1 - clip_low) | (ratio > 1 + clip_high)
    return -(gain * mask).sum(), {
        "clipped": (outside & mask).float().sum(),
        "token_logprob": (token_logprobs.detach() * mask).sum(),
    }


def divergence(token_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Estimate KL(policy || reference) as GRPO does (k3; arXiv:2402.03300, equation 4).

    All [R, T]; nats, summed over the tokens that count.
    """
    log_ratio = ref_logprobs - token_logprobs
    return ((log_ratio.exp() - log_ratio - 1) * mask).sum()
