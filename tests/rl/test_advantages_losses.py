"""advantages and losses: by hand on a few numbers, and by their invariants."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from viceversa.config import RewardTerm
from viceversa.rl.losses import divergence, dpo, grpo, raft, simpo
from viceversa.rl.selection import (
    Judged,
    best_and_worst,
    centred,
    degenerate,
    group_advantages,
    judge,
    likelihoods,
    widest,
)


def close(found: Tensor, expected: object, tolerance: float = 1e-5) -> None:
    wanted = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found.detach(), wanted, atol=tolerance, rtol=tolerance)


def log(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


# advantages


def by_itself(rewards: Tensor) -> Judged:
    """One reward, as it is."""
    return judge([rewards], [RewardTerm()])


def test_advantages_by_hand() -> None:
    """Rewards 1, 2, 3, 6: mean 3, deviations -2, -1, 0, 3, variance 14 / 4, std 1.8708."""
    std = math.sqrt(3.5)
    close(group_advantages(torch.tensor([[1.0, 2, 3, 6]])), [[-2 / std, -1 / std, 0, 3 / std]])


def test_advantages_have_zero_mean_and_unit_std_in_each_group() -> None:
    rewards = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * 3 - 5
    found = group_advantages(rewards)
    close(found.mean(-1), torch.zeros(50))
    close(found.std(-1, correction=0), torch.ones(50), 1e-5)
    assert torch.equal(found.argsort(-1), rewards.argsort(-1))


def test_advantages_ignore_shift_and_scale_of_a_group() -> None:
    rewards = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = rewards * torch.arange(1, 7).unsqueeze(1) - 7
    close(group_advantages(moved), group_advantages(rewards), 1e-5)


def test_a_spread_of_the_whole_step_keeps_quiet_groups_quiet() -> None:
    """Groups [0, 2] and [0, 0.2] about their means, over one spread of 0.5."""
    rewards = torch.tensor([[0.0, 2.0], [0.0, 0.2], [1.0, 1.0]])
    close(group_advantages(rewards, 0.5), [[-2, 2], [-0.2, 0.2], [0, 0]])
    close(group_advantages(rewards), [[-1, 1], [-1, 1], [0, 0]])
    assert group_advantages(torch.ones(2, 3), 0.0).eq(0).all()


def test_half_right_counts_for_little_in_likelihoods() -> None:
    """A right output at -0.5 nats a token, one that is half right, one that is wrong.

    By the reward the second is above the mean: (-0.5 - 0.9 - 1.9) / 3 = -1.1. By the likelihood to
    the power 4 it is below: e^0 = 1, e^-1.6 = 0.202, e^-5.6 = 0.004; their mean is 0.402.
    """
    rewards = torch.tensor([[-0.5, -0.9, -1.9]])
    assert centred(rewards)[0, 1] > 0
    worth = likelihoods(rewards, 4.0, -0.5)
    close(worth, [[1.0, math.exp(-1.6), math.exp(-5.6)]])
    assert centred(worth)[0, 1] < 0
    assert (worth.argsort() == rewards.argsort()).all()


def test_the_widest_share_of_the_groups() -> None:
    """Half of five is three, rounded up; a rank keeps those of its own that all ranks rank high."""
    every = [0.1, 0.9, 0.5, 0.3, 0.7]
    assert widest(torch.tensor(every), every, 0.5).tolist() == [False, True, True, False, True]
    assert widest(torch.tensor(every[:2]), every, 0.5).tolist() == [False, True]
    assert widest(torch.tensor(every), every, 1.0).all()
    judged = by_itself(torch.tensor([[0.0, 0.1], [0.9, 0.0]]))
    assert best_and_worst(judged, kept=torch.tensor([False, True])).tolist() == [[2, 3]]


def test_degenerate_groups_get_zero_and_others_do_not() -> None:
    rewards = torch.tensor([[-2.0, -2.0, -2.0], [-2.0, -2.0, -1.0], [0.0, 1e-8, 0.0]])
    assert degenerate(rewards).tolist() == [True, False, True]
    found = group_advantages(rewards)
    assert found[[0, 2]].eq(0).all()
    assert found[1].ne(0).all()


def test_a_group_of_one_is_degenerate() -> None:
    assert group_advantages(torch.tensor([[3.0], [-1.0]])).tolist() == [[0.0], [0.0]]


def test_equal_rewards_are_degenerate_whatever_their_size() -> None:
    assert group_advantages(torch.full((1, 8), -100.1)).eq(0).all()


def test_best_and_worst_by_hand() -> None:
    """Group 0: best 2 (1.0), worst 1 (-3.0); group 1 all alike; group 2: best 0, worst 2."""
    rewards = torch.tensor([[0.0, -3.0, 1.0], [2.0, 2.0, 2.0], [0.5, 0.3, 0.25]])
    assert best_and_worst(by_itself(rewards)).tolist() == [[2, 1], [6, 8]]


def test_degenerate_groups_make_no_pair() -> None:
    """A gap above 0 but within rounding is no preference."""
    rewards = torch.tensor([[0.0, 1e-7, 0.0], [0.0, 1.0, 0.0]])
    assert best_and_worst(by_itself(rewards))[:, 0].tolist() == [4]


def test_pairs_hold_the_extremes_of_their_own_group() -> None:
    rewards = torch.randn(40, 5, generator=torch.Generator().manual_seed(2))
    pairs = best_and_worst(by_itself(rewards))
    close(rewards.flatten()[pairs], torch.stack([rewards.amax(-1), rewards.amin(-1)], dim=1))
    assert (pairs // 5 == torch.arange(40).unsqueeze(1)).all()


def test_rewards_add_up_with_weights_each_in_its_own_spread() -> None:
    """A reward a thousand times as large does not drown the other; its weight does."""
    small = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    large = 1000 * torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    terms = [RewardTerm(), RewardTerm(weight=0.25)]
    judged = judge([small, large], terms)
    spread = math.sqrt((0.25 * 2 * 1000**2 + 2 * 1500**2) / 4)
    close(judged.rewards, small + 0.25 * large)
    close(judged.advantages[:, 0], [-1 + 0.25 * 500 / spread, 1 - 0.25 * 1500 / spread])
    assert best_and_worst(judged).tolist() == [[1, 0], [2, 3]]
    heavy = judge([small, large], [RewardTerm(), RewardTerm(weight=4.0)])
    assert best_and_worst(heavy).tolist() == [[0, 1], [3, 2]]


def test_each_reward_is_scaled_as_it_says() -> None:
    rewards = torch.tensor([[0.0, 2.0], [0.0, 4.0]])
    for scale, want in (("none", [1.0, 2.0]), ("group", [1.0, 1.0])):
        close(judge([rewards], [RewardTerm(scale=scale)]).advantages[:, 1], want)  # type: ignore[arg-type]


def test_a_group_teaches_where_any_reward_tells_its_outputs_apart() -> None:
    alike, apart = torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    assert judge([alike, apart], [RewardTerm(), RewardTerm()]).idle.tolist() == [False, True]


# preference losses


def test_simpo_by_hand() -> None:
    """beta 2, gamma 0.5. Pair 0: margin -1 + 2 = 1, logit 2 - 0.5 = 1.5, loss log(1 + e^-1.5) =
    0.201413. Pair 1: margin -3 + 1 = -2, logit -4.5, loss log(1 + e^4.5) = 4.511048. Gradient of
    the chosen: -beta sigmoid(-logit) = -2 * 0.182426 and -2 * 0.989013; of the rejected, minus it.
    """
    logprobs = torch.tensor([-1.0, -2.0, -3.0, -1.0], requires_grad=True)
    loss, metrics = simpo(logprobs, beta=2.0, gamma=0.5)
    loss.backward()
    close(loss, 0.201413 + 4.511048)
    assert logprobs.grad is not None
    close(logprobs.grad, [-0.364852, 0.364852, -1.978026, 1.978026])
    assert {k: v.item() for k, v in metrics.items()} == {
        "margin": -1.0,
        "preferred": 1.0,
        "chosen_logprob": -4.0,
    }


def test_simpo_gamma_is_in_reward_units() -> None:
    """At margin gamma / beta the logit is 0 and the loss log 2."""
    loss, _ = simpo(torch.tensor([-1.0, -1.05]), beta=5.0, gamma=0.25)
    close(loss, math.log(2))


def test_dpo_by_hand() -> None:
    """beta 0.1. Pair 0: ratios -10 + 11 = 1 and -12 + 11 = -1, margin 2, loss log(1 + e^-0.2) =
    0.598139. Pair 1: ratios 0 and 3, margin -3, loss log(1 + e^0.3) = 0.854355."""
    loss, metrics = dpo(
        torch.tensor([-10.0, -12.0, -5.0, -6.0]), torch.tensor([-11.0, -11.0, -5.0, -9.0]), 0.1
    )
    close(loss, 0.598139 + 0.854355)
    assert metrics["margin"].item() == -1.0
    assert metrics["preferred"].item() == 1.0


def test_dpo_at_the_reference_is_log_two_a_pair_and_pulls_them_apart() -> None:
    """Gradient -beta / 2 on the chosen, + beta / 2 on the rejected."""
    logprobs = torch.tensor([-10.0, -12.0], requires_grad=True)
    loss, _ = dpo(logprobs, logprobs.detach(), 0.4)
    loss.backward()
    close(loss, math.log(2))
    assert logprobs.grad is not None
    close(logprobs.grad, [-0.2, 0.2])


def test_raft_by_hand() -> None:
    """-(-1 - 2.5) = 3.5; every row pulled up alike."""
    logprobs = torch.tensor([-1.0, -2.5], requires_grad=True)
    loss, metrics = raft(logprobs)
    loss.backward()
    assert loss.item() == 3.5
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-1.0, -1.0]
    assert metrics["chosen_logprob"].item() == -3.5


def test_losses_of_nothing_are_zero() -> None:
    none, empty = torch.zeros(0), torch.zeros(0, 4)
    assert simpo(none, 1.0, 0.1)[0] == 0
    assert dpo(none, none, 1.0)[0] == 0
    assert raft(none)[0] == 0
    assert grpo(empty, empty, none, empty.bool(), 0.2, 0.2)[0] == 0


# grpo


def grpo_row(
    ratio: float, advantage: float, low: float = 0.2, high: float = 0.3
) -> tuple[float, float, float]:
    """Loss, gradient and clipped count of one token whose ratio is `ratio`."""
    logprobs = log(ratio).unsqueeze(0).requires_grad_()
    loss, metrics = grpo(
        logprobs,
        log(1.0).unsqueeze(0),
        torch.tensor([advantage], dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.bool),
        low,
        high,
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), gradient.item(), metrics["clipped"].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        # inside: loss -ratio * A, and its gradient the same (d ratio / d logp = ratio)
        (1.0, 2.0, -2.0, -2.0, 0),
        (1.2, 2.0, -2.4, -2.4, 0),
        (0.9, -2.0, 1.8, 1.8, 0),
        # clipped away: above 1.3 with a gain, below 0.8 with a loss
        (1.5, 2.0, -2.6, 0.0, 1),
        (0.5, -2.0, 1.6, 0.0, 1),
        # outside, but the way back stays open
        (1.5, -2.0, 3.0, 3.0, 1),
        (0.5, 2.0, -1.0, -1.0, 1),
    ],
)
def test_grpo_clips_by_hand(
    ratio: float, advantage: float, loss: float, gradient: float, clipped: int
) -> None:
    """Clip to [0.8, 1.3]; e.g. ratio 1.5, A 2: min(3, 2.6) = 2.6, constant, so no gradient."""
    assert grpo_row(ratio, advantage) == pytest.approx((loss, gradient, clipped))


def test_grpo_by_hand() -> None:
    """Two rows of two tokens, clip 0.2. Row 0, A 1: ratios 1.1 and 1.5, gains 1.1 and 1.2. Row 1,
    A -1: ratios 0.5 and (masked) 2, gain max(-0.5, -0.8) -> min = -0.8. Loss -(2.3 - 0.8) = -1.5;
    2 tokens clipped; log-probs log 1.1 + log 1.5 + log 0.5 = log 0.825."""
    loss, metrics = grpo(
        torch.stack([log(1.1, 1.5), log(0.5, 2.0)]),
        torch.zeros(2, 2, dtype=torch.float64),
        torch.tensor([1.0, -1.0]),
        torch.tensor([[True, True], [True, False]]),
        0.2,
        0.2,
    )
    close(loss, -1.5)
    assert metrics["clipped"].item() == 2
    close(metrics["token_logprob"], math.log(0.825))
    assert "kl" not in metrics


def policy_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of a small policy [3, 5, 7], the tokens it wrote, advantages and a mask."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(7, (3, 5), generator=generator)
    lengths = torch.tensor([5, 3, 1])
    mask = torch.arange(5) < lengths.unsqueeze(1)
    return logits, ids, torch.tensor([1.2, -0.7, 0.4], dtype=torch.float64), mask


def test_grpo_on_the_first_update_is_the_policy_gradient() -> None:
    """At ratio 1 the gradient is that of -sum A log p over the unmasked tokens."""
    logits, ids, advantages, mask = policy_batch()
    logprobs = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    loss, metrics = grpo(logprobs, logprobs.detach(), advantages, mask, 0.2, 0.2)
    reinforce = -(advantages.unsqueeze(1) * logprobs * mask).sum()
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(reinforce, logits)
    close(found, expected, 1e-12)
    close(loss, -(advantages * mask.sum(-1)).sum())
    assert metrics["clipped"].item() == 0


def test_divergence_by_hand() -> None:
    """k3 at policy 0.5, reference 0.25: r = 0.5, r - log r - 1 = 0.5 + 0.693147 - 1 = 0.193147;
    at policy 0.25, reference 0.5: 2 - 0.693147 - 1 = 0.306853. Sum 0.5.
    Gradient of k3 to the policy's log-prob is 1 - r: 0.5 and -1."""
    logprobs = log(0.5, 0.25).unsqueeze(0).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    found = divergence(logprobs, log(0.25, 0.5).unsqueeze(0), mask)
    (gradient,) = torch.autograd.grad(found, logprobs)
    close(found, 0.5)
    close(gradient, [[0.5, -1.0]])


