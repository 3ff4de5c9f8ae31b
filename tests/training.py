"""A small training run of a tiny random model, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from builders import random_janus
from viceversa.config import Config, load_config
from viceversa.data.sources import Stream, load_sources
from viceversa.models.base import Adapter
from viceversa.train.arguments import training_arguments
from viceversa.train.trainer import DualRewardTrainer

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
    return load_config(None, ["steps=1", *SMALL, f"output_dir={out}", *overrides])


def trainer(settings: Config, adapter: Adapter | None = None, **kwargs: Any) -> DualRewardTrainer:
    adapter = adapter or random_janus()
    adapter.model.requires_grad_(False)
    for parameter in adapter.trainable_parameters():
        parameter.requires_grad_(True)
    args = training_arguments(settings)
    sources = load_sources(settings, adapter.image_size)
    stream = Stream(settings, sources, args.gradient_accumulation_steps)
    return DualRewardTrainer(adapter, settings, stream, args, **kwargs)


def weights(adapter: Adapter) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in adapter.model.state_dict().items()}


def trained(settings: Config, **kwargs: Any) -> tuple[dict[str, Tensor], DualRewardTrainer]:
    one = trainer(settings, **kwargs)
    one.train()
    return weights(one.adapter), one
