"""Several processes: how the model is sharded, and what the step asks of the others."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainingArguments

from viceversa.config import ConfigError
from viceversa.types import Ranks

T = TypeVar("T")


class Processes(Ranks):
    """The processes that `accelerator` runs in."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.count = accelerator, accelerator.num_processes

    def gather(self, mine: list[Any]) -> list[Any]:
        return gather_object(mine) if self.count > 1 else mine

    def sum(self, mine: list[float]) -> list[float]:
        if self.count == 1:
            return mine
        parts = torch.tensor(mine, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(parts, "sum").tolist()  # type: ignore[union-attr]


def leave_group_at_exit() -> None:
    """Have this process close its process group when it ends, which no library used here does.

    The threads of a group still open while the interpreter is torn down may abort the process.
    """
    if dist.is_initialized():
        atexit.unregister(_leave_group)  # of an earlier run in this process
        atexit.register(_leave_group)


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


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
