"""Groups to audit: outputs that a model samples, with their self-rewards and, on scenes, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viceversa.config import RewardConfig, SamplingConfig
from viceversa.inference.memory import RowBudget
from viceversa.models.base import Adapter
from viceversa.rl.rewards import dual_reward
from viceversa.rl.rollout import rollout
from viceversa.scenes.evaluate import picture_name
from viceversa.scenes.examples import examples_of
from viceversa.scenes.language import OPENINGS, caption
from viceversa.scenes.rewards import verified
from viceversa.scenes.spec import KINDS, Spec, draw_specs
from viceversa.types import Direction, Example, Rollout

#: Tokens after which a caption is cut.
CAPTION_TOKENS = 64
#: Say the same as the model's own instruction, in other words.
INSTRUCTIONS = ("Describe the image in one sentence.", "Describe this picture in one sentence.")


@dataclass(frozen=True)
class Groups:
    """G outputs of each of P inputs of one direction, as the self-reward sees them."""

    direction: Direction
    rewards: np.ndarray
    """[P, G] nats a token of the input."""
    lengths: np.ndarray
    """[P, G] tokens of the text: of the prompt (`t2i`), or of the sampled caption (`i2t`)."""
    names: tuple[str, ...]
    """The P inputs; a name that comes twice is one input."""
    right: np.ndarray | None = None
    """[P, G] bool by the verifier."""
    skills: tuple[str, ...] = ()
    """The kind of each input; empty where there are none."""
    noises: tuple[tuple[str, np.ndarray], ...] = ()
    """Names of noises of the reward, and draws of each, [P, N] nats a token."""


class Judge:
    """Samples groups and rates them, as many rows at once as memory allows."""

    def __init__(self, adapter: Adapter, group_size: int, reward: RewardConfig, seed: int):
        self.adapter, self.reward, self.seed = adapter, reward, seed
        self.sampling = SamplingConfig(group_size=group_size, max_caption_tokens=CAPTION_TOKENS)
        self.sampled_rows = RowBudget("sampling.batch_rows", self.sampling.batch_rows, group_size)
        self.scored_rows = RowBudget("reward.batch_rows", 256)

    def sample(self, examples: Sequence[Example]) -> Rollout:
        """Sample a group for each input at temperature 1, as training does."""
        return self.sampled_rows(
            lambda rows: rollout(
                self.adapter, examples, replace(self.sampling, batch_rows=rows), self.seed
            ),
            len(examples) * self.sampling.group_size,
        )

    def rate(self, sampled: Rollout, instruction: str = "") -> np.ndarray:
        """Compute the self-reward, [P, G]: each output is read by the other direction."""
        own = self.reward.own(sampled.direction)
        found: Tensor = self.scored_rows(
            lambda rows: dual_reward(self.adapter, sampled, instruction, rows, own),
            len(sampled.completions),
        )
        return found.double().cpu().numpy()

    def lengths(self, sampled: Rollout) -> np.ndarray:
        """Count the tokens of each row's text, [P, G]."""
        if sampled.direction == "i2t":
            counts = sampled.completions.completion_mask.sum(-1)
        else:
            counts = self.adapter.text_completion(sampled.row_texts).completion_mask.sum(-1)
        return counts.view(-1, sampled.group_size).cpu().numpy()


def scene_groups(judge: Judge, specs: Sequence[Spec]) -> dict[Direction, Groups]:
    """Sample and verify both directions on the same specs of the built-in world."""
    found: dict[Direction, Groups] = {}
    for direction in ("t2i", "i2t"):
        sampled = judge.sample(examples_of(direction, specs))
        right = verified(sampled)
        assert right is not None
        found[direction] = Groups(
            direction,
            judge.rate(sampled),
            judge.lengths(sampled),
            tuple(caption(s) if direction == "t2i" else picture_name(s) for s in specs),
            right.numpy(),
            tuple(s.kind for s in specs),
        )
    return found


def scenes_of(inputs: int, seed: int) -> list[Spec]:
    """Draw specs to audit on, of all kinds in turn; those of evaluation are others."""
    return draw_specs(f"audit/{seed}", -(-inputs // len(KINDS)), "tune")[:inputs]


def unpaired_groups(judge: Judge, examples: Sequence[Example]) -> Groups:
    """Sample groups of the user's own inputs, and rate them again under noise of two kinds."""
    sampled = judge.sample(examples)
    rewards = judge.rate(sampled)
    names = tuple(str(e.example_id) for e in examples)
    noises = (("phrasing", phrasing_noise(judge, sampled, rewards)),)
    noises += (("rounding", rounding_noise(judge, sampled, rewards)),)
    return Groups(sampled.direction, rewards, judge.lengths(sampled), names, noises=noises)


def phrasing_noise(judge: Judge, sampled: Rollout, rewards: np.ndarray) -> np.ndarray:
    """Rate again in words that say the same, [P, K G] for K wordings: the noise of one rating.

    Pictures are read with other instructions; captions are drawn with an opening that adds nothing.
    The difference of two ratings that are equally noisy has twice the variance of one.
    """
    if sampled.direction == "t2i":
        again = [judge.rate(sampled, instruction) for instruction in INSTRUCTIONS]
    else:
        again = [judge.rate(_opened(sampled, opening)) for opening in OPENINGS if opening]
    return np.concatenate([_centred(a - rewards) for a in again], axis=1) / np.sqrt(2)


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(1, keepdims=True)


def _opened(sampled: Rollout, opening: str) -> Rollout:
    """Put an opening before each caption; an empty one stays empty."""
    return replace(sampled, texts=tuple(opening + t if t else t for t in sampled.texts))


def rounding_noise(judge: Judge, sampled: Rollout, rewards: np.ndarray) -> np.ndarray:
    """Rate again in bfloat16 arithmetic, the least noise that a run on a GPU has; [P, G]."""
    with torch.autocast(judge.adapter.device.type, dtype=torch.bfloat16):
        return judge.rate(sampled) - rewards


def as_examples(direction: Direction, inputs: Sequence[Any]) -> list[Example]:
    """Turn prompts or pictures into inputs."""
    if direction == "t2i":
        return [Example(i, "t2i", text=t) for i, t in enumerate(inputs)]
    return [Example(i, "i2t", pixels=p) for i, p in enumerate(inputs)]
