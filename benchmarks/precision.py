"""bfloat16 against float32: what it saves in time, and what it costs in the accuracy of log-probs.

    python benchmarks/precision.py                  # medium: what Janus-Pro has, narrow
    python benchmarks/precision.py --size builtin   # the built-in model

The same weights three times: in float32, in float32 under autocast to bfloat16 (`train.bf16`), and
in bfloat16 (`model.dtype`). Pictures and captions are sampled, scored and learned from (forward and
backward), in turn within one process. The error is of a token's log-prob, nats.
The last line is one JSON object.
"""

from __future__ import annotations

import copy
import json
import statistics
from contextlib import nullcontext
from typing import Any

import torch
from cases import arguments, begin, guidance_of, prompt_tokens, prompts_of, settled
from rich.console import Console
from rich.table import Table
from score import completions_of
from timing import Work, alternate, median_ratio
from torch import Tensor

from viceversa.config import SamplingConfig
from viceversa.inference.logprobs import completion_logprobs, policy_logprobs
from viceversa.inference.sampler import DrawKeys, sample
from viceversa.models.janus import JanusAdapter
from viceversa.types import DIRECTIONS, Completion, PromptBatch

COLUMNS = (
    "case",
    "float32, s",
    "autocast",
    "bfloat16 weights",
    "error, autocast",
    "error, weights",
)


class Precision:
    """One model and the precision that it computes in."""

    def __init__(self, adapter: JanusAdapter, autocast: bool = False):
        self.adapter, self.autocast = adapter, autocast

    def __call__(self, work: Work) -> Any:
        kind = self.adapter.device.type
        with torch.autocast(kind, torch.bfloat16) if self.autocast else nullcontext():
            return work()

    def sample(self, prompts: PromptBatch, config: SamplingConfig) -> Any:
        rows = tuple((p, g) for p in range(len(prompts)) for g in range(config.group_size))
        with torch.no_grad():
            return self(lambda: sample(self.adapter, prompts, DrawKeys(0, 0, rows), config))

    def score(self, prompts: PromptBatch, rows: Completion) -> Tensor:
        with torch.no_grad():
            return self(lambda: completion_logprobs(self.adapter, prompts, rows))

    def learn(self, prompts: PromptBatch, rows: Completion) -> None:
        self.adapter.model.zero_grad()
        self(lambda: policy_logprobs(self.adapter, [(prompts, rows)])[0].mean()).backward()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--captions", type=int, default=32, help="tokens of a caption")
    given = settled(parser, {"prompts": 1, "rounds": 3}, {"prompts": 8, "rounds": 5})
    console = Console(width=140)
    adapter, _ = begin(given.size, console)
    half = copy.copy(adapter)
    half.model = copy.deepcopy(adapter.model).bfloat16()
    ways = {
        "float32": Precision(adapter),
        "autocast": Precision(adapter, autocast=True),
        "bfloat16": Precision(half),
    }
    table, found = Table(*COLUMNS), {}
    for direction in DIRECTIONS:
        prompts = prompts_of(adapter, direction, given.prompts, prompt_tokens(given.size))
        rows = completions_of(adapter, direction, given.prompts * given.group, given.captions)
        config = SamplingConfig(
            group_size=given.group,
            guidance=guidance_of(given.size),
            max_caption_tokens=given.captions,
        )
        name = {"t2i": "pictures", "i2t": "captions"}[direction]
        errors = errors_of(ways, prompts, rows)
        for work, contenders in works(ways, prompts, rows, config).items():
            times = alternate(contenders, given.rounds, adapter.device)
            row = found[f"{name} {work}"] = {
                "seconds": statistics.median(times["float32"]),
                **{n: median_ratio(times["float32"], times[n]) for n in ("autocast", "bfloat16")},
                **errors,
            }
            shown = (f"{m:.4f}, {x:.4f}" if work == "scored" else "" for m, x in errors.values())
            speeds = (f"{row[n]:.2f} times" for n in ("autocast", "bfloat16"))
            table.add_row(f"{name}, {work}", f"{row['seconds']:.2f}", *speeds, *shown)
    console.print(table)
    print(json.dumps(found))


def works(
    ways: dict[str, Precision], prompts: PromptBatch, rows: Completion, config: SamplingConfig
) -> dict[str, dict[str, Work]]:
    """Return by what is done, and by precision."""
    return {
        "sampled": {n: lambda w=w: w.sample(prompts, config) for n, w in ways.items()},
        "scored": {n: lambda w=w: w.score(prompts, rows) for n, w in ways.items()},
        "learned": {n: lambda w=w: w.learn(prompts, rows) for n, w in ways.items()},
    }


def errors_of(
    ways: dict[str, Precision], prompts: PromptBatch, rows: Completion
) -> dict[str, tuple[float, float]]:
    """Return the mean and the largest error of a token's log-prob, nats, by precision."""
    exact = ways["float32"].score(prompts, rows)
    found = {}
    for name in ("autocast", "bfloat16"):
        gap = (ways[name].score(prompts, rows).float() - exact).abs()
        found[f"error_{name}"] = (float(gap.mean()), float(gap.max()))
    return found


if __name__ == "__main__":
    main()
