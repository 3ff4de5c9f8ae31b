"""After training: base and tuned on held-out inputs, on one process, whatever trained the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from viceversa.config import Config, ConfigError
from viceversa.inference.sharding import is_sharded
from viceversa.measure.held_out import HeldOut, compare, write_all
from viceversa.models import load_adapter
from viceversa.models.base import Adapter
from viceversa.types import Direction, Example


def measure_held_out(
    adapter: Adapter,
    config: Config,
    checkpoint: Path | None,
    inputs: Mapping[Direction, Sequence[Example]],
) -> HeldOut:
    """Compare the model that was trained with the one it started from, which is loaded again.

    A model in shards is read back from its last checkpoint: only one process measures. Raises
    ConfigError where base or checkpoint cannot be loaded, or memory does not suffice for both.
    """
    try:
        base = load_adapter(config.model, config.lora, config.seed)
        base.model.requires_grad_(False)
        written = write_all(base, inputs, config)
        tuned = adapter
        if is_sharded(adapter.model):
            if checkpoint is None:
                raise ConfigError("no checkpoint was saved, and the model lies in shards")
            tuned = load_adapter(replace(config.model, path=str(checkpoint)))
        return compare(base, written, write_all(tuned, inputs, config), config)
    except torch.OutOfMemoryError as error:
        raise ConfigError("memory does not suffice for the base beside the tuned model") from error
