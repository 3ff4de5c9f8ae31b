"""Which skills a step learns from: the recipe's advantages on the base, against labels'.

    python benchmarks/advantages.py                  # the bundled model, 80 tuning specs a kind
    python benchmarks/advantages.py runs/latest/checkpoint-240    # late in training

Groups of 8 are drawn and captioned, read back by the bundled model and checked by the verifier. By
skill it prints: the share of right outputs; how often the reward ranks a right output above a wrong
one of its group; the share of the sum of squared advantages, by the recipe, with every prompt
weighed alike (the likelihood relative to the best of the group, not of the step), and by labels.
"""

from __future__ import annotations

import argparse

import torch
from best_of import sampled
from measured import EVALUATION_SEED, TASKS, row
from rich.console import Console
from torch import Tensor

from viceversa.config import ModelConfig, SamplingConfig, load_config
from viceversa.models import load_adapter
from viceversa.rl.selection import centred, likelihoods, wins_by_input
from viceversa.scenes.spec import KINDS, Spec, draw_specs
from viceversa.types import DIRECTIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", default="builtin")
    parser.add_argument("--specs", type=int, default=80, help="tuning specs of each kind")
    given = parser.parse_args()
    adapter, reader = (load_adapter(ModelConfig(path=p)) for p in (given.model, "builtin"))
    specs = draw_specs(EVALUATION_SEED, given.specs, "tune")
    reward = load_config("builtin").reward
    console = Console()
    for direction in DIRECTIONS:
        groups, own = SamplingConfig(group_size=8), reward.own(direction)
        right, rewards, _ = sampled(adapter, direction, specs, groups, [own], reader)
        power, best = reward.likelihood_power, float(rewards.max())
        step = centred(likelihoods(rewards, power, best))
        even = centred(likelihoods(rewards - rewards.amax(-1, keepdim=True), power, 0.0))
        shares = [by_kind(a.square().sum(-1), specs) for a in (step, even, centred(right.float()))]
        wins, pairs = (by_kind(x, specs) for x in wins_by_input(rewards, right))
        said = (
            ("right", by_kind(right.float().mean(-1), specs) / given.specs),
            ("ranked right", wins / pairs),
            ("share of the recipe's advantages", shares[0] / shares[0].sum()),
            ("every prompt weighed alike", shares[1] / shares[1].sum()),
            ("by labels", shares[2] / shares[2].sum()),
        )
        lines = [row([TASKS[direction], *KINDS]), row(["---"] * (len(KINDS) + 1))]
        lines += [row([name, *(f"{x:.2f}" for x in values.tolist())]) for name, values in said]
        console.print("", *lines, sep="\n", highlight=False, soft_wrap=True)


def by_kind(values: Tensor, specs: list[Spec]) -> Tensor:
    """Sum values [P] by their specs' kinds, in the order of KINDS."""
    which = torch.tensor([KINDS.index(s.kind) for s in specs])
    return torch.zeros(len(KINDS)).index_add(0, which, values.float())


if __name__ == "__main__":
    main()
