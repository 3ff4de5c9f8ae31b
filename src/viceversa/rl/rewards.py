"""Rewards: functions from a Rollout to [P, G], higher is better.

The dual reward (arXiv:2506.07963) swaps input and output and asks a scorer how likely the input is:

    t2i   1/|x| sum_k log pi(prompt token k | picture, instruction, earlier tokens)
    i2t   1/|x| sum_k log pi(image token k  | caption, earlier tokens)

|x| is the same for a whole group; for a prompt it counts the stop token. A second term, ours, adds
a share of the output's own log-likelihood given the input, summed over its tokens and divided by
the same |x|: with a share of 1 the reward is the scorer's joint log-likelihood of input and output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viceversa.config import ConfigError, RewardConfig, RewardTerm, load_object
from viceversa.inference.logprobs import (
    completion_logprobs,
    evaluating,
    mean_logprobs,
    sum_logprobs,
)
from viceversa.inference.memory import RowBudget
from viceversa.inference.snapshot import Scorer
from viceversa.models.base import Adapter
from viceversa.rl.rollout import input_image_ids, input_prompts
from viceversa.types import (
    DIRECTIONS,
    Completion,
    Direction,
    Example,
    PromptBatch,
    Reward,
    Rollout,
    opposite,
)

#: A caption that is empty or never stopped gets this much less than the worst of its group, nats.
INVALID_PENALTY = 1e-3

Read = Callable[[Callable[[], Any]], Any]


def call(work: Callable[[], Any]) -> Any:
    return work()


def dual_reward(
    adapter: Adapter,
    rollout: Rollout,
    instruction: str = "",
    batch_rows: int = 256,
    own: float = 0.0,
) -> Tensor:
    """Compute the mean log-likelihood of each input given each of its outputs.

    [P, G] nats per token of the input. `own` is the weight of the second term. An output that a
    group holds twice is read back once; rows of like length are scored together.
    """
    prompts, completions = swapped(adapter, rollout, instruction)
    one_each, which = distinct_outputs(rollout)
    scored = read_back(adapter, prompts.select(one_each), completions.select(one_each), batch_rows)
    rewards = scored[which].view(-1, rollout.group_size)
    if own:
        tokens = completions.completion_mask.sum(-1).view_as(rewards)
        rewards = rewards + own * output_loglikelihoods(adapter, rollout, batch_rows) / tokens
    if rollout.truncated is None:
        return rewards
    return penalise_invalid(rewards, invalid_captions(rollout).view_as(rewards))


def read_back(
    adapter: Adapter, prompts: PromptBatch, completions: Completion, batch_rows: int = 256
) -> Tensor:
    """Compute the mean log-likelihood of each completion given its prompt, [B] nats per token.

    Rows of like length are read together, `batch_rows` at once.
    """
    lengths = prompts.attention_mask.sum(-1) + completions.completion_mask.sum(-1)
    order = lengths.argsort(stable=True)
    pieces = []
    with evaluating(adapter.model):
        for rows in order.split(batch_rows):
            chosen = completions.select(rows).trimmed()
            logprobs = completion_logprobs(adapter, prompts.select(rows).trimmed(), chosen)
            pieces.append(mean_logprobs(logprobs, chosen.completion_mask))
    scored = torch.cat(pieces)
    return torch.empty_like(scored).scatter(0, order, scored)


def output_loglikelihoods(adapter: Adapter, rollout: Rollout, batch_rows: int = 256) -> Tensor:
    """Compute the log-likelihood of each output given its input, [P, G] nats, summed."""
    group, sums = rollout.group_size, []
    with evaluating(adapter.model):
        for inputs in torch.arange(len(rollout.examples)).split(max(1, batch_rows // group)):
            first, end = int(inputs[0]), int(inputs[-1]) + 1
            chosen = rollout.completions.select(slice(first * group, end * group)).trimmed()
            prompts = rollout.prompts.select(slice(first, end))
            logprobs = completion_logprobs(adapter, prompts, chosen)
            sums.append(sum_logprobs(logprobs, chosen.completion_mask))
    return torch.cat(sums).view(-1, group)


def distinct_outputs(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Return rows [U] whose (input, output) differ, and for each of the B rows its equal there."""
    ids, mask = rollout.completions.completion_ids, rollout.completions.completion_mask
    inputs = torch.arange(len(ids), device=ids.device) // rollout.group_size
    rows = torch.cat([inputs.unsqueeze(1), ids.masked_fill(~mask, -1)], dim=1)
    different, which = rows.unique(dim=0, return_inverse=True)
    one_each = which.new_empty(len(different))
    return one_each.scatter_(0, which, torch.arange(len(ids), device=ids.device)), which


def swapped(adapter: Adapter, rollout: Rollout, instruction: str) -> tuple[PromptBatch, Completion]:
    """Read the rollout backwards: its outputs as B prompts, its inputs as B completions."""
    group = rollout.group_size
    if rollout.direction == "t2i":
        asked = [instruction or adapter.default_instruction] * len(rollout.completions)
        if adapter.reads_image_ids:
            drawn = adapter.prompts("i2t", asked, image_ids=rollout.completions.completion_ids)
        else:
            drawn = adapter.prompts("i2t", asked, rollout.pixels)
        return drawn, adapter.text_completion(rollout.row_texts)
    with evaluating(adapter.model):
        ids = input_image_ids(adapter, rollout.examples)
    completion = adapter.image_completion(ids.repeat_interleave(group, 0))
    return adapter.prompts("t2i", rollout.row_texts), completion


