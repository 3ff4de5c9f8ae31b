"""A loss of your own is one class: here, REINFORCE with advantages cut to [-1, 1].

viceversa train --set loss.name=examples.custom_loss:Clamped
"""

from typing import Any

import torch
from torch import Tensor

import viceversa as vv
from viceversa.rl.algorithms import Algorithm, Judged, LossAndSums
from viceversa.types import TrainingRows


class Clamped(Algorithm):
    def rows_of(self, group_size: int) -> int:
        return group_size

    def choose(self, judged: Judged, kept: Tensor) -> Tensor:
        """Take every row of the groups to use, [R]."""
        every = torch.arange(judged.rewards.numel()).view_as(judged.rewards)
        return every[kept].flatten()

    def loss(self, rows: TrainingRows, token_logprobs: Tensor) -> LossAndSums:
        """Return the sum over rows of -weight * mean log-prob, and the sum of |weight|."""
        mask = rows.completions.completion_mask
        means = (token_logprobs * mask).sum(-1) / mask.sum(-1)
        weights = rows.advantages.clamp(-1, 1)
        return -(weights * means).sum(), {"weight": weights.abs().sum()}


def main(steps: int = 20, output: str = "runs/custom-loss", **options: Any) -> vv.Run:
    options["loss.name"] = "examples.custom_loss:Clamped"
    return vv.train("builtin", steps=steps, output=output, options=options)


if __name__ == "__main__":
    main()
