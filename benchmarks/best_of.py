"""The best of N outputs by the dual reward, against one output and the likeliest; prints tables.

python benchmarks/best_of.py                         # the bundled model
python benchmarks/best_of.py runs/latest/checkpoint-240
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from measured import EVALUATION_SEED, TASKS, row
from rich.console import Console
from torch import Tensor

from viceversa.config import ModelConfig, SamplingConfig
from viceversa.models import load_adapter
from viceversa.models.base import Adapter
from viceversa.rl.rewards import dual_reward
from viceversa.rl.rollout import rollout
from viceversa.scenes.evaluate import by_kind
from viceversa.scenes.examples import examples_of
from viceversa.scenes.language import caption
from viceversa.scenes.rewards import verified
from viceversa.scenes.spec import Spec, draw_specs
from viceversa.types import DIRECTIONS, Direction

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
        inputs = [caption(s) if direction == "t2i" else s.key() for s in specs]
        kinds = [s.kind for s in specs]

        def share(right: Tensor, kinds: list[str] = kinds, inputs: list[str] = inputs) -> str:
            found = by_kind(kinds, right.tolist(), inputs)
            low, high = found["interval"]
            return f"{found['accuracy']:.3f} [{low:.3f}, {high:.3f}]"

        right, *scores = sampled(
            adapter, direction, specs, SamplingConfig(group_size=16), (0.0, given.own)
        )
        greedy, _ = sampled(
            adapter, direction, specs, SamplingConfig(group_size=1, temperature=0.0), ()
        )
        names = ("the dual reward", "with the second term", "the output's own likelihood")
        console.print(f"\n{TASKS[direction]}; the likeliest tokens: {share(greedy[:, 0])}\n")
        lines = [row(["best of", *names]), row(["---"] * 4)]
        for n in SIZES:
            picked = [s[:, :n].argmax(1, keepdim=True) for s in scores]
            lines.append(row([str(n), *(share(right.gather(1, p)[:, 0]) for p in picked)]))
        console.print(*lines, sep="\n", highlight=False, soft_wrap=True)


def sampled(
    adapter: Adapter,
    direction: Direction,
    specs: Sequence[Spec],
    config: SamplingConfig,
    owns: Sequence[float],
    reader: Adapter | None = None,
) -> list[Tensor]:
    """Return which outputs are right, a reward for each weight of `owns`, and log-likelihoods.

    All [P, G]. `owns` are weights of the reward's second term; the log-likelihoods are those that
    outputs were sampled with, nats, summed. The reward is by `reader`, or by the model itself.
    """
    parts = []
    examples = examples_of(direction, specs)
    for start in range(0, len(examples), AT_ONCE):
        part = rollout(adapter, examples[start : start + AT_ONCE], config, EVALUATION_SEED)
        right = verified(part)
        assert right is not None
        rewards = [dual_reward(reader or adapter, part, own=own).cpu() for own in owns]
        likely = part.drawn_logprobs.sum(-1).view_as(right).cpu()
        parts.append((right, *rewards, likely))
    return [torch.cat(found) for found in zip(*parts, strict=True)]


if __name__ == "__main__":
    main()
