"""Where the time of sampling goes, part by part, and how near each part is to its floor.

    python benchmarks/account.py                           # medium, pictures and captions, 1 x 8
    python benchmarks/account.py --size builtin --prompts 8

A part's floor is the bytes that it must move at the measured copy bandwidth, or its operations at
the measured matrix rate, whichever takes longer. A part without one is calls and small tensors.
Stopwatches in Python add about a microsecond to a call; `rollout.py` measures the whole without.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from cases import Machine, arguments, begin, guidance_of, prompt_tokens, settled
from rich.console import Console
from rich.table import Table
from rollout import Case
from timing import bytes_of

from viceversa.inference import fused, sampler
from viceversa.inference.engines import Plain
from viceversa.inference.fused import Fused
from viceversa.inference.shared import Groups, SharedCache
from viceversa.models import products
from viceversa.types import DIRECTIONS

PARTS = {
    "reading the prompt": "the prompt through vision tower and layers, once",
    "products": "tokens times the layers' weights",
    "own keys and values": "attention to what the rows wrote",
    "prompt's keys and values": "attention to the prompt that rows share",
    "head": "states to logits, guidance",
    "drawing": "softmax, cumulative sum, search",
    "the rest": "norms, positions, embeddings, cache writes, calls",
}


@dataclass
class Watch:
    """Seconds by part: the innermost part that has begun counts."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    open: list[str] = field(default_factory=lambda: ["the rest"])
    since: float = 0.0

    def turn(self) -> None:
        now = time.perf_counter()
        self.seconds[self.open[-1]] += now - self.since
        self.since = now

    def watched(self, work: Callable[..., Any], part: str, inside: str = "") -> Callable[..., Any]:
        """Return `work` that counts as `part`; where `inside` is given, within that part alone."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if inside and self.open[-1] != inside:
                return work(*args, **kwargs)
            self.turn()
            self.open.append(part)
            try:
                return work(*args, **kwargs)
            finally:
                self.turn()
                self.open.pop()

        return timed


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Put a stopwatch on every part of the decoder."""
    places: list[tuple[Any, str, str, str]] = [
        (Plain, "__init__", "reading the prompt", ""),
        (sampler._Decoder, "_start", "reading the prompt", ""),
        (sampler._Decoder, "logits", "head", ""),
        (sampler, "draw_tokens", "drawing", ""),
        (SharedCache, "attended", "own keys and values", ""),
        (Groups, "add", "prompt's keys and values", "own keys and values"),
        *((torch, name, "products", "the rest") for name in ("mm", "addmm", "matmul")),
        (torch.nn.functional, "linear", "products", "the rest"),
        *((module, "onednn_product", "products", "the rest") for module in (products, fused)),
        (Fused, "__init__", "the rest", ""),
    ]
    with ExitStack() as stack:
        for owner, name, part, inside in places:
            timed = watch.watched(getattr(owner, name), part, inside)
            stack.enter_context(mock.patch.object(owner, name, timed))
        yield


def floors(case: Case, machine: Machine) -> dict[str, float]:
    """Seconds that each part takes at least."""
    prompts, length = case.prompts.prompt_ids.shape
    rows, decoded, own = case.count * case.group, case.decoded_rows, case.length / 2
    layers = sum(w.numel() for w in case.layers)
    vocabulary = case.adapter.vocabulary("image" if case.direction == "t2i" else "text")
    last = sum(w.numel() for w in case.head if len(w) == vocabulary)  # reads what guidance mixed
    before = sum(w.numel() for w in case.head) - last

    def most(moved: float, operations: float) -> float:
        return max(moved / machine.bandwidth, operations / machine.rate)

    tokens = {
        "products": most(bytes_of(case.layers), 2 * decoded * layers),
        "own keys and values": most(decoded * case.kv_bytes * own, decoded * case.attention * own),
        "prompt's keys and values": most(
            prompts * case.kv_bytes * length, decoded * case.attention * length
        ),
        "head": most(bytes_of(case.head), 2 * (decoded * before + rows * last)),
        # logits, masses and cumulative masses, written and read
        "drawing": 6 * 4 * rows * vocabulary / machine.bandwidth,
    }
    reading = most(bytes_of(case.layers), 2 * prompts * length * layers)
    return {"reading the prompt": reading, **{k: case.length * v for k, v in tokens.items()}}


def account(case: Case, rounds: int) -> dict[str, float]:
    """Return the median seconds of each part."""
    case.ours(False)
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        watch = Watch(since=time.perf_counter())
        with watching(watch):
            case.ours(False)
        watch.turn()
        found.append(watch.seconds)
    return {part: statistics.median(f[part] for f in found) for part in PARTS}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--captions", type=int, default=32, help="tokens of a caption")
    parser.add_argument("--directions", nargs="+", default=DIRECTIONS, choices=DIRECTIONS)
    given = settled(parser, {"prompts": 1, "rounds": 3}, {"prompts": 8, "rounds": 15})
    console = Console(width=140)
    adapter, machine = begin(given.size, console)
    if adapter.device.type != "cpu":
        parser.error("stopwatches in Python tell nothing of a GPU; use torch's profiler there")
    found = {}
    for direction in given.directions:
        sizes = (given.prompts, given.group, prompt_tokens(given.size), given.captions)
        case = Case(adapter, direction, *sizes, guidance_of(given.size))
        seconds, least = account(case, given.rounds), floors(case, machine)
        found[f"{given.size} {case}"] = {"seconds": seconds, "floors": least}
        table = Table("part", "ms", "share", "floor, ms", "what", title=str(case))
        for part, what in PARTS.items():
            share = seconds[part] / sum(seconds.values())
            floor = f"{1e3 * least[part]:.1f}" if part in least else ""
            table.add_row(part, f"{1e3 * seconds[part]:.1f}", f"{share:.0%}", floor, what)
        sums = [f"{1e3 * sum(x.values()):.1f}" for x in (seconds, least)]
        table.add_row("all", sums[0], "", sums[1], "")
        console.print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