def pair_rewards(
    adapter: Adapter,
    direction: Direction,
    texts: Sequence[str],
    pixels: Tensor,
    instruction: str = "",
    image_ids: Sequence[Tensor] | None = None,
    batch_rows: int = 256,
) -> Tensor:
    """Compute the dual reward of N pairs of text and picture, [N] nats per token.

    `t2i`: each picture was drawn for its text; how likely the text is given the picture. `i2t`:
    each text was written for its picture; how likely the picture is given the text. `pixels`
    [N, 3, H, W] uint8, `image_ids` their image tokens where they are known.
    """
    rows = zip(texts, pixels, image_ids or [None] * len(texts), strict=True)
    drawn = direction == "t2i"  # then pictures are read, and no text is asked about them
    outputs = [
        Example(i, opposite(direction), None if drawn else t, p, None, ids)
        for i, (t, p, ids) in enumerate(rows)
    ]
    with evaluating(adapter.model):
        prompts = input_prompts(adapter, outputs, instruction)
        if direction == "t2i":
            completions = adapter.text_completion(texts)
        else:
            completions = adapter.image_completion(input_image_ids(adapter, outputs))
        return read_back(adapter, prompts, completions, batch_rows).float().cpu()


def invalid_captions(rollout: Rollout) -> Tensor:
    """Find the captions that never stopped or say nothing, [B] bool."""
    assert rollout.truncated is not None
    empty = torch.tensor([not t for t in rollout.texts], device=rollout.truncated.device)
    return rollout.truncated | empty


def penalise_invalid(rewards: Tensor, invalid: Tensor) -> Tensor:
    """Put invalid members just below the worst valid one of their group; both [P, G]."""
    worst = rewards.masked_fill(invalid, torch.inf).amin(-1, keepdim=True)
    worst = torch.where(worst.isinf(), rewards.amin(-1, keepdim=True), worst)
    return torch.where(invalid, worst - INVALID_PENALTY, rewards)


class DualReward:
    """The dual reward under a scorer, as many rows at once as memory allows."""

    def __init__(
        self,
        adapter: Adapter,
        config: RewardConfig,
        scorer: Scorer,
        instruction: str = "",
        read: Read = call,
    ):
        self.adapter, self.config, self.scorer = adapter, config, scorer
        self.instruction, self.read = instruction, read
        self.rows = RowBudget("reward.batch_rows", config.batch_rows)

    def __call__(self, rollout: Rollout) -> Tensor:
        own = self.config.own(rollout.direction)
        most = len(rollout.completions) if own else len(distinct_outputs(rollout)[0])
        return self.under_scorer(
            lambda rows: dual_reward(self.adapter, rollout, self.instruction, rows, own), most
        )

    def under_scorer(self, score: Callable[[int], Tensor], most: int) -> Tensor:
        """Call `score` with as many rows at once as memory allows, `most` or fewer."""
        with self.scorer.reading():
            return self.read(lambda: self.rows(score, most)).float().cpu()


class SelfCertainty(DualReward):
    """A baseline: the second term alone, how likely the scorer finds the output given its input.

    [P, G] nats, summed over the output's tokens. No input is read back.
    """

    def __call__(self, rollout: Rollout) -> Tensor:
        most = len(rollout.completions)
        return self.under_scorer(
            lambda rows: output_loglikelihoods(self.adapter, rollout, rows), most
        )


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


#: Built-in rewards that a step makes: they need its model or seed.
OF_THE_STEP = ("dual", "self_certainty", "random")
#: Built-in rewards that need nothing, by import path as a user's own.
REWARDS = {
    "verifier": "viceversa.scenes.rewards:verifier",
    "scenes_clip": "viceversa.scenes.clip:ScenesClip",
    "clip_score": "viceversa.judges.clip:Clip",
    "pick_score": "viceversa.judges.clip:PickScore",
}


def reward_of(term: RewardTerm, given: Mapping[str, Reward]) -> Reward:
    """Return the function that a term names: one that is `given`, or by its import path.

    A class is first called with the term's options. Raises ConfigError where there is none.
    """
    if term.name in given:
        return given[term.name]
    found = load_object("reward.name", REWARDS.get(term.name, term.name), [*given, *REWARDS])
    return found(**term.options) if isinstance(found, type) else found


def rewards_of(config: RewardConfig, given: Mapping[str, Reward]) -> list[Reward]:
    """Return the functions of all terms, in order."""
    return [reward_of(term, given) for term in config.terms()]


def rate(rewards: Sequence[Reward], rollout: Rollout) -> list[Tensor]:
    """Call each reward. Raises ConfigError where one returns another shape."""
    shape = (len(rollout.examples), rollout.group_size)
    found = []
    for reward in rewards:
        rated = torch.as_tensor(reward(rollout)).detach().float().cpu()
        name = getattr(reward, "__name__", type(reward).__name__)
        if tuple(rated.shape) != shape:
            raise ConfigError(
                f"reward {name} returned a tensor of shape {tuple(rated.shape)}; it must be "
                f"[P, G] = {list(shape)}"
            )
        found.append(rated)
    return found
