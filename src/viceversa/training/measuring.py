"""After training: base and tuned on held-out inputs, on one process, whatever trained the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from viceversa.config import Config, ConfigError
from viceversa.inference.sharding import is_sharded
from viceversa.inference.snapshot import Snapshot
from viceversa.measure.held_out import HeldOut, compare, write_all
from viceversa.models import load_adapter
from viceversa.models.base import Adapter
from viceversa.types import Direction, Example


def measure_held_out(
    adapter: Adapter,
    start: Snapshot | None,
    config: Config,
    checkpoint: Path | None,
    inputs: Mapping[Direction, Sequence[Example]],
) -> HeldOut:
    """Compare the model that was trained with the one it started from.

    `start` holds the starting weights, which are swapped in; where training kept none, the base is
    loaded again. A model in shards is read back from its last checkpoint, and its base loaded: only
    one process measures. Raises ConfigError where base or checkpoint cannot be loaded, or memory
    does not suffice for both.
    """
    try:
        tuned, base = adapter, adapter
        as_base: Callable[[], AbstractContextManager[None]] = nullcontext
        if start is not None and not is_sharded(adapter.model):
            as_base = start.restored
        else:
            base = load_adapter(config.model, config.lora, config.seed)
            base.model.requires_grad_(False)
        with as_base():
            written = write_all(base, inputs, config)
        if is_sharded(adapter.model):
            if checkpoint is None:
                raise ConfigError("no checkpoint was saved, and the model lies in shards")
            tuned = load_adapter(replace(config.model, path=str(checkpoint)))
        outputs = write_all(tuned, inputs, config)
        with as_base():
            return compare(base, written, outputs, config)
    except torch.OutOfMemoryError as error:
        raise ConfigError("memory does not suffice for the base beside the tuned model") from error
