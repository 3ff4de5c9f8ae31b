"""Replay: the starting model's own answers to questions, learned along so that they stay.

Training on captions and pictures moves shared weights, and with them what nobody trains. No label
is involved: the questions are asked about the pictures of the step, and the starting model answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from viceversa.config import ReplayConfig, SamplingConfig
from viceversa.models.base import Adapter
from viceversa.rl.rollout import rollout
from viceversa.types import Example, TrainingRows


class Replay:
    """Asks `questions` about pictures; the model's answers become rows of a loss of their own.

    The loss is half the mean square of the difference between the answers' log-probs, nats a token,
    and those that they had when they were sampled from the start: nothing, where they are equal.
    """

    def __init__(self, adapter: Adapter, config: ReplayConfig, questions: Sequence[str], seed: int):
        self.adapter, self.config, self.questions, self.seed = adapter, config, questions, seed

    def asked(self, pictures: Sequence[Example], step: int, count: int) -> list[Example]:
        """Pair pictures with `count` questions, drawn by the seed, the step and the picture."""
        laps = -(-count // len(pictures))
        drawn = [
            np.random.default_rng([self.seed, 78, p.example_id, step]).integers(
                len(self.questions), size=laps
            )
            for p in pictures
        ]
        found = [
            replace(picture, text=self.questions[numbers[lap]])
            for lap in range(laps)
            for picture, numbers in zip(pictures, drawn, strict=True)
        ]
        return found[:count]

    def rows(self, asked: Sequence[Example], step: int, sampling: SamplingConfig) -> TrainingRows:
        """Sample answers from the model as it is now: swap the starting weights in first.

        At the temperature and by the rows at once of `sampling`.
        """
        answers = SamplingConfig(
            group_size=1,
            max_caption_tokens=self.config.max_answer_tokens,
            temperature=sampling.temperature,
            batch_rows=sampling.batch_rows,
        )
        # a seed of its own: an answer and a caption of one picture share no random number
        found = rollout(self.adapter, asked, answers, self.seed + 1, step)
        weights = torch.ones(len(found.completions), device=found.drawn_logprobs.device)
        return TrainingRows(
            "i2t", found.prompts, found.completions, weights, found.drawn_logprobs, task="replay"
        )