def test_divergence_is_zero_at_the_reference_and_positive_elsewhere() -> None:
    """Token by token, and with no pull at the reference."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    for difference in (-3.0, -0.1, 0.0, 0.1, 3.0):
        logprobs = torch.tensor([[-2.0]], requires_grad=True)
        found = divergence(logprobs, logprobs.detach() + difference, mask)
        (gradient,) = torch.autograd.grad(found, logprobs)
        if difference == 0:
            assert found == gradient.sum() == 0
        else:
            assert found > 0
            assert gradient.sign() == -math.copysign(1, difference)


def test_grpo_masked_tokens_contribute_nothing() -> None:
    """Other values there change no loss, metric or gradient, and get no gradient themselves."""
    logits, ids, advantages, mask = policy_batch()
    logprobs = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1).detach()
    generator = torch.Generator().manual_seed(1)

    def outcome(current: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        current = current.clone().requires_grad_()
        loss, metrics = grpo(current, logprobs - 0.3, advantages, mask, 0.2, 0.2)
        loss = loss + 0.5 * divergence(current, logprobs + 0.1, mask)
        (gradient,) = torch.autograd.grad(loss, current)
        return loss, metrics, gradient

    noise = torch.randn(3, 5, generator=generator, dtype=torch.float64) * 5
    loss, metrics, gradient = outcome(logprobs)
    other_loss, other_metrics, other_gradient = outcome(torch.where(mask, logprobs, noise))
    assert loss == other_loss
    assert metrics == other_metrics
    assert torch.equal(gradient, other_gradient)
    assert gradient[~mask].eq(0).all()
    assert gradient[mask].ne(0).any()


# sums over micro-batches

Loss = Callable[[Tensor, slice], tuple[Tensor, dict[str, Tensor]]]


def loss_cases() -> dict[str, tuple[Tensor, Loss]]:
    """name -> log-probs to differentiate, and the loss of a slice of their rows (8 rows)."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, reference = draw(8) - 2, draw(8) - 2
    tokens, sampled, start = draw(8, 6) - 2, draw(8, 6) - 2, draw(8, 6) - 2
    advantages, mask = draw(8), draw(8, 6) > 0
    return {
        "simpo": (rows, lambda x, s: simpo(x[s], 2.0, 0.3)),
        "dpo": (rows, lambda x, s: dpo(x[s], reference[s], 0.5)),
        "raft": (rows, lambda x, s: raft(x[s])),
        "grpo": (
            tokens,
            lambda x, s: grpo(x[s], sampled[s], advantages[s], mask[s], 0.2, 0.3),
        ),
        "divergence": (tokens, lambda x, s: (divergence(x[s], start[s], mask[s]), {})),
    }


