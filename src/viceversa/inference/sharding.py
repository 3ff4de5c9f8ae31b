"""Parameters sharded by FSDP2: gathered for a while, whole, and loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

T = TypeVar("T")


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
    """Tell whether FSDP2 shards the model, so that processes hold parts of parameters."""
    return any(isinstance(p, DTensor) for p in model.parameters())


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
