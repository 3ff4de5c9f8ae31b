"""The trained weights at another time: a frozen or slowly averaged scorer, a reference.

Only what is trained is kept, so under LoRA a second model costs megabytes. Where the live weights
are sharded by FSDP2, each process keeps its own shards of the other ones, and no weight is gathered
to swap them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX
from torch.distributed.tensor import DTensor


def local(parameter: Tensor) -> Tensor:
    """Return what this process holds of a parameter: its shard, or all of it."""
    value = parameter.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what this process holds of each trained parameter, by its name in a checkpoint."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name.replace(_CHECKPOINT_PREFIX, ""), local(parameter)


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of the tensors in which a value is nan or infinite; waits for a GPU once."""
    named = list(tensors)
    if not named:
        return []
    whole = torch.stack([value.isfinite().all() for _, value in named]).tolist()
    return [name for (name, _), good in zip(named, whole, strict=True) if not good]


class Snapshot:
    """A copy of the trained parameters of `model`, as they are when it is made."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.weights: dict[str, Tensor] = {name: value.clone() for name, value in trained(model)}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Swap these weights in; swap the live ones back on exit.

        Sharded parameters must be in shards then, not gathered.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange values one parameter at a time, so that no third copy of the model exists.

        Values, not pointers: a sharded parameter's storage belongs to its engine.
        """
        for name, live in trained(self.model):
            before = live.clone()
            live.copy_(self.weights[name])
            self.weights[name].copy_(before)

    @torch.no_grad()
    def move_towards_model(self, share: float) -> None:
        """Take one step of a slow average: `share` of the way to the model's weights."""
        for name, live in trained(self.model):
            self.weights[name].lerp_(live, share)
