"""Pictures and captions a second: ours, transformers' `generate`, and the loop of the peers.

    python benchmarks/rollout.py                           # medium: what Janus-Pro has, narrow
    python benchmarks/rollout.py --size builtin            # the built-in model
    python benchmarks/rollout.py --directions i2t          # captions alone
    python benchmarks/rollout.py --size 7b --prompts 8 --groups 8

Same model, prompts, threads and dtype, in turn within one process. Greedy tokens are compared
first; where they differ and rounding does not explain it, the exit code is 1. Beside each case
stands the floor: the bytes of weights and cache that decoding moves at the measured copy bandwidth,
or its operations at the measured matrix rate, whichever takes longer. Captions also show the peak
memory above the loaded model, each measured in a fresh process. The last line is one JSON object,
a row for each case.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from agreement import differences
from cases import Machine, arguments, begin, guidance_of, make, prompt_tokens, prompts_of, settled
from contenders import peer_loop, transformers_captions, transformers_pictures
from fresh import MIB, Meter, child
from rich.console import Console
from rich.table import Table
from timing import alternate, bytes_of, median_ratio
from torch import Tensor

from viceversa.config import SamplingConfig
from viceversa.inference.sampler import DrawKeys, sample
from viceversa.models.janus import JanusAdapter
from viceversa.types import DIRECTIONS, Direction, PromptBatch

COLUMNS = ("case", "ours, s", "a second", "floor, s", "transformers / ours", "peers / ours")
MEMORY = ("MiB, ours", "MiB, transformers", "ours / transformers")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--groups", nargs="+", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--captions", type=int, default=32, help="tokens of a caption")
    parser.add_argument("--directions", nargs="+", default=DIRECTIONS, choices=DIRECTIONS)
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks of captions out")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    medium = {"prompts": 1, "rounds": 3, "groups": [8]}
    given = settled(parser, medium, {"prompts": 8, "rounds": 5, "groups": [1, 8, 32]})
    if given.guidance is None:
        given.guidance = guidance_of(given.size)
    if given.child:
        print(json.dumps(peak(*given.child)))
        return
    console = Console(width=140)
    adapter, machine = begin(given.size, console)
    table, found, parted = Table(*COLUMNS, *MEMORY), {}, []
    for direction in given.directions:
        for group in given.groups:
            sizes = (given.prompts, group, prompt_tokens(given.size), given.captions)
            case = Case(adapter, direction, *sizes, given.guidance)
            parted += compared(case, console)
            row = measure(case, given.rounds, machine)
            if direction == "i2t" and not given.no_memory:
                row |= {f"mib_{n}": child(__file__, [n, given.size, *sizes]) for n in case.draws}
            found[f"{given.size} {case}"] = row
            table.add_row(*cells(str(case), row))
    console.print(table)
    print(json.dumps(found))
    if parted:
        raise SystemExit(f"greedy tokens differ, unexplained: {', '.join(parted)}")


def cells(name: str, row: dict[str, float]) -> list[str]:
    shown = [name, f"{row['seconds']:.3f}", f"{row['per_second']:.2f}", f"{row['floor']:.3f}"]
    shown += [f"{row[k]:.2f}" if k in row else "" for k in ("ratio_transformers", "ratio_peers")]
    if "mib_ours" not in row:
        return shown
    mine, theirs = row["mib_ours"], row["mib_transformers"]
    return [*shown, f"{mine:.0f}", f"{theirs:.0f}", f"{mine / theirs:.2f}"]


@dataclass(frozen=True)
class Case:
    """So many outputs of so many random prompts, and who draws them."""

    adapter: JanusAdapter
    direction: Direction
    count: int
    group: int
    words: int
    """Tokens of a prompt or of an instruction."""
    captions: int
    """Tokens of a caption: all of one length, for everyone."""
    guidance: float

    def __str__(self) -> str:
        return f"{self.direction} {self.count} x {self.group}"

    @property
    def length(self) -> int:
        return self.adapter.image_tokens if self.direction == "t2i" else self.captions

    @property
    def decoded_rows(self) -> int:
        """Rows of a step, guidance's unconditional ones among them."""
        guided = self.direction == "t2i" and self.guidance != 1.0
        return self.count * self.group * (2 if guided else 1)

    @property
    def layers(self) -> list[torch.nn.Parameter]:
        """Weights of the language model's layers."""
        named = self.adapter.text_model.named_parameters()
        return [p for n, p in named if "embed_tokens" not in n]

    @property
    def head(self) -> list[torch.nn.Parameter]:
        model = self.adapter.model
        image = self.direction == "t2i"
        return list((model.model.generation_head if image else model.lm_head).parameters())

    @property
    def kv_bytes(self) -> int:
        """Bytes of a token's keys and values in all layers."""
        text: Any = self.adapter.model.config.get_text_config()
        numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        return numbers * self.layers[0].element_size()

    @property
    def attention(self) -> int:
        """Operations to attend from a token to one other in all layers."""
        text: Any = self.adapter.model.config.get_text_config()
        return 4 * text.num_hidden_layers * text.num_attention_heads * text.head_dim

    @cached_property
    def prompts(self) -> PromptBatch:
        return prompts_of(self.adapter, self.direction, self.count, self.words)

    @cached_property
    def draws(self) -> dict[str, Callable[[bool], Tensor]]:
        """By name: a function of `greedy` that decodes every row, [B, T]."""
        given = (self.adapter, self.prompts, self.group)
        if self.direction == "i2t":
            return {
                "ours": self.ours,
                "transformers": partial(transformers_captions, *given, self.captions),
            }
        return {
            "ours": self.ours,
            "transformers": partial(transformers_pictures, *given, self.guidance),
            "peers": partial(peer_loop, *given, self.guidance),
        }

    @torch.no_grad()
    def ours(self, greedy: bool) -> Tensor:
        self.adapter.stop_id = -1
        settings = SamplingConfig(
            group_size=self.group,
            temperature=0.0 if greedy else 1.0,
            guidance=self.guidance,
            max_caption_tokens=self.captions,
        )
        rows = tuple((p, g) for p in range(self.count) for g in range(self.group))
        drawn = sample(self.adapter, self.prompts, DrawKeys(0, 0, rows), settings)
        return drawn.completions.completion_ids


