"""A loss of your own is one class: here, REINFORCE with advantages cut to [-1, 1].

viceversa train --set loss.name=examples.custom_loss:Clamped
"""

from typing import Any

from torch import Tensor

import viceversa as vv


class Clamped(vv.Algorithm):
    def loss(self, rows: vv.TrainingRows, token_logprobs: Tensor) -> vv.LossAndSums:
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
