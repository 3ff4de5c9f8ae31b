"""Fixed rollouts, replayed in float64: losses and gradient norms stay what they were.

The pinned values were written by `python tests/rl/test_replay.py`. They are written again only
where a change means to change them: LOG.md then says why.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from builders import random_janus
from viceversa.config import Config, load_config
from viceversa.data.sources import load_sources
from viceversa.data.stream import Stream
from viceversa.rl.metrics import values
from viceversa.rl.rollout import input_prompts
from viceversa.rl.step import Step
from viceversa.types import Completion, Direction, Example, Rollout

PINNED = Path(__file__).with_name("replay.json")
GROUP = 4
CASES: dict[str, list[str]] = {
    "grpo": ["loss.name=grpo"],
    "grpo two updates": ["loss.name=grpo", "loss.updates_per_rollout=2", "steps=2"],
    "grpo group scale": ["loss.name=grpo", "reward.scale=group"],
    "grpo likelihoods": ["loss.name=grpo", "reward.likelihood_power=4", "loss.group_share=0.5"],
    "grpo kl": ["loss.name=grpo", "loss.t2i_kl=0.1", "loss.i2t_kl=0.2", "loss.i2t_weight=0.5"],
    "simpo": ["loss.name=simpo"],
    "simpo guided": ["loss.name=simpo", "loss.logprob_policy=guided", "sampling.guidance=2"],
    "dpo": ["loss.name=dpo"],
    "raft": ["loss.name=raft"],
}


def fixed_rollout(adapter: Any, examples: Sequence[Example], step: int) -> Rollout:
    """What would be sampled: the same whatever the model is, and without labels."""
    direction: Direction = examples[0].direction
    image = direction == "t2i"
    rng = np.random.default_rng([step, image])
    rows = len(examples) * GROUP
    length = np.full(rows, adapter.image_tokens) if image else rng.integers(1, 7, size=rows)
    ids = rng.integers(adapter.image_vocab_size, size=(rows, length.max()))
    mask = np.arange(ids.shape[1]) < length[:, None]
    return Rollout(
        direction,
        tuple(replace(e, reference=None) for e in examples),
        GROUP,
        input_prompts(adapter, examples, ""),
        Completion(torch.from_numpy(ids * mask), torch.from_numpy(mask)),
        torch.from_numpy(-8 * rng.random(ids.shape) * mask),
        texts=() if image else ("a red square",) * rows,
        truncated=None if image else torch.zeros(rows, dtype=torch.bool),
    )


def fixed_reward(rollout: Rollout) -> Tensor:
    rng = np.random.default_rng([rollout.direction == "t2i", 1])
    return torch.from_numpy(-4 - 2 * rng.random((len(rollout.examples), GROUP))).float()


def double_janus() -> Any:
    """A tiny Janus in float64, its weights drawn by NumPy, whose numbers no version changes."""
    adapter = random_janus()
    rng = np.random.default_rng(0)
    adapter.model.double().requires_grad_(False)
    for parameter in adapter.model.parameters():
        scale = 0.3 if parameter.ndim > 1 else 0.02
        parameter.data.copy_(torch.from_numpy(rng.standard_normal(parameter.shape)) * scale)
    for parameter in adapter.trainable_parameters():
        parameter.requires_grad_(True)
    return adapter


def replayed(overrides: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Loss and gradient norm of each direction, the reference a little away from the policy."""
    settings: Config = load_config(
        None,
        [
            "model.path=tiny",
            "steps=1",
            f"output_dir={out}",
            "data.scenes_size=8",
            "data.prompts_per_step=4",
            "data.images_per_step=4",
            f"sampling.group_size={GROUP}",
            "loss.direction_norms_every=0",
            *overrides,
        ],
    )
    adapter = double_janus()
    sources = load_sources(settings, adapter.image_size)
    stream: Any = Stream(settings, sources, 1)
    rewards = {"dual": fixed_reward}
    step = Step(adapter, settings, rewards)
    monkeypatch.setattr(step, "sample", partial(fixed_rollout, adapter))
    step.keep_start()
    (micro,), _ = step.rows(stream[0], 0, 1)
    rng = np.random.default_rng(1)
    for parameter in adapter.trainable_parameters():  # away from what sampled, and the reference
        parameter.data.add_(torch.from_numpy(rng.standard_normal(parameter.shape)), alpha=0.01)
    losses, metrics = step.losses(micro, step.logprobs(micro))
    torch.stack(list(losses.values())).sum().backward()
    grads = [p.grad for p in adapter.trainable_parameters() if p.grad is not None]
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    names = ("t2i/loss", "i2t/loss", "t2i/kl", "i2t/kl", "t2i/sampling_gap", "i2t/sampling_gap")
    named = {n: v for n, v in values(metrics).items() if n in names}
    return {**named, "grad_norm": float(norm)}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_pinned(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = json.loads(PINNED.read_text(encoding="utf-8"))[case]
    assert replayed(CASES[case], tmp_path, monkeypatch) == pytest.approx(pinned, rel=1e-6)


def main() -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = {case: replayed(CASES[case], Path("runs/replay"), patch) for case in CASES}
    PINNED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
