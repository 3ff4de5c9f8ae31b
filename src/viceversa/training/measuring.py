"""After training: base and tuned on held-out inputs, on one process, whatever trained the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from viceversa.config import Config, ConfigError
from viceversa.data.sources import SHARE, Source
from viceversa.inference.sharding import is_sharded
from viceversa.measure.held_out import HeldOut, compare, write_all
from viceversa.models import load_adapter
from viceversa.models.base import Adapter
from viceversa.publish.card import INPUTS
from viceversa.report.skills import TASKS
from viceversa.training.trainer import DualRewardTrainer
from viceversa.types import Direction, Example


def unmeasured(
    config: Config, sources: Mapping[Direction, Source], verified: bool
) -> dict[str, str]:
    """Say, by direction, why none of its inputs is held out, and what to do.

    `verified`: the built-in world's inputs are measured by its verifier instead.
    """
    found: dict[str, str] = {}
    for direction, source in sources.items():
        if source.held_out or (verified and source.world):
            continue
        why = f"fewer than {SHARE} {INPUTS[direction]} are given. Give {SHARE} or more."
        if not config.eval.held_out_inputs:
            why = "eval.held_out_inputs is 0. Set it to 64 or leave it out."
        found[direction] = f"{TASKS[direction].capitalize()}: not measured, because {why}"
    return found


def measure_held_out(
    trainer: DualRewardTrainer,
    checkpoint: Path | None,
    inputs: Mapping[Direction, Sequence[Example]],
) -> HeldOut:
    """Compare the model that was trained with the one it started from.

    The starting weights are swapped in; where training kept none, the base is loaded again. A model
    in shards is read back from its last checkpoint, and its base loaded: only one process measures.
    Raises ConfigError where base or checkpoint cannot be loaded, or memory does not suffice.
    """
    adapter, start = trainer.adapter, trainer.step.reference
    config = config_that_fits(trainer)
    try:
        base, sharded = adapter, is_sharded(adapter.model)
        as_base: Callable[[], AbstractContextManager[None]] = nullcontext
        if start is not None and not sharded:
            as_base = start.restored
        else:
            base = load_adapter(config.model, config.lora, config.seed)
            base.model.requires_grad_(False)
        with as_base():
            written = write_all(base, inputs, config)
        outputs = write_all(whole(adapter, checkpoint, config), inputs, config)
        with as_base():
            return compare(base, written, outputs, config)
    except torch.OutOfMemoryError as error:
        raise ConfigError("memory does not suffice for both models' outputs") from error


def whole(adapter: Adapter, checkpoint: Path | None, config: Config) -> Adapter:
    """Return the model that was trained, for one process alone: read back where it is in shards.

    Raises ConfigError where the checkpoint cannot be loaded, or there is none.
    """
    if not is_sharded(adapter.model):
        return adapter
    if checkpoint is None:
        raise ConfigError("no checkpoint was saved, and the model lies in shards")
    return load_adapter(replace(config.model, path=str(checkpoint)))


def config_that_fits(trainer: DualRewardTrainer) -> Config:
    """Return the run's config with as many rows at once as memory has sufficed for."""
    config, step = trainer.config, trainer.step
    return replace(
        config,
        sampling=replace(config.sampling, batch_rows=step.rollout_rows.rows),
        reward=replace(config.reward, batch_rows=step.score_rows.rows),
    )
