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

import torch
from torch import Tensor

from viceversa.config import ConfigError, RewardConfig, RewardTerm, blame, load_object
from viceversa.inference.distinct import distinct_rows, prompts_followed
from viceversa.inference.known import KnownRewards, pairs_of
from viceversa.inference.logprobs import (
    completion_logprobs,
    evaluating,
    mean_logprobs,
    sum_logprobs,
)
from viceversa.inference.memory import RowBudget
from viceversa.inference.snapshot import Scorer
from viceversa.models.base import Adapter
from viceversa.rl.rollout import input_image_ids
from viceversa.types import Completion, PromptBatch, Reward, Rollout

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
    one_each, which = distinct_outputs(rollout)
    scored = pair_scores(adapter, rollout, one_each, instruction, batch_rows, own)
    return of_groups(rollout, scored[which])


def of_groups(rollout: Rollout, scores: Tensor) -> Tensor:
    """Turn the scores of all rows [B] into rewards [P, G]: those of bad captions are lowered."""
    rewards = scores.view(-1, rollout.group_size)
    if rollout.truncated is None:
        return rewards
    return penalise_invalid(rewards, invalid_captions(rollout).to(rewards.device).view_as(rewards))


def pair_scores(
    adapter: Adapter, rollout: Rollout, rows: Tensor, instruction: str, batch_rows: int, own: float
) -> Tensor:
    """Compute the dual reward of some rows, ascending, [U]; bad captions as they are read."""
    if not len(rows):
        return rollout.drawn_logprobs.new_zeros(0)
    prompts, completions = swapped(adapter, rollout, instruction, rows)
    scored = read_back(adapter, prompts, completions, batch_rows)
    if own:
        outputs = output_loglikelihoods(adapter, rollout, rows, batch_rows)
        scored = scored + own * outputs / completions.completion_mask.sum(-1)
    return scored


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


def output_loglikelihoods(
    adapter: Adapter, rollout: Rollout, rows: Tensor, batch_rows: int = 256
) -> Tensor:
    """Compute the log-likelihood of some outputs given their inputs, [U] nats, summed.

    `rows` [U], ascending.
    """
    sums = []
    with evaluating(adapter.model):
        for some in rows.split(batch_rows):
            inputs, of = (some // rollout.group_size).unique_consecutive(return_inverse=True)
            chosen = rollout.completions.select(some).trimmed()
            logprobs = completion_logprobs(adapter, rollout.prompts.select(inputs), chosen, of=of)
            sums.append(sum_logprobs(logprobs, chosen.completion_mask))
    return torch.cat(sums)


def distinct_outputs(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Return rows [U] whose (input, output) differ, and for each of the B rows its equal there."""
    return distinct_rows(
        rollout.completions, prompts_followed(rollout.prompts, rollout.completions)
    )


def swapped(
    adapter: Adapter, rollout: Rollout, instruction: str, rows: Tensor | None = None
) -> tuple[PromptBatch, Completion]:
    """Read `rows` (None: all) backwards: outputs as prompts, inputs as completions."""
    if rows is None:
        rows = torch.arange(len(rollout.completions), device=rollout.drawn_logprobs.device)
    every = rollout.row_texts
    texts = [every[row] for row in rows.tolist()]
    if rollout.direction == "t2i":
        asked = [instruction or adapter.default_instruction] * len(rows)
        if adapter.reads_image_ids:
            ids = rollout.completions.completion_ids[rows]
            drawn = adapter.prompts("i2t", asked, image_ids=ids)
        else:
            assert rollout.pixels is not None
            drawn = adapter.prompts("i2t", asked, rollout.pixels[rows])
        return drawn, adapter.text_completion(texts)
    with evaluating(adapter.model):
        ids = input_image_ids(adapter, rollout.examples)
    completion = adapter.image_completion(ids[rows // rollout.group_size])
    return adapter.prompts("t2i", texts), completion


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
    """The dual reward under a scorer, as many rows at once as memory allows.

    A frozen scorer reads a pair of input and output once in a run, for as long as it is known.
    """

    def __init__(
        self,
        adapter: Adapter,
        config: RewardConfig,
        scorer: Scorer,
        instruction: str = "",
        read: Read = call,
        rows: RowBudget | None = None,
    ):
        self.adapter, self.config, self.scorer = adapter, config, scorer
        self.instruction, self.read = instruction, read
        self.rows = rows or RowBudget("reward.batch_rows", config.batch_rows)
        self.known = KnownRewards() if scorer.kind == "frozen" else None

    def __call__(self, rollout: Rollout) -> Tensor:
        one_each, which = (x.cpu() for x in distinct_outputs(rollout))
        if self.known is None:
            scores = self.scores(rollout, one_each)
        else:
            pairs = pairs_of(rollout, one_each)
            scores = self.known.look_up(pairs)
            new = scores.isnan()
            scores[new] = self.scores(rollout, one_each[new])
            self.known.add(pairs, scores)
        return of_groups(rollout, scores[which])

    def scores(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """Compute the scores of some rows, [U] float32 on the CPU."""
        own = self.config.own(rollout.direction)
        some = rows.to(rollout.drawn_logprobs.device)
        return self.under_scorer(
            lambda n: pair_scores(self.adapter, rollout, some, self.instruction, n, own), len(rows)
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
        rows = torch.arange(len(rollout.completions), device=rollout.drawn_logprobs.device)
        sums = self.under_scorer(
            lambda n: output_loglikelihoods(self.adapter, rollout, rows, n), len(rows)
        )
        return sums.view(-1, rollout.group_size)


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


def rate(rewards: Sequence[Reward], rollout: Rollout) -> list[Tensor]:
    """Call each reward. Raises ConfigError where one returns another shape.

    An error of the user's own reward gets a note that names it.
    """
    shape = (len(rollout.examples), rollout.group_size)
    found = []
    for reward in rewards:
        name = getattr(reward, "__name__", type(reward).__name__)
        try:
            rated = torch.as_tensor(reward(rollout)).detach().float().cpu()
        except Exception as error:
            if not str(getattr(reward, "__module__", "")).startswith("viceversa."):
                blame(error, name, rollout.direction)
            raise
        if tuple(rated.shape) != shape:
            raise ConfigError(
                f"reward {name} returned a tensor of shape {tuple(rated.shape)}; it must be "
                f"[P, G] = {list(shape)}"
            )
        found.append(rated)
    return found