@pytest.mark.parametrize("name", ["simpo", "dpo", "raft", "grpo", "divergence"])
@pytest.mark.parametrize("cuts", [[0, 2, 4, 6, 8], [0, 6, 8], [0, 0, 8]])
def test_micro_batches_add_up_to_the_whole(name: str, cuts: list[int]) -> None:
    """Loss, gradient and every metric, for even, uneven and empty parts."""
    inputs, loss_of = loss_cases()[name]
    inputs.requires_grad_()
    whole, metrics = loss_of(inputs, slice(0, 8))
    (gradient,) = torch.autograd.grad(whole, inputs)
    parts = [loss_of(inputs, slice(a, b)) for a, b in pairwise(cuts)]
    total = torch.stack([loss for loss, _ in parts]).sum()
    (added,) = torch.autograd.grad(total, inputs)
    close(total, whole.detach(), 1e-12)
    close(added, gradient, 1e-12)
    for key, value in metrics.items():
        close(torch.stack([m[key] for _, m in parts]).sum(), value, 1e-12)
    assert gradient.ne(0).any()


@pytest.mark.parametrize("name", ["simpo", "dpo", "raft", "grpo"])
def test_metrics_carry_no_graph(name: str) -> None:
    """Kept for logging, they would otherwise keep a step's memory alive."""
    inputs, loss_of = loss_cases()[name]
    loss, metrics = loss_of(inputs.requires_grad_(), slice(0, 8))
    assert loss.requires_grad
    assert metrics
    assert not any(v.requires_grad for v in metrics.values())
