"""Rewards of a rollout: the dual self-reward, and two baselines to hold it against.

The dual reward swaps input and output and asks a scorer how likely the input is:

    t2i   1/|x| sum_k log pi(prompt token k | picture, instruction, earlier tokens)
    i2t   1/|x| sum_k log pi(image token k  | caption, earlier tokens)

(arXiv:2506.07963). |x| is the same for a whole group; for a prompt it counts the stop token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viceversa.config import RewardConfig
from viceversa.inference.logprobs import completion_logprobs, evaluating, mean_logprobs
from viceversa.inference.snapshot import Snapshot
from viceversa.models.base import Adapter
from viceversa.scenes import Spec, caption_matches, read_pictures, verify_pictures
from viceversa.train.memory import RowBudget
from viceversa.types import DIRECTIONS, Completion, PromptBatch, Rollout

#: A caption that is empty or never stopped gets this much less than the worst of its group, nats.
INVALID_PENALTY = 1e-3

Run = Callable[[Callable[[], Any]], Any]


def call(work: Callable[[], Any]) -> Any:
    return work()


def dual_reward(
    adapter: Adapter,
    rollout: Rollout,
    instruction: str,
    batch_rows: int = 256,
) -> Tensor:
    """Mean log-likelihood of each input given each of its outputs, [P, G] nats per token.

    An output that a group holds twice is scored once; rows of like length are scored together.
    """
    prompts, completions = swapped(adapter, rollout, instruction)
    one_each, which = distinct_outputs(rollout)
    prompts, completions = prompts.select(one_each), completions.select(one_each)
    lengths = prompts.attention_mask.sum(-1) + completions.completion_mask.sum(-1)
    order = lengths.argsort(stable=True)
    pieces = []
    with evaluating(adapter.model):
        for rows in order.split(batch_rows):
            chosen = completions.select(rows).trimmed()
            logprobs = completion_logprobs(adapter, prompts.select(rows).trimmed(), chosen)
            pieces.append(mean_logprobs(logprobs, chosen.completion_mask))
    scored = torch.cat(pieces)
    rewards = torch.empty_like(scored).scatter(0, order, scored)[which].view(-1, rollout.group_size)
    if rollout.truncated is None:
        return rewards
    return penalise_invalid(rewards, invalid_captions(rollout).view_as(rewards))


def distinct_outputs(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Rows [U] whose (input, output) differ, and for each of the B rows its equal among them."""
    ids, mask = rollout.completions.completion_ids, rollout.completions.completion_mask
    inputs = torch.arange(len(ids), device=ids.device) // rollout.group_size
    rows = torch.cat([inputs.unsqueeze(1), ids.masked_fill(~mask, -1)], dim=1)
    different, which = rows.unique(dim=0, return_inverse=True)
    one_each = which.new_empty(len(different))
    return one_each.scatter_(0, which, torch.arange(len(ids), device=ids.device)), which


def swapped(adapter: Adapter, rollout: Rollout, instruction: str) -> tuple[PromptBatch, Completion]:
    """The rollout read backwards: its outputs as B prompts, its inputs as B completions."""
    group = rollout.group_size
    if rollout.direction == "t2i":
        asked = [instruction or adapter.default_instruction] * len(rollout.completions)
        inputs = [e.text or "" for e in rollout.examples for _ in range(group)]
        if adapter.reads_image_ids:
            drawn = adapter.prompts("i2t", asked, image_ids=rollout.completions.completion_ids)
        else:
            drawn = adapter.prompts("i2t", asked, rollout.pixels)
        return drawn, adapter.text_completion(inputs)
    pixels = rollout.prompts.pixels
    assert pixels is not None
    with evaluating(adapter.model):
        ids = adapter.image_ids(pixels)
    completion = adapter.image_completion(ids.repeat_interleave(group, 0))
    return adapter.prompts("t2i", rollout.texts), completion


def invalid_captions(rollout: Rollout) -> Tensor:
    """[B] bool: captions that never stopped or say nothing."""
    assert rollout.truncated is not None
    empty = torch.tensor([not t for t in rollout.texts], device=rollout.truncated.device)
    return rollout.truncated | empty


