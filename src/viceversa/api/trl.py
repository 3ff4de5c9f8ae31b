"""The captioning reward for TRL's GRPOTrainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from viceversa.api.model import Model
from viceversa.config import ConfigError, DataConfig
from viceversa.data.given import pictures
from viceversa.inference.memory import RowBudget
from viceversa.measure.pairs import AT_ONCE, pair_rewards
from viceversa.rl.rewards import penalise_invalid


def trl_reward(model: Model, column: str = "image") -> Callable[..., list[float | None]]:
    """Return the captioning reward with the signature of TRL's reward functions.

    Of a captioner that `trl.GRPOTrainer` trains, it rates each completion by how likely `model`
    finds the picture given that caption: nats an image token, averaged. The picture of each prompt
    stands in `column` of the dataset (a PIL picture, or a list whose first is taken). An empty
    caption is rated just below the worst of its batch. As many are read at once as memory allows.
    """
    read = RowBudget("reward.batch_rows", AT_ONCE)

    def dual_reward_i2t(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        if column not in columns:
            raise ConfigError(
                f"the dataset has no column {column!r}: name the one with pictures, "
                "trl_reward(model, column=…)"
            )
        images = [cell[0] if isinstance(cell, list) else cell for cell in columns[column]]
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        pixels = pictures(images, model.adapter.image_size, DataConfig())
        rewards = read(
            lambda rows: pair_rewards(model.adapter, "i2t", texts, pixels, batch_rows=rows),
            len(texts),
        )
        empty = torch.tensor([not text.strip() for text in texts])
        return penalise_invalid(rewards.unsqueeze(0), empty.unsqueeze(0))[0].tolist()

    return dual_reward_i2t
