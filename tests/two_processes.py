"""Run by torchrun, twice at once: three optimizer steps under DDP, then the first under FSDP2.

In the first step the first process has nothing to learn from, in the others a third of the groups
or two: processes hold rows of different numbers, and take one or two in a backward pass.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from builders import random_janus
from viceversa.config import LoraConfig, load_config
from viceversa.data.sources import load_sources
from viceversa.data.stream import Stream
from viceversa.inference.logprobs import Policy
from viceversa.inference.snapshot import local
from viceversa.models.base import Adapter
from viceversa.models.lora import add_lora
from viceversa.training.arguments import training_arguments
from viceversa.training.trainer import DualRewardTrainer
from viceversa.types import Reward, Rollout, ScoredRollout


def half_alike(reward: Reward) -> Reward:
    """In the first step, the first half of all processes' groups is of outputs all alike."""

    def rate(rollout: Rollout) -> Tensor:
        rewards = reward(rollout)
        alike = len(rewards) // 2
        if dist.is_initialized():
            alike = len(rewards) if dist.get_rank() == 0 else 0
        if rollout.step == 0:
            rewards[:alike] = rewards[:alike, :1]
        return rewards

    return rate


class Gradients(TrainerCallback):
    """Of every optimizer step, by `step/name`."""

    def __init__(self, adapter: Adapter):
        self.adapter = adapter
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, parameter in self.adapter.model.named_parameters():
            if parameter.grad is not None:
                self.found[f"{state.global_step}/{name}"] = parameter.grad.clone().contiguous()


def build(
    out: Path, overrides: list[str], lora: bool = False
) -> tuple[Adapter, DualRewardTrainer, list[Any]]:
    """The trainer of one process, and the rollouts that it will have made."""
    settings = load_config(None, [f"output_dir={out}", *overrides])
    adapter = random_janus()
    adapter.model.requires_grad_(False)
    if lora:
        add_lora(adapter, LoraConfig(rank=4), "base")
    else:
        for parameter in adapter.trainable_parameters():
            parameter.requires_grad_(True)
    args = training_arguments(settings)
    shares = args.gradient_accumulation_steps * args.world_size
    stream = Stream(settings, load_sources(settings, adapter.image_size), shares)
    drawn: list[Any] = []

    def remember(step: int, scored: ScoredRollout) -> None:
        sampled = scored.rollout
        ids, mask = sampled.completions.completion_ids, sampled.completions.completion_mask
        rows = [i[m].tolist() for i, m in zip(ids, mask, strict=True)]
        for k, example in enumerate(sampled.examples):
            group = rows[k * sampled.group_size : (k + 1) * sampled.group_size]
            drawn.append([sampled.direction, example.example_id, group])

    trainer = DualRewardTrainer(adapter, settings, stream, args, remember)
    trainer.step.rewards = [half_alike(reward) for reward in trainer.step.rewards]
    return adapter, trainer, drawn


def learn(trainer: DualRewardTrainer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Trains: the gradients and the metrics of every step."""
    gradients = Gradients(trainer.adapter)
    trainer.add_callback(gradients)
    trainer.train()
    return gradients.found, [row for row in trainer.state.log_history if "loss" in row]


def weights_of(adapter: Adapter) -> dict[str, Tensor]:
    return {n: p.detach().clone().contiguous() for n, p in adapter.model.named_parameters()}


def data_parallel(out: Path, overrides: list[str]) -> None:
    rank = os.environ["RANK"]
    adapter, trainer, drawn = build(out / "run", overrides)
    gradients, logged = learn(trainer)
    (out / f"drawn-{rank}.json").write_text(json.dumps(drawn))
    (out / f"metrics-{rank}.json").write_text(json.dumps(logged))
    save_file(gradients, out / f"gradients-{rank}.safetensors")
    save_file(weights_of(adapter), out / f"weights-{rank}.safetensors")


def shard(adapter: Adapter, policy: Policy) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in adapter.model.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in adapter.model.parameters())


def sharded(out: Path, overrides: list[str]) -> None:
    adapter, trainer, drawn = build(out / "sharded", overrides)
    policy = Policy(adapter).train()
    shard(adapter, policy)
    trainer.model_wrapped = policy
    gathers = _count_gathers()
    stream: Any = trainer.train_dataset
    (micro,), _ = trainer.step.rows(stream[dist.get_rank()], 0, 1)
    shards = sum(isinstance(m, FSDPModule) for m in policy.modules())
    # two directions, each sampled once and scored once
    assert 0 < len(gathers) <= 4 * shards, (len(gathers), shards)
    trainer.training_step(policy, micro, 1)
    trained: Any = dict(adapter.model.named_parameters())
    gradients = {n: p.grad.full_tensor() for n, p in trained.items() if p.grad is not None}
    if dist.get_rank() == 0:
        (out / "drawn-sharded.json").write_text(json.dumps(drawn))
        save_file({n: g.contiguous() for n, g in gradients.items()}, out / "sharded.safetensors")


def reloaded(out: Path, overrides: list[str], lora: bool) -> None:
    """What a sharded model's checkpoint holds comes back into its shards."""
    adapter, trainer, _ = build(out, overrides, lora)
    shard(adapter, trainer.model)  # type: ignore[arg-type]
    parameters: Any = dict(adapter.model.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():  # LoRA starts with zeros
            parameter.add_(parameter.requires_grad)
    wanted = {name: p.full_tensor().clone() for name, p in parameters.items()}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)  # as accelerate does
    trainer._save(str(out / "whole"), get_model_state_dict(trainer.model, options=options))  # type: ignore[arg-type]
    dist.barrier()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(1 - parameter.requires_grad)
    trainer._load_from_checkpoint(str(out / "whole"), trainer.model)
    for name, parameter in parameters.items():
        assert torch.equal(parameter.full_tensor(), wanted[name]), name


def stops_together(out: Path, overrides: list[str]) -> None:
    """What one process finds nan stops both: a reward, and a weight of its own shards."""
    alone = dist.get_rank() == 1
    adapter, trainer, _ = build(out, overrides)

    (honest,) = trainer.step.rewards
    trainer.step.rewards = [lambda rollout: honest(rollout) / 0 if alone else honest(rollout)]
    with pytest.raises(FloatingPointError, match=r"^t2i reward is -inf at step 1: stopped before"):
        trainer.train()
    shard(adapter, trainer.model)  # type: ignore[arg-type]
    trainer.check_weights()
    if alone:
        local(adapter.model.lm_head.weight)[-1, -1] = float("nan")
    with pytest.raises(FloatingPointError, match=r"1 weights are nan or infinite .lm_head.weight."):
        trainer.check_weights()


def _count_gathers() -> list[None]:
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group

    engine: Any = _fsdp_param_group

    honest, seen = engine.foreach_all_gather, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(None)
        return honest(*args, **kwargs)

    engine.foreach_all_gather = counted
    return seen


def main() -> None:
    out, overrides = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    data_parallel(out, overrides)
    assert dist.get_world_size() == 2
    sharded(out, overrides)
    if "loss.name=simpo" in overrides:  # once is enough
        reloaded(out / "reloaded", overrides, lora=False)
        reloaded(out / "reloaded-lora", overrides, lora=True)
        stops_together(out / "stopped", overrides)
    dist.destroy_process_group()
    gc.collect()  # a group's threads end with the trainers that hold it, not with the interpreter


if __name__ == "__main__":
    main()
