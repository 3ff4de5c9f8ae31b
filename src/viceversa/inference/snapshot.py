"""The trained weights of another time: a frozen or slowly averaged scorer, a reference.

Only what is trained is kept, so under LoRA a second model costs megabytes. Where the live weights
are sharded by FSDP2, each process keeps its own shards of the other ones, and no weight is gathered
to swap them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX
from torch.distributed.tensor import DTensor

from viceversa.inference.sharding import is_sharded, load_sharded, whole_weights


def local(parameter: Tensor) -> Tensor:
    """Return what this process holds of a parameter: its shard, or all of it."""
    value = parameter.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what this process holds of each trained parameter, by its name in a checkpoint."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name.replace(_CHECKPOINT_PREFIX, ""), local(parameter)


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


class Scorer:
    """The reader of outputs: the live policy, the model it started from, or a slow average."""

    def __init__(self, model: nn.Module, kind: str = "live", decay: float = 0.99):
        self.model, self.kind, self.decay = model, kind, decay
        self.snapshot: Snapshot | None = None

    def start(self) -> None:
        """Keep the weights as they are now, where it is not the live policy that reads."""
        if self.kind != "live":
            self.snapshot = Snapshot(self.model)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Swap the scorer's weights in; swap the live ones back on exit."""
        if self.kind == "live":
            yield
            return
        if self.snapshot is None:
            raise RuntimeError("the scorer has no weights: call start() before training")
        with self.snapshot.restored():
            yield

    def after_step(self) -> None:
        """Move the slow average, if it is one, towards the policy."""
        if self.snapshot is not None and self.kind == "average":
            self.snapshot.move_towards_model(1 - self.decay)

    @property
    def changes(self) -> bool:
        """Tell whether a checkpoint has to hold its weights; a frozen scorer is the start."""
        return self.kind == "average" and self.snapshot is not None

    def state(self) -> dict[str, Tensor]:
        """Return the slow average by name: all of it on the first process, if it is in shards."""
        assert self.snapshot is not None
        if not is_sharded(self.model):
            return self.snapshot.weights
        with self.snapshot.restored():
            whole = whole_weights(self.model)
        return {name: whole[name] for name in self.snapshot.weights if name in whole}

    def load(self, read: Callable[[], dict[str, Tensor]]) -> None:
        """Take over what `state` returned; sharded, only the first process reads."""
        assert self.snapshot is not None
        with self.snapshot.restored():
            if is_sharded(self.model):
                load_sharded(self.model, read)
            else:
                self.model.load_state_dict(read(), strict=False)
