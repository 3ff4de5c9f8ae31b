"""Log-probs a second, and the memory they take: ours, and scoring as the peers do it.

    python benchmarks/score.py                             # medium: what Janus-Pro has, narrow
    python benchmarks/score.py --size builtin              # the built-in model
    python benchmarks/score.py --size 1b --prompts 4       # Janus-Pro-1B's geometry, random weights

The policy's log-probs of pictures and of captions, where a group shares its prompt; then the two
rewards, where every row has its own: of captions, by the pictures' tokens, and of pictures, by the
prompts'. Values are compared first, and an error ends the run. The reward of pictures is also held
against GvU's (`gvu_reward` in contenders.py) on `--gvu` of them, whose logarithm it is. Then the
peak memory of scoring the 576-token pictures of 32 captions, by vocabulary, on a small model with
random weights. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
from cases import (
    Machine,
    arguments,
    begin,
    narrow,
    prompt_tokens,
    prompts_of,
    random_weights,
    settled,
)
from contenders import gvu_reward, peer_logprobs
from rich.console import Console
from rich.table import Table
from timing import Work, alternate, median_ratio, peak_memory
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from viceversa.inference.logprobs import completion_logprobs
from viceversa.models import products
from viceversa.models.janus import JanusAdapter
from viceversa.types import Completion, Direction, PromptBatch

#: Above this, the peers' logits alone take gigabytes.
PEERS_UP_TO = 16384


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--captions", type=int, default=32, help="tokens of a caption")
    parser.add_argument("--gvu", type=int, help="pictures that GvU's reward is measured on")
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[1024, 16384, 131072])
    medium = {"prompts": 1, "rounds": 3, "gvu": 1}
    given = settled(parser, medium, {"prompts": 8, "rounds": 5, "gvu": 8})
    console = Console(width=140)
    adapter, machine = begin(given.size, console)
    table = Table(
        "case", "ours, s", "rows a second", "of matrix rate", "peers / ours", "GvU / ours"
    )
    found: dict[str, Any] = {}
    with torch.no_grad():
        for name, work in cases_of(adapter, given).items():
            found[name] = row = measure(adapter, work, given.rounds, machine)
            table.add_row(
                name,
                f"{row['seconds']:.3f}",
                f"{row['per_second']:.2f}",
                f"{row['of_matrix_rate']:.2f}",
                *(f"{row[k]:.2f}" if k in row else "" for k in ("ratio_peers", "ratio_gvu")),
            )
        console.print(table)
        found["mib_by_vocabulary"] = memory = by_vocabulary(given.vocabularies, adapter.device)
        for size, row in memory.items():
            shown = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in row.items())
            console.print(f"vocabulary {size}: {shown}")
    print(json.dumps(found))


def cases_of(adapter: JanusAdapter, given: argparse.Namespace) -> dict[str, dict[str, Work]]:
    """By case and contender: the log-probs of rows [B, T], or GvU's reward of pictures."""
    words, rows = prompt_tokens(given.size), given.prompts * given.group
    kinds: dict[str, tuple[Direction, int, int, int]] = {
        "pictures, shared prompts": ("t2i", given.prompts, given.group, 0),
        "captions, shared pictures": ("i2t", given.prompts, given.group, given.captions),
        "reward of captions": ("t2i", rows, 1, 0),
        "reward of pictures": ("i2t", rows, 1, words),
    }
    found = {}
    for name, (direction, prompts, group, length) in kinds.items():
        inputs = prompts_of(adapter, direction, prompts, words)
        outputs = completions_of(adapter, direction, prompts * group, length)
        found[name] = rivals(adapter, inputs, outputs, group)
    few = slice(0, given.gvu)
    inputs, outputs = inputs.select(few), outputs.select(few)
    work = found[f"reward of {given.gvu} pictures, GvU"] = rivals(adapter, inputs, outputs, 1)
    work["gvu"] = lambda: gvu_reward(adapter, inputs, outputs)
    return found


def rivals(
    adapter: JanusAdapter, prompts: PromptBatch, completions: Completion, group: int
) -> dict[str, Work]:
    return {
        "ours": lambda: completion_logprobs(adapter, prompts, completions),
        "peers": lambda: peer_logprobs(adapter, prompts, completions, group),
    }


def completions_of(
    adapter: JanusAdapter, direction: Direction, rows: int, words: int
) -> Completion:
    length = adapter.image_tokens if direction == "t2i" else words
    vocabulary = adapter.image_vocab_size if direction == "t2i" else 400
    ids = torch.randint(vocabulary, (rows, length), device=adapter.device)
    return Completion(ids, torch.ones_like(ids, dtype=torch.bool))


def measure(
    adapter: JanusAdapter, contenders: Mapping[str, Work], rounds: int, machine: Machine
) -> dict[str, float]:
    """Compare the values, which warms everyone up; then seconds in turn."""
    values = {name: work() for name, work in contenders.items()}
    compare(values, tolerance(adapter))
    times = alternate(contenders, rounds, adapter.device, warm_up=False)
    seconds = statistics.median(times["ours"])
    counted = FlopCounterMode(display=False)  # of what oneDNN multiplies it counts nothing
    with mock.patch.object(products, "has_onednn", return_value=False), counted as counter:
        contenders["ours"]()
    others = {n: median_ratio(t, times["ours"]) for n, t in times.items() if n != "ours"}
    return {
        "seconds": seconds,
        "per_second": len(values["ours"]) / seconds,
        "of_matrix_rate": counter.get_total_flops() / seconds / machine.rate,
        **{f"ratio_{name}": ratio for name, ratio in others.items()},
    }


def compare(values: Mapping[str, Tensor], allowed: float) -> None:
    """Raise AssertionError where log-probs, or the mean of ours and GvU's logarithm, differ."""
    ours = values["ours"]
    torch.testing.assert_close(values["peers"], ours, atol=allowed, rtol=0)
    if "gvu" in values:
        mean = ours.double().mean(-1).cpu()
        torch.testing.assert_close(values["gvu"].log(), mean, atol=allowed, rtol=0)


def tolerance(adapter: JanusAdapter) -> float:
    return 1e-3 if adapter.model.dtype == torch.float32 else 0.5


def by_vocabulary(vocabularies: list[int], device: torch.device) -> dict[int, dict[str, float]]:
    """MiB of scoring 32 pictures of 576 tokens."""
    found = {}
    for size in vocabularies:
        adapter = random_weights(narrow(64, 1, image_ids=size, words=512), device, torch.float32)
        prompts = prompts_of(adapter, "t2i", 32, 32)
        completions = completions_of(adapter, "t2i", 32, 0)
        work = {"ours": lambda a=adapter, p=prompts, c=completions: completion_logprobs(a, p, c)}
        if size <= PEERS_UP_TO:
            work["peers"] = lambda a=adapter, p=prompts, c=completions: peer_logprobs(a, p, c, 1)
        found[size] = {}
        for name, score in work.items():
            found[size][name] = peak_memory(score, adapter.model) / 2**20
    return found


if __name__ == "__main__":
    main()
