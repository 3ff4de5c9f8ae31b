"""A reward that knows nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from viceversa.types import DIRECTIONS, Rollout


class RandomReward:
    """A baseline to hold a reward against: uniform in [0, 1), keyed by input and step."""

    def __init__(self, seed: int):
        self.seed = seed

    def __call__(self, rollout: Rollout) -> Tensor:
        salt = DIRECTIONS.index(rollout.direction)
        draws = [
            np.random.default_rng([self.seed, 77, e.example_id, rollout.step, salt]).random(
                rollout.group_size
            )
            for e in rollout.examples
        ]
        return torch.tensor(np.stack(draws), dtype=torch.float32)
