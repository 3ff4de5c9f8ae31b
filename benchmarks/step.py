"""A whole training step of drawing, part by part: ours, and the same step as the peers take it.

    python benchmarks/step.py                            # the built-in model, 32 prompts x 8
    python benchmarks/step.py --size 1b --prompts 4      # Janus-Pro-1B's geometry, random weights

Sampling, decoding to pixels, the dual reward and the backward pass of GRPO (every row) or SimPO
(the best and the worst of each group), without the optimizer. Peers sample with a growing cache
and every prompt repeated, run heads over every position, and take each row's prompt through the
backward pass. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import PROMPT_TOKENS, arguments, begin, prompts_of
from contenders import peer_logprobs, peer_loop
from rich.console import Console
from rich.table import Table
from timing import peak_memory, synchronize
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

PARTS = ("sample", "decode", "score", "backward")


def main() -> None:
    parser = arguments(__doc__, prompts=32, rounds=3)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--memory", action="store_true", help="also measure peaks, which is slow")
    given, console = parser.parse_args(), Console()
    adapter, _ = begin(given.size, console)
    select_trainable(adapter, None, given.size)
    found: dict[str, Any] = {}
    for loss in ("grpo", "simpo"):
        steps = {name: Step(adapter, given, loss, name == "ours") for name in ("ours", "peers")}
        for step in steps.values():
            step.take()
            step.seconds.clear()
        for _ in range(given.rounds):
            for step in steps.values():
                step.take()
        found[loss] = show(console, loss, steps, given)
    print(json.dumps(found))


def show(
    console: Console, loss: str, steps: dict[str, Step], given: argparse.Namespace
) -> dict[str, Any]:
    table = Table(loss, "ours, s", "peers, s", "peers / ours")
    found: dict[str, Any] = {}
    for part in PARTS:
        mine, theirs = (statistics.median(steps[n].seconds[part]) for n in ("ours", "peers"))
        table.add_row(part, f"{mine:.3f}", f"{theirs:.3f}", f"{theirs / mine:.2f}")
        found[part] = {"ours": mine, "peers": theirs}
    mine, theirs = (sum(found[p][n] for p in PARTS) for n in ("ours", "peers"))
    table.add_row("step", f"{mine:.3f}", f"{theirs:.3f}", f"{theirs / mine:.2f}")
    pictures = given.prompts * given.group
    table.add_row("pictures a second", f"{pictures / mine:.1f}", f"{pictures / theirs:.1f}", "")
    found |= {"pictures_per_second": pictures / mine, "ratio_peer": theirs / mine}
    if given.memory:
        for name, step in steps.items():
            found[f"peak_mib_{name}"] = peak_memory(step.take, step.adapter.model) / 2**20
        table.add_row(
            "peak, MiB", *(f"{found[f'peak_mib_{n}']:.0f}" for n in ("ours", "peers")), ""
        )
    console.print(table)
    return found


@dataclass
class Step:
    """One optimizer step without its optimizer, ours or the peers'."""

    adapter: JanusAdapter
    given: argparse.Namespace
    loss: str
    ours: bool
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def part(self, name: str, work: Callable[[], Any]) -> Any:
        synchronize(self.adapter.device)
        began = time.perf_counter()
        result = work()
        synchronize(self.adapter.device)
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)
        return result

    def take(self) -> None:
        given, adapter = self.given, self.adapter
        torch.manual_seed(0)
        prompts = prompts_of(adapter, "t2i", given.prompts, PROMPT_TOKENS[given.size])
        with torch.no_grad():
            ids = self.part("sample", lambda: self.sampled(prompts))
            pixels = self.part("decode", lambda: decode_images(adapter, ids))
            rewards = self.part("score", lambda: self.rewards(prompts, pixels))
        adapter.model.zero_grad()
        self.part("backward", lambda: self.learn(prompts, ids, rewards))

    def sampled(self, prompts: PromptBatch) -> Tensor:
        group, guidance = self.given.group, self.given.guidance
        if not self.ours:
            return peer_loop(self.adapter, prompts, group, guidance, greedy=False)
        keys = DrawKeys(0, 0, tuple((p, g) for p in range(len(prompts)) for g in range(group)))
        settings = SamplingConfig(group_size=group, guidance=guidance)
        return sample(self.adapter, prompts, keys, settings).completions.completion_ids

    def rewards(self, prompts: PromptBatch, pixels: Tensor) -> Tensor:
        """[P, G]: how likely the prompt's own tokens are, given each picture."""
        reading = prompts_of(self.adapter, "i2t", len(pixels), PROMPT_TOKENS[self.given.size])
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

    def learn(self, prompts: PromptBatch, ids: Tensor, rewards: Tensor) -> None:
        mask = torch.ones_like(ids, dtype=torch.bool)
        if self.loss == "grpo":
            logprobs = self.scored(prompts, Completion(ids, mask), self.given.group)
            advantages = group_advantages(rewards.cpu(), None).flatten().to(ids.device)
            loss, _ = losses.grpo(logprobs, logprobs.detach(), advantages, mask, 0.2, 0.2)
            (loss / mask.sum()).backward()
            return
        rows = best_and_worst(judge([rewards.cpu()], [RewardTerm()])).flatten().to(ids.device)
        chosen = prompts.select(rows[::2] // self.given.group)
        logprobs = self.scored(chosen, Completion(ids[rows], mask[rows]), 2)
        loss, _ = losses.simpo(mean_logprobs(logprobs, mask[rows]), 5.0, 0.25)
        (loss / len(rows)).backward()


if __name__ == "__main__":
    main()
