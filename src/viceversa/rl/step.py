"""One optimizer step, top to bottom: examples, rollout, rewards, selection, rows, loss, metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from viceversa.config import Config
from viceversa.inference.distinct import distinct_rows, prompts_followed
from viceversa.inference.logprobs import evaluating, policy_logprobs
from viceversa.inference.memory import RowBudget
from viceversa.inference.snapshot import Scorer, Snapshot
from viceversa.judges.chance import RandomReward
from viceversa.models.base import Adapter
from viceversa.rl import losses
from viceversa.rl.algorithms import algorithm_of
from viceversa.rl.metrics import Max, Mean, Metrics, Sum, merged, of_direction
from viceversa.rl.rewards import (
    DualReward,
    Read,
    SelfCertainty,
    call,
    invalid_captions,
    rate,
    reward_of,
)
from viceversa.rl.rollout import input_image_ids, rollout
from viceversa.rl.rows import MicroStep, Totals, cut_out, split
from viceversa.rl.selection import Judged, degenerate, judge, widest, wins_by_input
from viceversa.types import (
    ALONE,
    DIRECTIONS,
    Example,
    Monitor,
    Ranks,
    Reward,
    Rollout,
    ScoredRollout,
    TrainingRows,
)


class Replay(Protocol):
    """Rows that are learned along with the captions of a step (training/replay.py)."""

    def rows(self, step: Step, pictures: Sequence[Example], number: int) -> TrainingRows:
        """Sample rows about the pictures of step `number`; their `task` is named."""
        ...

    def loss(
        self, rows: TrainingRows, token_logprobs: Tensor, totals: Totals
    ) -> tuple[Tensor, Metrics]:
        """Compute their weighted loss and its metrics."""
        ...


class Step:
    """The parts of an optimizer step. Nothing but weights changes from one step to the next.

    `rewards` are functions to be named in the config besides the built-in ones. `monitor` tells
    right outputs from wrong ones, for the metrics alone. `image_ids` turns pictures [B, 3, H, W]
    into image ids, where they are remembered. `read` calls work that reads the model, in its
    precision and with its parameters gathered. `replay` adds rows with a loss of their own.
    """

    def __init__(
        self,
        adapter: Adapter,
        config: Config,
        rewards: Mapping[str, Reward] | None = None,
        monitor: Monitor | None = None,
        image_ids: Callable[[Tensor], Tensor] | None = None,
        read: Read = call,
        ranks: Ranks = ALONE,
        replay: Replay | None = None,
    ):
        self.adapter, self.config, self.monitor = adapter, config, monitor
        self.image_ids, self.read, self.ranks, self.replay = image_ids, read, ranks, replay
        self.algorithm = algorithm_of(config.loss)
        self.scorer = Scorer(adapter.model, config.reward.scorer, config.reward.average_decay)
        self.reference: Snapshot | None = None
        instruction, group = config.sampling.instruction, config.sampling.group_size
        self.rollout_rows = RowBudget("sampling.batch_rows", config.sampling.batch_rows, group)
        self.score_rows = RowBudget("reward.batch_rows", config.reward.batch_rows)
        of_scorer = (adapter, config.reward, self.scorer, instruction, read, self.score_rows)
        dual = DualReward(*of_scorer)
        self.known = dual.known  # None, unless the scorer is frozen
        given = {
            "dual": dual,
            "self_certainty": SelfCertainty(*of_scorer),
            "random": RandomReward(config.seed),
            **(rewards or {}),
        }
        self.rewards = [reward_of(term, given) for term in config.reward.terms()]

    def keep_start(self, watched: bool = False) -> None:
        """Keep the weights as they are now for whoever reads them later.

        Those are the scorer, a reference, replay and, where the run is `watched`, its judge.
        """
        self.scorer.start()
        if self.scorer.kind == "frozen":
            self.reference = self.scorer.snapshot
        elif self.replay or watched or any(self.algorithm.uses_reference(d) for d in DIRECTIONS):
            self.reference = Snapshot(self.adapter.model)

    def rows(
        self,
        examples: Sequence[Example],
        step: int,
        parts: int,
        watch: Callable[[ScoredRollout], None] | None = None,
    ) -> tuple[list[MicroStep], Metrics]:
        """Sample, score and select: the rows of `parts` micro-steps. `watch` sees each rollout."""
        found, metrics = [], []
        for direction in dict.fromkeys(e.direction for e in examples):
            began = time.perf_counter()
            sampled = self.sample([e for e in examples if e.direction == direction], step)
            sampled_at = time.perf_counter()
            judged = judge(rate(self.rewards, sampled), self.config.reward.terms(), self.ranks)
            scored_at = time.perf_counter()
            scored = ScoredRollout(sampled, judged.rewards, self.monitor and self.monitor(sampled))
            if watch is not None:
                watch(scored)
            rows, selection = self.select(sampled, judged)
            found.append(self.freeze(rows))
            seconds = {
                "sample_seconds": Max(sampled_at - began),
                "score_seconds": Max(scored_at - sampled_at),
            }
            metrics.append(of_direction(direction, {**health(scored), **seconds, **selection}))
            if self.replay and direction == "i2t":
                found.append(self.replay.rows(self, sampled.examples, step))
        totals = {rows.name: self.totals(rows) for rows in found}
        cut = [split(rows, parts, self.algorithm.unit) for rows in found]
        return [MicroStep(list(part), totals) for part in zip(*cut, strict=True)], merged(metrics)

    def sample(self, examples: Sequence[Example], step: int) -> Rollout:
        """Sample a group for each example of one direction."""
        examples = self.with_image_ids(examples)

        def some_rows(n: int) -> Rollout:
            sampling = replace(self.config.sampling, batch_rows=n)
            return rollout(self.adapter, examples, sampling, self.config.seed, step)

        most = len(examples) * self.config.sampling.group_size
        return self.read(lambda: self.rollout_rows(some_rows, most))

    def with_image_ids(self, examples: Sequence[Example]) -> list[Example]:
        """Give pictures their image ids, where those are remembered or read more than once."""
        pixels = [e.pixels for e in examples if e.pixels is not None]
        if pixels and self.image_ids is not None:
            ids = self.image_ids(torch.stack(pixels))
        elif pixels and self.adapter.reads_image_ids:
            ids = self.read(lambda: input_image_ids(self.adapter, examples))
        else:
            return list(examples)
        return [replace(e, image_ids=row) for e, row in zip(examples, ids, strict=True)]

    def select(self, sampled: Rollout, judged: Judged) -> tuple[TrainingRows, Metrics]:
        """Keep the rows that the algorithm learns from; where none teaches, fillers of weight zero.

        A KL term holds the rows of groups that are all alike, too.
        """
        loss, algorithm = self.config.loss, self.algorithm
        every = self.ranks.gather(judged.spans.tolist())
        wide = widest(judged.spans, every, loss.group_share)
        kept = wide if loss.kl(sampled.direction) > 0 else wide & ~judged.idle
        index = algorithm.choose(judged, kept)
        far = judged.idle & ~degenerate(judged.rewards)
        metrics: Metrics = {
            "groups_too_unlikely": Sum(float(far.sum())),
            "groups_left_out": Sum(float((~wide).sum())),
            "rows": Sum(float(len(index))),
        }
        filler, sharing = not len(index), algorithm.rows_of(sampled.group_size)
        if filler:
            index, sharing = torch.arange(2), 2
        index = index.to(sampled.completions.completion_ids.device)
        rows = TrainingRows(
            sampled.direction,
            sampled.prompts.select(index[::sharing] // sampled.group_size),
            sampled.completions.select(index),
            judged.advantages.flatten().to(index.device)[index],
            sampled.drawn_logprobs[index],
            filler=filler,
        )
        if not filler:
            follows = prompts_followed(rows.prompts, rows.completions)
            different, _ = distinct_rows(rows.completions, follows)
            metrics["distinct_rows"] = Mean(float(len(different)), float(len(rows)))
        return rows, metrics

    def freeze(self, rows: TrainingRows) -> TrainingRows:
        """Add log-probs that the loss holds fixed: at the sampling policy, under the reference."""
        sampling = ref = None
        if self.algorithm.several_updates and self.config.loss.updates_per_rollout > 1:
            sampling = self.score(rows)
        if self.algorithm.uses_reference(rows.direction):
            with self.started().restored():
                ref = self.score(rows)
        return replace(rows, sampling_logprobs=sampling, ref_logprobs=ref)

    def started(self) -> Snapshot:
        """Return the weights that training started from."""
        if self.reference is None:
            raise RuntimeError("the reference has no weights: call keep_start() first")
        return self.reference

    def score(self, rows: TrainingRows) -> Tensor:
        """Compute log-probs [R, T] in nats, without gradient, at the geometry of training."""

        def some_rows(n: int) -> Tensor:
            starts = range(0, len(rows), n)
            parts = [cut_out(rows, slice(s, min(s + n, len(rows)))) for s in starts]
            with evaluating(self.adapter.model):
                return torch.cat(self.logprobs(MicroStep(parts, {})))

        return self.read(lambda: self.score_rows(some_rows, len(rows)))

    def totals(self, rows: TrainingRows) -> Totals:
        """Count what the sums are divided by, over all processes and without fillers."""
        mine = [self.algorithm.count(rows), float(rows.completions.completion_mask.sum())]
        found = self.ranks.sum([0.0 if rows.filler else n for n in mine])
        return Totals(*(max(n, 1.0) / self.ranks.count for n in found))

    def logprobs(self, micro: MicroStep) -> list[Tensor]:
        """Compute the policy's log-probs of every direction's rows, [R, T] nats, with gradient."""
        rows = [(r.prompts, r.completions) for r in micro.rows]
        temperature = self.config.sampling.temperature
        return policy_logprobs(self.adapter, rows, temperature, self.config.guidance("t2i"))

    def losses(
        self, micro: MicroStep, logprobs: Iterable[Tensor]
    ) -> tuple[dict[str, Tensor], Metrics]:
        """Compute the weighted loss of each direction over one micro-step, and its metrics.

        By direction; that of replayed answers by `replay`.
        """
        found: dict[str, Tensor] = {}
        metrics: list[Metrics] = []
        for rows, token_logprobs in zip(micro.rows, logprobs, strict=True):
            loss, own = self.loss(rows, token_logprobs, micro.totals[rows.name])
            own["loss"] = Sum(float(loss.detach()) / self.ranks.count)
            found[rows.name] = loss
            metrics.append(of_direction(rows.name, own))
        return found, merged(metrics)

    def loss(
        self, rows: TrainingRows, token_logprobs: Tensor, totals: Totals
    ) -> tuple[Tensor, Metrics]:
        """Compute one direction's loss: the algorithm's, a KL term, and the direction's weight.

        Rows of replay have a loss of their own.
        """
        if rows.filler:
            return token_logprobs.sum() * 0.0, {}
        if self.replay and rows.task:
            return self.replay.loss(rows, token_logprobs, totals)
        config, direction, mask = self.config.loss, rows.direction, rows.completions.completion_mask
        summed, sums = self.algorithm.loss(rows, token_logprobs)
        loss, count = summed / totals.units, self.algorithm.count(rows)
        metrics: Metrics = {name: Mean(float(x), count) for name, x in sums.items()}
        tokens = float(mask.sum())
        # nats a token between what was sampled from and what is optimised
        gap = (rows.drawn_logprobs - token_logprobs.detach()) * mask
        metrics["sampling_gap"] = Mean(float(gap.sum()), tokens)
        if rows.ref_logprobs is not None and config.kl(direction) > 0:
            kl = losses.divergence(token_logprobs, rows.ref_logprobs, mask)
            loss = loss + config.kl(direction) * kl / totals.tokens
            metrics["kl"] = Mean(float(kl.detach()), tokens)
        return config.weight(direction) * loss, metrics


def health(scored: ScoredRollout) -> Metrics:
    """Measure what to watch: rewards, groups that teach nothing, bad captions, the monitor."""
    sampled, rewards = scored.rollout, scored.rewards
    groups, samples = float(len(rewards)), float(rewards.numel())
    span = rewards.amax(-1) - rewards.amin(-1)
    metrics: Metrics = {
        "reward_mean": Mean(float(rewards.sum()), samples),
        "reward_std": Mean(float(rewards.std(-1, correction=0).sum()), groups),
        "reward_gap": Mean(float(span.sum()), groups),
        "groups": Sum(groups),
        "degenerate_groups": Sum(float(degenerate(rewards).sum())),
        "tokens": Sum(float(sampled.completions.completion_mask.sum())),
        "samples": Sum(samples),
    }
    if sampled.truncated is not None:
        metrics["truncated"] = Sum(float(sampled.truncated.sum()))
        metrics["invalid"] = Sum(float(invalid_captions(sampled).sum()))
    if scored.right is not None:
        wins, pairs = (float(x.sum()) for x in wins_by_input(rewards, scored.right))
        metrics["verified"] = Mean(float(scored.right.float().sum()), samples)
        metrics["ranking"] = Mean(wins, pairs)
        metrics["ranking_pairs"] = Sum(pairs)
    return metrics
