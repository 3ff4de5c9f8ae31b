"""Several processes: sharded parameters gathered for a while, metrics of all ranks in one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

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


def is_sharded(model: nn.Module) -> bool:
    """By FSDP2: what the processes hold are parts of parameters."""
    return any(isinstance(p, DTensor) for p in model.parameters())


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
