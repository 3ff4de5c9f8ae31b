"""A whole training step of drawing, part by part: ours, and the same step as the peers take it.

    python benchmarks/step.py                            # medium: what Janus-Pro has, narrow
    python benchmarks/step.py --size builtin             # the built-in model, 32 prompts x 8
    python benchmarks/step.py --size 1b --prompts 4      # Janus-Pro-1B's geometry, random weights

Sampling, decoding to pixels, the dual reward, and of these outputs the backward pass of GRPO (every
row) and of SimPO (the best and the worst of each group), without the optimizer. Peers sample with a
growing cache and every prompt repeated, run heads over every position, and take each row's prompt
through the backward pass. Their reward is that of one pass a picture, not GvU's, which score.py
measures. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from cases import arguments, begin, guidance_of, prompt_tokens, prompts_of, settled
from contenders import peer_logprobs, peer_loop
from rich.console import Console
from rich.table import Table
from timing import median_ratio, peak_memory, synchronize
from torch import Tensor

from viceversa.config import RewardTerm, SamplingConfig
from viceversa.inference.logprobs import completion_logprobs, mean_logprobs
from viceversa.inference.sampler import DrawKeys, sample
from viceversa.models import select_trainable
from viceversa.models.janus import JanusAdapter
from viceversa.rl import losses
from viceversa.rl.rollout import decode_images
from viceversa.rl.selection import best_and_worst, group_advantages, judge
from viceversa.types import Completion, PromptBatch

PARTS = ("sample", "decode", "score")
LOSSES = ("grpo", "simpo")
NAMES = ("ours", "peers")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--memory", action="store_true", help="also measure peaks, which is slow")
    medium = {"prompts": 1, "rounds": 3, "guidance": guidance_of("medium")}
    given = settled(parser, medium, {"prompts": 32, "rounds": 3, "guidance": 1.0})
    console = Console(width=140)
    adapter, _ = begin(given.size, console)
    select_trainable(adapter, None, given.size)
    steps = {name: Step(adapter, given, name == "ours") for name in NAMES}
    for round_ in range(given.rounds + 1):
        for name in NAMES if round_ % 2 else reversed(NAMES):
            steps[name].take()
        if round_ == 0:  # a warm-up
            for step in steps.values():
                step.seconds.clear()
    print(json.dumps({loss: show(console, loss, steps, given) for loss in LOSSES}))


def show(
    console: Console, loss: str, steps: dict[str, Step], given: argparse.Namespace
) -> dict[str, Any]:
    """Print the step of a loss, part by part; return the figures."""
    table = Table(loss, "ours, s", "peers, s", "peers / ours")
    found: dict[str, Any] = {}
    for part, kept in {**{p: p for p in PARTS}, "backward": loss}.items():
        found[part] = {n: statistics.median(steps[n].seconds[kept]) for n in NAMES}
        found[part]["ratio"] = median_ratio(*(steps[n].seconds[kept] for n in reversed(NAMES)))
        shown = found[part]
        cells = (f"{shown['ours']:.3f}", f"{shown['peers']:.3f}", f"{shown['ratio']:.2f}")
        table.add_row(part, *cells)
    mine, theirs = (
        [sum(t) for t in zip(*(steps[n].seconds[p] for p in (*PARTS, loss)), strict=True)]
        for n in NAMES
    )
    found["ratio_peers"] = median_ratio(theirs, mine)
    whole = statistics.median(mine), statistics.median(theirs)
    table.add_row("step", f"{whole[0]:.3f}", f"{whole[1]:.3f}", f"{found['ratio_peers']:.2f}")
    pictures = given.prompts * given.group
    table.add_row("pictures a second", *(f"{pictures / t:.2f}" for t in whole), "")
    found["pictures_per_second"] = pictures / whole[0]
    if given.memory:
        for name, step in steps.items():
            taken = partial(step.take, (loss,))
            found[f"peak_mib_{name}"] = peak_memory(taken, step.adapter.model) / 2**20
        table.add_row("peak, MiB", *(f"{found[f'peak_mib_{n}']:.0f}" for n in NAMES), "")
    console.print(table)
    return found


@dataclass
class Step:
    """One optimizer step without its optimizer, ours or the peers'."""

    adapter: JanusAdapter
    given: argparse.Namespace
    ours: bool
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def part(self, name: str, work: Callable[[], Any]) -> Any:
        synchronize(self.adapter.device)
        began = time.perf_counter()
        result = work()
        synchronize(self.adapter.device)
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)
        return result

    def take(self, of: Sequence[str] = LOSSES) -> None:
        given, adapter = self.given, self.adapter
        torch.manual_seed(0)
        prompts = prompts_of(adapter, "t2i", given.prompts, prompt_tokens(given.size))
        with torch.no_grad():
            ids = self.part("sample", lambda: self.sampled(prompts))
            pixels = self.part("decode", lambda: decode_images(adapter, ids))
            rewards = self.part("score", lambda: self.rewards(prompts, pixels))
        for loss in of:
            adapter.model.zero_grad()
            self.part(loss, lambda loss=loss: self.learn(loss, prompts, ids, rewards))

    def sampled(self, prompts: PromptBatch) -> Tensor:
        group, guidance = self.given.group, self.given.guidance
        if not self.ours:
            return peer_loop(self.adapter, prompts, group, guidance, greedy=False)
        keys = DrawKeys(0, 0, tuple((p, g) for p in range(len(prompts)) for g in range(group)))
        settings = SamplingConfig(group_size=group, guidance=guidance)
        return sample(self.adapter, prompts, keys, settings).completions.completion_ids

    def rewards(self, prompts: PromptBatch, pixels: Tensor) -> Tensor:
        """[P, G]: how likely the prompt's own tokens are, given each picture."""
        reading = prompts_of(self.adapter, "i2t", len(pixels), prompt_tokens(self.given.size))
        reading = PromptBatch("i2t", reading.prompt_ids, reading.attention_mask, pixels)
        words = prompts.prompt_ids[:, 1:-1].repeat_interleave(self.given.group, 0)
        texts = Completion(words, torch.ones_like(words, dtype=torch.bool))
        rows = 64 if self.adapter.device.type == "cpu" else 256
        pieces = []
        for start in range(0, len(texts), rows):
            part = slice(start, start + rows)
            pieces.append(self.scored(reading.select(part), texts.select(part), 1).mean(-1))
        return torch.cat(pieces).view(len(prompts), -1)

    def scored(self, prompts: PromptBatch, completions: Completion, group: int) -> Tensor:
        if self.ours:
            return completion_logprobs(self.adapter, prompts, completions)
        return peer_logprobs(self.adapter, prompts, completions, group)

    def learn(self, loss: str, prompts: PromptBatch, ids: Tensor, rewards: Tensor) -> None:
        mask = torch.ones_like(ids, dtype=torch.bool)
        if loss == "grpo":
            logprobs = self.scored(prompts, Completion(ids, mask), self.given.group)
            advantages = group_advantages(rewards.cpu(), None).flatten().to(ids.device)
            value, _ = losses.grpo(logprobs, logprobs.detach(), advantages, mask, 0.2, 0.2)
            (value / mask.sum()).backward()
            return
        rows = best_and_worst(judge([rewards.cpu()], [RewardTerm()])).flatten().to(ids.device)
        chosen = prompts.select(rows[::2] // self.given.group)
        logprobs = self.scored(chosen, Completion(ids[rows], mask[rows]), 2)
        value, _ = losses.simpo(mean_logprobs(logprobs, mask[rows]), 5.0, 0.25)
        (value / len(rows)).backward()


if __name__ == "__main__":
    main()
