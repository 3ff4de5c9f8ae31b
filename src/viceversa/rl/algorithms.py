"""Algorithms: each says what it keeps of a rollout, what its sums are divided by, and its loss.

To add one, write a class like these and name it by its import path: `loss.name:
mypackage.losses:MyLoss`. Trainer and plan ask the object and know no names.
"""

from __future__ import annotations

import torch
from torch import Tensor

from viceversa.config import ConfigError, LossConfig, load_object
from viceversa.inference.logprobs import mean_logprobs, sum_logprobs
from viceversa.rl import losses
from viceversa.rl.losses import LossAndSums
from viceversa.rl.selection import Judged, best_and_worst
from viceversa.types import TrainingRows


class Algorithm:
    """The base of all algorithms: it learns from every row, and `loss` is left to write.

    `options` is the section `loss` of the config.
    """

    unit = 1
    """Rows that only go together through a backward pass: 2 for pairs."""
    needs_reference = False
    """Whether `rows.ref_logprobs`, the starting model's, enter the loss."""
    several_updates = False
    """Whether a rollout may serve several optimizer steps, given `rows.sampling_logprobs`."""

    def __init__(self, options: LossConfig):
        self.options = options

    def uses_reference(self, direction: str) -> bool:
        """Tell whether the starting model's log-probs enter a direction's loss, or its KL."""
        return self.needs_reference or self.options.kl(direction) > 0

    def rows_of(self, group_size: int) -> int:
        """Return how many rows of a group are learned from."""
        return group_size

    def choose(self, judged: Judged, kept: Tensor) -> Tensor:
        """Return the rows to learn from, [R] of the P * G; `kept` [P] bool, the groups to use."""
        every = torch.arange(judged.rewards.numel()).view_as(judged.rewards)
        return every[kept].flatten()

    def count(self, rows: TrainingRows) -> float:
        """Return what the sums over these rows are divided by: rows, pairs or tokens."""
        return len(rows) / self.unit

    def loss(self, rows: TrainingRows, token_logprobs: Tensor) -> LossAndSums:
        """Return the loss and named metrics, each summed over what `count` counts.

        token_logprobs [R, T], nats of the policy, with gradient.
        """
        raise NotImplementedError


class GRPO(Algorithm):
    """Every row of a group, by its advantage; averaged over tokens."""

    several_updates = True

    def count(self, rows: TrainingRows) -> float:
        return float(rows.completions.completion_mask.sum())

    def loss(self, rows: TrainingRows, token_logprobs: Tensor) -> LossAndSums:
        sampling = rows.sampling_logprobs
        return losses.grpo(
            token_logprobs,
            token_logprobs.detach() if sampling is None else sampling,
            rows.advantages,
            rows.completions.completion_mask,
            self.options.clip_low,
            self.options.clip_high,
        )


class SimPO(Algorithm):
    """The best of a group against its worst, by mean log-probs."""

    unit = 2

    def rows_of(self, group_size: int) -> int:
        return 2

    def choose(self, judged: Judged, kept: Tensor) -> Tensor:
        return best_and_worst(judged, kept).flatten()

    def loss(self, rows: TrainingRows, token_logprobs: Tensor) -> LossAndSums:
        means = mean_logprobs(token_logprobs, rows.completions.completion_mask)
        return losses.simpo(means, self.options.beta, self.options.gamma)


class DPO(SimPO):
    """The best of a group against its worst, by summed log-probs less the reference's."""

    needs_reference = True

    def loss(self, rows: TrainingRows, token_logprobs: Tensor) -> LossAndSums:
        assert rows.ref_logprobs is not None
        mask = rows.completions.completion_mask
        sums, ref_sums = (sum_logprobs(x, mask) for x in (token_logprobs, rows.ref_logprobs))
        return losses.dpo(sums, ref_sums, self.options.dpo_beta)


class RAFT(Algorithm):
    """The likelihood of the best of each group."""

    def rows_of(self, group_size: int) -> int:
        return 1

    def choose(self, judged: Judged, kept: Tensor) -> Tensor:
        return best_and_worst(judged, kept)[:, 0]

    def loss(self, rows: TrainingRows, token_logprobs: Tensor) -> LossAndSums:
        return losses.raft(mean_logprobs(token_logprobs, rows.completions.completion_mask))


ALGORITHMS: dict[str, type[Algorithm]] = {"simpo": SimPO, "grpo": GRPO, "dpo": DPO, "raft": RAFT}


def algorithm_of(options: LossConfig) -> Algorithm:
    """Make the algorithm that `loss.name` names. Raises ConfigError where there is none."""
    kind = ALGORITHMS.get(options.name) or load_object("loss.name", options.name, ALGORITHMS)
    algorithm = kind(options)
    if options.updates_per_rollout > 1 and not algorithm.several_updates:
        raise ConfigError(
            f"loss.updates_per_rollout is {options.updates_per_rollout}; "
            f"loss.name={options.name} takes 1 (grpo corrects for stale samples)"
        )
    return algorithm