def compared(case: Case, console: Console) -> list[str]:
    """Those whose greedy tokens differ from ours for no reason; prints where any differ."""
    wanted, unexplained = case.ours(True), []
    for name, draw in case.draws.items():
        if name == "ours":
            continue
        found = differences(case.adapter, case.prompts, wanted, draw(True), case.guidance)
        same = f"{len(wanted) - len(found)} of {len(wanted)}"
        console.print(f"{case}: greedy tokens of ours and {name} agree in {same} rows")
        for difference in found:
            console.print(f"  {difference}")
        if not all(d.tie for d in found):
            unexplained.append(f"{case}, {name}")
    return unexplained


def measure(case: Case, rounds: int, machine: Machine) -> dict[str, float]:
    """Seconds in turn; the greedy comparison has warmed everyone up."""
    works = {name: partial(draw, False) for name, draw in case.draws.items()}
    times = alternate(works, rounds, case.adapter.device, warm_up=False)
    seconds, rows = statistics.median(times["ours"]), case.count * case.group
    others = {n: median_ratio(t, times["ours"]) for n, t in times.items() if n != "ours"}
    return {
        "seconds": seconds,
        "per_second": rows / seconds,
        "floor": floor(case, machine),
        **{f"ratio_{name}": ratio for name, ratio in others.items()},
    }


def peak(name: str, size: str, count: int, group: int, words: int, captions: int) -> float:
    """MiB that captions of `name` take above the loaded model and a caption of two tokens."""
    torch.manual_seed(0)
    cuda = torch.cuda.is_available()
    adapter = make(size, torch.device("cuda" if cuda else "cpu"))
    meter = Meter(cuda)
    Case(adapter, "i2t", 1, 1, words, 2, 1.0).draws[name](False)
    draw = Case(adapter, "i2t", count, group, words, captions, 1.0).draws[name]
    meter.begin()
    draw(False)
    return meter.peak() / MIB


def floor(case: Case, machine: Machine) -> float:
    """Seconds that decoding takes at least: its traffic or its arithmetic, whichever is more."""
    weights = [*case.layers, *case.head]
    filled = case.prompts.prompt_ids.shape[1] + case.length / 2
    moved = case.length * (bytes_of(weights) + case.decoded_rows * case.kv_bytes * filled)
    numbers = sum(w.numel() for w in weights)
    operations = case.length * case.decoded_rows * (2 * numbers + case.attention * filled)
    return max(moved / machine.bandwidth, operations / machine.rate)


if __name__ == "__main__":
    main()
