"""Several processes: sharded parameters gathered for a while, metrics of all ranks in one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from viceversa.config import ConfigError

T = TypeVar("T")

#: Metrics that count something, and are added over processes. Seconds are those of the slowest,
#: everything else is a mean.
COUNTS = (
    "groups",
    "degenerate_groups",
    "groups_left_out",
    "groups_too_unlikely",
    "tokens",
    "samples",
    "truncated",
    "invalid",
    "pairs",
    "ranking_pairs",
)
#: Means that not every process has, or over numbers that differ: weighted by another metric.
WEIGHTED = {"ranking": "ranking_pairs"}


def gathered(policy: nn.Module, work: Callable[[], T]) -> T:
    """Do `work` with the parameters gathered once, and not once in every forward.

    `policy` may be sharded by FSDP2 (`fully_shard`) or not. The work goes through its forward, so
    that its engine sees the root module first.
    """
    shards = [m for m in policy.modules() if isinstance(m, FSDPModule)]
    if not shards:
        return work()
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
    try:
        return policy(work)
    finally:
        for module in shards:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


def first_decides(work: Callable[[], T]) -> T:
    """Return on every process what `work` returns on the first one, or raise its ConfigError."""
    found: list[Any] = [None, None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            found[0] = work()
        except ConfigError as error:
            found[1] = str(error)
    if dist.is_initialized():
        dist.broadcast_object_list(found)
    if found[1] is not None:
        raise ConfigError(found[1])
    return found[0]


def is_sharded(model: nn.Module) -> bool:
    """By FSDP2: what the processes hold are parts of parameters."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def shard_with(accelerator: Accelerator, args: TrainingArguments, codec: nn.Module) -> None:
    """Have `accelerator` shard by FSDP2 as this package computes, when it prepares the model.

    - Log-probs, rewards and losses stay float32: accelerate would round to bfloat16 whatever leaves
      the root module. Gradients are summed over processes in float32.
    - `codec`, the frozen image tokenizer, stays whole and in its own precision on every process:
      image ids are the nearest codes in float32, and are cached.
    - On CPU processes, too: accelerate itself turns FSDP there into plain data parallelism.
    """
    state: Any = accelerator.state
    if state.distributed_type != DistributedType.FSDP:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)  # type: ignore[arg-type]
        state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # states copy it
    plugin: FullyShardedDataParallelPlugin = state.fsdp_plugin
    plugin.ignored_modules = [codec]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    plugin.mixed_precision_policy = dtype and MixedPrecisionPolicy(
        dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def whole_weights(policy: nn.Module) -> dict[str, Tensor]:
    """Gather the sharded parameters of `policy` by name: all on the first process, on the CPU."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(policy, options=options)  # type: ignore[return-value]


def load_sharded(model: nn.Module, read: Callable[[], dict[str, Tensor]]) -> None:
    """Whole weights by name into the shards of `model`; what is not named keeps its value.

    The first process alone reads, and hands on one tensor at a time. Raises RuntimeError for names
    that the model does not have.
    """
    weights: dict[str, Any] = read() if dist.get_rank() == 0 else {}
    unknown = weights.keys() - model.state_dict().keys()
    if unknown:
        raise RuntimeError(f"the model has no {sorted(unknown)[:3]} to load")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(model, weights, options=options)


def combine_metrics(ranks: Sequence[dict[str, float]]) -> dict[str, float]:
    """The metrics of all processes as those of one; what one lacks is nothing to add to a mean."""
    names = list(dict.fromkeys(name for metrics in ranks for name in metrics))
    return {name: _combined(name, ranks) for name in names}


def _combined(name: str, ranks: Sequence[dict[str, float]]) -> float:
    prefix, _, last = name.rpartition("/")
    values = [metrics[name] for metrics in ranks if name in metrics]
    if last in COUNTS:
        return sum(values)
    if last.endswith("_seconds"):
        return max(values)
    if last in WEIGHTED:
        by = f"{prefix}/{WEIGHTED[last]}"
        have = [(m[name], m.get(by, 0.0)) for m in ranks if name in m]
        total = math.fsum(weight for _, weight in have)
        return math.fsum(v * weight for v, weight in have) / total if total else math.nan
    return math.fsum(values) / len(ranks)  # of those with nothing to learn from, some are missing
