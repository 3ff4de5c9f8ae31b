"""The best of N outputs by the dual reward, against one output and the likeliest; prints tables.

python benchmarks/best_of.py                         # the bundled model
python benchmarks/best_of.py runs/latest/checkpoint-200
"""

from __future__ import annotations

import argparse

import torch
from measured import EVALUATION_SEED, TASKS, row
from rich.console import Console
from torch import Tensor

from viceversa.config import ModelConfig, SamplingConfig
from viceversa.models import load_adapter
from viceversa.rl.rewards import dual_reward
from viceversa.rl.rollout import rollout
from viceversa.scenes.evaluate import by_kind, picture_name
from viceversa.scenes.examples import examples_of
from viceversa.scenes.language import caption
from viceversa.scenes.rewards import verified
from viceversa.scenes.spec import draw_specs
from viceversa.types import DIRECTIONS

SIZES = (1, 2, 4, 8, 16)
AT_ONCE = 35


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", default="builtin")
    parser.add_argument("--specs", type=int, default=100, help="test specs of each kind")
    parser.add_argument("--own", type=float, default=1.0, help="weight of the second term")
    given = parser.parse_args()
    console = Console()
    adapter = load_adapter(ModelConfig(path=given.model))
    specs = draw_specs(EVALUATION_SEED, given.specs, "test")
    for direction in DIRECTIONS:
        inputs = [caption(s) if direction == "t2i" else picture_name(s) for s in specs]
        kinds = [s.kind for s in specs]

        def share(right: Tensor, kinds: list[str] = kinds, inputs: list[str] = inputs) -> str:
            found = by_kind(kinds, right.tolist(), inputs)
            low, high = found["interval"]
            return f"{found['accuracy']:.3f} [{low:.3f}, {high:.3f}]"

        right, *scores = sampled(
            adapter, direction, specs, SamplingConfig(group_size=16), given.own
        )
        greedy = sampled(adapter, direction, specs, SamplingConfig(group_size=1, temperature=0.0))[
            0
        ]
        names = ("the dual reward", "with the second term", "the output's own likelihood")
        console.print(f"\n{TASKS[direction]}; the likeliest tokens: {share(greedy[:, 0])}\n")
        lines = [row(["best of", *names]), row(["---"] * 4)]
        for n in SIZES:
            picked = [s[:, :n].argmax(1, keepdim=True) for s in scores]
            lines.append(row([str(n), *(share(right.gather(1, p)[:, 0]) for p in picked)]))
        console.print(*lines, sep="\n", highlight=False, soft_wrap=True)


def sampled(adapter, direction, specs, config: SamplingConfig, own: float = 0.0) -> list[Tensor]:
    """Return which outputs are right [P, G], their rewards, with the second term, their own."""
    parts = []
    examples = examples_of(direction, specs)
    for start in range(0, len(examples), AT_ONCE):
        part = rollout(adapter, examples[start : start + AT_ONCE], config, EVALUATION_SEED)
        right = verified(part)
        assert right is not None
        plain = dual_reward(adapter, part).cpu()
        both = dual_reward(adapter, part, own=own).cpu() if own else plain
        likely = part.drawn_logprobs.sum(-1).view_as(plain).cpu()
        parts.append((right, plain, both, likely))
    return [torch.cat(found) for found in zip(*parts, strict=True)]


if __name__ == "__main__":
    main()
