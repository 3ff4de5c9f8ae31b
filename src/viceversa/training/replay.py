"""Replay: the starting model's own answers to questions, learned along so that they stay.

Training on captions and pictures moves shared weights, and with them what nobody trains. No label
is involved: the questions are asked about the pictures of the step, and the starting model answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from viceversa.config import ReplayConfig, SamplingConfig
from viceversa.models.base import Adapter
from viceversa.rl.metrics import Mean, Metrics
from viceversa.rl.rollout import rollout
from viceversa.rl.rows import Totals
from viceversa.rl.step import Step
from viceversa.types import Example, TrainingRows


class Replay:
    """Asks `questions` about pictures; the model's answers become rows of a loss of their own.

    The loss is half the mean square of the difference between the answers' log-probs, nats a token,
    and those that they had when they were sampled from the start: nothing, where they are equal.
    """

    def __init__(self, adapter: Adapter, config: ReplayConfig, questions: Sequence[str], seed: int):
        self.adapter, self.config, self.questions, self.seed = adapter, config, questions, seed

    def asked(self, pictures: Sequence[Example], number: int, count: int) -> list[Example]:
        """Pair pictures with `count` questions, drawn by seed, step and picture."""
        laps = -(-count // len(pictures))
        drawn = [
            np.random.default_rng([self.seed, 78, p.example_id, number]).integers(
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

    def rows(self, step: Step, pictures: Sequence[Example], number: int) -> TrainingRows:
        """Have the starting model answer questions about the pictures of step `number`."""
        unit = step.algorithm.unit  # rows are cut by it
        count = unit * math.ceil(self.config.per_step / step.ranks.count / unit)
        asked = self.asked(pictures, number, count)

        def some_rows(n: int) -> TrainingRows:
            return self.answered(asked, number, replace(step.config.sampling, batch_rows=n))

        with step.started().restored():
            return step.read(lambda: step.rollout_rows(some_rows, count))

    def answered(
        self, asked: Sequence[Example], number: int, sampling: SamplingConfig
    ) -> TrainingRows:
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
        found = rollout(self.adapter, asked, answers, self.seed + 1, number)
        weights = torch.ones(len(found.completions), device=found.drawn_logprobs.device)
        return TrainingRows(
            "i2t", found.prompts, found.completions, weights, found.drawn_logprobs, task="replay"
        )

    def loss(
        self, rows: TrainingRows, token_logprobs: Tensor, totals: Totals
    ) -> tuple[Tensor, Metrics]:
        """Compute half the mean square of how far the answers' log-probs are from the start's.

        Near the start it curves as the KL does. A likelihood of sampled answers would too, and yet
        pull about by which were sampled: yes and no drifted apart (LOG.md, 2026-11-27).
        """
        mask = rows.completions.completion_mask
        gap = (rows.drawn_logprobs - token_logprobs) * mask  # its mean is the KL
        metrics: Metrics = {"kl": Mean(float(gap.detach().sum()), float(mask.sum()))}
        loss = 0.5 * gap.square().sum() / totals.tokens
        return self.config.weight * loss, metrics
