"""Run by torchrun, twice at once: one optimizer step under DDP, then the same under FSDP2."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from builders import random_janus
from viceversa.config import load_config
from viceversa.data import Stream, load_sources
from viceversa.logprobs import Policy
from viceversa.models.base import Adapter
from viceversa.run import training_arguments
from viceversa.trainer import DualRewardTrainer
from viceversa.types import ScoredRollout


def build(out: Path, overrides: list[str]) -> tuple[Adapter, DualRewardTrainer, list[Any]]:
    """The trainer of one process, and the rollouts that it will have made."""
    settings = load_config(None, [f"output_dir={out}", *overrides])
    adapter = random_janus()
    adapter.model.requires_grad_(False)
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
    return adapter, trainer, drawn


def weights_of(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone().contiguous() for n, p in adapter.model.named_parameters()}


def data_parallel(out: Path, overrides: list[str]) -> None:
    adapter, trainer, drawn = build(out / "run", overrides)
    trainer.train()
    logged = next(row for row in trainer.state.log_history if "loss" in row)
    (out / f"drawn-{dist.get_rank()}.json").write_text(json.dumps(drawn))
    (out / f"metrics-{dist.get_rank()}.json").write_text(json.dumps(logged))
    save_file(weights_of(adapter), out / f"weights-{dist.get_rank()}.safetensors")


def sharded(out: Path, overrides: list[str]) -> None:
    adapter, trainer, drawn = build(out / "sharded", overrides)
    policy = Policy(adapter).train()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    layers = list(adapter.model.model.language_model.layers)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    trained = {n: p for n, p in adapter.model.named_parameters() if p.requires_grad}
    assert all(isinstance(p, DTensor) for p in trained.values())
    trainer.model_wrapped = policy
    gathers = _count_gathers()
    (micro,) = trainer._make_micro_steps(trainer.train_dataset[dist.get_rank()], 0, 1)  # type: ignore[index]
    shards = sum(isinstance(m, FSDPModule) for m in policy.modules())
    # two directions, each sampled once and scored once
    assert 0 < len(gathers) <= 4 * shards, (len(gathers), shards)
    trainer.compute_loss(policy, micro).backward()
    gradients = {n: p.grad.full_tensor() for n, p in trained.items() if p.grad is not None}
    if dist.get_rank() == 0:
        (out / "drawn-sharded.json").write_text(json.dumps(drawn))
        save_file({n: g.contiguous() for n, g in gradients.items()}, out / "gradients.safetensors")


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
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
