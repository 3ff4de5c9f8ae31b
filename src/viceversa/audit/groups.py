"""Groups to audit: outputs that a model samples, with their self-rewards and the noise of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from viceversa.config import RewardConfig, SamplingConfig
from viceversa.inference.memory import RowBudget
from viceversa.measure.pairs import AT_ONCE
from viceversa.models.base import Adapter
from viceversa.rl.rewards import dual_reward
from viceversa.rl.rollout import rollout
from viceversa.scenes.language import OPENINGS
from viceversa.types import Example, Rollout

#: Tokens after which a caption is cut.
CAPTION_TOKENS = 64
#: Say the same as the model's own instruction, in other words.
INSTRUCTIONS = ("Describe the image in one sentence.", "Describe this picture in one sentence.")


@dataclass(frozen=True)
class Judge:
    """A model that samples groups and rates them, as many rows at once as memory allows."""

    adapter: Adapter
    group_size: int = 8
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Weighs the reward's second term (default: it has none)."""
    seed: int = 0

    @cached_property
    def sampling(self) -> SamplingConfig:
        """Return how groups are sampled: at temperature 1, as training does."""
        return SamplingConfig(group_size=self.group_size, max_caption_tokens=CAPTION_TOKENS)

    @cached_property
    def sampled_rows(self) -> RowBudget:
        """Keep how many rows memory has sufficed for in sampling."""
        return RowBudget("sampling.batch_rows", self.sampling.batch_rows, self.group_size)

    @cached_property
    def rated_rows(self) -> RowBudget:
        """Keep how many rows memory has sufficed for in rating."""
        return RowBudget("reward.batch_rows", AT_ONCE)

    def sample(self, examples: Sequence[Example]) -> Rollout:
        """Sample a group for each input."""
        return self.sampled_rows(
            lambda rows: rollout(
                self.adapter, examples, replace(self.sampling, batch_rows=rows), self.seed
            ),
            len(examples) * self.group_size,
        )

    def rate(self, sampled: Rollout, instruction: str = "") -> np.ndarray:
        """Compute the self-reward, [P, G]: each output is read by the other direction."""
        own = self.reward.own(sampled.direction)
        found: Tensor = self.rated_rows(
            lambda rows: dual_reward(self.adapter, sampled, instruction, rows, own),
            len(sampled.completions),
        )
        return found.double().cpu().numpy()

    def phrasing_noise(self, sampled: Rollout, rewards: np.ndarray) -> np.ndarray:
        """Rate again in words that say the same, [P, K G] for K wordings: the noise of one rating.

        Pictures are read with other instructions; captions are drawn with an opening that adds
        nothing. The difference of two ratings that are equally noisy has twice the variance of one.
        """
        if sampled.direction == "t2i":
            again = [self.rate(sampled, instruction) for instruction in INSTRUCTIONS]
        else:
            again = [self.rate(_opened(sampled, opening)) for opening in OPENINGS if opening]
        changes = [a - rewards for a in again]
        centred = [change - change.mean(1, keepdims=True) for change in changes]
        return np.concatenate(centred, axis=1) / np.sqrt(2)


def _opened(sampled: Rollout, opening: str) -> Rollout:
    """Put an opening before each caption; an empty one stays empty."""
    return replace(sampled, texts=tuple(opening + t if t else t for t in sampled.texts))


def caption_tokens(sampled: Rollout) -> np.ndarray:
    """Count the tokens of sampled captions, [P, G]."""
    counts = sampled.completions.completion_mask.sum(-1)
    return counts.view(-1, sampled.group_size).cpu().numpy()