def penalise_invalid(rewards: Tensor, invalid: Tensor) -> Tensor:
    """[P, G]: invalid members fall just below the worst valid one of their group."""
    worst = rewards.masked_fill(invalid, torch.inf).amin(-1, keepdim=True)
    worst = torch.where(worst.isinf(), rewards.amin(-1, keepdim=True), worst)
    return torch.where(invalid, worst - INVALID_PENALTY, rewards)


def verified(rollout: Rollout) -> Tensor | None:
    """[P, G] bool, right or wrong by the exact verifier; None where there are no labels."""
    specs = [e.reference for e in rollout.examples for _ in range(rollout.group_size)]
    if not all(isinstance(s, Spec) for s in specs):
        return None
    if rollout.direction == "t2i":
        assert rollout.pixels is not None
        right = verify_pictures(to_numpy(rollout.pixels), specs)
    else:
        pixels = rollout.prompts.pixels
        assert pixels is not None
        scenes = [s for s in read_pictures(to_numpy(pixels)) for _ in range(rollout.group_size)]
        right = [caption_matches(t, s) for t, s in zip(rollout.texts, scenes, strict=True)]
    return torch.tensor(right).view(-1, rollout.group_size)


def to_numpy(pixels: Tensor) -> np.ndarray:
    """uint8 [B, 3, H, W] -> [B, H, W, 3] on the CPU."""
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def ranking_accuracy(rewards: Tensor, right: Tensor) -> tuple[float, int]:
    """How often a right output has a higher reward than a wrong one of the same input.

    rewards [P, G], right [P, G] bool. Returns the share (ties count half; nan without pairs) and
    the number of pairs.
    """
    pairs = right.unsqueeze(2) & ~right.unsqueeze(1)
    gap = (rewards.unsqueeze(2) - rewards.unsqueeze(1))[pairs]
    wins = (gap > 0).float() + 0.5 * (gap == 0).float()
    return (float(wins.mean()) if len(gap) else float("nan")), len(gap)


class Rewarder:
    """Turns rollouts into rewards by `config.name`; owns the scorer's weights."""

    def __init__(
        self,
        adapter: Adapter,
        config: RewardConfig,
        instruction: str,
        seed: int,
    ):
        self.config, self.instruction, self.seed = config, instruction, seed
        self.adapter = adapter
        self.scorer: Snapshot | None = None
        self.rows = RowBudget("reward.batch_rows", config.batch_rows)

    def start(self) -> None:
        """Keep the weights as they are now, where the scorer is not the live policy."""
        if self.config.scorer != "live":
            self.scorer = Snapshot(self.adapter.model)

    def __call__(self, rollout: Rollout, step: int, run: Run = call) -> Tensor:
        """[P, G] float32 on the CPU. `run` calls what reads the model (see parallel.gathered)."""
        if self.config.name == "random":
            salt = DIRECTIONS.index(rollout.direction)
            keys = [(e.example_id, step, salt) for e in rollout.examples]
            return random_rewards(self.seed, keys, rollout.group_size)
        if self.config.name == "verifier":
            right = verified(rollout)
            if right is None:
                raise ValueError("reward.name is verifier; the examples carry no labels")
            return right.float()

        if self.config.scorer != "live" and self.scorer is None:
            raise RuntimeError("the scorer has no weights: call start() before training")
        most = len(distinct_outputs(rollout)[0])

        def score(rows: int) -> Tensor:
            return dual_reward(self.adapter, rollout, self.instruction, rows)

        with self.scorer.restored() if self.scorer else nullcontext():
            return run(lambda: self.rows(score, most)).float().cpu()

    def after_step(self) -> None:
        """Move the slow average, if there is one, towards the policy."""
        if self.scorer is not None and self.config.scorer == "average":
            self.scorer.move_towards_model(1 - self.config.average_decay)


def random_rewards(seed: int, keys: Sequence[tuple[int, ...]], group_size: int) -> Tensor:
    draws = [np.random.default_rng([seed, 77, *k]).random(group_size) for k in keys]
    return torch.tensor(np.stack(draws), dtype=torch.float32)
