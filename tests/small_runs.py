"""A small training run of a tiny random model, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from builders import random_janus
from viceversa.config import Config, load_config
from viceversa.data.sources import load_questions, load_sources
from viceversa.data.stream import Stream
from viceversa.models.base import Adapter
from viceversa.training.arguments import training_arguments
from viceversa.training.trainer import DualRewardTrainer

SMALL = [
    "data.prompts_per_step=4",
    "data.images_per_step=4",
    "data.scenes_size=16",
    "sampling.group_size=4",
    "sampling.max_caption_tokens=8",
    "train.optim=sgd",
    "train.learning_rate=0.01",
    "train.max_grad_norm=0",  # clipping would hide a wrong scale
    "train.warmup_steps=0",
    "train.use_cpu=true",
]


def config(out: Path, *overrides: str) -> Config:
    """Settings of one step; it saves where `overrides` say when."""
    quick = [] if any("train.save_" in o for o in overrides) else ["train.save_strategy=no"]
    return load_config(None, ["steps=1", *SMALL, *quick, f"output_dir={out}", *overrides])


def trainer(settings: Config, adapter: Adapter | None = None, **kwargs: Any) -> DualRewardTrainer:
    adapter = adapter or random_janus()
    adapter.model.requires_grad_(False)
    for parameter in adapter.trainable_parameters():
        parameter.requires_grad_(True)
    args = training_arguments(settings)
    sources = load_sources(settings, adapter.image_size)
    questions = load_questions(settings)
    stream = Stream(settings, sources, args.gradient_accumulation_steps, questions)
    return DualRewardTrainer(adapter, settings, stream, args, **kwargs)


def weights(adapter: Adapter) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in adapter.model.state_dict().items()}


def check_same_update(
    found: dict[str, Tensor], wanted: dict[str, Tensor], start: dict[str, Tensor]
) -> None:
    """Each weight of two runs moved from the start alike, by the size of its own movement.

    A step is small, and what float32 rounds off the weights is up to 0.04 % of it.
    """
    assert found.keys() == wanted.keys() == start.keys()
    moved = 0
    for name, value in wanted.items():
        update = (value.double() - start[name].double()).norm()
        off = (found[name].double() - value.double()).norm()
        assert off <= 5e-3 * update, f"{name}: {off / update:.1e} of its update"
        moved += bool(update > 0)
    assert moved > 10


def trained(settings: Config, **kwargs: Any) -> tuple[dict[str, Tensor], DualRewardTrainer]:
    one = trainer(settings, **kwargs)
    one.train()
    return weights(one.adapter), one
