"""Log-probs a second, and the memory they take: ours, and scoring as the peers do it.

    python benchmarks/score.py                           # the built-in model
    python benchmarks/score.py --size 1b --prompts 4     # Janus-Pro-1B's geometry, random weights

Three cases: the policy's log-probs of pictures and of captions, where a group shares its prompt,
and the reward of captions, where every row has its own. Values are compared first. Then the peak
memory of scoring the 576-token pictures of 32 captions, by vocabulary, on a small model with random
weights. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
from cases import PROMPT_TOKENS, Machine, arguments, begin, prompts_of
from contenders import peer_logprobs
from rich.console import Console
from rich.table import Table
from timing import alternate, median_ratio, peak_memory
from torch.utils.flop_counter import FlopCounterMode
from transformers import JanusForConditionalGeneration

from viceversa.inference.logprobs import completion_logprobs
from viceversa.models.geometry import KNOWN, stand_in
from viceversa.models.janus import JanusAdapter
from viceversa.types import Completion, Direction

#: Above this, the peers' logits alone take gigabytes.
PEERS_UP_TO = 16384


def main() -> None:
    parser = arguments(__doc__, prompts=8, rounds=5)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--captions", type=int, default=32, help="tokens of a caption")
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[1024, 16384, 131072])
    given, console = parser.parse_args(), Console()
    adapter, machine = begin(given.size, console)
    table = Table("case", "ours, s", "rows a second", "of matrix rate", "peers / ours")
    found: dict[str, Any] = {}
    cases: list[tuple[str, Direction, int]] = [
        ("pictures, shared prompts", "t2i", given.group),
        ("captions, shared pictures", "i2t", given.group),
        ("pictures, a prompt each", "t2i", 1),
    ]
    with torch.no_grad():
        for name, direction, group in cases:
            found[name] = row = measure(adapter, direction, group, given, machine)
            table.add_row(
                name,
                f"{row['seconds']:.3f}",
                f"{row['per_second']:.1f}",
                f"{row['of_matrix_rate']:.2f}",
                f"{row['ratio_peer']:.2f}",
            )
        console.print(table)
        found["mib_by_vocabulary"] = memory = by_vocabulary(given.vocabularies, adapter.device)
        for size, row in memory.items():
            shown = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in row.items())
            console.print(f"vocabulary {size}: {shown}")
    print(json.dumps(found))


def completions_of(
    adapter: JanusAdapter, direction: Direction, rows: int, words: int
) -> Completion:
    length = adapter.image_tokens if direction == "t2i" else words
    vocabulary = adapter.image_vocab_size if direction == "t2i" else 400
    ids = torch.randint(vocabulary, (rows, length), device=adapter.device)
    return Completion(ids, torch.ones_like(ids, dtype=torch.bool))


def measure(
    adapter: JanusAdapter,
    direction: Direction,
    group: int,
    given: argparse.Namespace,
    machine: Machine,
) -> dict[str, float]:
    rows = given.prompts * given.group
    prompts = prompts_of(adapter, direction, rows // group, PROMPT_TOKENS[given.size])
    completions = completions_of(adapter, direction, rows, given.captions)
    contenders = {
        "ours": lambda: completion_logprobs(adapter, prompts, completions),
        "peers": lambda: peer_logprobs(adapter, prompts, completions, group),
    }
    torch.testing.assert_close(
        contenders["ours"](), contenders["peers"](), atol=tolerance(adapter), rtol=0
    )
    times = alternate(contenders, given.rounds, adapter.device)
    seconds = statistics.median(times["ours"])
    with FlopCounterMode(display=False) as counter:
        contenders["ours"]()
    return {
        "seconds": seconds,
        "per_second": rows / seconds,
        "of_matrix_rate": counter.get_total_flops() / seconds / machine.rate,
        "ratio_peer": median_ratio(times["peers"], times["ours"]),
    }


def tolerance(adapter: JanusAdapter) -> float:
    return 1e-3 if adapter.model.dtype == torch.float32 else 0.5


def by_vocabulary(vocabularies: list[int], device: torch.device) -> dict[int, dict[str, float]]:
    """MiB of scoring 32 pictures of 576 tokens."""
    found = {}
    for size in vocabularies:
        adapter = small(size, device)
        prompts = prompts_of(adapter, "t2i", 32, 32)
        completions = completions_of(adapter, "t2i", 32, 0)
        work = {"ours": lambda a=adapter, p=prompts, c=completions: completion_logprobs(a, p, c)}
        if size <= PEERS_UP_TO:
            work["peers"] = lambda a=adapter, p=prompts, c=completions: peer_logprobs(a, p, c, 1)
        found[size] = {}
        for name, score in work.items():
            found[size][name] = peak_memory(score, adapter.model) / 2**20
    return found


def small(vocabulary: int, device: torch.device) -> JanusAdapter:
    """Janus-Pro's pictures, one layer of width 64."""
    geometry = KNOWN["janus-pro-1b"]()
    text, vq = geometry.text_config, geometry.vq_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 64, 128, 1
    text.num_attention_heads = text.num_key_value_heads = 4
    text.head_dim, text.vocab_size = 16, 512
    vq.num_embeddings, vq.projection_dim, vq.image_token_embed_dim = vocabulary, 64, 64
    geometry.vision_config.projection_dim, geometry.vision_config.num_hidden_layers = 64, 1
    with torch.device(device):
        model = JanusForConditionalGeneration(geometry).eval()
    adapter = JanusAdapter(model, stand_in(geometry))
    adapter.bos_id, adapter.boi_id, adapter.pad_id, adapter.image_id = 0, 1, 2, 3
    return adapter


if __name__ == "__main__":
    main()
