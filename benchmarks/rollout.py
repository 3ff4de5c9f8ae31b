"""Pictures and captions a second: ours, transformers' `generate`, and the loop of the peers.

    python benchmarks/rollout.py                           # the built-in model
    python benchmarks/rollout.py --size 1b --prompts 4     # Janus-Pro-1B's geometry, random weights
    python benchmarks/rollout.py --size 7b --prompts 8 --groups 8

Same model, prompts, threads and dtype, in turn within one process; greedy tokens are compared
first. Beside each case stands the floor: the bytes of weights and cache that decoding moves at the
measured copy bandwidth, or its operations at the measured matrix rate, whichever takes longer. The
last line is one JSON object, with the ratios of the default case (drawing, groups of 8).
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
from cases import PROMPT_TOKENS, Machine, arguments, begin, prompts_of
from contenders import peer_loop, transformers_captions, transformers_pictures
from rich.console import Console
from rich.table import Table
from timing import alternate, bytes_of, median_ratio
from torch import Tensor

from viceversa.config import SamplingConfig
from viceversa.inference.sampler import DrawKeys, sample
from viceversa.models.janus import JanusAdapter
from viceversa.types import Direction, PromptBatch


def main() -> None:
    parser = arguments(__doc__, prompts=8, rounds=5)
    parser.add_argument("--groups", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--captions", type=int, default=32, help="tokens of a caption")
    given, console = parser.parse_args(), Console()
    adapter, machine = begin(given.size, console)
    table = Table("case", "ours, s", "a second", "floor, s", "transformers / ours", "peer / ours")
    summary: dict[str, Any] = {}
    for direction in ("t2i", "i2t"):
        for group in given.groups:
            row = measure(adapter, direction, group, given, machine, console)
            peer = f"{row['ratio_peer']:.2f}" if "ratio_peer" in row else ""
            table.add_row(
                f"{direction}, {given.prompts} x {group}",
                f"{row['seconds']:.3f}",
                f"{row['per_second']:.1f}",
                f"{row['floor']:.3f}",
                f"{row['ratio_transformers']:.2f}",
                peer,
            )
            if (direction, group) == ("t2i", 8):
                summary |= {"case": f"{given.size} t2i {given.prompts} x 8", **row}
    console.print(table)
    print(json.dumps(summary))


def measure(
    adapter: JanusAdapter,
    direction: Direction,
    group: int,
    given: argparse.Namespace,
    machine: Machine,
    console: Console,
) -> dict[str, float]:
    prompts = prompts_of(adapter, direction, given.prompts, PROMPT_TOKENS[given.size])
    length = adapter.image_tokens if direction == "t2i" else given.captions
    adapter.stop_id = -1  # captions of one length, for everyone
    keys = DrawKeys(0, 0, tuple((p, g) for p in range(given.prompts) for g in range(group)))

    def ours(greedy: bool) -> Tensor:
        settings = SamplingConfig(
            group_size=group,
            temperature=0.0 if greedy else 1.0,
            guidance=given.guidance,
            max_caption_tokens=length,
        )
        with torch.no_grad():
            return sample(adapter, prompts, keys, settings).completions.completion_ids

    def theirs(greedy: bool) -> Tensor:
        if direction == "i2t":
            return transformers_captions(adapter, prompts, group, length, greedy)
        return transformers_pictures(adapter, prompts, group, given.guidance, greedy)

    def peers(greedy: bool) -> Tensor:
        return peer_loop(adapter, prompts, group, given.guidance, greedy)

    contenders = {"ours": ours, "transformers": theirs}
    if direction == "t2i":
        contenders["peer"] = peers
    wanted = ours(True)
    for name, draw in contenders.items():
        same = float((draw(True) == wanted).float().mean())
        if same < 1:
            console.print(f"{direction} x {group}: {name} agrees on {same:.3f} of greedy tokens")
    times = alternate(
        {name: lambda d=d: d(False) for name, d in contenders.items()}, given.rounds, adapter.device
    )
    seconds = statistics.median(times["ours"])
    row = {
        "seconds": seconds,
        "per_second": len(keys.rows) / seconds,
        "floor": floor(adapter, prompts, len(keys.rows), length, given.guidance, machine),
        "ratio_transformers": median_ratio(times["transformers"], times["ours"]),
    }
    if "peer" in times:
        row["ratio_peer"] = median_ratio(times["peer"], times["ours"])
    return row


def floor(
    adapter: JanusAdapter,
    prompts: PromptBatch,
    rows: int,
    length: int,
    guidance: float,
    machine: Machine,
) -> float:
    """Seconds that decoding takes at least: its traffic or its arithmetic, whichever is more."""
    text: Any = adapter.model.config.get_text_config()
    doubled = rows * (2 if prompts.direction == "t2i" and guidance != 1.0 else 1)
    head = (
        adapter.model.model.generation_head if prompts.direction == "t2i" else adapter.model.lm_head
    )
    weights = [p for n, p in adapter.text_model.named_parameters() if "embed_tokens" not in n]
    weights += list(head.parameters())
    numbers = sum(w.numel() for w in weights)
    kv = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    filled = prompts.prompt_ids.shape[1] + length / 2
    element = weights[0].element_size()
    moved = length * (bytes_of(weights) + doubled * kv * filled * element)
    attention = 4 * text.num_hidden_layers * text.num_attention_heads * text.head_dim * filled
    operations = length * doubled * (2 * numbers + attention)
    return max(moved / machine.bandwidth, operations / machine.rate)


if __name__ == "__main__":
    main()
